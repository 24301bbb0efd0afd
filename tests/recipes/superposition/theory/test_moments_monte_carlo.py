"""Estimates by random samples: of numpy's own statistics, and with errors that are as large as they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from monolora.recipes.superposition.theory import moments
from monolora.recipes.superposition.theory.moments import Moments, Noises, estimate_moments, noisy_moments

MONO, POLY = (1.0, 0.0), (1.0, -1.0)
NOISES = [Noises(0, 0), Noises(0.3, 0), Noises(0.2, 0.5)]


def test_statistics_from_sums_of_powers() -> None:
    h = np.random.default_rng(0).gamma(2.0, size=1000)
    (mean, mean_error), (variance, variance_error) = moments._mean_and_variance(
        [(h**power).sum() for power in range(5)]
    )
    assert (mean, variance) == pytest.approx((h.mean(), h.var(ddof=1)))
    assert mean_error == pytest.approx(stats.sem(h), rel=1e-3)
    assert variance_error == pytest.approx(((stats.moment(h, 4) - h.var() ** 2) / len(h)) ** 0.5)


def test_errors_are_as_large_as_they_say() -> None:
    """z over 300 seeds is a standard normal, for every quantity."""
    z_scores: dict[str, list[float]] = {}
    for seed in range(300):
        for weights, noise, estimates in estimate_moments(0.5, [MONO, POLY], NOISES[2:], 2000, [seed]):
            closed = noisy_moments(0.5, weights, *noise)
            for quantity in (*Moments._fields, "spread"):
                estimate, error = getattr(estimates, quantity)
                z_scores.setdefault(f"{weights}{quantity}", []).append((estimate - getattr(closed, quantity)) / error)
    for z in z_scores.values():
        assert stats.kstest(z, "norm").pvalue > 1e-4


def test_the_seed_gives_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def once(seed: int, samples: int = 5000) -> list[object]:
        return list(estimate_moments(0.25, [MONO], NOISES, samples, [seed]))

    assert once(1) == once(1)
    assert once(1) != once(2)
    monkeypatch.setattr(moments, "_CHUNK", 512)  # 9 chunks of 512 and one of 392
    (_, _, first), *_ = once(1)
    assert first.mu1[0] == pytest.approx(noisy_moments(0.25, MONO).mu1, abs=5 * first.mu1[1])


def test_every_sample_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a mean is its spread over the root of the class's size: about half of the samples."""
    monkeypatch.setattr(moments, "_CHUNK", 300)
    ((_, _, estimates),) = estimate_moments(0.5, [POLY], NOISES[:1], 1000, [0])
    assert estimates.v1[0] / estimates.mu1[1] ** 2 + estimates.v0[0] / estimates.mu0[1] ** 2 == pytest.approx(
        1000, rel=0.01
    )
