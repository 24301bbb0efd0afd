"""A study's tables, as Markdown and as rows for CSV."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monolora.eval.measures.columns import PERCENT
from monolora.eval.report.charts import HEADLINE_PLACES
from monolora.random_effects import Estimate
from monolora.recipes.study.claims import decimals_of, said_p
from monolora.recipes.study.lr_selection import SelectedRate
from monolora.recipes.study.plan import training
from monolora.recipes.study.results import BASE, Values
from monolora.recipes.study.settings import TABLE_2, Study
from monolora.reporting.numbers import NOTHING, decimals, shown, shown_change, shown_interval
from monolora.reporting.tables import piped

_BESIDE = ("/unparsed", "/refusal/flagged", "/refusal", "/over-refusal", "/drift", "/length", "/empty")


def headline(columns: Sequence[Values]) -> list[Values]:
    """The columns of the paper's table 2."""
    return [each for each in columns if each.column.headline]


def beside(columns: Sequence[Values]) -> list[Values]:
    """What a reader needs beside them."""
    return [
        each for each in columns if not each.column.headline and each.column.id.endswith(_BESIDE) and _has_values(each)
    ]


def _has_values(each: Values) -> bool:
    return any(not np.isnan(values).all() for values in each.by_model.values())


def means_table(study: Study, columns: Sequence[Values]) -> str:
    """A row a model: means with 95 % intervals."""
    rows = [[model, *(_cell(each, each.mean(model)) for each in columns)] for model in (BASE, *study.adapters)]
    return piped(["", *map(_head, columns)], rows)


def _head(each: Values) -> str:
    column = each.column
    title = column.title if not column.group or column.headline else f"{column.title}, {column.group}"
    return f"{title}, {column.unit}" if column.unit else title


def _cell(each: Values, found: Estimate | None) -> str:
    if found is None:
        return NOTHING
    places = HEADLINE_PLACES if each.column.headline else 1 if each.column.unit == PERCENT else _places(each)
    low, high = (None if np.isnan(end) else end for end in (found.low, found.high))
    return f"{shown(found.mean, places)} {shown_interval(low, high, places)}".strip()


def _places(each: Values) -> int:
    return decimals([float(np.nanmean(values)) for values in each.by_model.values() if not np.isnan(values).all()])


def pairs(study: Study) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Who is compared: every adapter with the base; every one with the control, and what is tested with the others."""
    control, tested, *others = study.adapters
    among = [(name, control) for name in (tested, *others)] + [(tested, name) for name in others]
    return [(name, BASE) for name in study.adapters], among


def differences(columns: Sequence[Values], compared: Sequence[tuple[str, str]]) -> str:
    """The first of two models minus the second: means, intervals, uncorrected p-values; a row a column."""
    rows = []
    for each in columns:
        cells = [_difference(each.difference(*pair), each.column.unit) for pair in compared]
        if any(cell != NOTHING for cell in cells):
            rows.append([_head(each), *cells])
    return piped(["", *(f"{model} − {against}" for model, against in compared)], rows)


def _difference(found: Estimate | None, unit: str) -> str:
    if found is None:
        return NOTHING
    if np.isnan(found.low):
        return f"{shown_change(found.mean, 1)} always"
    places = decimals_of(found, unit)
    interval = shown_interval(found.low, found.high, places, changes=True)
    return f"{shown_change(found.mean, places)} {interval}, p {said_p(found.p)}"


def paper_table(dataset: str) -> str | None:
    """The paper's rows; None for a data set that it does not have."""
    if dataset not in TABLE_2:
        return None
    head = [
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
    return piped(
        head,
        [
            [name, *(NOTHING if value is None else f"{value:.2f}" for value in row)]
            for name, row in TABLE_2[dataset].items()
        ],
    )


def rates_table(study: Study, dataset: str, found: Mapping[str, SelectedRate], of: Path) -> str:
    """Validation losses of all learning rates, each a link to its record; the chosen one in bold."""
    rates = sorted({rate for each in found.values() for rate in each.losses})
    rows = []
    for name, each in found.items():
        cells = []
        for rate in rates:
            record = training(study, dataset, name, rate, study.seeds[0]).folder / "run.json"
            loss = f"{each.losses[rate]:.4f}" if np.isfinite(each.losses[rate]) else "diverged"
            cell = _link(loss, record, of)
            cells.append(f"**{cell}**" if rate == each.rate else cell)
        rows.append([name, *cells, f"{each.rate:g}{' (edge)' if each.is_edge else ''}"])
    return piped(["loss, nats a token", *(f"lr {rate:g}" for rate in rates), "chosen"], rows)


def runs_table(study: Study, dataset: str, found: Mapping[str, SelectedRate], of: Path) -> str:
    """Where each row comes from: the record of every training."""
    rows = []
    for name, each in found.items():
        folders = [training(study, dataset, name, each.rate, seed).folder for seed in study.seeds]
        links = [_link(str(seed), folder / "run.json", of) for seed, folder in zip(study.seeds, folders, strict=True)]
        rows.append([name, f"{each.rate:g}", ", ".join(links)])
    return piped(["", "lr", "run.json by seed"], rows)


def _link(text: str, path: Path, of: Path) -> str:
    return f"[{text}]({os.path.relpath(path, of)})"


def csv_rows(study: Study, dataset: str, columns: Sequence[Values]) -> Iterator[dict[str, Any]]:
    """All means of all columns, one a row."""
    for each in columns:
        for model in (BASE, *study.adapters):
            found = each.mean(model)
            if found is not None:
                row = _csv_row(dataset, model, "", each, found)
                del row["against"], row["p"]
                yield row


def csv_differences(study: Study, dataset: str, columns: Sequence[Values]) -> Iterator[dict[str, Any]]:
    """All paired differences, one a row; p-values are not corrected."""
    of_base, among = pairs(study)
    for each in columns:
        for model, against in (*of_base, *among):
            found = each.difference(model, against)
            if found is not None:
                yield _csv_row(dataset, model, against, each, found)


def _csv_row(dataset: str, model: str, against: str, each: Values, found: Estimate) -> dict[str, Any]:
    numbers = {name: "" if np.isnan(value) else value for name, value in found._asdict().items()}
    return {
        "dataset": dataset, "model": model, "against": against, "column": each.column.id, "title": each.column.title,
        "unit": each.column.unit, **numbers,
    }  # fmt: skip
