"""The gate over vLLM's own classes: every row gets its adapter's activation, and the rows of the base get nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter

from monolora.activations import activate
from monolora.vllm import gate, products
from monolora.vllm.gate import CpuGate, Gate, gated_class, gates, get_punica_wrapper

SLOTS, ROWS, RANK, INPUTS, VOCAB = 3, 24, 8, 5, 64
IDS = [11, 4, 7]  # the adapter in each slot
BASE = -1
KINDS = ("relu", "identity", "topk:2", "jumprelu", "softplus")
LORA = ["identity"] * SLOTS


@pytest.fixture(scope="module", params=["0", "1"], ids=["by adapter", "stock operations"])
def vllm(request: pytest.FixtureRequest) -> Iterator[SimpleNamespace]:
    """vLLM's own classes; imported here, as that takes seconds."""
    pytest.importorskip("vllm")
    classes = SimpleNamespace(
        Cpu=pytest.importorskip("vllm.lora.punica_wrapper.punica_cpu").PunicaWrapperCPU,
        Gpu=pytest.importorskip("vllm.lora.punica_wrapper.punica_gpu").PunicaWrapperGPU,
        Mapping=pytest.importorskip("vllm.lora.layers").LoRAMapping,
        Config=pytest.importorskip("vllm.config.lora").LoRAConfig,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MONOLORA_STOCK_LORA", request.param)
        yield classes


class Wrapped(NamedTuple):
    """One of vLLM's wrappers, and what it takes to tell it of a batch.

    Attributes:
        punica: the wrapper.
        mapping_class: ``LoRAMapping``.
    """

    punica: Any
    mapping_class: Any

    def batch(
        self,
        slots: Sequence[int],
        is_prefill: bool = False,
        activations: Sequence[str] = (),
        layer: Layer | None = None,
    ) -> Any:
        """Tell the wrapper which slot each row (and each prompt) belongs to, as vLLM's manager does."""
        for slot, activation in enumerate(activations):
            thresholds = {} if layer is None else {id(layer.B): layer.thresholds[slot]}
            self.punica.set_activation(slot, activation, thresholds)
        ids = tuple(0 if slot == BASE else IDS[slot] for slot in slots)
        self.punica.update_metadata(self.mapping_class(ids, ids, is_prefill=is_prefill), IDS, SLOTS + 1, VOCAB)
        return self.punica


def _wrapped(vllm: SimpleNamespace, punica_class: type) -> Wrapped:
    config = vllm.Config(max_loras=SLOTS, max_lora_rank=RANK)
    return Wrapped(punica_class(ROWS, ROWS, torch.device("cpu"), lora_config=config), vllm.Mapping)


class Layer(NamedTuple):
    """A layer's stacked weights as vLLM keeps them: one A and one B a slice, ``(slots, 1, …)``, zero beyond a rank.

    Attributes:
        A: ``(slots, 1, RANK, INPUTS)`` each.
        B: ``(slots, 1, outputs, RANK)`` each.
        ranks: of each slot's adapter.
    """

    A: tuple[torch.Tensor, ...]
    B: tuple[torch.Tensor, ...]
    ranks: tuple[int, ...]

    @property
    def thresholds(self) -> torch.Tensor:
        """Of each slot's adapter, ``(slots, slices, RANK)``."""
        return torch.linspace(0, 1, SLOTS * len(self.A) * RANK).view(SLOTS, len(self.A), RANK)

    @property
    def outputs(self) -> tuple[int, ...]:
        return tuple(B.shape[2] for B in self.B)

    def add(self, punica: Any, y_NO: torch.Tensor, x_NI: torch.Tensor) -> torch.Tensor:
        """What vLLM makes of ``y``."""
        y_NO = y_NO.clone()
        punica.add_lora_linear(y_NO, x_NI, self.A, self.B, 1.0, self.outputs)
        return y_NO

    def reference(
        self, y_NO: torch.Tensor, x_NI: torch.Tensor, slots: Sequence[int], activations: Sequence[str]
    ) -> torch.Tensor:
        """``y + B act(A x)``, row by row, in double precision."""
        y_NO, x_NI = y_NO.double(), x_NI.double()
        for n, slot in enumerate(slots):
            if slot == BASE:
                continue
            r, added = self.ranks[slot], []
            for A, B, threshold_R in zip(self.A, self.B, self.thresholds[slot], strict=True):
                z_R = A[slot, 0, :r].double() @ x_NI[n]
                h_R = activate(z_R, activations[slot], threshold=threshold_R[:r])
                added.append(B[slot, 0, :, :r].double() @ h_R)
            y_NO[n] += torch.cat(added)
        return y_NO


def _layer(
    outputs: Sequence[int] = (4, 3), ranks: Sequence[int] = (RANK, 2, 5), dtype: torch.dtype = torch.float32
) -> Layer:
    kept_SR = torch.arange(RANK) < torch.tensor(ranks)[:, None]
    A = tuple(torch.randn(SLOTS, 1, RANK, INPUTS) * kept_SR[:, None, :, None] for _ in outputs)
    B = tuple(torch.randn(SLOTS, 1, size, RANK) * kept_SR[:, None, None, :] for size in outputs)
    return Layer(tuple(a.to(dtype) for a in A), tuple(b.to(dtype) for b in B), tuple(ranks))


def _x_y(rows: int, layer: Layer, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, INPUTS, dtype=dtype), torch.randn(rows, sum(layer.outputs), dtype=dtype)


def _close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return torch.allclose(found.double(), wanted.double(), rtol=1e-5, atol=1e-5)


BATCHES = st.lists(
    st.tuples(
        st.lists(st.integers(BASE, SLOTS - 1), min_size=1, max_size=ROWS),
        st.booleans(),
        st.tuples(*[st.sampled_from(KINDS)] * SLOTS),
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=80, deadline=None)
@given(
    batches=BATCHES,
    ranks=st.tuples(*[st.integers(1, RANK)] * SLOTS),
    outputs=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_each_row_gets_its_own(
    vllm: SimpleNamespace,
    batches: list[tuple[list[int], bool, tuple[str, ...]]],
    ranks: tuple[int, ...],
    outputs: list[int],
    seed: int,
) -> None:
    """Batches of any rows, one after another through one gate, whose slots' adapters change in between."""
    torch.manual_seed(seed)
    layer, wrapped = _layer(outputs, ranks), _wrapped(vllm, gated_class(vllm.Cpu))
    for slots, is_prefill, activations in batches:
        x_NI, y_NO = _x_y(len(slots), layer)
        found = layer.add(wrapped.batch(slots, is_prefill, activations, layer), y_NO, x_NI)
        base_N = torch.tensor(slots) == BASE
        assert torch.equal(found[base_N], y_NO[base_N])
        assert _close(found, layer.reference(y_NO, x_NI, slots, activations))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_prefill", [True, False])
def test_base_rows_in_half_precision(vllm: SimpleNamespace, dtype: torch.dtype, is_prefill: bool) -> None:
    layer, slots = _layer(dtype=dtype), [BASE, 2, 0, BASE, 1, 2, BASE]
    x_NI, y_NO = _x_y(len(slots), layer, dtype)
    punica = _wrapped(vllm, gated_class(vllm.Cpu)).batch(slots, is_prefill, ["relu", "identity", "relu"])
    found = layer.add(punica, y_NO, x_NI)
    wanted = layer.reference(y_NO, x_NI, slots, ["relu", "identity", "relu"])
    base_N = torch.tensor(slots) == BASE
    assert torch.equal(found[base_N], y_NO[base_N])
    assert torch.allclose(found.double(), wanted, rtol=0.02, atol=0.3)  # vLLM sums in this precision


@settings(max_examples=60, deadline=None)
@given(
    slots=st.lists(st.integers(BASE, SLOTS - 1), min_size=1, max_size=ROWS),
    ranks=st.tuples(*[st.integers(0, RANK)] * SLOTS),
    left_alone=st.sets(st.integers(0, 2)),
    scale=st.sampled_from([1.0, -0.5]),
    few_units=st.sampled_from([0, 99]),
    few_rows=st.sampled_from([0, 99]),
)
def test_units_that_are_zero_are_left_out(
    vllm: SimpleNamespace,
    slots: list[int],
    ranks: tuple[int, ...],
    left_alone: set[int],
    scale: float,
    few_units: int,
    few_rows: int,
) -> None:
    """Whatever a rank, slices without an adapter, and however slices and adapters are multiplied."""
    layer = _layer([4, 2, 3], ranks)
    for number in left_alone:
        layer.A[number].zero_()
        layer.B[number].zero_()
    punica = _wrapped(vllm, gated_class(vllm.Cpu)).batch(slots)
    x_NI, y_NO = _x_y(len(slots), layer)
    found = y_NO.clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "FEW_UNITS", few_units)
        patch.setattr(gate, "FEW_ROWS", few_rows)
        punica.add_lora_linear(found, x_NI, layer.A, layer.B, scale, layer.outputs)
    scaled = layer._replace(B=tuple(B_SOR * scale for B_SOR in layer.B))
    assert _close(found, scaled.reference(y_NO, x_NI, slots, LORA))


@pytest.mark.parametrize("slots", [[1, 1], [1, 0, BASE, 1]], ids=["one adapter", "mixed"])
def test_weights_in_another_dtype_than_the_model(vllm: SimpleNamespace, slots: list[int]) -> None:
    """``--lora-dtype bfloat16`` on a model in float32."""
    layer = _layer(dtype=torch.bfloat16)
    x_NI, y_NO = _x_y(len(slots), layer)
    found = layer.add(_wrapped(vllm, gated_class(vllm.Cpu)).batch(slots), y_NO, x_NI)
    assert found.dtype == torch.float32
    assert _close(found, layer.reference(y_NO, x_NI, slots, LORA))


@pytest.mark.parametrize("slots", [[1, 1], [1, 0, BASE, 1]], ids=["one adapter", "mixed"])
def test_an_adapter_in_the_place_of_another(vllm: SimpleNamespace, slots: list[int]) -> None:
    """vLLM writes new weights over old ones, then says which activation the slot has now."""
    layer, wrapped = _layer(ranks=[RANK] * SLOTS), _wrapped(vllm, gated_class(vllm.Cpu))
    x_NI, y_NO = _x_y(len(slots), layer)
    before = layer.add(wrapped.batch(slots), y_NO, x_NI)
    for weight in (*layer.A, *layer.B):
        weight[1].mul_(-2).add_(1)
    found = layer.add(wrapped.batch(slots, activations=["identity", "relu"]), y_NO, x_NI)
    assert not _close(found, before)
    assert _close(found, layer.reference(y_NO, x_NI, slots, ["identity", "relu", "identity"]))


@pytest.mark.parametrize("is_prefill", [True, False])
@pytest.mark.parametrize("slots", [[1, 1], [1, 0, BASE]], ids=["one kind", "mixed"])
def test_a_slot_changes_its_activation(vllm: SimpleNamespace, slots: list[int], is_prefill: bool) -> None:
    """The batch that is under way keeps what it had; the next one sees the change."""
    layer, wrapped = _layer(), _wrapped(vllm, gated_class(vllm.Cpu))
    x_NI, y_NO = _x_y(len(slots), layer)
    linear = layer.reference(y_NO, x_NI, slots, ["identity", "identity", "identity"])
    with_relu = layer.reference(y_NO, x_NI, slots, ["identity", "relu", "identity"])
    assert not _close(linear, with_relu)
    punica = wrapped.batch(slots, is_prefill)
    assert _close(layer.add(punica, y_NO, x_NI), linear)  # an adapter without bounds is LoRA
    punica.set_activation(1, "relu")
    assert _close(layer.add(punica, y_NO, x_NI), linear)
    wrapped.batch(slots, is_prefill)
    assert _close(layer.add(punica, y_NO, x_NI), with_relu)
    punica.set_activation(1, "identity")
    wrapped.batch(slots, is_prefill)
    assert _close(layer.add(punica, y_NO, x_NI), linear)


@pytest.mark.parametrize("is_prefill", [True, False])
@pytest.mark.parametrize("broken", range(4))
def test_nan_stays_in_its_row(vllm: SimpleNamespace, broken: int, is_prefill: bool) -> None:
    layer, slots = _layer(), [0, 1, BASE, 2]
    x_NI, y_NO = _x_y(len(slots), layer)
    punica = _wrapped(vllm, gated_class(vllm.Cpu)).batch(slots, is_prefill, ["relu", "identity", "relu"])
    healthy = layer.add(punica, y_NO, x_NI)
    x_NI[broken] = torch.nan
    found = layer.add(punica, y_NO, x_NI)
    others = [n for n in range(len(slots)) if n != broken]
    assert torch.equal(found[others], healthy[others])


@pytest.mark.parametrize("is_prefill", [True, False])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("matrix", ["A", "B"])
def test_the_base_beside_a_diverged_adapter(vllm: SimpleNamespace, matrix: str, value: float, is_prefill: bool) -> None:
    """vLLM does not look whether a LoRA adapter is finite; the last slot's must not reach the base."""
    layer, slots = _layer(), [BASE, 0, 2, BASE]
    for weight in layer.A if matrix == "A" else layer.B:
        weight[-1].fill_(value)
    x_NI, y_NO = _x_y(len(slots), layer)
    found = layer.add(_wrapped(vllm, gated_class(vllm.Cpu)).batch(slots, is_prefill), y_NO, x_NI)
    assert torch.equal(found[[0, 3]], y_NO[[0, 3]])
    assert not found[2].isfinite().all()


def _linear(punica: Any, layer: Layer, y_NO: torch.Tensor, x_NI: torch.Tensor) -> None:
    punica.add_lora_linear(y_NO, x_NI, layer.A, layer.B, 1.0, layer.outputs)


def _logits(punica: Any, layer: Layer, y_NO: torch.Tensor, x_NI: torch.Tensor) -> None:
    punica.add_lora_logits(y_NO, x_NI, layer.A[0], layer.B[0], 1.0)


def _embedding(punica: Any, layer: Layer, y_NO: torch.Tensor, z_NR: torch.Tensor) -> None:
    """An embedding's units are looked up; only B is left to do."""
    punica.add_lora_embedding(y_NO, z_NR, layer.B[0], add_inputs=True)


Path = Callable[[Any, Layer, torch.Tensor, torch.Tensor], None]
PATHS = pytest.mark.parametrize("path", [_linear, _logits, _embedding])
MIXED = [BASE, 0, BASE, 2, 1, 1, BASE]


class Pass(NamedTuple):
    """One pass through a path.

    Attributes:
        before: ``y``.
        after: what became of it.
        wanted: what should have.
    """

    before: torch.Tensor
    after: torch.Tensor
    wanted: torch.Tensor


def _pass(punica: Any, path: Path, slots: Sequence[int]) -> Pass:
    layer = _layer(outputs=[6])
    if path is _embedding:  # whose A picks units: the identity, in a layer with as many inputs as units
        x = torch.randn(len(slots), RANK)
        eye = torch.eye(RANK).expand(SLOTS, 1, RANK, RANK)
        reference_layer = layer._replace(A=(eye,))
    else:
        x, reference_layer = torch.randn(len(slots), INPUTS), layer
    y_NO = torch.randn(len(slots), 6)
    after = y_NO.clone()
    path(punica, layer, after, x)
    return Pass(y_NO, after, reference_layer.reference(y_NO, x, slots, LORA))


@PATHS
@pytest.mark.parametrize("is_prefill", [True, False])
@pytest.mark.parametrize("slots", [MIXED, [BASE] * 4, [2, 0, 0]], ids=["mixed", "base", "adapters"])
def test_every_path_leaves_the_base_alone(
    vllm: SimpleNamespace, path: Path, slots: list[int], is_prefill: bool
) -> None:
    found = _pass(_wrapped(vllm, gated_class(vllm.Cpu)).batch(slots, is_prefill), path, slots)
    base_N = torch.tensor(slots) == BASE
    assert torch.equal(found.after[base_N], found.before[base_N])
    assert _close(found.after, found.wanted)


@PATHS
@pytest.mark.parametrize("is_prefill", [True, False])
def test_stock_vllm_does_not_leave_the_base_alone(vllm: SimpleNamespace, path: Path, is_prefill: bool) -> None:
    """In vLLM 0.32 a row of the base is answered through the last slot on a CPU. If this fails, vLLM has been fixed:
    the zero bounds, ``add_lora_logits`` and ``add_lora_embedding`` of the gate have nothing left to correct."""
    found = _pass(_wrapped(vllm, vllm.Cpu).batch(MIXED, is_prefill), path, MIXED)
    base_N = torch.tensor(MIXED) == BASE
    assert _close(found.after[~base_N], found.wanted[~base_N])
    assert not torch.isclose(found.after[base_N], found.before[base_N]).any(), "vLLM leaves the base alone by now"


def test_the_gpu_has_the_gate_that_has_no_branches(vllm: SimpleNamespace) -> None:
    gpu, cpu = gated_class(vllm.Gpu), gated_class(vllm.Cpu)
    assert gpu.__mro__[1:3] == (Gate, vllm.Gpu)
    assert gpu.add_expand is Gate.add_expand
    assert gpu._activate is Gate._activate
    assert gpu.add_lora_logits is vllm.Gpu.add_lora_logits  # its kernels leave rows without an adapter out
    assert issubclass(cpu, CpuGate)
    assert gated_class(vllm.Gpu) is gpu


def test_traced_once_for_every_batch(vllm: SimpleNamespace) -> None:
    """What a compiler makes of the first batch serves all later ones: vLLM drops the guards that would notice."""
    gate_alone = type("GateAlone", (Gate, vllm.Cpu), {})  # the GPU's gate, on a class that runs everywhere
    wrapped, counter = _wrapped(vllm, gate_alone), CompileCounter()
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True, disable=False):
        activate = torch.compile(wrapped.punica._activate, backend=counter, fullgraph=True, dynamic=True)
        for slots, activations in [
            ([1] * 5, ("identity", "identity", "identity")),  # a number of rows that no other dimension has
            ([0, BASE, 1, 2, BASE], ("relu", "identity", "relu")),
            ([0, BASE, 1, 2, BASE], ("identity", "relu", "identity")),
            ([BASE] * 7, ("relu", "relu", "relu")),
            ([2, 0] * 12, ("relu", "relu", "relu")),
        ]:
            wrapped.batch(slots, activations=activations)
            z_CNR = torch.randn(3, len(slots), RANK)  # three slices in one tensor, the GPU's layout
            found = z_CNR.clone()
            activate(found)
            for n, slot in enumerate(slots):
                kind = "base" if slot == BASE else activations[slot]
                z_CR = z_CNR[:, n]
                wanted = {"base": torch.zeros_like(z_CR), "relu": z_CR.relu(), "identity": z_CR}[kind]
                assert torch.equal(found[:, n], wanted)
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_bounds_are_written_in_place(vllm: SimpleNamespace) -> None:
    """A CUDA graph reads the memory that it was recorded with."""
    wrapped = _wrapped(vllm, gated_class(vllm.Cpu))
    punica = wrapped.punica
    memory = punica.bounds.data_ptr(), punica.slot_bounds.data_ptr()
    for slots in ([0, 1], [BASE] * ROWS, MIXED):
        wrapped.batch(slots, activations=["relu", "identity", "relu"])
        assert (punica.bounds.data_ptr(), punica.slot_bounds.data_ptr()) == memory
        assert punica.bounds.shape == (2, ROWS, 1)


def test_the_wrapper_of_this_device(vllm: SimpleNamespace) -> None:
    platforms, selector = (
        pytest.importorskip(f"vllm.{name}") for name in ("platforms", "lora.punica_wrapper.punica_selector")
    )
    if not platforms.current_platform.is_cpu():
        pytest.skip("this vLLM is for another device than the CPU")
    found = get_punica_wrapper(
        selector.get_punica_wrapper,
        ROWS,
        max_batches=4,
        device=torch.device("cpu"),
        lora_config=vllm.Config(max_loras=SLOTS, max_lora_rank=RANK),
    )
    assert type(found) is gated_class(vllm.Cpu)
    assert found.bounds.shape == (2, ROWS, 1)


class PunicaWrapperElsewhere:
    """That of a device which nobody has made a gate for."""


def test_the_wrapper_of_another_device(vllm: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is vLLM's to make, with what vLLM gave."""
    platform = pytest.importorskip("vllm.platforms").current_platform
    name = f"{__name__}.{PunicaWrapperElsewhere.__name__}"
    monkeypatch.setattr(type(platform), "get_punica_wrapper", staticmethod(lambda: name))
    found = get_punica_wrapper(lambda *args, **kwargs: (args, kwargs), ROWS, max_batches=4)
    assert found == ((ROWS,), {"max_batches": 4})


def test_gates_of_a_manager(vllm: SimpleNamespace) -> None:
    """Each once, though parts of a model may share one; a wrapper of vLLM's own is none."""
    gate, other = (_wrapped(vllm, gated_class(vllm.Cpu)).punica for _ in range(2))
    stock = _wrapped(vllm, vllm.Cpu).punica
    parts = {"language_model": gate, "tower": other, "connector": other, "elsewhere": stock}
    assert gates(SimpleNamespace(punica_wrapper_mapping=parts)) == {gate, other}
