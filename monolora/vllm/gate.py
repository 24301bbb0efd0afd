"""The activation in vLLM's LoRA path: between "shrink" (``A x``) and "expand" (``B h``), row by row.

A batch mixes requests of the base model, of LoRA and of MonoLoRA adapters; each token is a row of the buffer between
the two products. One operation serves all whose activation is a clamp: every row is clamped to its own bounds,

    relu       [0, inf]      max(z, 0), the activation
    LoRA       [-inf, inf]   nothing
    base       [0, 0]        zero

so there is no branch for a compiler or a CUDA graph to freeze. Rows of any other activation pass it as LoRA's do; then
the activation of each such slot is computed for all rows, and kept for the slot's own. Nothing is computed without one:
what an engine computes changes with the adapters in its slots, so on a GPU it must not have been compiled.

 The bounds are one persistent tensor, rewritten when
vLLM rewrites its own map from rows to adapters. On a GPU vLLM's kernels leave out the rows of the base; on a CPU, in
0.32, its operations take the index -1 of "no adapter" for the last slot, and the base is answered through that adapter.

On a CPU vLLM's operations also copy A and B for every row. :class:`CpuGate` multiplies linear layers adapter by adapter
instead; ``MONOLORA_STOCK_LORA=1`` leaves them to vLLM's operations.

In ``add_expand`` the activation follows all that vLLM does with the buffer: under fully sharded LoRA the sum over the
ranks of a row-parallel layer, which must precede ReLU.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from monolora.activations import CONTROL, LINEAR_BOUNDS, activation_named
from monolora.vllm.products import Group, Joined, Product, is_clamp, row_bounds

# Bounds of the base's rows.
BASE_BOUNDS = (0.0, 0.0)


# Of an adapter's units, by the identity of a layer's stacked B: ``(slices, R)``, zero beyond the rank.
Thresholds = Mapping[int, torch.Tensor]

if TYPE_CHECKING:
    from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase
else:
    PunicaWrapperBase = object  # at run time vLLM's class for the device: see `gated_class`


class Gate(PunicaWrapperBase):
    """Mixin over a ``PunicaWrapper`` of vLLM."""

    is_eager = False  # whether this vLLM neither compiles the model nor records it as a graph
    bounds: torch.Tensor  # (2, rows, 1): lower and upper bound of a unit, by row (token)
    slot_bounds: torch.Tensor  # (2, slots + 1, 1): the same by slot
    row_slots: torch.Tensor  # (rows, 1): the slot of each row, -1 for the base
    thresholds: dict[int, Thresholds]  # by slot
    computed: dict[int, str]  # slot to activation, where it is more than a clamp, in this batch
    next_computed: dict[int, str]  # the same in the next one

    def __init__(self, max_num_batched_tokens: int, *args: Any, **kwargs: Any) -> None:
        """vLLM's own arguments; ``lora_config`` says how many adapters can be in one batch."""
        super().__init__(max_num_batched_tokens, *args, **kwargs)
        slots = kwargs["lora_config"].max_loras
        low_high = torch.tensor([LINEAR_BOUNDS] * slots + [BASE_BOUNDS], device=self.device)
        self.slot_bounds = low_high.T[..., None].contiguous()  # the base is last: its index is -1
        self.bounds = self.slot_bounds[:, -1:].repeat(1, max_num_batched_tokens, 1)
        self.row_slots = torch.full((max_num_batched_tokens, 1), -1, device=self.device)
        self.thresholds, self.computed, self.next_computed = {}, {}, {}

    def set_activation(self, slot: int, activation: str, thresholds: Thresholds | None = None) -> None:
        """Set the activation of the adapter in a slot, from the next ``update_metadata`` on."""
        low_high = torch.tensor(row_bounds(activation), device=self.device)
        self.slot_bounds[:, slot] = low_high[:, None]
        self.thresholds[slot] = thresholds or {}
        self.next_computed.pop(slot, None)
        if not is_clamp(activation):
            self.next_computed[slot] = activation

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """vLLM's own, then the bounds of every row of the new batch."""
        super().update_metadata(*args, **kwargs)
        slots_N = self.token_lora_indices
        self.bounds[:, : len(slots_N)] = self.slot_bounds[:, slots_N]
        self.row_slots[: len(slots_N), 0] = slots_N
        self.computed = dict(self.next_computed)

    def add_expand(
        self, y: torch.Tensor, x: Any, lora_b_stacked: Sequence[torch.Tensor], *args: Any, **kwargs: Any
    ) -> Any:
        """``y += B act(x)``, where vLLM has ``y += B x``; ``x`` is its buffer ``A x``, one ``(N, R)`` a slice."""
        self._activate(x)
        if self.computed:
            self._compute(x, lora_b_stacked)
        return super().add_expand(y, x, lora_b_stacked, *args, **kwargs)

    def _activate(self, units_NR: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        """In place; all slices of a fused layer at once where they are one tensor."""
        for z_NR in [units_NR] if isinstance(units_NR, torch.Tensor) else units_NR:
            low_N1, high_N1 = self.bounds[:, : z_NR.shape[-2]]
            z_NR.clamp_(low_N1, high_N1)

    def _compute(self, units_NR: torch.Tensor | tuple[torch.Tensor, ...], b_stacked: Sequence[torch.Tensor]) -> None:
        """In place, the activations that are more than a clamp; slice by slice, as each has units of its own."""
        for number, z_NR in enumerate(units_NR):
            slot_N1 = self.row_slots[: len(z_NR)]
            for slot, activation in self.computed.items():
                threshold_R = self._threshold(slot, b_stacked, z_NR)[number]
                z_NR.copy_(torch.where(slot_N1 == slot, activation_named(activation)(z_NR, -1, threshold_R), z_NR))

    def _threshold(self, slot: int, b_stacked: Sequence[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
        """``(slices, R)``; zeros where the adapter leaves the layer alone, or has no thresholds."""
        threshold_CR = self.thresholds.get(slot, {}).get(id(b_stacked))
        return like.new_zeros(len(b_stacked), b_stacked[0].shape[-1]) if threshold_CR is None else threshold_CR


FEW_ROWS = (
    128  # up to here one product for all adapters, of which each row keeps its own's units, is faster than one each
)


class CpuGate(Gate):
    """On a CPU, where vLLM runs LoRA without compilation: the rows of an adapter are multiplied together.

    That holds for linear layers. Logits, embeddings and sharded adapters go through vLLM's own operations, which change
    the base's rows too; these are restored, since zero times the last slot's B is not zero where B is infinite.
    """

    is_eager = True
    prompt_slot: int | None = None  # of the one request whose prompt's logits are computed; None while all sample

    def __init__(self, max_num_batched_tokens: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(max_num_batched_tokens, *args, **kwargs)
        self.groups: list[Group] = []
        self._is_stock = os.environ.get("MONOLORA_STOCK_LORA") == "1"
        # By slot, and by the identity of a layer's stacked B, which is kept so that no other object gets that identity.
        self._products: dict[int, dict[int, tuple[Sequence[torch.Tensor], Product]]] = {}
        self._joined: dict[int, Joined | None] = {}  # of the batch's adapters, by the identity of a layer's stacked B
        self._joined_groups: list[tuple[int, str]] = []  # that they are of
        self._activations: dict[int, str] = {}  # by slot

    def set_activation(self, slot: int, activation: str, thresholds: Thresholds | None = None) -> None:
        """Set the activation of the adapter that has just been put into a slot."""
        super().set_activation(slot, activation, thresholds)
        self._activations[slot] = activation
        self._products.pop(slot, None)
        self._joined.clear()

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        super().update_metadata(*args, **kwargs)
        slots_N = self.token_lora_indices
        self.groups = [
            Group(slot, _rows(slots_N == slot), self._activations.get(slot, CONTROL))
            for slot in slots_N.unique().tolist()
            if slot >= 0
        ]
        if (groups := [(group.slot, group.activation) for group in self.groups]) != self._joined_groups:
            self._joined.clear()
            self._joined_groups = groups

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """``y += B act(A x) scale`` for the rows of each adapter, in the dtype of ``y``; vLLM has float32 units."""
        if self._is_stock:
            return super().add_lora_linear(y, x, lora_a_stacked, lora_b_stacked, scale, *args, **kwargs)
        products = [self._product(group.slot, lora_a_stacked, lora_b_stacked, y.dtype) for group in self.groups]
        joined = self._join(y, lora_b_stacked, products)
        if joined is not None:
            z_NU = x.to(y.dtype) @ joined.A_IU
            if scale != 1:
                z_NU *= scale
            own_NU = self.token_lora_indices[:, None] == joined.slot_U
            y.addmm_(torch.where(own_NU, joined.activate(z_NU), 0), joined.B_UO)
            return None
        for group, product in zip(self.groups, products, strict=True):
            if not product.expands:
                continue
            z_NU = x[group.rows].to(y.dtype) @ product.A_IU
            if scale != 1:
                z_NU *= scale
            h_NU = product.activate(z_NU, group.activation)
            for columns, units, B_UO in product.expands:
                if isinstance(group.rows, slice):
                    y[group.rows, columns].addmm_(h_NU[:, units], B_UO)
                else:
                    y[:, columns].index_add_(0, group.rows, h_NU[:, units] @ B_UO)
        return None

    def _join(self, y: torch.Tensor, b_stacked: Sequence[torch.Tensor], products: Sequence[Product]) -> Joined | None:
        if len(products) < 2 or len(y) > FEW_ROWS or len(y) != len(self.token_lora_indices):
            return None
        if id(b_stacked) not in self._joined:
            self._joined[id(b_stacked)] = Joined.of(self.groups, products, y.shape[1])
        return self._joined[id(b_stacked)]

    def _product(
        self, slot: int, a_stacked: Sequence[torch.Tensor], b_stacked: Sequence[torch.Tensor], dtype: torch.dtype
    ) -> Product:
        of_slot = self._products.setdefault(slot, {})
        if id(b_stacked) not in of_slot:
            a_CRI, b_COR = [a[slot, 0] for a in a_stacked], [b[slot, 0] for b in b_stacked]
            product = Product.of(a_CRI, b_COR, dtype, self._threshold(slot, b_stacked, a_CRI[0].float()))
            of_slot[id(b_stacked)] = (b_stacked, product)
        return of_slot[id(b_stacked)][1]

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


def _rows(chosen_N: torch.Tensor) -> slice | torch.Tensor:
    numbers = chosen_N.nonzero()[:, 0]
    first, last = int(numbers[0]), int(numbers[-1])
    return slice(first, last + 1) if last - first + 1 == len(numbers) else numbers


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


def create_lora_manager(original: Callable[..., Any], *args: Any, vllm_config: Any, **kwargs: Any) -> Any:
    """Around vLLM's maker of a ``LoRAModelManager``, the last that sees the engine's config."""
    manager = original(*args, vllm_config=vllm_config, **kwargs)
    for gate in gates(manager):
        gate.is_eager = gate.is_eager or vllm_config.model_config.enforce_eager
    return manager


def activate_adapter(original: Callable[..., bool], manager: Any, lora_id: int) -> bool:
    """Around ``LoRAModelManager.activate_adapter``: the adapter's slot gets its activation."""
    activated = original(manager, lora_id)
    if activated:
        slot = manager.lora_index_to_id.index(lora_id)
        adapter = manager.get_adapter(lora_id)
        for gate in gates(manager):
            thresholds = {
                id(layer.lora_b_stacked): _stacked(adapter.thresholds[name], layer.lora_b_stacked).to(gate.device)
                for name, layer in manager.modules.items()
                if name in adapter.thresholds
            }
            gate.set_activation(slot, adapter.activation, thresholds)
        manager._last_mapping = None  # otherwise vLLM keeps the bounds if only an activation has changed
    return activated


def _stacked(thresholds: Sequence[torch.Tensor | None], b_stacked: Sequence[torch.Tensor]) -> torch.Tensor:
    """Those of a layer's modules as ``(slices, R)``; of one module that vLLM has in several slices, once for each."""
    stacked_CR = torch.zeros(len(b_stacked), b_stacked[0].shape[-1])
    of_slices = list(thresholds) * len(b_stacked) if len(thresholds) == 1 else thresholds
    for row_R, threshold in zip(stacked_CR, of_slices, strict=True):
        if threshold is not None:
            row_R[: len(threshold)] = threshold.flatten()
    return stacked_CR


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
