"""Figure 4c: how consistent the dimensions are that rightly and wrongly classified images activate most."""

from __future__ import annotations

from matplotlib.figure import Figure

from monolora.recipes.experiments.intervals import Estimate, estimate, in_words
from monolora.recipes.experiments.plots.bars import Bar, draw_bars
from monolora.recipes.experiments.plots.style import titled
from monolora.recipes.vision.results.gathered import DENSE, ORDER, SHORT, TITLES
from monolora.recipes.vision.results.plots.colours import COLOURS
from monolora.recipes.vision.results.plots.material import Material, NotThereError, first_consistent


def draw(material: Material) -> Figure:
    """Two bars a representation."""
    runs = material.runs
    first_consistent(runs)  # there is some
    groups: dict[str, list[Bar]] = {}
    estimates: dict[str, list[Estimate | None]] = {}
    for name in ORDER:
        own = [each for each in runs.consistent if each.representation == name]
        right = estimate({each.seed: each.right for each in own})
        wrong = estimate({each.seed: each.wrong for each in own})
        bars = [
            Bar(label, found, COLOURS[name], pale)
            for label, found, pale in (("right", right, False), ("wrong", wrong, True))
            if found is not None
        ]
        if bars:
            groups[TITLES[name]] = bars
            estimates[SHORT[name]] = [right, wrong]
    if not groups:
        raise NotThereError("no classifier has classified anything; run monolora vision consistency")
    figure = titled(
        "Consistency of each image's most activated dimension",
        "Validation images, by whether the classifier trained on wrong labels is right. "
        f"{in_words(estimates, 'draws of wrong labels')} {DENSE}",
        max(4.5, 0.6 + 1.5 * len(groups)),
        4,
    )
    axes = figure.add_subplot()
    draw_bars(axes, groups, places=2)
    axes.set_ylabel("semantic consistency")
    return figure
