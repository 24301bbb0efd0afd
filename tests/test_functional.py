"""monolora_linear: the shapes and layouts it takes, what it refuses, and that it compiles.

That it equals its reference in value and gradient is a law: tests/invariants/test_fused_is_reference.py.
"""

from __future__ import annotations

import pytest
import torch

from monolora import monolora_linear, monolora_reference
from tests.support.activations import FUSED


def _problem(
    tokens: tuple[int, ...], dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """x ``(*tokens, 5)``, weight ``(4, 5)``, bias ``(4,)``, A ``(3, 5)``, B ``(4, 3)``."""
    return tuple(torch.randn(shape, dtype=dtype) for shape in ((*tokens, 5), (4, 5), (4,), (3, 5), (4, 3)))  # type: ignore[return-value]


def test_the_reference_is_the_papers_equation() -> None:
    x, weight, bias, A, B = _problem((2,))
    expected = torch.stack(
        [weight @ token + bias + 0.5 * B @ torch.clamp(A @ token, min=0) for token in x]  # eq. 5, token by token
    )
    torch.testing.assert_close(monolora_reference(x, weight, bias, A, B, 0.5), expected)


@pytest.mark.parametrize("activation", FUSED)
@pytest.mark.parametrize("tokens", [(), (1,), (7,), (2, 3), (2, 1, 3), (0,), (2, 0)])
def test_any_leading_dimensions(tokens: tuple[int, ...], activation: str) -> None:
    x, weight, bias, A, B = _problem(tokens)
    y, h = monolora_linear(x, weight, bias, A, B, 0.5, activation)
    torch.testing.assert_close(y, monolora_reference(x, weight, bias, A, B, 0.5, activation))
    assert y.shape == (*tokens, 4)
    assert h.shape == (max(1, x.shape[:-1].numel()) if not tokens else x.shape[:-1].numel(), 3)


def test_the_units_are_returned_flat_and_with_their_gradients() -> None:
    """A loss of units and outputs has the gradients of the formula, and one of the units alone too."""
    x, weight, bias, A, B = _problem((2, 3))
    leaves = [x.requires_grad_(), A.requires_grad_()]
    y, h = monolora_linear(x, weight, bias, A, B, 0.5)
    units = torch.relu(x @ A.T).reshape(6, 3)
    torch.testing.assert_close(h, units)
    reference = monolora_reference(x, weight, bias, A, B, 0.5)
    for loss, expected in (
        (y.sin().sum() + h.cos().sum(), reference.sin().sum() + units.cos().sum()),
        (h.cos().sum(), units.cos().sum()),
    ):
        found = torch.autograd.grad(loss, leaves, retain_graph=True)
        torch.testing.assert_close(found, torch.autograd.grad(expected, leaves, retain_graph=True))


def test_the_input_and_the_weights_are_left_alone() -> None:
    tensors = _problem((2, 3))
    before = [tensor.clone() for tensor in tensors]
    x, weight, bias, A, B = tensors
    y, _ = monolora_linear(x.requires_grad_(), weight, bias, A.requires_grad_(), B.requires_grad_(), 2.0)
    y.sum().backward()
    assert all(torch.equal(tensor, old) for tensor, old in zip(tensors, before, strict=True))


@pytest.mark.parametrize("activation", ["softplus", "topk:2", "jumprelu", "gelu"])
def test_other_activations_are_refused(activation: str) -> None:
    with pytest.raises(ValueError, match="use monolora_reference"):
        monolora_linear(*_problem((2,)), 1.0, activation)


def test_the_second_derivative_is_that_of_the_reference() -> None:
    tensors = [tensor.requires_grad_() for tensor in _problem((2, 3))]
    found, expected = (
        torch.autograd.grad(
            [first.square().sum() for first in torch.autograd.grad(y.pow(3).sum(), tensors, create_graph=True)], tensors
        )
        for y in (monolora_linear(*tensors, 0.5)[0], monolora_reference(*tensors, 0.5))  # type: ignore[arg-type]
    )
    torch.testing.assert_close(found, expected)


def test_no_gradient_is_computed_for_what_needs_none() -> None:
    x, weight, bias, A, B = _problem((2, 3))
    y, _ = monolora_linear(x, weight, bias, A, B.requires_grad_(), 1.0)
    y.sum().backward()
    assert B.grad is not None
    assert all(tensor.grad is None for tensor in (x, weight, bias, A))
    assert not monolora_linear(x, weight, bias, A, B.detach(), 1.0)[0].requires_grad


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, on tracing
@pytest.mark.parametrize("activation", FUSED)
def test_compiled_without_a_break_it_gives_the_same(activation: str) -> None:
    tensors = [tensor.requires_grad_() for tensor in _problem((2, 3), torch.float32)]

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        return monolora_linear(*tensors, 0.5, activation)[0]  # type: ignore[arg-type]

    expected = run(*tensors)
    found = torch.compile(run, fullgraph=True, backend="aot_eager")(*tensors)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad((found * weights).sum(), tensors), torch.autograd.grad((expected * weights).sum(), tensors)
    )
