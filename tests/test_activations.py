"""monolora.activations against brute force."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monolora.activations import activate, check_activation


@pytest.mark.parametrize("name", ["relu", "identity", "softplus", "topk:1", "topk:12"])
def test_names_are_accepted(name: str) -> None:
    assert check_activation(name) == name


@pytest.mark.parametrize(
    ("name", "hint"),
    [("rleu", "relu"), ("identiy", "identity"), ("soft_plus", "softplus"), ("top:4", "topk:4"), ("ReLU", None)],
)
def test_an_unknown_name_is_answered_with_the_choices_and_the_nearest(name: str, hint: str | None) -> None:
    with pytest.raises(ValueError, match="choose one of relu, identity, softplus, topk:<k>") as error:
        check_activation(name)
    assert hint is None or f"Did you mean {hint!r}?" in str(error.value)


@pytest.mark.parametrize("name", ["topk:0", "topk:-1", "topk:", "topk:2.5", "topk:01", "topk", "", " relu", None, 4])
def test_malformed_names_are_refused_everywhere(name: object) -> None:
    with pytest.raises(ValueError, match="Unknown activation"):
        check_activation(name)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Unknown activation"):
        activate(torch.zeros(2), name)  # type: ignore[arg-type]


def test_relu_identity_and_softplus_by_their_formulas() -> None:
    z = torch.randn(5, 7, dtype=torch.float64) * 3
    assert torch.equal(activate(z, "relu"), torch.where(z > 0, z, torch.zeros_like(z)))
    assert activate(z, "identity") is z
    torch.testing.assert_close(activate(z, "softplus"), torch.log1p(torch.exp(z)))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 4), units=st.integers(1, 9), k=st.integers(1, 10), seed=st.integers(0, 999), last=st.booleans()
)
def test_topk_keeps_the_k_largest_positive_units(rows: int, units: int, k: int, seed: int, last: bool) -> None:
    z = torch.randn(rows, units, generator=torch.Generator().manual_seed(seed))
    expected = torch.zeros(rows, units)
    for row in range(rows):
        for value in sorted(z[row].tolist(), reverse=True)[:k]:
            if value > 0:
                expected[row, z[row].tolist().index(value)] = value
    h = activate(z if last else z.T, f"topk:{k}", dim=-1 if last else 0)
    assert torch.equal(h if last else h.T, expected)


def test_topk_never_keeps_more_than_k_even_among_ties() -> None:
    z = torch.ones(3, 8)
    assert (activate(z, "topk:2") != 0).sum(-1).tolist() == [2, 2, 2]


def test_topk_passes_gradient_to_the_kept_units_only() -> None:
    z = torch.tensor([[3.0, -1.0, 2.0, 1.0]], requires_grad=True)
    activate(z, "topk:2").sum().backward()
    assert z.grad is not None
    assert z.grad.tolist() == [[1.0, 0.0, 1.0, 0.0]]
