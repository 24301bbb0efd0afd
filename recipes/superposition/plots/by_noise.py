"""Accuracy against label noise and against input noise, by sparsity."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from monolora.recipes.experiments.plots.lines import Line, draw_lines, keep_in_sight, label_ends
from monolora.recipes.experiments.plots.style import PALE, titled
from monolora.recipes.superposition.plots.colours import COLOURS, MARKERS, WHO
from monolora.recipes.superposition.recorded import Recorded
from monolora.recipes.superposition.settings import MONO, POLY

_ROWS = (  # kind, unit, name of the axis
    ("label", 100.0, "wrong training labels, %"),
    ("input", 1.0, "scale of the Gaussian noise"),
)


def draw(recorded: Recorded) -> Figure:
    """A column a sparsity above 0: label noise above, input noise below; the largest training set."""
    samples, sparsities = recorded.most_samples, recorded.sparse
    n_features = recorded.W_Ssmn.shape[-1]
    figure = titled(
        f"Accuracy of linear classifiers under noise, {samples:,} training samples",
        f"{WHO} Both see the same samples, labels and noise. Above: noise in the training labels. Below: "
        f"classifiers trained on clean labels, noise on the test samples. {recorded.intervals_in_words()} "
        f"Dotted: chance, 1\u00a0in\u00a0{n_features}.",
        max(6.0, 2.55 * len(sparsities) + 0.5),
        5.8,
    )
    all_axes = figure.subplots(len(_ROWS), len(sparsities), squeeze=False, sharey=True)
    panels: list[tuple[Axes, list[Line]]] = []
    for row, (kind, unit, xlabel) in zip(all_axes, _ROWS, strict=True):
        row[0].set_ylabel("accuracy, %")
        for axes, S in zip(row, sparsities, strict=True):
            axes.set(title=f"S = {S:g}", xlabel=xlabel)
            axes.axhline(100 / n_features, color=PALE, linestyle=":", linewidth=1)
            lines = [_line(recorded, samples, S, name, kind, unit) for name in (MONO, POLY)]
            draw_lines(axes, lines)
            panels.append((axes, lines))
    first: Axes = all_axes[0, 0]  # whose scale all share
    first.set_ylim(bottom=0)
    keep_in_sight(first)
    label_ends(figure, panels)
    return figure


def _line(recorded: Recorded, samples: int, S: float, name: str, kind: str, unit: float) -> Line:
    noises = recorded.noises(samples, kind)
    found = [recorded.accuracy(samples, S, name, kind, noise) for noise in noises]
    return Line(name, [unit * noise for noise in noises], found, COLOURS[name], MARKERS[name])
