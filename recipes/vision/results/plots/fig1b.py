"""Figure 1b: accuracy without noise, with many wrong labels, and with Gaussian noise on the images."""

from __future__ import annotations

from matplotlib.figure import Figure

from monolora.recipes.experiments.intervals import BySeed, estimate, in_words
from monolora.recipes.experiments.plots.bars import Bar, draw_bars
from monolora.recipes.experiments.plots.style import titled
from monolora.recipes.vision.results.gathered import SHORT
from monolora.recipes.vision.results.plots.colours import COLOURS
from monolora.recipes.vision.results.plots.material import Material, NotThereError, probed

_SCALE = 0.6  # of the paper's Gaussian noise


def draw(material: Material) -> Figure:
    """Three groups of bars, fewer where something was not measured."""
    runs, names = material.runs, probed(material.runs)
    groups: dict[str, dict[str, BySeed]] = {}
    rates = runs.rates("ce")
    if 0.0 in rates:
        groups["clean"] = {name: runs.accuracy(name, "ce", 0.0) for name in names}
    if rates and rates[-1] > 0:
        groups[f"{100 * rates[-1]:g} % label noise"] = {name: runs.accuracy(name, "ce", rates[-1]) for name in names}
    scales = {scale for each in runs.probed for scale in each.input_noise.get("gaussian", ()) if scale > 0}
    if scales:
        scale = min(scales, key=lambda each: (abs(each - _SCALE), each))
        groups[f"Gaussian noise {scale:g}"] = {name: runs.input_noise(name, "gaussian", scale) for name in names}
    bars = {
        group: [
            Bar(SHORT[name], found.times(100), COLOURS[name])
            for name, values in each.items()
            if (found := estimate(values)) is not None
        ]
        for group, each in groups.items()
    }
    bars = {group: each for group, each in bars.items() if each}
    if not bars:
        raise NotThereError("the probes have no cross entropy; run monolora vision probe --losses ce,sce")
    by_name = {
        SHORT[name]: [bar.estimate for each in bars.values() for bar in each if bar.label == SHORT[name]]
        for name in names
    }
    figure = titled(
        f"Linear probe accuracy on {material.beside.dataset}",
        f"{in_words(by_name, 'classifiers')} Label noise is in training only; Gaussian noise only on the normalised "
        "validation images, of classifiers trained on clean labels.",
        max(4.5, 0.4 + 0.5 * sum(len(each) + 1 for each in bars.values())),
        4,
    )
    axes = figure.add_subplot()
    draw_bars(axes, bars)
    axes.set_ylabel("accuracy, %")
    return figure
