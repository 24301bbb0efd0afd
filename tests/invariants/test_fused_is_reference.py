"""Law 3: the fused map equals the reference, forward and all gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monolora import monolora_linear, monolora_reference
from tests.support.activations import FUSED

Tensors = dict[str, torch.Tensor | None]
# Relative to the largest entry: a few units in the last place, of a sum of some dozen products.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-2}


def _problem(dtype: torch.dtype, masters: torch.dtype, bias: bool = True, tokens: tuple[int, ...] = (4, 5)) -> Tensors:
    """Every tensor wants a gradient. ReLU's kink is kept away from: no pre-activation within rounding of zero."""
    x = torch.randn(*tokens, 24)
    A = torch.randn(6, 24) / 5
    while (x @ A.T).abs().min() < 0.05:
        x = torch.where(((x @ A.T).abs() < 0.05).any(-1, keepdim=True), torch.randn_like(x), x)
    return {
        "x": x.to(dtype).requires_grad_(),
        "weight": (torch.randn(10, 24) / 5).to(dtype).requires_grad_(),
        "bias": torch.randn(10).to(dtype).requires_grad_() if bias else None,
        "A": A.to(masters).requires_grad_(),
        "B": torch.randn(10, 6).to(masters).requires_grad_(),
    }


def _run(function: Callable[..., torch.Tensor], tensors: Tensors, activation: str) -> dict[str, torch.Tensor]:
    """The output and every gradient there is, of a loss that weighs each output differently."""
    y = function(**tensors, scaling=0.7, activation=activation)
    wanted = {name: tensor for name, tensor in tensors.items() if tensor is not None and tensor.requires_grad}
    loss = (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum()
    return {"y": y.detach(), **dict(zip(wanted, torch.autograd.grad(loss, list(wanted.values())), strict=True))}


def _fused(*args: object, **kwargs: object) -> torch.Tensor:
    return monolora_linear(*args, **kwargs)[0]  # type: ignore[arg-type]


def _as(dtype: torch.dtype, tensors: Tensors) -> Tensors:
    return {k: None if t is None else t.detach().to(dtype).requires_grad_(t.requires_grad) for k, t in tensors.items()}


def _assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        error = (value.double() - expected[name].double()).abs().max() / expected[name].double().abs().max()
        assert error <= tolerance, f"{name} is off by {error:.1e} of its largest entry"


@pytest.mark.parametrize("activation", FUSED)
@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck(activation: str, bias: bool) -> None:
    tensors = _problem(torch.float64, torch.float64, bias, tokens=(3,))

    def run(*values: torch.Tensor) -> torch.Tensor:
        named = dict(zip((name for name, tensor in tensors.items() if tensor is not None), values, strict=True))
        return _fused(**{"bias": None} | named, scaling=0.7, activation=activation)

    assert torch.autograd.gradcheck(run, [tensor for tensor in tensors.values() if tensor is not None])


@pytest.mark.parametrize("activation", FUSED)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_in_one_precision(dtype: torch.dtype, activation: str, bias: bool) -> None:
    tensors = _problem(dtype, dtype, bias)
    expected = _run(monolora_reference, _as(torch.float64, tensors), activation)
    _assert_same(_run(_fused, tensors, activation), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("activation", FUSED)
@pytest.mark.parametrize("masters", [torch.float32, torch.bfloat16])
def test_bfloat16_with_masters_of_float32_or_bfloat16(masters: torch.dtype, activation: str) -> None:
    tensors = _problem(torch.bfloat16, masters)
    found = _run(_fused, tensors, activation)
    # In the tensors' own values, computed exactly.
    rounded = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items() if tensor is not None}
    exact = _run(monolora_reference, {k: t.detach().double().requires_grad_() for k, t in rounded.items()}, activation)
    _assert_same(found, exact, TOLERANCE[torch.bfloat16])
    assert found["y"].dtype == found["x"].dtype == found["weight"].dtype == torch.bfloat16
    assert found["A"].dtype == found["B"].dtype == masters


@settings(max_examples=50, deadline=None)
@given(
    tokens=st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple),
    layout=st.sampled_from(["plain", "transposed", "strided", "expanded"]),
    wants=st.sets(st.sampled_from(["x", "weight", "bias", "A", "B"]), min_size=1),
    activation=st.sampled_from(FUSED),
    scaling=st.floats(-3, 3),
    seed=st.integers(0, 99),
)
def test_every_shape_layout_and_choice_of_frozen_tensors(
    tokens: tuple[int, ...], layout: str, wants: set[str], activation: str, scaling: float, seed: int
) -> None:
    torch.manual_seed(seed)
    sizes = {"weight": (4, 5), "bias": (4,), "A": (3, 5), "B": (4, 3)}
    tensors = {"x": _laid_out(tokens, layout), **{k: torch.randn(s, dtype=torch.float64) for k, s in sizes.items()}}
    results = []
    for function in (_fused, monolora_reference):
        leaves = {name: tensor.detach().requires_grad_(name in wants) for name, tensor in tensors.items()}
        y = function(**leaves, scaling=scaling, activation=activation)
        y.backward(torch.arange(1.0, y.numel() + 1, dtype=y.dtype).view_as(y))
        results.append([y.detach(), *(leaf.grad for leaf in leaves.values())])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def _laid_out(tokens: tuple[int, ...], layout: str) -> torch.Tensor:
    """x of shape ``(*tokens, 5)`` in memory as named."""
    if layout == "transposed":
        return torch.randn(5, *tokens, dtype=torch.float64).movedim(0, -1)
    if layout == "strided":
        return torch.randn(*tokens, 10, dtype=torch.float64)[..., ::2]
    if layout == "expanded":
        return torch.randn(5, dtype=torch.float64).expand(*tokens, 5)
    return torch.randn(*tokens, 5, dtype=torch.float64)


def test_a_gradient_that_is_not_contiguous_or_not_there() -> None:
    tensors = _problem(torch.float64, torch.float64)
    values = list(tensors.values())
    y, _ = monolora_linear(*values, 0.7)  # type: ignore[arg-type]
    reference = monolora_reference(*values, 0.7)  # type: ignore[arg-type]
    g = torch.randn(10, 5, 4, dtype=torch.float64).permute(2, 1, 0)
    wanted = [value for value in values if value is not None]
    torch.testing.assert_close(torch.autograd.grad(y, wanted, g), torch.autograd.grad(reference, wanted, g))
    expanded = torch.ones((), dtype=torch.float64).expand_as(y)  # what sum() hands back
    y, _ = monolora_linear(*values, 0.7)  # type: ignore[arg-type]
    reference = monolora_reference(*values, 0.7)  # type: ignore[arg-type]
    torch.testing.assert_close(
        torch.autograd.grad(y, wanted, expanded), torch.autograd.grad(reference, wanted, expanded)
    )
