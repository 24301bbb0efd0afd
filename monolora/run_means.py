"""Means over runs, and how far they may be off: 95 % t-intervals over pretraining seeds, or over draws on one encoder.

Draws on one encoder are not independent of each other as encoders are: where there are several encoders, each counts
once, with its mean. Draws that all gave the same number, as without wrong labels, are one run: they show no spread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from scipy import stats

BySeed = Mapping[int, Sequence[float]]  # by pretraining seed, the value of each draw on that encoder


class Estimate(NamedTuple):
    """A mean over runs.

    Attributes:
        mean: over encoders, of the mean over each one's draws.
        low, high: of the 95 % t-interval; None for one run only.
        encoders: pretraining seeds.
        draws: on each encoder; the fewest, where they differ.
    """

    mean: float
    low: float | None
    high: float | None
    encoders: int
    draws: int

    @property
    def n(self) -> int:
        """What the interval counts: encoders, or draws on the only one."""
        return self.encoders if self.encoders > 1 else self.draws

    @property
    def half_width(self) -> float | None:
        """Of the interval."""
        return None if self.high is None else self.high - self.mean

    def times(self, factor: float) -> Estimate:
        """In another unit."""
        low, high = (None if each is None else each * factor for each in (self.low, self.high))
        return self._replace(mean=self.mean * factor, low=low, high=high)


def half_width(values: Sequence[float]) -> float | None:
    """Half of the 95 % t-interval of the mean of independent values; None if there is one only."""
    if len(values) < 2:
        return None
    return float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5


def estimate(values: BySeed) -> Estimate | None:
    """The mean over all runs, over pretraining seeds where there are several; None if there are no runs."""
    runs = [list(draws) if len(set(draws)) > 1 else draws[:1] for draws in values.values() if draws]
    if not runs:
        return None
    counted = [fmean(draws) for draws in runs] if len(runs) > 1 else runs[0]
    mean, half = fmean(counted), half_width(counted)
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return Estimate(mean, low, high, len(runs), min(map(len, runs)))


def difference(values: BySeed, baseline: BySeed) -> Estimate | None:
    """The mean of ``values - baseline`` over the runs that both have, paired by seed and draw."""
    return estimate(
        {
            seed: [ours - theirs for ours, theirs in zip(draws, baseline[seed], strict=False)]
            for seed, draws in values.items()
            if seed in baseline
        }
    )


def in_words(estimates: Mapping[str, Iterable[Estimate | None]], draws: str) -> str:
    """What intervals are over, for a caption.

    Args:
        estimates: by what they are of.
        draws: what differs between the runs on one encoder, in the plural.
    """
    groups: dict[tuple[int, int], list[str]] = {}
    for name, each in estimates.items():
        kinds = {(found.encoders, found.draws) for found in each if found is not None}
        for key in kinds - {(1, 1)} or kinds:  # a number without an interval beside others speaks for itself
            groups.setdefault(key, []).append(name)
    sentences = []
    for (n_encoders, n_draws), names in sorted(groups.items(), reverse=True):
        sentence = _sentence(n_encoders, n_draws, draws)
        sentences.append(f"{', '.join(names)}: {sentence}" if len(groups) > 1 else sentence)
    return " ".join(sentences)


def _sentence(n_encoders: int, n_draws: int, draws: str) -> str:
    if n_encoders > 1:
        each = f", each the mean of {n_draws} {draws}" if n_draws > 1 else ", one run each"
        return f"Means and 95 % t-intervals over {n_encoders} encoders (pretraining seeds){each}."
    if n_draws > 1:
        return (
            f"Means and 95 % t-intervals over {n_draws} {draws} on one encoder: they say nothing about other encoders."
        )
    return "One run each: no interval."
