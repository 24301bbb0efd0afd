"""The curves behind Figure 3: accuracy by epoch of finetuning."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from monolora.recipes.experiments.intervals import Estimate, estimate
from monolora.recipes.experiments.plots.lines import Line, draw_lines, keep_in_sight, label_ends
from monolora.recipes.experiments.plots.style import percent_axis, titled
from monolora.recipes.vision.results.gathered import Finetuned, Gathered
from monolora.recipes.vision.results.plots import tuned
from monolora.recipes.vision.results.plots.material import Material

_COLUMNS = 4


def draw(material: Material) -> Figure:
    """A panel for each fraction and each noise rate: training dashed, validation solid."""
    runs = material.runs
    tuned.objectives(runs)  # there are some
    conditions = {f"{100 * share:g} % of the images": (share, 0.0) for share in tuned.fractions(runs)}
    conditions |= {f"{100 * rate:g} % wrong labels": (1.0, rate) for rate in tuned.noise_rates(runs) if rate > 0}
    panels = {title: _lines(runs, *each) for title, each in conditions.items()}
    n_columns = min(_COLUMNS, len(panels))
    n_rows = -(-len(panels) // n_columns)
    figure = titled(
        f"Accuracy while finetuning SimCLR encoders, {material.beside.dataset}",
        f"Solid: validation. Dashed: training, on the labels trained with. {tuned.caption(_by_objective(panels))}",
        3 * n_columns + 0.6,
        2.5 * n_rows + 1.1,
    )
    all_axes = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True, sharey=True).flatten()
    for axes, (title, lines) in zip(all_axes, panels.items(), strict=False):
        percent_axis(axes, title, "epoch")
        draw_lines(axes, lines)
        axes.label_outer()
    keep_in_sight(all_axes[0])  # which all share
    for axes in all_axes[len(panels) :]:
        axes.set_axis_off()
    for axes in all_axes[max(0, len(panels) - n_columns) : len(panels)]:  # the lowest of each column
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    label_ends(figure, list(zip(all_axes, panels.values(), strict=False)))
    return figure


def _lines(runs: Gathered, fraction: float, rate: float) -> list[Line]:
    lines = []
    for objective in tuned.objectives(runs):
        own = [each for each in runs.finetuned if each.objective == objective]
        epochs = range(max((len(each.val_accuracy) for each in own), default=0))
        validation, training = (
            [estimate(tuned.by_seed(runs, objective, fraction, rate, partial(_after, kind, epoch))) for epoch in epochs]
            for kind in ("val", "train")
        )
        xs = [epoch + 1 for epoch in epochs]
        line = tuned.line(objective, xs, validation)._replace(marker="")
        lines += [line, line._replace(label="", estimates=training, style="--")]
    return lines


def _after(kind: str, epoch: int, run: Finetuned) -> float | None:
    curve = run.val_accuracy if kind == "val" else run.train_accuracy
    return curve[epoch] if epoch < len(curve) else None


def _by_objective(panels: Mapping[str, list[Line]]) -> list[dict[str, list[Estimate | None]]]:
    keys = {label: objective for objective, label in tuned.LABELS.items()}
    return [{keys[line.label]: list(line.estimates) for line in lines if line.label} for lines in panels.values()]
