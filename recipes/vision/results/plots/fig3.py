"""Figure 3: accuracy after finetuning on few images, and on wrong labels, with CE and NCE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from monolora.recipes.experiments.intervals import Estimate
from monolora.recipes.experiments.plots.lines import draw_lines, keep_in_sight, label_ends
from monolora.recipes.experiments.plots.style import percent_axis, titled
from monolora.recipes.vision.results.plots import tuned
from monolora.recipes.vision.results.plots.material import Material


class _Panel(NamedTuple):
    title: str
    xlabel: str
    ylabel: str
    xs: Sequence[float]
    estimates: Mapping[str, Sequence[Estimate | None]]


def draw(material: Material) -> Figure:
    """Training and validation accuracy by fraction, validation accuracy by noise rate."""
    runs = material.runs
    tuned.objectives(runs)  # there are some
    shares, rates = tuned.fractions(runs), tuned.noise_rates(runs)
    few, noisy = [(share, 0.0) for share in shares], [(1.0, rate) for rate in rates]
    panels = []
    if shares:
        x = ("share of training images, %", [100 * share for share in shares])
        panels += [
            _Panel("few images: training", x[0], "training accuracy, %", x[1],
                   tuned.last_epochs(runs, few, lambda run: run.train_accuracy)),
            _Panel("few images: validation", x[0], "validation accuracy, %", x[1],
                   tuned.last_epochs(runs, few, lambda run: run.val_accuracy)),
        ]  # fmt: skip
    if any(rates):
        panels.append(
            _Panel("wrong labels: validation", "wrong training labels, %", "validation accuracy, %",
                   [100 * rate for rate in rates], tuned.last_epochs(runs, noisy, lambda run: run.val_accuracy))
        )  # fmt: skip
    words = tuned.caption([each.estimates for each in panels])
    figure = titled(
        f"Finetuned SimCLR encoders after the last epoch, {material.beside.dataset}",
        f"CE: cross entropy on the representation. NCE: on its ReLU. {words}",
        3.5 * len(panels) + 0.5,
        3.8,
    )
    drawn = []
    for letter, panel, axes in zip("abc", panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=False):
        lines = [tuned.line(objective, panel.xs, found) for objective, found in panel.estimates.items()]
        percent_axis(axes, f"{letter}  {panel.title}", panel.xlabel, panel.ylabel)
        axes.set_xticks(panel.xs, [f"{x:g}" for x in panel.xs])
        draw_lines(axes, lines)
        keep_in_sight(axes)
        drawn.append((axes, lines))
    label_ends(figure, drawn)
    return figure
