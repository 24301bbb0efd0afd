"""Figure 5(b): accuracy without noise, with many wrong labels, and with Gaussian noise on the test samples."""

from __future__ import annotations

import math

from matplotlib.figure import Figure

from monolora.recipes.experiments.plots.bars import Bar, draw_bars
from monolora.recipes.experiments.plots.style import titled
from monolora.recipes.superposition.estimates import shown_scale
from monolora.recipes.superposition.plots.colours import COLOURS, WHO
from monolora.recipes.superposition.recorded import Recorded
from monolora.recipes.superposition.settings import MONO, POLY


def draw(recorded: Recorded) -> Figure:
    """A panel a sparsity above 0, on one scale; the largest training set."""
    samples, sparsities = recorded.most_samples, recorded.sparse
    n_columns = math.ceil(math.sqrt(len(sparsities)))
    n_rows = math.ceil(len(sparsities) / n_columns)
    figure = titled(
        f"Accuracy without superposition (mono) and with it (poly), {samples:,} training samples",
        f"Linear classifiers. {WHO} Both see the same samples, labels and noise. Label noise is in training only; "
        "Gaussian noise only on the test samples, of classifiers trained on clean labels. "
        f"{recorded.intervals_in_words()}",
        max(6.5, 4.4 * n_columns + 0.4),
        2.6 * n_rows + 1.2,
    )
    all_axes = list(figure.subplots(n_rows, n_columns, squeeze=False, sharey=True).flat)
    tops: list[float] = []
    for place, (axes, S) in enumerate(zip(all_axes, sparsities, strict=False)):
        groups = _groups(recorded, samples, S)
        draw_bars(axes, groups)
        tops += [bar.estimate.high or bar.estimate.mean for bars in groups.values() for bar in bars]
        axes.set_title(f"S = {S:g}")
        if place % n_columns == 0:
            axes.set_ylabel("accuracy, %")
    all_axes[0].set_ylim(0, 1.12 * max(tops))  # of all panels, with room for the numbers
    for axes in all_axes[len(sparsities) :]:
        axes.remove()
    return figure


def _groups(recorded: Recorded, samples: int, S: float) -> dict[str, list[Bar]]:
    rates, scales = recorded.noises(samples, "label"), recorded.noises(samples, "input")
    shown = {"clean": ("label", 0.0)}
    if rates[-1] > 0:
        shown[f"{100 * rates[-1]:g} % label noise"] = ("label", rates[-1])
    scale = shown_scale(scales)
    if scale is not None:
        shown[f"Gaussian noise {scale:g}"] = ("input", scale)
    return {
        group: [Bar(name, recorded.accuracy(samples, S, name, *noise), COLOURS[name]) for name in (MONO, POLY)]
        for group, noise in shown.items()
    }
