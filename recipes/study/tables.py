"""A study's tables, as Markdown and as rows for CSV."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from monolora.eval.measures.table import PERCENT
from monolora.eval.report.lookups import HEADLINE_DIGITS
from monolora.recipes.study.claims import decimals_of, p_text
from monolora.recipes.study.plan import SelectedRate, training
from monolora.recipes.study.results import BASE, Values
from monolora.recipes.study.settings import TABLE_2, Study
from monolora.reporting.numbers import NOTHING, decimals_of_small, format_change, format_interval, format_number
from monolora.reporting.tables import Grid
from monolora.stats import Estimate


def headline(columns: Sequence[Values]) -> list[Values]:
    """The columns of the paper's table 2."""
    return [values for values in columns if values.column.headline]


def beside(columns: Sequence[Values]) -> list[Values]:
    """Further columns that a reader needs."""
    return [
        values
        for values in columns
        if "study" in values.column.shown_in and not values.column.headline and _has_values(values)
    ]


def _has_values(values: Values) -> bool:
    return any(not np.isnan(of_model).all() for of_model in values.by_model.values())


def means_table(study: Study, columns: Sequence[Values]) -> Grid:
    """A row a model: means with 95 % intervals."""
    rows = [[model, *(_cell(values, values.mean(model)) for values in columns)] for model in (BASE, *study.adapters)]
    return Grid(["", *map(head, columns)], rows)


def head(values: Values) -> str:
    """Title, set and unit of a column."""
    column = values.column
    title = column.title if not column.group or column.headline else f"{column.title}, {column.group}"
    return f"{title}, {column.unit}" if column.unit else title


def _cell(values: Values, estimate: Estimate | None) -> str:
    return NOTHING if estimate is None else " ".join(shown(values, estimate)).strip()


def shown(values: Values, estimate: Estimate) -> tuple[str, str]:
    """A mean and its interval as they are shown; the interval is empty where there is none."""
    column = values.column
    digits = HEADLINE_DIGITS if column.headline else 1 if column.unit == PERCENT else _decimals(values)
    return format_number(estimate.mean, digits), format_interval(estimate.low, estimate.high, digits)


def _decimals(values: Values) -> int:
    return decimals_of_small([float(np.nanmean(own)) for own in values.by_model.values() if not np.isnan(own).all()])


def pairs(study: Study) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Pairs to compare: each adapter with the base; each with the control, and the tested one with the others."""
    control, tested, *others = study.adapters
    among = [(name, control) for name in (tested, *others)] + [(tested, name) for name in others]
    return [(name, BASE) for name in study.adapters], among


def differences(columns: Sequence[Values], compared: Sequence[tuple[str, str]]) -> Grid:
    """The first of two models minus the second: means, intervals, uncorrected p-values; a row a column."""
    rows = []
    for values in columns:
        cells = [_difference(values.difference(*pair), values.column.unit) for pair in compared]
        if any(cell != NOTHING for cell in cells):
            rows.append([head(values), *cells])
    return Grid(["", *(f"{model} − {against}" for model, against in compared)], rows)


def _difference(estimate: Estimate | None, unit: str) -> str:
    if estimate is None:
        return NOTHING
    if estimate.p is None:
        return f"{format_change(estimate.mean, 1)} always"
    digits = decimals_of(estimate, unit)
    interval = format_interval(estimate.low, estimate.high, digits, changes=True)
    return f"{format_change(estimate.mean, digits)} {interval}, p {p_text(estimate.p)}"


def paper_table(dataset: str) -> Grid | None:
    """The paper's rows; None for a data set that it does not have."""
    if dataset not in TABLE_2:
        return None
    titles = [
        "paper",
        "Danger.",
        "Harass.",
        "Hate",
        "Sex.",
        "Avg",
        "align. sparsity, %",
        "task sparsity, %",
        "Beavertails flagged, %",
        "task perf.",
    ]
    return Grid(
        titles,
        [
            [name, *(NOTHING if value is None else f"{value:.2f}" for value in row)]
            for name, row in TABLE_2[dataset].items()
        ],
    )


def rates_table(study: Study, dataset: str, selected: Mapping[str, SelectedRate], of: Path) -> Grid:
    """Validation losses of all learning rates, each a link to its record; the selected one in bold."""
    rates = sorted({rate for own in selected.values() for rate in own.losses})
    rows = []
    for name, own in selected.items():
        cells = []
        for rate in rates:
            record = training(study, dataset, name, rate, study.seeds[0]).folder / "run.json"
            loss = f"{own.losses[rate]:.4f}" if np.isfinite(own.losses[rate]) else "diverged"
            cell = _link(loss, record, of)
            cells.append(f"**{cell}**" if rate == own.rate else cell)
        rows.append([name, *cells, f"{own.rate:g}{' (edge)' if own.is_edge else ''}"])
    return Grid(["loss, nats a token", *(f"lr {rate:g}" for rate in rates), "selected"], rows)


def runs_table(study: Study, dataset: str, selected: Mapping[str, SelectedRate], of: Path) -> Grid:
    """The origin of each row: the record of every training."""
    rows = []
    for name, own in selected.items():
        folders = [training(study, dataset, name, own.rate, seed).folder for seed in study.seeds]
        links = [_link(str(seed), folder / "run.json", of) for seed, folder in zip(study.seeds, folders, strict=True)]
        rows.append([name, f"{own.rate:g}", ", ".join(links)])
    return Grid(["", "lr", "run.json by seed"], rows)


def _link(text: str, path: Path, of: Path) -> str:
    return f"[{text}]({os.path.relpath(path, of)})"


def csv_rows(study: Study, dataset: str, columns: Sequence[Values]) -> Iterator[dict[str, Any]]:
    """All means of all columns, one a row."""
    for values, model in product(columns, (BASE, *study.adapters)):
        estimate = values.mean(model)
        if estimate is not None:
            row = _csv_row(dataset, model, "", values, estimate)
            del row["against"], row["p"]
            yield row


def csv_differences(study: Study, dataset: str, columns: Sequence[Values]) -> Iterator[dict[str, Any]]:
    """All paired differences, one a row; p-values are not corrected."""
    of_base, among = pairs(study)
    for values, (model, against) in product(columns, (*of_base, *among)):
        estimate = values.difference(model, against)
        if estimate is not None:
            yield _csv_row(dataset, model, against, values, estimate)


def _csv_row(dataset: str, model: str, against: str, values: Values, estimate: Estimate) -> dict[str, Any]:
    column = values.column
    return {
        "dataset": dataset, "model": model, "against": against, "column": column.id, "title": column.title,
        "unit": column.unit, **numbers(estimate),
    }  # fmt: skip


def numbers(estimate: Estimate) -> dict[str, float | int | None]:
    """An estimate as files have it: each seed's draws are prompts."""
    return {("prompts" if name == "draws" else name): value for name, value in estimate._asdict().items()}
