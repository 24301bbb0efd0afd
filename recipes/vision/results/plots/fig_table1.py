"""Table 1 as a figure: accuracy by label noise, and the paper's."""

from __future__ import annotations

from matplotlib.figure import Figure

from monolora.recipes.experiments.intervals import estimate, in_words
from monolora.recipes.experiments.plots.lines import Line, draw_lines, keep_in_sight, label_ends
from monolora.recipes.experiments.plots.style import percent_axis, titled
from monolora.recipes.vision.results import paper_numbers
from monolora.recipes.vision.results.gathered import SHORT
from monolora.recipes.vision.results.plots.colours import COLOURS, MARKERS
from monolora.recipes.vision.results.plots.material import Material, NotThereError, probed
from monolora.recipes.vision.results.table_rows import DRAWS


def draw(material: Material) -> Figure:
    """Solid with bands: ours. Thin and dashed: the paper's."""
    runs, half = material.runs, material.beside.half
    names, rates = probed(runs), runs.rates("ce")
    if not rates:
        raise NotThereError("the probes have no cross entropy; run monolora vision probe --losses ce,sce")
    lines = []
    for name in names:
        found = [estimate(runs.accuracy(name, "ce", rate)) for rate in rates]
        percent = [each and each.times(100) for each in found]
        lines.append(Line(SHORT[name], [100 * rate for rate in rates], percent, COLOURS[name], MARKERS[name]))
    words = in_words({line.label: line.estimates for line in lines}, DRAWS)
    note = f"Thin dashed lines: {material.beside.note}" if half else material.beside.note
    figure = titled(
        f"Linear probe accuracy on {material.beside.dataset} by training label noise",
        f"{words} {note}",
        6.4,
        4.6,
    )
    axes = figure.add_subplot()
    percent_axis(axes, "", "wrong training labels, %")
    draw_lines(axes, lines)
    if half:
        for name in names:
            xs = [100 * rate for rate in paper_numbers.RATES]
            axes.plot(xs, paper_numbers.TABLE1[half][name], "--", color=COLOURS[name], linewidth=0.9)
    keep_in_sight(axes)
    label_ends(figure, [(axes, lines)])
    return figure
