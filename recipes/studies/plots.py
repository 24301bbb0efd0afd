"""A study's figures: where each adapter stands, and how it comes about along the training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from monolora.recipes.experiments.plots.saving import save_figure
from monolora.recipes.experiments.plots.style import INK, PALE, SETTINGS, titled
from monolora.recipes.studies.gathered import BASE, Values
from monolora.recipes.studies.settings import Study
from monolora.recipes.studies.tables import within_bounds

# Told apart with colour blindness too (Okabe and Ito 2008), in the order of the rows.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_ENDS = ("/flagged", "/average", "/over-refusal", "/drift")
_ALONG = ("/flagged", "/average", "/drift")
_PANEL = 3.1  # inches


def draw(study: Study, columns: Mapping[str, Sequence[Values]], folder: Path) -> list[Path]:
    """All figures, as PNG and SVG.

    Raises:
        SaveError: if the disk does not take them.
    """
    with mpl.rc_context(SETTINGS):
        paths = save_figure(standing(study, columns), folder, "standing")
        along = curves(study)
        return paths + (save_figure(along, folder, "curves") if along is not None else [])


def standing(study: Study, columns: Mapping[str, Sequence[Values]]) -> Figure:
    """A row a data set, a panel a column: means with their intervals."""
    chosen = {dataset: [each for each in of if _is_drawn(each)] for dataset, of in columns.items()}
    width = max(map(len, chosen.values()))
    figure = titled(
        "What finetuning did",
        f"Means and 95 % intervals over {len(study.seeds)} seeds and all prompts.",
        1 + _PANEL * width,
        0.9 + (0.6 + 0.24 * (1 + len(study.adapters))) * len(chosen),
    )
    panels = figure.subplots(len(chosen), width, squeeze=False)
    for row, (dataset, of_dataset) in zip(panels, chosen.items(), strict=True):
        for axes, each in zip(row, of_dataset, strict=False):
            _panel(axes, study, dataset, each)
        for axes in row[len(of_dataset) :]:
            axes.set_axis_off()
        for axes in row[1 : len(of_dataset)]:
            axes.set_yticklabels([])
    return figure


def _is_drawn(each: Values) -> bool:
    return (each.column.headline and each.column.id.startswith("task:")) or each.column.id.endswith(_ENDS)


def _panel(axes: Axes, study: Study, dataset: str, each: Values) -> None:
    rows = [BASE, *study.adapters]
    for y, model in enumerate(rows):
        found = each.mean(model)
        if found is None:
            continue
        found = within_bounds(found, each.column.unit)
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
    axes.set_title(f"{dataset}: {each.column.title}", color=INK)
    axes.set_xlabel(f"{each.column.unit}{better}".removeprefix(", "))


def curves(study: Study) -> Figure | None:
    """A row a data set, a panel a column: values along the steps of the first seed's training; None if not measured."""
    if study.curve is None:
        return None
    steps = {
        dataset: {
            adapter: _steps(study.folder / dataset / "curves" / adapter / "results.json")
            for adapter in study.curve.adapters
        }
        for dataset in study.datasets
    }
    columns = {dataset: _along(of_dataset) for dataset, of_dataset in steps.items()}
    width = max(map(len, columns.values()))
    if not width:
        return None
    figure = titled(
        "Along the training",
        f"Seed {study.seeds[0]}. Bands are 95 % intervals over prompts, silent about other seeds. Step 0 is the base.",
        1 + _PANEL * width,
        0.9 + 2.1 * len(steps),
    )
    panels = figure.subplots(len(steps), width, squeeze=False)
    for row, dataset in zip(panels, steps, strict=True):
        for axes, column in zip(row, columns[dataset], strict=False):
            _lines(axes, study, steps[dataset], column)
            axes.set_title(f"{dataset}: {' '.join(column.split('/')[1:])}")
            axes.set_xlabel("step")
        for axes in row[len(columns[dataset]) :]:
            axes.set_axis_off()
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False)
    return figure


def _steps(path: Path) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text())["steps"])


def _along(by_adapter: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    found = dict.fromkeys(each["column"] for steps in by_adapter.values() for each in steps)
    return [column for column in found if column.endswith(_ALONG)]


def _lines(axes: Axes, study: Study, by_adapter: Mapping[str, Sequence[Mapping[str, Any]]], column: str) -> None:
    for adapter, steps in by_adapter.items():
        own = [each for each in steps if each["column"] == column]
        colour = _COLOURS[list(study.adapters).index(adapter) % len(_COLOURS)]
        axes.plot([each["step"] for each in own], [each["value"] for each in own], "o-", color=colour, label=adapter)
        band = [each for each in own if each["low"] is not None]
        axes.fill_between(
            [each["step"] for each in band], [each["low"] for each in band], [each["high"] for each in band],
            color=colour, alpha=0.15, linewidth=0,
        )  # fmt: skip
