"""A study's tables, as Markdown and as rows for CSV."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monolora.eval.report.numbers import NOTHING, decimals, shown, shown_change, shown_interval, shown_p
from monolora.recipes.experiments.markdown import piped
from monolora.recipes.studies.cells import training
from monolora.recipes.studies.chosen import Chosen
from monolora.recipes.studies.claims import decimals_of
from monolora.recipes.studies.crossed import Estimate
from monolora.recipes.studies.gathered import BASE, Values
from monolora.recipes.studies.paper_rows import TABLE_2
from monolora.recipes.studies.settings import Study

_BESIDE = ("/unparsed", "/refusal/flagged", "/refusal", "/over-refusal", "/drift", "/length", "/empty")


def shown_columns(columns: Sequence[Values]) -> list[Values]:
    """Those of the paper's table 2, then what a reader needs beside them."""
    headline = [each for each in columns if each.column.headline]
    return headline + [
        each for each in columns if not each.column.headline and each.column.id.endswith(_BESIDE) and _has_values(each)
    ]


def _has_values(each: Values) -> bool:
    return any(not np.isnan(values).all() for values in each.by_model.values())


def main_table(study: Study, columns: Sequence[Values]) -> str:
    """A row a model: means with 95 % intervals over seeds and prompts."""
    chosen = shown_columns(columns)
    rows = []
    for model in (BASE, *study.adapters):
        rows.append([model, *(_cell(each, each.mean(model)) for each in chosen)])
    return piped(["", *map(_head, chosen)], rows)


def _head(each: Values) -> str:
    column = each.column
    title = column.title if not column.group or column.headline else f"{column.title}, {column.group}"
    return f"{title}, {column.unit}" if column.unit else title


def _cell(each: Values, found: Estimate | None) -> str:
    if found is None:
        return NOTHING
    places = _places(each)
    found = within_bounds(found, each.column.unit)
    low, high = (None if np.isnan(end) else end for end in (found.low, found.high))
    return f"{shown(found.mean, places)} {shown_interval(low, high, places)}".strip()


def within_bounds(found: Estimate, unit: str) -> Estimate:
    """A mean's interval where the mean can be: shares are no less than none and no more than all."""
    if unit != "%":
        return found
    return found._replace(low=float(np.clip(found.low, 0, 100)), high=float(np.clip(found.high, 0, 100)))


def _places(each: Values) -> int:
    return decimals([float(np.nanmean(values)) for values in each.by_model.values() if not np.isnan(values).all()])


def differences(study: Study, columns: Sequence[Values]) -> str:
    """Every adapter minus the base, and minus the control: means, intervals, uncorrected p-values."""
    control = next(iter(study.adapters))
    pairs = [(name, BASE) for name in study.adapters] + [(name, control) for name in study.adapters if name != control]
    rows = []
    for each in shown_columns(columns):
        cells = [_difference(each.difference(*pair), each.column.unit) for pair in pairs]
        if any(cell != NOTHING for cell in cells):
            rows.append([_head(each), *cells])
    return piped(["", *(f"{model} − {against}" for model, against in pairs)], rows)


def _difference(found: Estimate | None, unit: str) -> str:
    if found is None:
        return NOTHING
    if np.isnan(found.low):
        return f"{shown_change(found.mean, 2)} always"
    places = decimals_of(found, unit)
    interval = shown_interval(found.low, found.high, places, changes=True)
    return f"{shown_change(found.mean, places)} {interval}, p {shown_p(found.p)}".replace("p <", "p < ")


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


def rates_table(found: Mapping[str, Chosen]) -> str:
    """Validation losses of all learning rates; the chosen one in bold."""
    rates = sorted({rate for each in found.values() for rate in each.losses})
    return piped(
        ["loss, nats a token", *(f"lr {rate:g}" for rate in rates), "chosen"],
        [
            [
                name,
                *(
                    f"**{_loss(each.losses[rate])}**" if rate == each.rate else f"{_loss(each.losses[rate])}"
                    for rate in rates
                ),
                f"{each.rate:g}{' (edge)' if each.is_edge else ''}",
            ]
            for name, each in found.items()
        ],
    )


def _loss(loss: float) -> str:
    return f"{loss:.4f}" if np.isfinite(loss) else "diverged"


def runs_table(study: Study, dataset: str, found: Mapping[str, Chosen], of: Path) -> str:
    """Where each row comes from: the record of every training."""
    rows = []
    for name, each in found.items():
        folders = [training(study, dataset, name, each.rate, seed).folder for seed in study.seeds]
        links = [
            f"[{seed}]({os.path.relpath(folder / 'run.json', of)})"
            for seed, folder in zip(study.seeds, folders, strict=True)
        ]
        rows.append([name, f"{each.rate:g}", ", ".join(links)])
    return piped(["", "lr", "run.json by seed"], rows)


def csv_rows(study: Study, dataset: str, columns: Sequence[Values]) -> Iterator[dict[str, Any]]:
    """All columns of all models, one a row."""
    for each in columns:
        for model in (BASE, *study.adapters):
            found = each.mean(model)
            if found is not None:
                yield {
                    "dataset": dataset, "model": model, "column": each.column.id, "title": each.column.title,
                    "unit": each.column.unit, **found._asdict(),
                }  # fmt: skip
