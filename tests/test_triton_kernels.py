"""The Triton kernels against torch: in Triton's interpreter here, on the GPU where there is one."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from monolora import monolora_linear, monolora_reference

pytest.importorskip("triton", reason="Triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Triton's interpreter multiplies the bits of bfloat16 as if they were integers.
TOLERANCE = {torch.float32: 1e-5, torch.float16 if DEVICE == "cpu" else torch.bfloat16: 2e-2}

SIZES = [(1, 16, 8), (32, 64, 16), (45, 100, 8), (70, 33, 1), (33, 130, 20)]  # of a tile, less, and more


@pytest.fixture(scope="module")
def kernels() -> Iterator[ModuleType]:
    """The module, in the interpreter unless there is a GPU; others in this process keep the compiler."""
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE == "cpu":
            patch.setitem(os.environ, "TRITON_INTERPRET", "1")
        yield importlib.import_module("monolora.triton_kernels")
    sys.modules.pop("monolora.triton_kernels")


def _randn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


def _assert_near(found: torch.Tensor, exact: torch.Tensor) -> None:
    error = (found.double() - exact.double()).abs().max() / exact.double().abs().max().clamp_min(1e-9)
    assert error < TOLERANCE[found.dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("tokens", "inputs", "units"), SIZES)
def test_shrink(kernels: ModuleType, tokens: int, inputs: int, units: int, dtype: torch.dtype) -> None:
    x, A, units = (
        _randn(tokens, inputs, dtype=dtype),
        _randn(units, inputs, dtype=dtype),
        _randn(tokens, units, dtype=dtype),
    )
    exact = x.double() @ A.double().T
    _assert_near(kernels.shrink(x, A), exact)
    _assert_near(kernels.shrink(x, A, (0.0, math.inf)), exact.clamp_min(0))
    _assert_near(kernels.shrink(x, A, (-1.0, 2.0)), exact.clamp(-1, 2))
    _assert_near(kernels.shrink(x, A, (0.0, math.inf), units, -1.5), -1.5 * exact * (units > 0))
    _assert_near(kernels.shrink(x, A, (-math.inf, 0.5), units), exact * (units < 0.5))
    assert torch.equal(kernels.shrink(x, A, units_TR=units), kernels.shrink(x, A))
    by_columns = A.T.contiguous().T
    assert torch.equal(kernels.shrink(x, by_columns), kernels.shrink(x, A))
    assert torch.equal(kernels.shrink(x.T.contiguous().T, A), kernels.shrink(x, A))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("tokens", "outputs", "units"), SIZES)
def test_expand_add(kernels: ModuleType, tokens: int, outputs: int, units: int, dtype: torch.dtype) -> None:
    y, h, B = (
        _randn(tokens, outputs, dtype=dtype),
        _randn(tokens, units, dtype=dtype),
        _randn(outputs, units, dtype=dtype),
    )
    exact = y.double() + 0.7 * h.double() @ B.double().T
    other = kernels.expand_add_(y.clone(), h, B.T.contiguous().T, 0.7)
    assert kernels.expand_add_(y, h, B, 0.7) is y
    _assert_near(y, exact)
    assert torch.equal(other, y)


@pytest.mark.parametrize("activation", ["relu", "identity"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_whole_map_and_its_gradients(kernels: ModuleType, activation: str, bias: bool) -> None:
    """Law 3 for this path; 24 tokens in two dimensions, and a gradient that is not contiguous."""
    torch.manual_seed(0)
    shapes = {"x": (4, 6, 40), "weight": (70, 40), "bias": (70,), "A": (8, 40), "B": (70, 8)}
    tensors = {name: _randn(*shape).requires_grad_() for name, shape in shapes.items() if bias or name != "bias"}
    named = {"bias": None, "scaling": 0.7, "activation": activation, **tensors}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("monolora.functional.takes_triton", lambda x: True)
        y, h = monolora_linear(**named)  # type: ignore[arg-type]
    expected = monolora_reference(**named)  # type: ignore[arg-type]
    _assert_near(y, expected)
    g, wanted = _randn(70, 6, 4).permute(2, 1, 0), list(tensors.values())
    z = (tensors["x"] @ tensors["A"].T).flatten(0, 1)
    units = z.relu() if activation == "relu" else z
    g_units = _randn(*h.shape)
    for outputs, exact_outputs, gradients in (((y,), (expected,), (g,)), ((y, h), (expected, units), (g, g_units))):
        exact = torch.autograd.grad(exact_outputs, wanted, gradients, retain_graph=True)
        for one, exact_one in zip(
            torch.autograd.grad(outputs, wanted, gradients, retain_graph=True), exact, strict=True
        ):
            _assert_near(one, exact_one)
    assert h.shape == (24, 8)


def test_it_is_asked_for_and_only_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    from monolora.functional import takes_triton

    x = torch.empty(1, device="meta")
    monkeypatch.setenv("MONOLORA_TRITON", "1")
    assert not takes_triton(x)
    assert takes_triton(torch.empty(1, device=DEVICE)) == (DEVICE == "cuda")
    monkeypatch.delenv("MONOLORA_TRITON")
    assert not takes_triton(torch.empty(1, device=DEVICE))
