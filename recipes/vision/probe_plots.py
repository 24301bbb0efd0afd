"""Figures of the linear probes: accuracy under label noise (Table 1, Figure 6) and input noise (Figures 1b and 2)."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from monolora.recipes.vision import paper_comparison
from monolora.recipes.vision.figure_data import (
    COLOURS,
    FigureData,
    MissingDataError,
    label_noise_line,
    percent,
    probed_representations,
    representation_line,
)
from monolora.recipes.vision.paper_comparison import LABEL_DRAWS
from monolora.recipes.vision.results import SHORT, TITLES, Records
from monolora.reporting.numbers import interval_caption
from monolora.reporting.plots import (
    PALE,
    Bar,
    Line,
    draw_bars,
    draw_lines,
    from_zero,
    keep_in_sight,
    label_ends,
    percent_axis,
    titled,
)
from monolora.stats import BySeed, Estimate, difference, estimate

_INPUT_NOISES = {"uniform": "uniform noise", "gaussian": "Gaussian noise"}
_LOSS_STYLES = {"ce": "-", "sce": "--"}
_TYPICAL_SCALE = 0.6  # of Gaussian noise: the paper's, in Figure 1b
_NO_CROSS_ENTROPY = "the probes have no cross entropy; run monolora vision probe --losses ce,sce"


def fig_table1(data: FigureData) -> Figure:
    """Table 1: accuracy by label noise. Solid lines with bands are ours, thin dashed ones the paper's."""
    records, half = data.records, data.comparison.half
    names = probed_representations(records)
    if not records.rates("ce"):
        raise MissingDataError(_NO_CROSS_ENTROPY)
    lines = [label_noise_line(records, name, "ce") for name in names]
    intervals = interval_caption({line.label: line.estimates for line in lines}, LABEL_DRAWS)
    note = f"Thin dashed lines: {data.comparison.note}" if half else data.comparison.note
    figure = titled(
        f"Linear probe accuracy on {data.comparison.dataset} by training label noise",
        f"{intervals} {note}",
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
    from_zero(axes)
    label_ends(figure, [(axes, lines)])
    return figure


def fig1b(data: FigureData) -> Figure:
    """Figure 1b: accuracy on clean data, with the most wrong labels, and with Gaussian noise; without those missing."""
    records, names = data.records, probed_representations(data.records)
    values: dict[str, dict[str, BySeed]] = {}
    rates = records.rates("ce")
    if 0.0 in rates:
        values["clean"] = {name: records.accuracy(name, "ce", 0.0) for name in names}
    if rates and rates[-1] > 0:
        title = f"{100 * rates[-1]:g} % label noise"
        values[title] = {name: records.accuracy(name, "ce", rates[-1]) for name in names}
    scales = {scale for record in records.probe_records for scale in record.input_noise.get("gaussian", ()) if scale}
    if scales:
        scale = min(scales, key=lambda scale: (abs(scale - _TYPICAL_SCALE), scale))
        values[f"Gaussian noise {scale:g}"] = {name: records.input_noise(name, "gaussian", scale) for name in names}
    groups = {title: bars for title, of_name in values.items() if (bars := _bars(of_name))}
    if not groups:
        raise MissingDataError(_NO_CROSS_ENTROPY)
    by_name = {
        SHORT[name]: [bar.estimate for bars in groups.values() for bar in bars if bar.label == SHORT[name]]
        for name in names
    }
    figure = titled(
        f"Linear probe accuracy on {data.comparison.dataset}",
        f"{interval_caption(by_name, 'classifiers')} Label noise is in training only; Gaussian noise only on the "
        "normalised validation images, of classifiers trained on clean labels.",
        max(4.5, 0.4 + 0.5 * sum(len(bars) + 1 for bars in groups.values())),
        4,
    )
    axes = figure.add_subplot()
    draw_bars(axes, groups)
    axes.set_ylabel("accuracy, %")
    return figure


def fig2(data: FigureData) -> Figure:
    """Figure 2: a panel for each kind of input noise, and one for images of other kinds, where there are any."""
    records = data.records
    lines = {kind: of_kind for kind in _INPUT_NOISES if (of_kind := _input_noise_lines(records, kind))}
    ood = {
        kind: _bars({name: records.ood(name, kind) for name in probed_representations(records)})
        for kind in dict.fromkeys(kind for record in records.probe_records for kind in record.ood)
    }
    n_panels = len(lines) + bool(ood)
    if not n_panels:
        raise MissingDataError(
            "the probes saw no input noise; run monolora vision probe --noise-scales 0.2,0.4,0.6,0.8,1"
        )
    estimates: dict[str, list[Estimate | None]] = {}
    for line in (line for of_kind in lines.values() for line in of_kind):
        estimates.setdefault(line.label, []).extend(line.estimates)
    for bar in (bar for bars in ood.values() for bar in bars):
        estimates.setdefault(bar.label, []).append(bar.estimate)
    figure = titled(
        f"Linear probe accuracy on changed images, {data.comparison.dataset}",
        f"{interval_caption(estimates, 'classifiers')} Classifiers trained on clean labels and images; noise is added "
        "to the normalised validation images.",
        3.7 * n_panels + 0.5,
        3.8,
    )
    panels: list[tuple[Axes, list[Line]]] = []
    all_axes = figure.subplots(1, n_panels, squeeze=False)[0]
    for letter, (kind, of_kind), axes in zip("ab", lines.items(), all_axes, strict=False):
        percent_axis(axes, f"{letter}  {_INPUT_NOISES[kind]}", "scale of the noise")
        draw_lines(axes, of_kind)
        panels.append((axes, of_kind))
    if panels:
        from_zero(*(axes for axes, _ in panels))
    if ood:
        percent_axis(all_axes[-1], f"{'abc'[len(lines)]}  images of another kind", "")
        draw_bars(all_axes[-1], ood)
    label_ends(figure, panels)
    return figure


def _input_noise_lines(records: Records, kind: str) -> list[Line]:
    scales = sorted({scale for record in records.probe_records for scale in record.input_noise.get(kind, ())})
    if not any(scales):  # 0 is no noise
        return []
    return [
        representation_line(
            name, scales, [percent(estimate(records.input_noise(name, kind, scale))) for scale in scales]
        )
        for name in probed_representations(records)
    ]


def _bars(values: Mapping[str, BySeed]) -> list[Bar]:
    """A bar for each representation that has values."""
    return [
        Bar(SHORT[name], mean.times(100), COLOURS[name])
        for name, by_seed in values.items()
        if (mean := estimate(by_seed)) is not None
    ]


def fig6(data: FigureData) -> Figure:
    """Figure 6: cross entropy and symmetric cross entropy, a panel for each representation; and their differences."""
    records = data.records
    names = [name for name in probed_representations(records) if _has_both_losses(records, name)]
    if not names:
        raise MissingDataError("the probes have not both losses; run monolora vision probe --losses ce,sce")
    lines = {
        name: [
            label_noise_line(records, name, loss, loss.upper(), style) for loss, style in (("ce", "-"), ("sce", "--"))
        ]
        for name in names
    }
    differences = [_loss_difference(records, name) for name in names]
    estimates = {SHORT[name]: [mean for line in lines[name] for mean in line.estimates] for name in names}
    n_panels = len(names) + 1
    grey = " Grey: CL with CE." if "simclr" in names[:-1] else ""
    figure = titled(
        f"Linear probe accuracy on {data.comparison.dataset}, cross entropy (CE) and symmetric cross entropy (SCE)",
        f"{interval_caption(estimates, LABEL_DRAWS)} Differences are paired by run.{grey}",
        3.1 * n_panels + 0.5,
        3.7,
    )
    all_axes = list(figure.subplots(1, n_panels))
    panels: list[tuple[Axes, list[Line]]] = []
    for name, axes in zip(names, all_axes, strict=False):
        axes.sharey(all_axes[0])
        percent_axis(axes, TITLES[name], "wrong training labels, %", "accuracy, %" if axes is all_axes[0] else "")
        if name != "simclr" and "simclr" in names:
            draw_lines(axes, [_as_reference(lines["simclr"][0])])
        draw_lines(axes, lines[name])
        panels.append((axes, lines[name]))
    percent_axis(all_axes[-1], "SCE − CE", "wrong training labels, %", "difference, points")
    all_axes[-1].axhline(0, color=PALE, linewidth=0.8)
    draw_lines(all_axes[-1], differences)
    keep_in_sight(all_axes[0])  # the representations share its scale
    keep_in_sight(all_axes[-1], -100)
    label_ends(figure, [*panels, (all_axes[-1], differences)])
    return figure


def _has_both_losses(records: Records, name: str) -> bool:
    return all(
        any(any(records.accuracy(name, loss, rate).values()) for rate in records.rates(loss)) for loss in _LOSS_STYLES
    )


def _loss_difference(records: Records, name: str) -> Line:
    rates = sorted(set(records.rates("ce")) & set(records.rates("sce")))
    estimates = [
        percent(difference(records.accuracy(name, "sce", rate), records.accuracy(name, "ce", rate))) for rate in rates
    ]
    return representation_line(name, [100 * rate for rate in rates], estimates)


def _as_reference(line: Line) -> Line:
    """The line in grey, without its interval, marker and label."""
    means = [mean and mean._replace(low=None, high=None) for mean in line.estimates]
    return line._replace(label="", estimates=means, colour="#b8b8b8", marker="")
