"""Finding what to take out of an adapter, so that less of the base's behaviour is lost at a small cost to the task.

Each way of weakening an adapter has a strength. :func:`strongest` finds, by bisection, the largest one at which the
task's loss stays below a limit. :func:`find_units` chooses units by their attributions
(:func:`monolora.attribution.attribute`); the other ways are its controls: random units, the whole adapter scaled down,
and single entries of B.

Shapes: P kept prompts, N rows of the task, U units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import numpy as np
import torch

from monolora.attribution import Factors, Loss, attribute, measured, weakened, without
from monolora.stats import Floats
from monolora.units import Layout, UnitName


class Half(NamedTuple):
    """What an adapter is weighed by, on a half of the kept prompts and of the task's rows.

    Attributes:
        kept: how far kept prompts are from the base.
        task: the task's loss.
    """

    kept: Loss
    task: Loss

    def measured(self, layout: Layout, factors: Factors) -> Outcome:
        """Both, of an adapter that is weakened by these factors."""
        with weakened(layout, factors):
            return Outcome(measured(self.kept, "Measuring kept prompts"), measured(self.task, "Measuring the task"))


class Outcome(NamedTuple):
    """The losses of every prompt and row, in nats."""

    kept_P: Floats
    task_N: Floats

    def means(self, half: Half, strength: float = 0) -> Point:
        """The means over the half that it was measured on."""
        return Point(strength, half.kept.mean(self.kept_P), half.task.mean(self.task_N))


class Point(NamedTuple):
    """The means of an :class:`Outcome` at a strength."""

    strength: float
    kept: float
    task: float


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way of weakening an adapter.

    Attributes:
        strengths: from the weakest.
        factors: of B, for a strength.
    """

    strengths: Sequence[float]
    factors: Callable[[float], Factors]


class Found(NamedTuple):
    """What a search found.

    Attributes:
        best: where kept prompts are nearest to the base, of the points within the limit; None if the adapter as it was
            is nearer.
        points: all that were measured.
    """

    best: Point | None
    points: list[Point]


def strongest(way: Way, layout: Layout, half: Half, before: Point, most_task: float) -> Found:
    """Bisect for the largest strength that the task allows, as if its loss only rose with the strength.

    Args:
        way: of weakening.
        layout: of the adapter.
        half: that it is measured on.
        before: what is to be improved on.
        most_task: the limit of the task's mean loss, in nats per token.
    """
    points: list[Point] = []
    low, high = 0, len(way.strengths)
    while low < high:
        middle = (low + high) // 2
        strength = way.strengths[middle]
        points.append(half.measured(layout, way.factors(strength)).means(half, strength))
        low, high = (middle + 1, high) if points[-1].task <= most_task else (low, middle)
    allowed = [point for point in points if point.task <= most_task and point.kept < before.kept]
    return Found(min(allowed, key=lambda point: point.kept, default=None), points)


class FoundUnits(NamedTuple):
    """Units to take out.

    Attributes:
        units: in the order in which they were chosen.
        points: all that were measured; a strength is a number of units.
        kept_U: change of the kept prompts' loss, to first order, when each unit alone is taken out of the adapter.
        task_U: likewise, of the task's loss.
    """

    units: list[UnitName]
    points: list[Point]
    kept_U: Floats
    task_U: Floats


def find_units(layout: Layout, half: Half, before: Point, limit: float, rounds: int, steps: int) -> FoundUnits:
    """Choose units by benefit per cost, in rounds: each attributes anew, without the units that are out already.

    Args:
        layout: of the adapter.
        half: that units are chosen on.
        before: of the adapter as it is.
        limit: how far the task's mean loss may rise, in nats per token; each round has an equal part of it.
        rounds: their number.
        steps: numbers of units that a round can tell apart, at most.
    """
    gone: list[UnitName] = []
    points: list[Point] = []
    best, first = before, None
    for round_ in range(rounds):
        with weakened(layout, without(layout, gone)):
            kept_U, task_U = (attribute(loss, layout, "Attributing to units") for loss in half)
        first = first or (kept_U, task_U)
        taken = set(gone)
        order = [layout.units[index] for index in by_benefit(kept_U, task_U) if layout.units[index] not in taken]
        order = order[: len(layout.units) - 1 - len(gone)]  # with none left there is no adapter
        way = _in_order(layout, order, steps, tuple(gone))
        found = strongest(way, layout, half, best, before.task + limit * (round_ + 1) / rounds)
        points += [point._replace(strength=len(gone) + point.strength) for point in found.points]
        if found.best is not None:
            gone += order[: int(found.best.strength)]
            best = found.best
    assert first is not None
    return FoundUnits(gone, points, *first)


def by_benefit(kept_U: Floats, task_U: Floats) -> list[int]:
    """Units whose removal helps kept prompts: those that cost the task nothing, then by benefit per cost.

    Args:
        kept_U: change of the kept prompts' loss when a unit is taken out; a benefit is negative.
        task_U: change of the task's loss; a cost is positive.
    """
    benefit_U = -kept_U
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio_U = np.where(task_U > 0, benefit_U / task_U, np.inf)
    return [int(index) for index in np.lexsort((-benefit_U, -ratio_U)) if benefit_U[index] > 0]


def random_units(layout: Layout, steps: int, seed: int) -> Way:
    """Units in a random order, but for the last of it; a strength is their number."""
    return _in_order(layout, Random(seed).sample(layout.units, len(layout.units) - 1), steps)


def _in_order(layout: Layout, order: Sequence[UnitName], steps: int, gone: Sequence[UnitName] = ()) -> Way:
    """The first units of an order, beside those that are out already."""
    return Way(
        strengths=_sizes(len(order), steps), factors=lambda count: without(layout, [*gone, *order[: int(count)]])
    )


def whole_adapter(layout: Layout, steps: int) -> Way:
    """All of B scaled down; a strength is the share that is taken off."""

    def factors(share: float) -> Factors:
        return dict.fromkeys(layout.layers, torch.tensor(1 - share))

    return Way(strengths=_shares(steps), factors=factors)


def entries(layout: Layout, steps: int) -> Way:
    """Entries of B set to 0, those with the smallest ``|B[i, j]| ‖A[j]‖`` of all first; a strength is their share."""
    sizes = dict(_entry_sizes(layout))
    ordered = torch.cat([size.flatten() for size in sizes.values()]).sort().values

    def factors(share: float) -> Factors:
        largest = ordered[max(0, round(share * len(ordered)) - 1)]
        return {name: (size > largest).float() for name, size in sizes.items()}

    return Way(strengths=_shares(steps), factors=factors)


def _entry_sizes(layout: Layout) -> Iterator[tuple[str, torch.Tensor]]:
    for name, (A, B) in layout.matrices().items():
        norms_R = A.detach().flatten(1).norm(dim=1).cpu()
        yield name, B.detach().abs().cpu() * norms_R.view(1, -1, *(1,) * (B.dim() - 2))


def _shares(steps: int) -> list[float]:
    return [step / steps for step in range(1, steps + 1)]


def _sizes(most: int, steps: int) -> list[float]:
    """Whole numbers up to ``most``, each larger than the last by about the same factor."""
    return sorted({float(round(size)) for size in np.geomspace(1, most, steps)}) if most else []
