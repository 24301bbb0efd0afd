"""The linear map is the least-squares optimum, and right where least squares says nothing."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from monolora.merge.least_squares import RIDGES, LinearMap, fit
from tests.support.merge_inputs import moments, units_of

INPUTS, UNITS, OUTPUTS = 5, 3, 4
ACTIVATIONS = ["relu", "softplus", "topk:2"]
AFFINE = pytest.mark.parametrize("affine", [False, True], ids=["linear", "affine"])


class Layer(NamedTuple):
    """A synthetic layer; x is ``(T, I)``, float64."""

    A: torch.Tensor
    B: torch.Tensor
    x: torch.Tensor
    activation: str

    def error(self, A: torch.Tensor, intercept: torch.Tensor | None) -> float:
        """``‖B(A'x + c) - B h‖ / ‖B h‖`` over all inputs, from the activations themselves."""
        h = units_of(self.x, self.A, self.activation)
        found = self.x @ A.double().T + (0.0 if intercept is None else intercept.double())
        return float(((found - h) @ self.B.double().T).norm() / (h @ self.B.double().T).norm())


def _layer(seed: int = 0, tokens: int = 60, activation: str = "relu", inputs: int = INPUTS) -> Layer:
    """Inputs that are correlated and have a mean."""
    noise = torch.Generator().manual_seed(seed)
    A, B = torch.randn(UNITS, inputs, generator=noise), torch.randn(OUTPUTS, UNITS, generator=noise)
    x = torch.randn(tokens, inputs, generator=noise, dtype=torch.float64)
    mixing = torch.randn(inputs, inputs, generator=noise, dtype=torch.float64)
    return Layer(A, B, x @ (torch.eye(inputs) + 0.3 * mixing) + 0.5, activation)


def _swept(layer: Layer, affine: bool) -> LinearMap:
    """Calibrated and held out on full sweeps over the same finite population: the fit is the population's optimum."""
    sweep = moments(layer.x, layer.A, layer.activation)
    return fit(layer.A, layer.B, sweep, sweep, affine)


@given(
    seed=st.integers(0, 999),
    activation=st.sampled_from(ACTIVATIONS),
    affine=st.booleans(),
    change=st.lists(st.floats(-1, 1), min_size=UNITS * INPUTS, max_size=UNITS * INPUTS),
    shift=st.lists(st.floats(-1, 1), min_size=UNITS, max_size=UNITS),
    exponent=st.floats(-6, 2),
)
@settings(max_examples=150, deadline=None)
def test_no_perturbation_lowers_the_held_out_error(
    seed: int, activation: str, affine: bool, change: list[float], shift: list[float], exponent: float
) -> None:
    layer = _layer(seed, activation=activation)
    found = _swept(layer, affine)
    perturbed = found.A + 10**exponent * torch.tensor(change).view(UNITS, INPUTS)
    moved = None if found.intercept is None else found.intercept + 10**exponent * torch.tensor(shift)
    assert layer.error(perturbed, moved) >= layer.error(found.A, found.intercept) - 1e-9


@given(seed=st.integers(0, 99), activation=st.sampled_from(ACTIVATIONS), affine=st.booleans())
@settings(max_examples=60, deadline=None)
def test_it_is_numpys_least_squares(seed: int, activation: str, affine: bool) -> None:
    layer = _layer(seed, activation=activation)
    found = _swept(layer, affine)
    columns = np.c_[layer.x, np.ones(len(layer.x))] if affine else layer.x.numpy()
    solution = np.linalg.lstsq(columns, units_of(layer.x, layer.A, activation).numpy(), rcond=None)[0].T
    # The smallest ridge moves the solution where the inputs hardly vary in some direction (seed 30: by 1.1e-4).
    close = {"rtol": 1e-4, "atol": 3e-4}
    np.testing.assert_allclose(found.A, solution[:, :INPUTS], **close)
    if affine:
        assert found.intercept is not None
        np.testing.assert_allclose(found.intercept, solution[:, -1], **close)
    assert (found.ridge, found.ridge_raised, found.tokens) == (RIDGES[0], False, 2 * len(layer.x))
    assert found.error == pytest.approx(layer.error(found.A, found.intercept), abs=1e-6)


@AFFINE
def test_no_large_perturbation_helps_on_inputs_of_another_sample(affine: bool) -> None:
    """What the ridge was not chosen by either."""
    population = _layer(3, 9000)
    parts = [population._replace(x=x) for x in population.x.split(3000)]
    found = fit(population.A, population.B, *(moments(p.x, p.A) for p in parts[:2]), affine=affine)
    best = parts[2].error(found.A, found.intercept)
    assert found.error == pytest.approx(best, rel=0.05)
    for seed in range(200):
        change = torch.randn(UNITS, INPUTS, generator=torch.Generator().manual_seed(seed))
        assert parts[2].error(found.A + 0.1 * found.A.norm() * change / change.norm(), found.intercept) > best


def _by_hand(layer: Layer, ridge: float, affine: bool) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression towards ``diag(p) A`` as ordinary least squares with rows added; p from numpy's own line fit."""
    A, x, h = (t.double().numpy() for t in (layer.A, layer.x, units_of(layer.x, layer.A, layer.activation)))
    x0, h0 = (x.mean(0), h.mean(0)) if affine else (0 * x[0], 0 * h[0])
    x, h = x - x0, h - h0
    z = x @ A.T
    prior = np.stack([np.linalg.lstsq(z[:, [r]], h[:, r], rcond=None)[0][0] * A[r] for r in range(UNITS)])
    pull = math.sqrt(ridge * np.square(x).sum() / x.shape[1])
    rows = np.r_[x, pull * np.eye(x.shape[1])]
    slope = np.linalg.lstsq(rows, np.r_[h, pull * prior.T], rcond=None)[0].T
    return slope, h0 - slope @ x0


@AFFINE
@pytest.mark.parametrize("tokens", [8, 12, 40])
def test_the_ridge_is_the_best_on_the_held_out_tokens(affine: bool, tokens: int) -> None:
    """Against every ridge tried by hand; the map is then fitted to all tokens."""
    for seed in range(5):
        layer = _layer(seed, tokens)
        seen, held_out = (layer._replace(x=x) for x in layer.x.split([tokens - 3, 3]))
        found = fit(layer.A, layer.B, moments(seen.x, layer.A), moments(held_out.x, layer.A), affine)
        errors = {}
        for ridge in RIDGES:
            slope, intercept = map(torch.from_numpy, _by_hand(seen, ridge, affine))
            errors[ridge] = held_out.error(slope, intercept)
        assert found.ridge is not None
        assert errors[found.ridge] == pytest.approx(min(errors.values()), rel=1e-6)
        assert found.error == pytest.approx(errors[found.ridge], rel=1e-4, abs=1e-6)
        slope, intercept = _by_hand(layer, found.ridge, affine)
        np.testing.assert_allclose(found.A, slope, rtol=1e-4, atol=1e-5)
        if affine:
            np.testing.assert_allclose(found.intercept, intercept, rtol=1e-4, atol=1e-5)


@given(seed=st.integers(0, 999), tokens=st.integers(3, 30), affine=st.booleans(), rank=st.integers(1, INPUTS))
@settings(max_examples=60, deadline=None)
def test_linear_units_come_out_as_they_are(seed: int, tokens: int, affine: bool, rank: int) -> None:
    """However few the tokens and the directions that their inputs take."""
    layer = _layer(seed, tokens, "identity")
    basis, _ = torch.linalg.qr(torch.randn(INPUTS, rank, generator=torch.Generator().manual_seed(seed)).double())
    x = layer.x @ basis @ basis.T
    parts = [moments(part, layer.A, "identity") for part in x.split([tokens - 1, 1])]
    found = fit(layer.A, layer.B, parts[0], parts[1], affine)
    torch.testing.assert_close(found.A, layer.A, rtol=1e-4, atol=1e-4)
    assert found.error == pytest.approx(0, abs=1e-5)
    if affine:
        assert found.intercept is not None
        torch.testing.assert_close(found.intercept, torch.zeros(UNITS), rtol=0, atol=1e-4)


def _gaussian(mean: torch.Tensor, tokens: int = 40_000) -> Layer:
    layer = _layer(5, 1)
    x = torch.randn(tokens, INPUTS, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return layer._replace(x=x + mean)


def test_zero_mean_gaussian_inputs_halve_the_matrix() -> None:
    layer = _gaussian(torch.zeros(INPUTS))
    torch.testing.assert_close(_swept(layer, False).A, layer.A / 2, rtol=0, atol=0.02)


def test_gaussian_inputs_with_a_mean() -> None:
    """Stein: the slope is ``E[relu'(z)]``, and the intercept makes the means fit."""
    mean = torch.tensor([0.5, -1.0, 0.3, 0.8, -0.2], dtype=torch.float64)
    layer = _gaussian(mean)
    found = _swept(layer, True)
    mu, sigma = (layer.A.double() @ mean).numpy(), layer.A.double().norm(dim=1).numpy()
    slopes = norm.cdf(mu / sigma)
    assert slopes.min() < 0.4
    assert slopes.max() > 0.6
    np.testing.assert_allclose(found.A, slopes[:, None] * layer.A.numpy(), atol=0.03)
    assert found.intercept is not None
    expected = mu * slopes + sigma * norm.pdf(mu / sigma) - slopes * mu
    np.testing.assert_allclose(found.intercept, expected, atol=0.03)


@AFFINE
def test_dead_units_and_units_that_are_always_on(affine: bool) -> None:
    layer = _layer(1)
    layer = layer._replace(x=layer.x.abs(), A=torch.stack([-layer.A[0].abs(), layer.A[1].abs(), layer.A[2]]))
    found = _swept(layer, affine)
    assert not found.A[0].any()
    torch.testing.assert_close(found.A[1], layer.A[1])
    assert (found.A[2] - layer.A[2]).norm() > 0.1
    if affine:
        assert found.intercept is not None
        torch.testing.assert_close(found.intercept[:2], torch.zeros(2), rtol=0, atol=1e-5)


@AFFINE
def test_in_unseen_directions_a_unit_has_its_usual_slope(affine: bool) -> None:
    layer = _layer(2, 400, inputs=8)
    basis, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))
    seen, unseen = basis[:, :5], basis[:, 5:]
    layer = layer._replace(x=layer.x @ seen @ seen.T)
    found = _swept(layer, affine)
    assert found.ridge_raised
    x, h = layer.x.numpy(), units_of(layer.x, layer.A).numpy()
    if affine:
        x, h = x - x.mean(0), h - h.mean(0)
    z = x @ layer.A.double().numpy().T
    slopes = torch.from_numpy((z * h).sum(0) / np.square(z).sum(0))
    assert (found.A.double() @ seen - slopes[:, None] * layer.A @ seen).norm() > 0.05
    torch.testing.assert_close(
        found.A.double() @ unseen, slopes[:, None] * (layer.A.double() @ unseen), rtol=1e-4, atol=1e-5
    )


@AFFINE
def test_nothing_to_fit(affine: bool) -> None:
    """No input, no effect of the adapter, no unit that is ever active: finite, and no error made."""
    layer = _layer()
    cases = {
        "inputs": layer._replace(x=torch.zeros_like(layer.x)),
        "B": layer._replace(B=torch.zeros_like(layer.B)),
        "A": layer._replace(A=torch.zeros_like(layer.A)),
        "constant": layer._replace(x=torch.ones_like(layer.x)),
    }
    for name, case in cases.items():
        found = _swept(case, affine)
        assert found.error == pytest.approx(0, abs=1e-6), name
        assert found.A.isfinite().all(), name
        assert found.intercept is None or found.intercept.isfinite().all(), name
    assert not _swept(cases["inputs"], affine).A.any()
