"""Figures of robustness: 2, 3, 6 and Table 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from monolora.recipes.vision import paper_comparison
from monolora.recipes.vision.figure_data import COLOURS, MARKERS, Material, NotThereError, probed
from monolora.recipes.vision.paper_comparison import DRAWS
from monolora.recipes.vision.results import SHORT, TITLES, Finetuned, Gathered
from monolora.reporting.numbers import interval_caption
from monolora.reporting.plots import (
    PALE,
    Bar,
    Line,
    draw_bars,
    draw_lines,
    keep_in_sight,
    label_ends,
    percent_axis,
    titled,
)
from monolora.stats import BySeed, Estimate, difference, estimate

LABELS = {"ce": "CE", "nce": "NCE"}
# of CL's and NCL's colours: what NCE keeps non-negative, NCL has made so
LIKE = {"ce": "simclr", "nce": "ncl"}
TUNED_DRAWS = "draws of images and labels"


def objectives(runs: Gathered) -> list[str]:
    """Those that encoders were finetuned with.

    Raises:
        NotThereError: if none was.
    """
    there = {each.objective for each in runs.finetuned}
    if not there:
        raise NotThereError("no encoder has been finetuned; run monolora vision finetune")
    return [each for each in LABELS if each in there]


def fractions(runs: Gathered) -> list[float]:
    """Shares of the training images that were used, all with clean labels."""
    return sorted({each.fraction for each in runs.finetuned if each.noise_rate == 0})


def noise_rates(runs: Gathered) -> list[float]:
    """Shares of wrong labels that all training images were used with, 0 among them."""
    return sorted({each.noise_rate for each in runs.finetuned if each.fraction == 1})


def by_seed(
    runs: Gathered, objective: str, fraction: float, rate: float, of: Callable[[Finetuned], float | None]
) -> BySeed:
    """One value a draw, in %."""
    found: dict[int, list[float]] = {}
    for each in sorted(runs.finetuned, key=lambda run: (run.seed, run.draw)):
        if (each.objective, each.fraction, each.noise_rate) == (objective, fraction, rate):
            value = of(each)
            if value is not None:
                found.setdefault(each.seed, []).append(100 * value)
    return found


def line(objective: str, xs: Sequence[float], estimates: Sequence[Estimate | None]) -> Line:
    """An objective's line, in its colour."""
    like = LIKE[objective]
    return Line(LABELS[objective], xs, estimates, COLOURS[like], MARKERS[like])


def last_epochs(
    runs: Gathered, conditions: Sequence[tuple[float, float]], of: Callable[[Finetuned], Sequence[float]]
) -> Mapping[str, list[Estimate | None]]:
    """By objective, the estimate of each condition (fraction, noise rate) after the last epoch."""
    return {
        objective: [estimate(by_seed(runs, objective, *each, lambda run: of(run)[-1])) for each in conditions]
        for objective in objectives(runs)
    }


def caption(estimates: Sequence[Mapping[str, Sequence[Estimate | None]]]) -> str:
    """What the intervals are over."""
    together: dict[str, list[Estimate | None]] = {}
    for each in estimates:
        for objective, found in each.items():
            together.setdefault(LABELS[objective], []).extend(found)
    return interval_caption(together, TUNED_DRAWS)


_KINDS = {"uniform": "uniform noise", "gaussian": "Gaussian noise"}


def fig2(material: Material) -> Figure:
    """One panel a kind of noise, and one for images of other kinds, where there are any."""
    runs = material.runs
    lines = {kind: found for kind in _KINDS if (found := _fig2_lines(runs, kind))}
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
        f"{interval_caption(estimates, 'classifiers')} Classifiers trained on clean labels and images; noise is added "
        "to the normalised validation images.",
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


def _fig2_lines(runs: Gathered, kind: str) -> list[Line]:
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


class _Panel(NamedTuple):
    title: str
    xlabel: str
    ylabel: str
    xs: Sequence[float]
    estimates: Mapping[str, Sequence[Estimate | None]]


def fig3(material: Material) -> Figure:
    """Training and validation accuracy by fraction, validation accuracy by noise rate."""
    runs = material.runs
    objectives(runs)  # there are some
    shares, rates = fractions(runs), noise_rates(runs)
    few, noisy = [(share, 0.0) for share in shares], [(1.0, rate) for rate in rates]
    panels = []
    if shares:
        x = ("share of training images, %", [100 * share for share in shares])
        panels += [
            _Panel("few images: training", x[0], "training accuracy, %", x[1],
                   last_epochs(runs, few, lambda run: run.train_accuracy)),
            _Panel("few images: validation", x[0], "validation accuracy, %", x[1],
                   last_epochs(runs, few, lambda run: run.val_accuracy)),
        ]  # fmt: skip
    if any(rates):
        panels.append(
            _Panel("wrong labels: validation", "wrong training labels, %", "validation accuracy, %",
                   [100 * rate for rate in rates], last_epochs(runs, noisy, lambda run: run.val_accuracy))
        )  # fmt: skip
    words = caption([each.estimates for each in panels])
    figure = titled(
        f"Finetuned SimCLR encoders after the last epoch, {material.beside.dataset}",
        f"CE: cross entropy on the representation. NCE: on its ReLU. {words}",
        3.5 * len(panels) + 0.5,
        3.8,
    )
    drawn = []
    for letter, panel, axes in zip("abc", panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=False):
        lines = [line(objective, panel.xs, found) for objective, found in panel.estimates.items()]
        percent_axis(axes, f"{letter}  {panel.title}", panel.xlabel, panel.ylabel)
        axes.set_xticks(panel.xs, [f"{x:g}" for x in panel.xs])
        draw_lines(axes, lines)
        keep_in_sight(axes)
        drawn.append((axes, lines))
    label_ends(figure, drawn)
    return figure


_COLUMNS = 4


def fig3_curves(material: Material) -> Figure:
    """A panel for each fraction and each noise rate: training dashed, validation solid."""
    runs = material.runs
    objectives(runs)  # there are some
    conditions = {f"{100 * share:g} % of the images": (share, 0.0) for share in fractions(runs)}
    conditions |= {f"{100 * rate:g} % wrong labels": (1.0, rate) for rate in noise_rates(runs) if rate > 0}
    panels = {title: _fig3_lines(runs, *each) for title, each in conditions.items()}
    n_columns = min(_COLUMNS, len(panels))
    n_rows = -(-len(panels) // n_columns)
    figure = titled(
        f"Accuracy while finetuning SimCLR encoders, {material.beside.dataset}",
        f"Solid: validation. Dashed: training, on the labels trained with. {caption(_by_objective(panels))}",
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


def _fig3_lines(runs: Gathered, fraction: float, rate: float) -> list[Line]:
    lines = []
    for objective in objectives(runs):
        own = [each for each in runs.finetuned if each.objective == objective]
        epochs = range(max((len(each.val_accuracy) for each in own), default=0))
        validation, training = (
            [estimate(by_seed(runs, objective, fraction, rate, partial(_after, kind, epoch))) for epoch in epochs]
            for kind in ("val", "train")
        )
        xs = [epoch + 1 for epoch in epochs]
        curve = line(objective, xs, validation)._replace(marker="")
        lines += [curve, curve._replace(label="", estimates=training, style="--")]
    return lines


def _after(kind: str, epoch: int, run: Finetuned) -> float | None:
    curve = run.val_accuracy if kind == "val" else run.train_accuracy
    return curve[epoch] if epoch < len(curve) else None


def _by_objective(panels: Mapping[str, list[Line]]) -> list[dict[str, list[Estimate | None]]]:
    keys = {label: objective for objective, label in LABELS.items()}
    return [{keys[line.label]: list(line.estimates) for line in lines if line.label} for lines in panels.values()]


def fig6(material: Material) -> Figure:
    """A panel a representation, and one of the differences."""
    runs = material.runs
    names = [name for name in probed(runs) if all(_there(runs, name, loss) for loss in ("ce", "sce"))]
    if not names:
        raise NotThereError("the probes have not both losses; run monolora vision probe --losses ce,sce")
    lines = {name: _fig6_lines(runs, name) for name in names}
    less = [_difference(runs, name) for name in names]
    estimates = {SHORT[name]: [found for line in lines[name] for found in line.estimates] for name in names}
    n_panels = len(names) + 1
    grey = " Grey: CL with CE." if "simclr" in names[:-1] else ""
    figure = titled(
        f"Linear probe accuracy on {material.beside.dataset}, cross entropy (CE) and symmetric cross entropy (SCE)",
        f"{interval_caption(estimates, DRAWS)} Differences are paired by run.{grey}",
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


def _fig6_lines(runs: Gathered, name: str) -> list[Line]:
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


def fig_table1(material: Material) -> Figure:
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
    words = interval_caption({line.label: line.estimates for line in lines}, DRAWS)
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
            xs = [100 * rate for rate in paper_comparison.RATES]
            axes.plot(xs, paper_comparison.TABLE1[half][name], "--", color=COLOURS[name], linewidth=0.9)
    keep_in_sight(axes)
    label_ends(figure, [(axes, lines)])
    return figure
