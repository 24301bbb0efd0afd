"""A study's figures: where each adapter stands, and how it comes about along the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from monolora.files import read_json
from monolora.recipes.study.results import BASE, Values
from monolora.recipes.study.settings import Study
from monolora.reporting.plots import INK, PALE, SETTINGS, save_figure, titled

# Told apart with colour blindness too (Okabe and Ito 2008), in the order of the rows.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_ENDS = ("/flagged", "/average", "/over-refusal", "/drift")
_ALONG = ("/flagged", "/average", "/drift")
_PANEL = 3.1  # inches
_ACROSS = 3  # panels


def figure_name(what: str, dataset: str) -> str:
    """Of a file, without its suffix."""
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
            along = curves(study, dataset)
            paths += save_figure(along, folder, figure_name("along", dataset)) if along is not None else []
    return paths


def means(study: Study, dataset: str, columns: Sequence[Values]) -> Figure:
    """A panel a column: means with their intervals."""
    chosen = [each for each in columns if _is_drawn(each)]
    seeds = f"{len(study.seeds)} seeds" if len(study.seeds) > 1 else "one seed"
    figure, panels = _panels(
        f"What finetuning on {dataset} did",
        f"Means and 95 % intervals over {seeds} and n prompts; of the base over prompts.",
        len(chosen),
        0.7 + 0.24 * (1 + len(study.adapters)),
    )
    for place, (axes, each) in enumerate(zip(panels, chosen, strict=True)):
        _panel(axes, study, each)
        if place % _ACROSS:
            axes.set_yticklabels([])
    return figure


def _panels(title: str, caption: str, count: int, height: float) -> tuple[Figure, list[Axes]]:
    """So many panels, a few in a row; of such a height each, in inches."""
    across = min(count, _ACROSS)
    down = -(-count // across)
    figure = titled(title, caption, 1 + _PANEL * across, 0.9 + height * down)
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels[:count]


def _is_drawn(each: Values) -> bool:
    return (each.column.headline and each.column.id.startswith("task:")) or each.column.id.endswith(_ENDS)


def _panel(axes: Axes, study: Study, each: Values) -> None:
    rows = [BASE, *study.adapters]
    for y, model in enumerate(rows):
        found = each.mean(model)
        if found is None:
            continue
        colour = PALE if model == BASE else _COLOURS[(y - 1) % len(_COLOURS)]
        axes.plot(found.mean, y, "o", color=colour, markersize=5)
        if not np.isnan(found.low):
            axes.plot([found.low, found.high], [y, y], color=colour, linewidth=1.6)
        if model == BASE:
            axes.axvline(found.mean, color=PALE, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e6e6e6")
    axes.grid(visible=False, axis="y")
    better = {"lower": ", lower is better", "higher": ", higher is better"}.get(each.column.better or "", "")
    axes.set_title(f"{each.column.title} (n = {len(each.weights_P):,})", color=INK)
    axes.set_xlabel(f"{each.column.unit}{better}".removeprefix(", "))


def curves(study: Study, dataset: str) -> Figure | None:
    """A panel a column: values along the steps of the first seed's training; None if not measured."""
    if study.curve is None:
        return None
    folder = study.folder / dataset / "curves"
    found = {adapter: _results(folder / adapter / "results.json") for adapter in study.curve.adapters}
    along = {adapter: each["steps"] for adapter, each in found.items()}
    titles = {each["id"]: (each["title"], each["unit"]) for results in found.values() for each in results["columns"]}
    columns = _along(along)
    if not columns:
        return None
    figure, panels = _panels(
        f"Along the training on {dataset}",
        f"Seed {study.seeds[0]}, on fewer prompts. Bands are 95 % intervals over prompts, silent about other seeds. "
        "Step 0 is the base.",
        len(columns),
        2.1,
    )
    for axes, column in zip(panels, columns, strict=True):
        _lines(axes, study, along, column)
        title, unit = titles[column]
        axes.set(title=title, xlabel="step", ylabel=unit)
        axes.set_xlim(left=0)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False)
    return figure


def _results(path: Path) -> dict[str, Any]:
    return dict(read_json(path, "Delete the folder, and give the same command again."))


def _along(by_adapter: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    found = dict.fromkeys(each["column"] for steps in by_adapter.values() for each in steps)
    return [column for column in found if column.endswith(_ALONG)]


def _lines(axes: Axes, study: Study, by_adapter: Mapping[str, Sequence[Mapping[str, Any]]], column: str) -> None:
    for (adapter, steps), dashes in zip(by_adapter.items(), cycle(("-", "--", ":")), strict=False):
        own = [each for each in steps if each["column"] == column]
        colour = _COLOURS[list(study.adapters).index(adapter) % len(_COLOURS)]
        axes.plot(
            [each["step"] for each in own], [each["value"] for each in own], f"o{dashes}", color=colour, label=adapter
        )
        band = [each for each in own if each["low"] is not None]
        axes.fill_between(
            [each["step"] for each in band], [each["low"] for each in band], [each["high"] for each in band],
            color=colour, alpha=0.15, linewidth=0,
        )  # fmt: skip
