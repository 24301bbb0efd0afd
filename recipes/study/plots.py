"""A study's figures: the means of each adapter, their course along the training, and what keeping costs the task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from monolora.eval.measures.table import Column
from monolora.eval.run import read_results
from monolora.recipes.study import findings
from monolora.recipes.study.results import BASE, Values
from monolora.recipes.study.settings import Study
from monolora.reporting.palette import LIGHT
from monolora.reporting.plots import INK, PALE, SETTINGS, save_figure, titled

_COLOURS = LIGHT[1:]  # in the order of the rows
_PANEL = 3.1  # inches
_ACROSS = 3  # panels
_LEAST_DRIFT = 1e-6  # on a logarithmic axis


def figure_name(what: str, dataset: str) -> str:
    """The name of a file, without its suffix."""
    return f"{what}-{dataset.replace('/', '-')}"


def draw(study: Study, columns: Mapping[str, Sequence[Values]], folder: Path) -> list[Path]:
    """All figures, as PNG and SVG.

    Raises:
        SaveError: if the disk does not take them.
    """
    paths = []
    with mpl.rc_context(SETTINGS):
        for dataset, of_dataset in columns.items():
            paths += save_figure(means(study, dataset, of_dataset), folder, figure_name("means", dataset))
            kept = trade(study, dataset, of_dataset) if keepers(study) else None
            paths += save_figure(kept, folder, figure_name("kept", dataset)) if kept is not None else []
            along = curves(study, dataset, along_training(study, dataset))
            paths += save_figure(along, folder, figure_name("along", dataset)) if along is not None else []
    return paths


def means(study: Study, dataset: str, columns: Sequence[Values]) -> Figure:
    """A panel a column: means with their intervals."""
    drawn = in_figure(columns)
    seeds = f"{len(study.seeds)} seeds" if len(study.seeds) > 1 else "one seed"
    figure, panels = _panels(
        findings.means(study, dataset, drawn),
        f"Means and 95 % intervals over {seeds} and n prompts; of the base over prompts.",
        len(drawn),
        0.7 + 0.24 * (1 + len(study.adapters)),
    )
    for index, (axes, values) in enumerate(zip(panels, drawn, strict=True)):
        _panel(axes, study, values)
        if index % _ACROSS:
            axes.set_yticklabels([])
    return figure


def in_figure(columns: Sequence[Values]) -> list[Values]:
    """The columns of the figure of means."""
    return [values for values in columns if "figure" in values.column.shown_in]


def _panels(title: str, caption: str, count: int, height: float) -> tuple[Figure, list[Axes]]:
    """Panels in rows of a few, each of a height in inches."""
    across = min(count, _ACROSS)
    down = -(-count // across)
    figure = titled(title, caption, 1 + _PANEL * across, 0.9 + height * down)
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels[:count]


def _panel(axes: Axes, study: Study, values: Values) -> None:
    rows, column = [BASE, *study.adapters], values.column
    for y, model in enumerate(rows):
        estimate = values.mean(model)
        if estimate is None:
            continue
        colour = PALE if model == BASE else _COLOURS[(y - 1) % len(_COLOURS)]
        axes.plot(estimate.mean, y, "o", color=colour, markersize=5)
        if estimate.interval is not None:
            axes.plot(estimate.interval, [y, y], color=colour, linewidth=1.6)
        if model == BASE:
            axes.axvline(estimate.mean, color=PALE, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e6e6e6")
    axes.grid(visible=False, axis="y")
    axes.set_title(f"{column.title} (n = {len(values.weights_P):,})", color=INK)
    axes.set_xlabel(", ".join(filter(None, (column.unit, column.better and f"{column.better} is better"))))


def keepers(study: Study) -> dict[str, str]:
    """What keeps the base's behaviour, by adapter, empty for nothing; none at all if no adapter of the study does."""
    words = {name: flags.get("keep") or () for name, flags in study.adapters.items()}
    kept = {name: "+".join([own] if isinstance(own, str) else map(str, own)) for name, own in words.items()}
    return kept if any(kept.values()) else {}


def _families(study: Study) -> dict[str, list[str]]:
    """Adapters that differ only in what keeps the base's behaviour, under the name of the first of them."""
    families: dict[str, list[str]] = {}
    by_flags: dict[str, str] = {}
    for name, flags in sorted(study.adapters.items(), key=lambda item: bool(item[1].get("keep"))):
        own = repr(sorted((key, value) for key, value in flags.items() if not str(key).startswith("keep")))
        families.setdefault(by_flags.setdefault(own, name), []).append(name)
    return families


def trade(study: Study, dataset: str, columns: Sequence[Values]) -> Figure | None:
    """The task's score against the drift on the first safety set, a point a run; None if not measured."""
    score = next((values for values in columns if values.column.aspect == "task" and values.column.headline), None)
    drift = next((values for values in columns if values.column.aspect == "drift"), None)
    if score is None or drift is None:
        return None
    base = _base_beside(score, study)
    figure = titled(
        findings.kept(dataset, score, drift, list(study.adapters)),
        f"A point a run, of {len(study.seeds)} seeds. Lines join each adapter's means that no other of its means beats "
        f"in both. Drift below {_LEAST_DRIFT:g} is drawn there"
        + ("." if base is None else "; the dotted line is the base's score."),
        6.4,
        4.2,
    )
    axes = figure.subplots()
    kept = keepers(study)
    markers = dict(zip(dict.fromkeys(kept.values()), cycle("osD^vP*X"), strict=False))
    for family, names in _families(study).items():
        colour = _COLOURS[list(study.adapters).index(family) % len(_COLOURS)]
        means = []
        for name in names:
            if score.by_model.get(name) is None or drift.by_model.get(name) is None:
                continue
            x_S, y_S = score.by_seed(name), np.maximum(drift.by_seed(name), _LEAST_DRIFT)
            axes.plot(x_S, y_S, markers[kept[name]], color=colour, markersize=5, alpha=0.8)
            means.append((float(x_S.mean()), float(y_S.mean())))
        axes.plot(*np.array(front(means)).reshape(-1, 2).T, "-", color=colour, linewidth=1.4, label=family)
    for method, marker in markers.items():
        axes.plot([], [], marker, color=PALE, label=method or "nothing kept")
    if base is not None:
        axes.axvline(base, color=PALE, linewidth=0.8, linestyle=":")
    axes.set_yscale("log")
    axes.set(xlabel=f"{score.column.title}, {score.column.unit}".rstrip(", "), ylabel="drift, nats/token")
    axes.legend(frameon=False, fontsize=8, loc="best")
    return figure


def _base_beside(score: Values, study: Study) -> float | None:
    """The base's score; None where it is so far from the runs' that these would stand on one spot."""
    if BASE not in score.by_model:
        return None
    base = float(score.by_seed(BASE)[0])
    runs = np.concatenate([score.by_seed(name) for name in study.adapters if score.by_model.get(name) is not None])
    low, high = float(runs.min()), float(runs.max())
    return base if low - 2 * (high - low) <= base <= high + 2 * (high - low) else None


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points than which no other has both a higher first and a lower second number, by the first."""
    best: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: (-point[0], point[1])):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    return best[::-1]


class Along(NamedTuple):
    """A column along the training: rows of ``results.json``'s ``steps`` by adapter."""

    column: Column
    rows: Mapping[str, Sequence[Mapping[str, Any]]]

    def last(self) -> dict[str, float]:
        """The value at the end, by adapter."""
        return {adapter: float(rows[-1]["value"]) for adapter, rows in self.rows.items() if rows}


def along_training(study: Study, dataset: str) -> list[Along]:
    """The columns that were measured along the first seed's training; none if the study asks for none.

    Raises:
        InputError: if an evaluation is missing, or of another version.
    """
    if study.curve is None:
        return []
    folder = study.folder / dataset / "curves"
    results = {adapter: read_results(folder / adapter) for adapter in study.curve.adapters}
    columns = {column.id: column for own in results.values() for column in map(Column.read, own["columns"])}
    measured = dict.fromkeys(row["column"] for own in results.values() for row in own["steps"])
    return [
        Along(
            columns[name],
            {
                adapter: [row for row in own["steps"] if row["column"] == name and row["value"] is not None]
                for adapter, own in results.items()
            },
        )
        for name in measured
        if "curves" in columns[name].shown_in
    ]


def curves(study: Study, dataset: str, drawn: Sequence[Along]) -> Figure | None:
    """A panel a column: values along the steps of the first seed's training; None if not measured."""
    if not drawn:
        return None
    first = drawn[0]
    figure, panels = _panels(
        findings.along(dataset, first.column.title, first.column.unit, first.last()),
        f"Seed {study.seeds[0]}, on fewer prompts. Bands are 95 % intervals over prompts, silent about other seeds. "
        "Step 0 is the base.",
        len(drawn),
        2.1,
    )
    for axes, along in zip(panels, drawn, strict=True):
        _lines(axes, study, along)
        axes.set(title=along.column.title, xlabel="step", ylabel=along.column.unit)
        axes.set_xlim(left=0)
    handles, labels = panels[0].get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False)
    return figure


def _lines(axes: Axes, study: Study, along: Along) -> None:
    for (adapter, own), dashes in zip(along.rows.items(), cycle(("-", "--", ":")), strict=False):
        colour = _COLOURS[list(study.adapters).index(adapter) % len(_COLOURS)]
        axes.plot(
            [row["step"] for row in own], [row["value"] for row in own], f"o{dashes}", color=colour, label=adapter
        )
        band = [row for row in own if row["low"] is not None]
        axes.fill_between(
            [row["step"] for row in band], [row["low"] for row in band], [row["high"] for row in band],
            color=colour, alpha=0.15, linewidth=0,
        )  # fmt: skip
