"""The activation in vLLM's LoRA path: between "shrink" (``A x``) and "expand" (``B h``), row by row.

A batch mixes requests of the base model, of LoRA and of MonoLoRA adapters; each token is a row of the buffer between
the two products. One operation serves all of them: every row is clamped to its own bounds,

    MonoLoRA   [0, inf]      max(z, 0), the activation
    LoRA       [-inf, inf]   nothing
    base       [0, 0]        zero

so there is no branch for a compiler or a CUDA graph to freeze. The bounds are one persistent tensor, rewritten when
vLLM rewrites its own map from rows to adapters. On a GPU vLLM's kernels leave out the rows of the base; on a CPU, in
0.32, its operations take the index -1 of "no adapter" for the last slot, and the base is answered through that adapter.

In ``add_expand`` the activation follows all that vLLM does with the buffer: under fully sharded LoRA the sum over the
ranks of a row-parallel layer, which must precede ReLU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

# Bounds of the base's rows, and of units by activation.
BASE_BOUNDS = (0.0, 0.0)
ACTIVATION_BOUNDS = {"relu": (0.0, torch.inf), "identity": (-torch.inf, torch.inf)}

if TYPE_CHECKING:
    from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase
else:
    PunicaWrapperBase = object  # at run time vLLM's class for the device: see `gated_class`


class Gate(PunicaWrapperBase):
    """Mixin over a ``PunicaWrapper`` of vLLM."""

    bounds: torch.Tensor  # (2, rows, 1): lower and upper bound of a unit, by row (token)
    slot_bounds: torch.Tensor  # (2, slots + 1, 1): the same by slot

    def __init__(self, max_num_batched_tokens: int, *args: Any, **kwargs: Any) -> None:
        """vLLM's own arguments; ``lora_config`` says how many adapters can be in one batch."""
        super().__init__(max_num_batched_tokens, *args, **kwargs)
        slots = kwargs["lora_config"].max_loras
        low_high = torch.tensor([ACTIVATION_BOUNDS["identity"]] * slots + [BASE_BOUNDS], device=self.device)
        self.slot_bounds = low_high.T[..., None].contiguous()  # the base is last: its index is -1
        self.bounds = self.slot_bounds[:, -1:].repeat(1, max_num_batched_tokens, 1)

    def set_activation(self, slot: int, activation: str) -> None:
        """Set the activation of the adapter in a slot, from the next ``update_metadata`` on."""
        low_high = torch.tensor(ACTIVATION_BOUNDS[activation], device=self.device)
        self.slot_bounds[:, slot] = low_high[:, None]

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """vLLM's own, then the bounds of every row of the new batch."""
        super().update_metadata(*args, **kwargs)
        slots_N = self.token_lora_indices
        self.bounds[:, : len(slots_N)] = self.slot_bounds[:, slots_N]

    def add_expand(self, y: torch.Tensor, x: Any, *args: Any, **kwargs: Any) -> Any:
        """``y += B act(x)``, where vLLM has ``y += B x``; ``x`` is its buffer ``A x``, one ``(N, R)`` a slice."""
        self._activate(x)
        return super().add_expand(y, x, *args, **kwargs)

    def _activate(self, units_NR: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        """In place; all slices of a fused layer at once where they are one tensor."""
        for z_NR in [units_NR] if isinstance(units_NR, torch.Tensor) else units_NR:
            low_N1, high_N1 = self.bounds[:, : z_NR.shape[-2]]
            z_NR.clamp_(low_N1, high_N1)


class CpuGate(Gate):
    """On a CPU, where vLLM runs LoRA without compilation: a batch of one activation is clamped at once.

    vLLM's operations here change the base's rows too, which are restored: zero times the last slot's B is not zero
    where B is infinite.
    """

    same_for_all: tuple[float, float] | None = None
    prompt_slot: int | None = None  # of the one request whose prompt's logits are computed; None while all sample

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        super().update_metadata(*args, **kwargs)
        kinds = {tuple(self.slot_bounds[:, slot, 0].tolist()) for slot in self.token_lora_indices.unique().tolist()}
        self.same_for_all = kinds.pop() if len(kinds) == 1 else None

    def _activate(self, units_NR: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        if self.same_for_all == ACTIVATION_BOUNDS["identity"]:
            return
        if self.same_for_all is None:
            super()._activate(units_NR)
            return
        for z_NR in units_NR:
            z_NR.clamp_(*self.same_for_all)

    def add_expand(self, y: torch.Tensor, x: Any, *args: Any, **kwargs: Any) -> Any:
        """The gate's, for tokens of requests that have an adapter."""
        return self._but_for_base(self.token_lora_indices, super().add_expand, y, x, *args, **kwargs)

    def add_lora_logits(self, y: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """vLLM's own, for requests that have an adapter."""
        slots_N = self.sampler_indices.clone()
        if self.prompt_slot is not None:
            self._set_sampler_indices(slots_N.new_full((len(y),), self.prompt_slot))
        try:
            return self._but_for_base(self.sampler_indices, super().add_lora_logits, y, *args, **kwargs)
        finally:
            self._set_sampler_indices(slots_N)

    def _set_sampler_indices(self, slots_N: torch.Tensor) -> None:
        self._sampler_indices[: len(slots_N)] = slots_N
        self.indices_len[1] = len(slots_N)

    def add_lora_embedding(self, y: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """vLLM's own, for tokens of requests that have an adapter."""
        return self._but_for_base(self.token_lora_indices, super().add_lora_embedding, y, *args, **kwargs)

    @staticmethod
    def _but_for_base(
        slots_N: torch.Tensor, add: Callable[..., Any], y: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """Run ``add``, which adds to the rows of ``y``, and put the base's rows back."""
        base_N = slots_N < 0
        if base_N.all():
            return None
        if not base_N.any():
            return add(y, *args, **kwargs)
        base_rows = y[base_N]
        added = add(y, *args, **kwargs)
        y[base_N] = base_rows
        return added


def get_punica_wrapper(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Around vLLM's ``get_punica_wrapper(rows, max_batches, device, lora_config)``: the same class, with a gate.

    On other devices it stays vLLM's own, and MonoLoRA adapters are refused when loaded.
    """
    from vllm.platforms import current_platform
    from vllm.utils.import_utils import resolve_obj_by_qualname

    punica_class = resolve_obj_by_qualname(current_platform.get_punica_wrapper())
    if punica_class.__name__ not in _GATES:
        return original(*args, **kwargs)
    return gated_class(punica_class)(*args, **kwargs)


_GATES: dict[str, type[Gate]] = {"PunicaWrapperCPU": CpuGate, "PunicaWrapperGPU": Gate}


@functools.cache
def gated_class(punica_class: type) -> type[Any]:
    """The class with a gate over vLLM's class for a device."""
    gate = _GATES[punica_class.__name__]
    return type(f"Gated{punica_class.__name__}", (gate, punica_class), {"__module__": __name__})


def gates(manager: Any) -> set[Gate]:
    """The gates of a ``LoRAModelManager``: one, or one a part of a multimodal model."""
    return {wrapper for wrapper in manager.punica_wrapper_mapping.values() if isinstance(wrapper, Gate)}


def activate_adapter(original: Callable[..., bool], manager: Any, lora_id: int) -> bool:
    """Around ``LoRAModelManager.activate_adapter``: the adapter's slot gets its activation."""
    activated = original(manager, lora_id)
    if activated:
        slot = manager.lora_index_to_id.index(lora_id)
        for gate in gates(manager):
            gate.set_activation(slot, manager.get_adapter(lora_id).activation)
        manager._last_mapping = None  # otherwise vLLM keeps the bounds if only an activation has changed
    return activated


def prompt_logprobs(
    original: Callable[..., dict[str, Any]], runner: Any, hidden_states: torch.Tensor, tokens: Mapping[str, int]
) -> dict[str, Any]:
    """Around ``GPUModelRunner._get_prompt_logprobs_dict``, which a CPU's runner has too: one request after the other.

    It asks for the logits of a request's prompt, whose rows are that request's tokens. vLLM's operations on a CPU take
    them for the rows of a batch that samples, one a request: an error that ends the engine, or another's adapter.
    """
    cpu_gates = _cpu_gates(runner)
    if not cpu_gates:
        return original(runner, hidden_states, tokens)
    logprobs: dict[str, Any] = {}
    waiting = runner.num_prompt_logprobs
    try:
        for request in [request for request in waiting if request in tokens]:
            adapter = runner.input_batch.request_lora_mapping[runner.input_batch.req_id_to_index[request]]
            slots = runner.lora_manager._adapter_manager.lora_index_to_id
            for gate in cpu_gates:
                gate.prompt_slot = slots.index(adapter) if adapter else -1
            runner.num_prompt_logprobs = {request: waiting[request]}
            logprobs |= original(runner, hidden_states, tokens)
            if not runner.num_prompt_logprobs:  # its whole prompt has been seen
                del waiting[request]
    finally:
        runner.num_prompt_logprobs = waiting
        for gate in cpu_gates:
            gate.prompt_slot = None
    return logprobs


def _cpu_gates(runner: Any) -> list[CpuGate]:
    if not runner.lora_config or not runner.num_prompt_logprobs:
        return []
    return [gate for gate in gates(runner.lora_manager._adapter_manager) if isinstance(gate, CpuGate)]
