"""The activation in vLLM's LoRA path: between "shrink" (``A x``) and "expand" (``B h``), row by row.

A batch mixes requests of the base model, of LoRA and of MonoLoRA adapters; each token is a row of the buffer between
the two products. One operation serves all of them: every row is clamped to its own bounds,

    MonoLoRA   [0, inf]      max(z, 0), the activation
    LoRA       [-inf, inf]   nothing
    base       [0, 0]        zero

so there is no branch for a compiler or a CUDA graph to freeze. The bounds are one persistent tensor, rewritten when
vLLM rewrites its own map from rows to adapters. On a GPU vLLM's kernels leave out the rows of the base; on a CPU, in
0.32, its operations take the index -1 of "no adapter" for the last slot, and the base is answered through that adapter.

On a CPU vLLM's operations also copy A and B for every row. :class:`CpuGate` multiplies linear layers adapter by adapter
instead; ``MONOLORA_STOCK_LORA=1`` leaves them to vLLM's operations.

In ``add_expand`` the activation follows all that vLLM does with the buffer: under fully sharded LoRA the sum over the
ranks of a row-parallel layer, which must precede ReLU.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

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


class Group(NamedTuple):
    """The rows of a batch that go through one adapter.

    Attributes:
        slot: of the adapter.
        rows: a range where they are next to each other, else their numbers.
        bounds: of its units, as in ``ACTIVATION_BOUNDS``.
    """

    slot: int
    rows: slice | torch.Tensor
    bounds: tuple[float, float]


class Product(NamedTuple):
    """What one adapter adds to a linear layer, in its units that are not zero throughout.

    Attributes:
        A_IU: of all slices of a fused layer, side by side.
        expands: of each B, the columns of the output, the units, and ``(units, columns)``.
    """

    A_IU: torch.Tensor
    expands: tuple[tuple[slice, slice, torch.Tensor], ...]

    @classmethod
    def of(cls, a_CRI: Sequence[torch.Tensor], b_COR: Sequence[torch.Tensor], dtype: torch.dtype) -> Product:
        """From one adapter's A and B of each slice, in the dtype of the layer's output.

        A rank below ``max_lora_rank`` and a module that the adapter leaves alone are zeros in vLLM's tensors.
        """
        A_UI, B_CUO = [], []
        for A_RI, B_OR in zip(a_CRI, b_COR, strict=True):
            kept_R = A_RI.any(1) | B_OR.any(0)
            A_UI.append(A_RI[kept_R].to(dtype))
            B_CUO.append(B_OR.T[kept_R].to(dtype).contiguous())
        units = [len(B_UO) for B_UO in B_CUO]
        if 0 < sum(units) <= FEW_UNITS:
            blocks = [(slice(None), slice(None), torch.block_diag(*B_CUO))]
        else:
            columns, rows = _ranges([B_UO.shape[1] for B_UO in B_CUO]), _ranges(units)
            blocks = [part for part in zip(columns, rows, B_CUO, strict=True) if len(part[2])]
        return cls(torch.cat(A_UI).T.contiguous(), tuple(blocks))


FEW_UNITS = 48  # up to here one product with a block-diagonal B is faster than one a slice
FEW_ROWS = (
    128  # up to here one product for all adapters, of which each row keeps its own's units, is faster than one each
)


class Joined(NamedTuple):
    """The products of several adapters side by side.

    Attributes:
        A_IU: their A.
        B_UO: their B, one below the other.
        slot_U: the slot of each unit's adapter.
        bounds_2U: of each unit.
    """

    A_IU: torch.Tensor
    B_UO: torch.Tensor
    slot_U: torch.Tensor
    bounds_2U: torch.Tensor

    @classmethod
    def of(cls, groups: Sequence[Group], products: Sequence[Product], outputs: int) -> Joined | None:
        """None where an adapter's slices are multiplied apart, or where zero times a B may not be zero."""
        parts = [(group, product) for group, product in zip(groups, products, strict=True) if product.expands]
        B_CUO = [B_UO for _, product in parts for *_, B_UO in product.expands]
        units = [product.A_IU.shape[1] for _, product in parts]
        if not parts or [B_UO.shape for B_UO in B_CUO] != [(count, outputs) for count in units]:
            return None
        if not all(B_UO.isfinite().all() for B_UO in B_CUO):
            return None
        repeats = torch.tensor(units)
        bounds_2C = torch.tensor([group.bounds for group, _ in parts], dtype=B_CUO[0].dtype).T
        return cls(
            torch.cat([product.A_IU for _, product in parts], 1),
            torch.cat(B_CUO),
            torch.tensor([group.slot for group, _ in parts]).repeat_interleave(repeats),
            bounds_2C.repeat_interleave(repeats, 1),
        )


def _ranges(sizes: Sequence[int]) -> list[slice]:
    ends = list(itertools.accumulate(sizes, initial=0))
    return [slice(start, end) for start, end in itertools.pairwise(ends)]


class CpuGate(Gate):
    """On a CPU, where vLLM runs LoRA without compilation: the rows of an adapter are multiplied together.

    That holds for linear layers. Logits, embeddings and sharded adapters go through vLLM's own operations, which change
    the base's rows too; these are restored, since zero times the last slot's B is not zero where B is infinite.
    """

    prompt_slot: int | None = None  # of the one request whose prompt's logits are computed; None while all sample

    def __init__(self, max_num_batched_tokens: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(max_num_batched_tokens, *args, **kwargs)
        self.groups: list[Group] = []
        self._is_stock = os.environ.get("MONOLORA_STOCK_LORA") == "1"
        # By slot, and by the identity of a layer's stacked B, which is kept so that no other object gets that identity.
        self._products: dict[int, dict[int, tuple[Sequence[torch.Tensor], Product]]] = {}
        self._joined: dict[int, Joined | None] = {}  # of the batch's adapters, by the identity of a layer's stacked B
        self._joined_groups: list[tuple[int, tuple[float, float]]] = []  # that they are of

    def set_activation(self, slot: int, activation: str) -> None:
        """Set the activation of the adapter that has just been put into a slot."""
        super().set_activation(slot, activation)
        self._products.pop(slot, None)
        self._joined.clear()

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        super().update_metadata(*args, **kwargs)
        slots_N = self.token_lora_indices
        self.groups = [
            Group(slot, _rows(slots_N == slot), tuple(self.slot_bounds[:, slot, 0].tolist()))
            for slot in slots_N.unique().tolist()
            if slot >= 0
        ]
        if (groups := [(group.slot, group.bounds) for group in self.groups]) != self._joined_groups:
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
            z_NU = torch.clamp(z_NU, *joined.bounds_2U)
            own_NU = self.token_lora_indices[:, None] == joined.slot_U
            y.addmm_(torch.where(own_NU, z_NU, 0), joined.B_UO)
            return None
        for group, product in zip(self.groups, products, strict=True):
            if not product.expands:
                continue
            z_NU = x[group.rows].to(y.dtype) @ product.A_IU
            if scale != 1:
                z_NU *= scale
            if group.bounds != ACTIVATION_BOUNDS["identity"]:
                z_NU.clamp_(*group.bounds)
            for columns, units, B_UO in product.expands:
                if isinstance(group.rows, slice):
                    y[group.rows, columns].addmm_(z_NU[:, units], B_UO)
                else:
                    y[:, columns].index_add_(0, group.rows, z_NU[:, units] @ B_UO)
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
            product = Product.of([a[slot, 0] for a in a_stacked], [b[slot, 0] for b in b_stacked], dtype)
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
