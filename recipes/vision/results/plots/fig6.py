"""Figure 6: cross entropy and symmetric cross entropy on each representation, by label noise."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from monolora.recipes.experiments.intervals import Estimate, difference, estimate, in_words
from monolora.recipes.experiments.plots.lines import Line, draw_lines, keep_in_sight, label_ends
from monolora.recipes.experiments.plots.style import PALE, percent_axis, titled
from monolora.recipes.vision.results.gathered import SHORT, TITLES, Gathered
from monolora.recipes.vision.results.plots.colours import COLOURS, MARKERS
from monolora.recipes.vision.results.plots.material import Material, NotThereError, probed
from monolora.recipes.vision.results.table_rows import DRAWS


def draw(material: Material) -> Figure:
    """A panel a representation, and one of the differences."""
    runs = material.runs
    names = [name for name in probed(runs) if all(_there(runs, name, loss) for loss in ("ce", "sce"))]
    if not names:
        raise NotThereError("the probes have not both losses; run monolora vision probe --losses ce,sce")
    lines = {name: _lines(runs, name) for name in names}
    less = [_difference(runs, name) for name in names]
    estimates = {SHORT[name]: [found for line in lines[name] for found in line.estimates] for name in names}
    n_panels = len(names) + 1
    grey = " Grey: CL with CE." if "simclr" in names[:-1] else ""
    figure = titled(
        f"Linear probe accuracy on {material.beside.dataset}, cross entropy (CE) and symmetric cross entropy (SCE)",
        f"{in_words(estimates, DRAWS)} Differences are paired by run.{grey}",
        3.1 * n_panels + 0.5,
        3.7,
    )
    all_axes = list(figure.subplots(1, n_panels))
    panels: list[tuple[Axes, list[Line]]] = []
    for name, axes in zip(names, all_axes, strict=False):
        axes.sharey(all_axes[0])
        percent_axis(axes, TITLES[name], "wrong training labels, %", "accuracy, %" if axes is all_axes[0] else "")
        if name != "simclr" and "simclr" in names:
            draw_lines(axes, [_plain(lines["simclr"][0])])
        draw_lines(axes, lines[name])
        panels.append((axes, lines[name]))
    percent_axis(all_axes[-1], "SCE − CE", "wrong training labels, %", "difference, points")
    all_axes[-1].axhline(0, color=PALE, linewidth=0.8)
    draw_lines(all_axes[-1], less)
    keep_in_sight(all_axes[0])  # which the representations share
    keep_in_sight(all_axes[-1], -100)
    label_ends(figure, [*panels, (all_axes[-1], less)])
    return figure


def _there(runs: Gathered, name: str, loss: str) -> bool:
    return any(any(runs.accuracy(name, loss, rate).values()) for rate in runs.rates(loss))


def _lines(runs: Gathered, name: str) -> list[Line]:
    lines = []
    for loss, style in (("ce", "-"), ("sce", "--")):
        rates = runs.rates(loss)
        found = [_percent(estimate(runs.accuracy(name, loss, rate))) for rate in rates]
        lines.append(Line(loss.upper(), _times_100(rates), found, COLOURS[name], MARKERS[name], style))
    return lines


def _difference(runs: Gathered, name: str) -> Line:
    rates = sorted(set(runs.rates("ce")) & set(runs.rates("sce")))
    found = [_percent(difference(runs.accuracy(name, "sce", rate), runs.accuracy(name, "ce", rate))) for rate in rates]
    return Line(SHORT[name], _times_100(rates), found, COLOURS[name], MARKERS[name])


def _plain(line: Line) -> Line:
    """Thin, grey, without its interval."""
    means = [found and found._replace(low=None, high=None) for found in line.estimates]
    return line._replace(label="", estimates=means, colour="#b8b8b8", marker="")


def _percent(found: Estimate | None) -> Estimate | None:
    return found and found.times(100)


def _times_100(rates: list[float]) -> list[float]:
    return [100 * rate for rate in rates]
