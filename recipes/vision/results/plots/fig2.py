"""Figure 2: accuracy under uniform and Gaussian noise on the images, and on images of another kind."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from monolora.recipes.experiments.intervals import Estimate, estimate, in_words
from monolora.recipes.experiments.plots.bars import Bar, draw_bars
from monolora.recipes.experiments.plots.lines import Line, draw_lines, keep_in_sight, label_ends
from monolora.recipes.experiments.plots.style import percent_axis, titled
from monolora.recipes.vision.results.gathered import SHORT, Gathered
from monolora.recipes.vision.results.plots.colours import COLOURS, MARKERS
from monolora.recipes.vision.results.plots.material import Material, NotThereError, probed

_KINDS = {"uniform": "uniform noise", "gaussian": "Gaussian noise"}


def draw(material: Material) -> Figure:
    """One panel a kind of noise, and one for images of other kinds, where there are any."""
    runs = material.runs
    lines = {kind: found for kind in _KINDS if (found := _lines(runs, kind))}
    ood = _ood(runs)
    n_panels = len(lines) + bool(ood)
    if not n_panels:
        raise NotThereError("the probes saw no input noise; run monolora vision probe --noise-scales 0.2,0.4,0.6,0.8,1")
    estimates: dict[str, list[Estimate | None]] = {}
    for line in (line for each in lines.values() for line in each):
        estimates.setdefault(line.label, []).extend(line.estimates)
    for bar in (bar for each in ood.values() for bar in each):
        estimates.setdefault(bar.label, []).append(bar.estimate)
    figure = titled(
        f"Linear probe accuracy on changed images, {material.beside.dataset}",
        f"{in_words(estimates, 'classifiers')} Classifiers trained on clean labels and images; noise is added to the "
        "normalised validation images.",
        3.7 * n_panels + 0.5,
        3.8,
    )
    panels: list[tuple[Axes, list[Line]]] = []
    all_axes = figure.subplots(1, n_panels, squeeze=False)[0]
    for letter, (kind, each), axes in zip("ab", lines.items(), all_axes, strict=False):
        percent_axis(axes, f"{letter}  {_KINDS[kind]}", "scale of the noise")
        draw_lines(axes, each)
        keep_in_sight(axes)
        panels.append((axes, each))
    if ood:
        percent_axis(all_axes[-1], f"{'abc'[len(lines)]}  images of another kind", "")
        draw_bars(all_axes[-1], ood)
    label_ends(figure, panels)
    return figure


def _lines(runs: Gathered, kind: str) -> list[Line]:
    scales = sorted({scale for each in runs.probed for scale in each.input_noise.get(kind, ())})
    if not any(scales):  # 0 is no noise
        return []
    lines = []
    for name in probed(runs):
        found = [estimate(runs.input_noise(name, kind, scale)) for scale in scales]
        percent = [each and each.times(100) for each in found]
        lines.append(Line(SHORT[name], scales, percent, COLOURS[name], MARKERS[name]))
    return lines


def _ood(runs: Gathered) -> dict[str, list[Bar]]:
    sets = dict.fromkeys(kind for each in runs.probed for kind in each.ood)
    return {
        kind: [
            Bar(SHORT[name], found.times(100), COLOURS[name])
            for name in probed(runs)
            if (found := estimate(runs.ood(name, kind))) is not None
        ]
        for kind in sets
    }
