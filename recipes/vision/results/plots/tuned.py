"""What the figures on finetuning share: which runs there are, and their accuracies by seed and draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from monolora.recipes.experiments.intervals import BySeed, Estimate, estimate, in_words
from monolora.recipes.experiments.plots.lines import Line
from monolora.recipes.vision.results.gathered import Finetuned, Gathered
from monolora.recipes.vision.results.plots.colours import COLOURS, MARKERS
from monolora.recipes.vision.results.plots.material import NotThereError

LABELS = {"ce": "CE", "nce": "NCE"}
# of CL's and NCL's colours: what NCE keeps non-negative, NCL has made so
LIKE = {"ce": "simclr", "nce": "ncl"}
DRAWS = "draws of images and labels"


def objectives(runs: Gathered) -> list[str]:
    """Those that encoders were finetuned with.

    Raises:
        NotThereError: if none was.
    """
    there = {each.objective for each in runs.finetuned}
    if not there:
        raise NotThereError("no encoder has been finetuned; run monolora vision finetune")
    return [each for each in LABELS if each in there]


def fractions(runs: Gathered) -> list[float]:
    """Shares of the training images that were used, all with clean labels."""
    return sorted({each.fraction for each in runs.finetuned if each.noise_rate == 0})


def noise_rates(runs: Gathered) -> list[float]:
    """Shares of wrong labels that all training images were used with, 0 among them."""
    return sorted({each.noise_rate for each in runs.finetuned if each.fraction == 1})


def by_seed(
    runs: Gathered, objective: str, fraction: float, rate: float, of: Callable[[Finetuned], float | None]
) -> BySeed:
    """One value a draw, in %."""
    found: dict[int, list[float]] = {}
    for each in sorted(runs.finetuned, key=lambda run: (run.seed, run.draw)):
        if (each.objective, each.fraction, each.noise_rate) == (objective, fraction, rate):
            value = of(each)
            if value is not None:
                found.setdefault(each.seed, []).append(100 * value)
    return found


def line(objective: str, xs: Sequence[float], estimates: Sequence[Estimate | None]) -> Line:
    """An objective's line, in its colour."""
    like = LIKE[objective]
    return Line(LABELS[objective], xs, estimates, COLOURS[like], MARKERS[like])


def last_epochs(
    runs: Gathered, conditions: Sequence[tuple[float, float]], of: Callable[[Finetuned], Sequence[float]]
) -> Mapping[str, list[Estimate | None]]:
    """By objective, the estimate of each condition (fraction, noise rate) after the last epoch."""
    return {
        objective: [estimate(by_seed(runs, objective, *each, lambda run: of(run)[-1])) for each in conditions]
        for objective in objectives(runs)
    }


def caption(estimates: Sequence[Mapping[str, Sequence[Estimate | None]]]) -> str:
    """What the intervals are over."""
    together: dict[str, list[Estimate | None]] = {}
    for each in estimates:
        for objective, found in each.items():
            together.setdefault(LABELS[objective], []).extend(found)
    return in_words(together, DRAWS)
