"""Figures of the finetuned encoders: accuracy on few images and on wrong labels, with CE and NCE (Figure 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from monolora.recipes.vision.figure_data import COLOURS, MARKERS, FigureData, MissingDataError
from monolora.recipes.vision.results import FinetuneRun, Records
from monolora.reporting.numbers import interval_caption
from monolora.reporting.plots import Line, draw_lines, keep_in_sight, label_ends, percent_axis, titled
from monolora.stats import BySeed, Estimate, estimate

_OBJECTIVES = {"ce": "CE", "nce": "NCE"}
# NCE has NCL's colour and marker, CE has CL's: both pairs are one ReLU apart.
_COUNTERPART = {"ce": "simclr", "nce": "ncl"}
_FINETUNE_DRAWS = "draws of images and labels"  # for captions
_CURVE_COLUMNS = 4


class _Panel(NamedTuple):
    title: str
    xlabel: str
    ylabel: str
    xs: Sequence[float]
    estimates: Mapping[str, Sequence[Estimate | None]]  # by objective


def fig3(data: FigureData) -> Figure:
    """Figure 3: accuracy after the last epoch, in training and validation, by share of images and by noise rate."""
    records = data.records
    _objectives(records)  # raises if there are none
    fractions, rates = _fractions(records), _noise_rates(records)
    few, noisy = [(fraction, 0.0) for fraction in fractions], [(1.0, rate) for rate in rates]
    panels = []
    if fractions:
        x = ("share of training images, %", [100 * fraction for fraction in fractions])
        panels += [
            _Panel("few images: training", x[0], "training accuracy, %", x[1],
                   _last_epochs(records, few, lambda run: run.train_accuracy)),
            _Panel("few images: validation", x[0], "validation accuracy, %", x[1],
                   _last_epochs(records, few, lambda run: run.val_accuracy)),
        ]  # fmt: skip
    if any(rates):
        panels.append(
            _Panel("wrong labels: validation", "wrong training labels, %", "validation accuracy, %",
                   [100 * rate for rate in rates], _last_epochs(records, noisy, lambda run: run.val_accuracy))
        )  # fmt: skip
    figure = titled(
        f"Finetuned SimCLR encoders after the last epoch, {data.comparison.dataset}",
        "CE: cross entropy on the representation. NCE: on its ReLU. "
        f"{_finetune_intervals([panel.estimates for panel in panels])}",
        3.5 * len(panels) + 0.5,
        3.8,
    )
    drawn = []
    for letter, panel, axes in zip("abc", panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=False):
        lines = [_objective_line(objective, panel.xs, means) for objective, means in panel.estimates.items()]
        percent_axis(axes, f"{letter}  {panel.title}", panel.xlabel, panel.ylabel)
        axes.set_xticks(panel.xs, [f"{x:g}" for x in panel.xs])
        draw_lines(axes, lines)
        keep_in_sight(axes)
        drawn.append((axes, lines))
    label_ends(figure, drawn)
    return figure


def fig3_curves(data: FigureData) -> Figure:
    """The curves behind Figure 3, a panel for each fraction and each noise rate: training dashed, validation solid."""
    records = data.records
    objectives = _objectives(records)
    conditions = {f"{100 * fraction:g} % of the images": (fraction, 0.0) for fraction in _fractions(records)}
    conditions |= {f"{100 * rate:g} % wrong labels": (1.0, rate) for rate in _noise_rates(records) if rate > 0}
    panels = {
        title: {objective: _curves(records, objective, *condition) for objective in objectives}
        for title, condition in conditions.items()
    }
    validation = [{objective: pair[0].estimates for objective, pair in panel.items()} for panel in panels.values()]
    n_columns = min(_CURVE_COLUMNS, len(panels))
    n_rows = -(-len(panels) // n_columns)
    figure = titled(
        f"Accuracy while finetuning SimCLR encoders, {data.comparison.dataset}",
        f"Solid: validation. Dashed: training, on the labels trained with. {_finetune_intervals(validation)}",
        3 * n_columns + 0.6,
        2.5 * n_rows + 1.1,
    )
    all_axes = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True, sharey=True).flatten()
    all_lines = [[line for pair in panel.values() for line in pair] for panel in panels.values()]
    for axes, title, lines in zip(all_axes, panels, all_lines, strict=False):
        percent_axis(axes, title, "epoch")
        draw_lines(axes, lines)
        axes.label_outer()
    keep_in_sight(all_axes[0])  # all panels share its scale
    for axes in all_axes[len(panels) :]:
        axes.set_axis_off()
    for axes in all_axes[max(0, len(panels) - n_columns) : len(panels)]:  # the lowest of each column
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    label_ends(figure, list(zip(all_axes, all_lines, strict=False)))
    return figure


def _curves(records: Records, objective: str, fraction: float, rate: float) -> tuple[Line, Line]:
    """Validation and training accuracy by epoch."""
    lengths = [len(run.val_accuracy) for run in records.finetune_runs if run.objective == objective]
    epochs = range(max(lengths, default=0))
    validation, training = (
        [estimate(_by_seed(records, objective, fraction, rate, partial(_at_epoch, kind, epoch))) for epoch in epochs]
        for kind in ("val", "train")
    )
    solid = _objective_line(objective, [epoch + 1 for epoch in epochs], validation)._replace(marker="")
    return solid, solid._replace(label="", estimates=training, style="--")


def _at_epoch(kind: str, epoch: int, run: FinetuneRun) -> float | None:
    curve = run.val_accuracy if kind == "val" else run.train_accuracy
    return curve[epoch] if epoch < len(curve) else None


def _last_epochs(
    records: Records, conditions: Sequence[tuple[float, float]], curve: Callable[[FinetuneRun], Sequence[float]]
) -> Mapping[str, list[Estimate | None]]:
    """By objective, an estimate for each condition (fraction, noise rate) after the last epoch."""
    return {
        objective: [
            estimate(_by_seed(records, objective, *condition, lambda run: curve(run)[-1])) for condition in conditions
        ]
        for objective in _objectives(records)
    }


def _by_seed(
    records: Records, objective: str, fraction: float, rate: float, value_of: Callable[[FinetuneRun], float | None]
) -> BySeed:
    """One value for each draw, in %."""
    by_seed: dict[int, list[float]] = {}
    for run in sorted(records.finetune_runs, key=lambda run: (run.seed, run.draw)):
        if (run.objective, run.fraction, run.noise_rate) == (objective, fraction, rate):
            value = value_of(run)
            if value is not None:
                by_seed.setdefault(run.seed, []).append(100 * value)
    return by_seed


def _objectives(records: Records) -> list[str]:
    """The objectives that encoders were finetuned with.

    Raises:
        MissingDataError: if there are none.
    """
    objectives = {run.objective for run in records.finetune_runs}
    if not objectives:
        raise MissingDataError("no encoder has been finetuned; run monolora vision finetune")
    return [objective for objective in _OBJECTIVES if objective in objectives]


def _fractions(records: Records) -> list[float]:
    """The shares of the training images that were used with clean labels."""
    return sorted({run.fraction for run in records.finetune_runs if run.noise_rate == 0})


def _noise_rates(records: Records) -> list[float]:
    """The shares of wrong labels that all training images were used with, 0 included."""
    return sorted({run.noise_rate for run in records.finetune_runs if run.fraction == 1})


def _objective_line(objective: str, xs: Sequence[float], estimates: Sequence[Estimate | None]) -> Line:
    counterpart = _COUNTERPART[objective]
    return Line(_OBJECTIVES[objective], xs, estimates, COLOURS[counterpart], MARKERS[counterpart])


def _finetune_intervals(panels: Sequence[Mapping[str, Sequence[Estimate | None]]]) -> str:
    """A caption that says over what the intervals are; estimates by objective."""
    estimates: dict[str, list[Estimate | None]] = {}
    for by_objective in panels:
        for objective, means in by_objective.items():
            estimates.setdefault(_OBJECTIVES[objective], []).extend(means)
    return interval_caption(estimates, _FINETUNE_DRAWS)
