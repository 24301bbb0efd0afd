"""``monolora explain --compare NAME=DIR NAME=DIR``: adapters side by side, by measures of their units.

Every measure is a mean over an adapter's units on the texts of one data set that all adapters were explained on. What
the intervals and tests cover, and what not, is described in :mod:`monolora.eval.explain.compare_statistics`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from monolora.errors import InputError
from monolora.eval.explain.compare_records import (
    Adapter,
    Comparison,
    DatasetRows,
    Difference,
    Features,
    Mean,
    Row,
    common_datasets,
    read,
)
from monolora.eval.explain.compare_report import page
from monolora.eval.explain.compare_statistics import (
    LARGEST_TITLES,
    MEASURES,
    Clustered,
    Measure,
    Values,
    change_of,
    clustered,
    largest_effects,
    mean_of,
    values,
)
from monolora.eval.explain.output import score_records
from monolora.eval.explain.stability import Stability, stability
from monolora.files import saving, write_json, write_text
from monolora.runs import Kind, check_own
from monolora.stats import RESAMPLES, SEED, holm

JSON, PAGE = "comparison.json", "comparison.html"
KIND = Kind(
    name="comparison",
    record=JSON,
    keys=("adapters", "datasets", "left_out", "resamples"),
    files=(re.escape(PAGE),),
    is_whole=False,
)


def check_output(folder: Path, overwrite: bool) -> None:
    """Check that a comparison can be written into a folder; only its two files are ever replaced.

    Raises:
        InputError: naming the file that is in the way.
    """
    is_own = KIND.recorded(folder) is not None
    check_own((folder / JSON, folder / PAGE), is_own, KIND.name)
    if is_own and not overwrite:
        raise InputError(f"{folder} holds another comparison. Take another folder, or replace it with --overwrite.")


def compare(folders: Mapping[str, Path], resamples: int = RESAMPLES, seed: int = SEED) -> Comparison:
    """Compare adapters.

    Args:
        folders: outputs of ``monolora explain``, by a name for each adapter; the first is the reference.
        resamples: of the bootstrap.
        seed: of its draws.

    Raises:
        InputError: for fewer than two folders, incomplete ones, and ones without a common data set.
    """
    if len(folders) < 2:
        raise InputError("A comparison needs two adapters or more. Write --compare NAME=FOLDER NAME=FOLDER.")
    all_features = [read(name, folder) for name, folder in folders.items()]
    common = common_datasets(all_features)
    names_in_common = {name for name, _ in common}
    names = dict.fromkeys(key for features in all_features for key in features.datasets)
    datasets = [_dataset(all_features, key, resamples, seed) for key in common]
    return Comparison(
        adapters=[_adapter(features) for features in all_features],
        datasets=_corrected(datasets),
        left_out=list(dict.fromkeys(name for name, fingerprint in names if (name, fingerprint) not in common)),
        tests=len(_tested(datasets)),
        resamples=resamples,
        seed=seed,
        scores={
            features.name: [score for score in features.scores if set(score.dataset.split(", ")) <= names_in_common]
            for features in all_features
        },
        stability=[
            found
            for name, _ in common
            for pair in combinations(all_features, 2)
            if (found := _stability(name, *pair)) is not None
        ],
    )


def _stability(dataset: str, first: Features, second: Features) -> Stability | None:
    if not (dataset in first.activations and dataset in second.activations):
        return None
    activations = (first.activations[dataset], second.activations[dataset])
    return stability(dataset, (first.name, second.name), (first.units, second.units), activations)


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Write ``comparison.json`` and ``comparison.html``, each whole or not at all; the folder is made if needed.

    Raises:
        SaveError: if the disk does not take them.
    """
    text = page(comparison)
    with saving(folder, "Free space or give another folder, and compare again."):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / JSON, as_json(comparison))
        write_text(folder / PAGE, text)


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The content of ``comparison.json``: all but the values of single units, which ``features.parquet`` has."""
    return {
        "adapters": [adapter._asdict() for adapter in comparison.adapters],
        "datasets": [
            {
                **{key: value for key, value in vars(dataset).items() if key != "rows"},
                "measures": [_row_json(row) for row in dataset.rows],
            }
            for dataset in comparison.datasets
        ],
        "scores": {name: score_records(scores) for name, scores in comparison.scores.items()},
        "stability": [
            {"scores": score_records(found.scores), "matches": [match._asdict() for match in found.matches]}
            for found in comparison.stability
        ],
        **{key: vars(comparison)[key] for key in ("left_out", "tests", "resamples", "seed")},
    }


def _row_json(row: Row) -> dict[str, Any]:
    return {
        **{key: vars(row)[key] for key in ("id", "title", "unit", "chance")},
        "means": {name: mean._asdict() for name, mean in row.means.items()},
        "differences": [difference._asdict() for difference in row.differences],
    }


def _adapter(features: Features) -> Adapter:
    return Adapter(
        name=features.name,
        folder=str(features.folder),
        adapter=features.run["adapter"],
        method=features.run["method"],
        model=features.run["model"],
        units=len(features.units),
        modules=features.units["module"].nunique(),
    )


def _dataset(all_features: Sequence[Features], key: tuple[str, str], resamples: int, seed: int) -> DatasetRows:
    frames = {features.name: features.on(key[0]) for features in all_features}
    recorded = {features.name: features.datasets[key] for features in all_features}
    first = next(iter(recorded.values()))
    all_values = {(measure.id, name): values(frame, measure) for measure in MEASURES for name, frame in frames.items()}
    draws = clustered(list(all_values.values()), resamples, seed)
    row_index = {row: index for index, row in enumerate(all_values)}
    rows = [
        _row(measure, {name: all_values[measure.id, name] for name in frames}, first["chance"], draws, row_index)
        for measure in MEASURES
    ]
    rows += _largest(frames)
    return DatasetRows(
        name=key[0],
        fingerprint=key[1],
        texts=first["texts"],
        tokens={name: own["tokens"] for name, own in recorded.items()},
        strongest=first["strongest"],
        # without labels, consistency and information have no values
        rows=[row for row in rows if any(mean.value is not None for mean in row.means.values())],
    )


def _row(
    measure: Measure,
    own_values: Mapping[str, Values],
    chance: float | None,
    draws: Clustered,
    row_index: Mapping[tuple[str, str], int],
) -> Row:
    pairs = [(after, before) for before, after in combinations(own_values, 2)]
    changes = {pair: change_of(draws, *(row_index[measure.id, name] for name in pair)) for pair in pairs}
    return Row(
        id=measure.id,
        title=measure.title,
        unit=measure.unit,
        chance=100 * chance if measure.has_chance and chance is not None else None,
        means={name: mean_of(draws, row_index[measure.id, name]) for name in own_values},
        differences=[
            Difference(adapter, against, None, None, None, None, None, 0)
            if change is None
            else Difference(adapter, against, change.mean, change.low, change.high, change.p, None, change.draws)
            for (adapter, against), change in changes.items()
        ],
        values={name: own.value_F for name, own in own_values.items()} if measure.has_spread else {},
    )


def _largest(frames: Mapping[str, pd.DataFrame]) -> list[Row]:
    """The rows of largest effects, which are no means: without interval and test."""
    largest = {name: largest_effects(frame) for name, frame in frames.items()}
    return [
        Row(
            id=key,
            title=title,
            unit=unit,
            chance=None,
            means={
                name: Mean(largest[name][key], None, None, len(frame), frame["module"].nunique(), len(frame))
                for name, frame in frames.items()
            },
            differences=[],
            values={},
        )
        for key, (title, unit) in LARGEST_TITLES.items()
    ]


def _tested(datasets: Sequence[DatasetRows]) -> list[float]:
    """The p-values of all tests, in their order."""
    every = [difference.p for dataset in datasets for row in dataset.rows for difference in row.differences]
    return [p for p in every if p is not None]


def _corrected(datasets: Sequence[DatasetRows]) -> list[DatasetRows]:
    """The rows with Holm's correction for all tests of the comparison."""
    corrected = iter(holm(_tested(datasets)))
    return [
        replace(
            dataset,
            rows=[
                replace(
                    row,
                    differences=[
                        change if change.p is None else change._replace(p_holm=next(corrected))
                        for change in row.differences
                    ],
                )
                for row in dataset.rows
            ],
        )
        for dataset in datasets
    ]
