"""What a comparison found, in sentences: no stronger than its tests, which are of the means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from monolora.eval.explain.compare_records import Comparison, DatasetRows, Difference, Row
from monolora.reporting.numbers import NOTHING, plain

ALPHA = 0.05


class _Verbs(NamedTuple):
    """What units do whose mean is the higher, and the lower."""

    higher: str
    lower: str


# In the order in which the page's finding takes them.
_VERBS: Mapping[str, _Verbs] = {
    "sparsity": _Verbs("are sparser", "are less sparse"),
    "information": _Verbs("carry more information on the label", "carry less information on the label"),
    "strongest_consistency": _Verbs("agree more on a label", "agree less on a label"),
    "consistency": _Verbs("fire more consistently on one label", "fire less consistently on one label"),
    "effect": _Verbs("add more to their modules’ outputs", "add less to their modules’ outputs"),
}
_IN_MESSAGE = 2


def differs(difference: Difference) -> bool:
    """Whether p after Holm's correction is below :data:`ALPHA`."""
    return difference.p_holm is not None and difference.p_holm < ALPHA


def message(comparison: Comparison) -> str:
    """The finding on the first data set with labels, or on the first."""
    dataset = next((each for each in comparison.datasets if _row(each, "information")), comparison.datasets[0])
    rows = [row for name in _VERBS if (row := _row(dataset, name)) is not None]
    first, *others = comparison.adapters
    if len(others) > 1:
        return _of_many(dataset, rows, len(others) + 1)
    clear = [(row, change) for row in rows for change in row.differences if differs(change)][:_IN_MESSAGE]
    ours, theirs = plain(others[0].name), plain(first.name)
    than = [f" than {theirs}’s", *[""] * _IN_MESSAGE]
    clauses = [
        f"{_verb(row, change)}{end} ({_mean(row, change.adapter)} against {_mean(row, change.against)})"
        for (row, change), end in zip(clear, than, strict=False)
    ]
    if not clauses:
        return f"No difference between the units of {theirs} and {ours} was found."
    return f"On {plain(dataset.name)}, {ours}’s units {', and '.join(clauses)}."


def _of_many(dataset: DatasetRows, rows: list[Row], count: int) -> str:
    for row in rows:
        if not any(map(differs, row.differences)):
            continue
        known = {name: mean.value for name, mean in row.means.items() if mean.value is not None}
        low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
        return (
            f"On {plain(dataset.name)}, {row.title} goes from {_mean(row, low)} ({plain(low)}) to {_mean(row, high)} "
            f"({plain(high)})."
        )
    return f"No difference between the units of the {count} adapters was found."


def finding(row: Row) -> str:
    """What a chart shows: whether the means differ, and where the middle of each adapter's units is."""
    clear = [change for change in row.differences if differs(change)]
    if not clear:
        return "No difference in the means was found."
    if len(row.differences) > 1:
        return f"{len(clear)} of {len(row.differences)} pairs of adapters differ in their means."
    (change,) = clear
    ours, theirs = plain(change.adapter), plain(change.against)
    middles = f"median {_median(row, change.adapter)}, against {_median(row, change.against)}"
    return f"{ours}’s units {_verb(row, change)} than {theirs}’s: {middles}."


def _median(row: Row, adapter: str) -> str:
    known = row.values[adapter][~np.isnan(row.values[adapter])]
    return f"{_short(float(np.median(known)))} {row.unit}".rstrip() if len(known) else NOTHING


def _row(dataset: DatasetRows, name: str) -> Row | None:
    return next((row for row in dataset.rows if row.id == name), None)


def _verb(row: Row, change: Difference) -> str:
    higher, lower = _VERBS[row.id]
    return higher if (change.value or 0) > 0 else lower


def _mean(row: Row, adapter: str) -> str:
    value = row.means[adapter].value
    return NOTHING if value is None else f"{_short(value)} {row.unit}".rstrip()


def _short(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")
