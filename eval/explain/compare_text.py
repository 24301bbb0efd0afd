"""Numbers and sentences of a comparison as people read them, in the terminal and on the page."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from monolora.eval.explain.compare_records import Comparison, DatasetRows, Difference, Mean, Row
from monolora.eval.report.numbers import NOTHING, plain, shown, shown_change, shown_interval, shown_p

ALPHA = 0.05
MARK = "*"


class DifferenceText(NamedTuple):
    """A difference, as it is shown; ``mark`` is empty where it could be chance."""

    change: str
    mark: str
    interval: str
    p: str
    p_holm: str


class MeanText(NamedTuple):
    """A mean, as it is shown; ``interval`` is empty where there is none, ``units`` where it is of all of them."""

    value: str
    interval: str
    units: str


def heading(row: Row) -> str:
    """``sparsity, %``."""
    return f"{row.title}, {row.unit}" if row.unit else row.title


def difference_heading(row: Row) -> str:
    """The same of a difference: that of percentages is in percentage points."""
    return heading(replace(row, unit="pp") if row.unit == "%" else row)


def mean_text(row: Row, mean: Mean) -> MeanText:
    """A mean with its interval. All values of a row have the same number of decimals."""
    places = _places(*(each.value for each in row.means.values()))
    return MeanText(
        shown(_known(mean.value), places),
        shown_interval(_known(mean.low), _known(mean.high), places),
        f"n = {mean.features:,} of {mean.total:,}" if mean.features < mean.total else "",
    )


def chance_text(row: Row) -> str:
    """What a row would be by chance; empty where that is not known."""
    return "" if math.isnan(row.chance) else shown(row.chance, _places(*(each.value for each in row.means.values())))


def difference_text(difference: Difference) -> DifferenceText:
    """A difference with its interval and p-values."""
    low, high = _known(difference.low), _known(difference.high)
    places = _places(difference.value, difference.low, difference.high)
    return DifferenceText(
        shown_change(_known(difference.value), places),
        MARK if difference.p_holm < ALPHA else "",
        shown_interval(low, high, places, changes=True) or NOTHING,
        shown_p(_known(difference.p)),
        shown_p(_known(difference.p_holm)),
    )


def about(dataset: DatasetRows) -> str:
    """What was measured on."""
    tokens = {f"{count:,}" for count in dataset.tokens.values()}
    if len(tokens) == 1:
        return f"{dataset.texts:,} texts, {tokens.pop()} tokens."
    counts = ", ".join(f"{plain(name)} {count:,}" for name, count in dataset.tokens.items())
    return f"{dataset.texts:,} texts; tokens: {counts}."


def remarks(comparison: Comparison) -> list[str]:
    """How to read the tables."""
    first, *others = comparison.adapters
    said = [
        "Sparsity is the share of activations that are 0; a dead unit's all are, an always-on unit's none. Consistency "
        "is the share of the most frequent label among the texts on which a unit fires, or which excite it most. "
        "Information is that of a text's mean activation on its label; q is the false discovery rate of there being "
        "any. Effect is the norm of what a unit adds to its module's output, in percent of the norm of that output.",
        f"Values are means over units; in brackets are 95 % confidence intervals (bootstrap over adapted modules, "
        f"{comparison.resamples:,} resamples). They cover which modules an adapter has, not other texts and not "
        "another training run.",
        f"{MARK} differs (p < {ALPHA} after Holm's correction for {comparison.tests} tests).",
        "A unit that fires on every text has the share of the most frequent label as its consistency, whatever it "
        "does: compare the consistency of live units together with the sparsity, or that of the strongest texts with "
        "chance.",
    ]
    means = [mean for dataset in comparison.datasets for row in dataset.rows for mean in row.means.values()]
    if any(mean.features < mean.total for mean in means):
        strongest = " or ".join(map(str, sorted({dataset.strongest for dataset in comparison.datasets})))
        said.append(
            "n is how many units have a value (of signed units, how many of their ends), where not all do. One that "
            f"never fires has no consistency, and one that excites fewer than {strongest} texts none of the strongest "
            "texts: the means leave these, the sparsest units, out."
        )
    if any(adapter.model != first.model for adapter in others):
        said.append("The adapters are of different base models: modules of the same name were taken as pairs.")
    if comparison.left_out:
        said.append(f"Left out, as not all adapters have them: {', '.join(map(plain, comparison.left_out))}.")
    return said


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _places(*values: float) -> int:
    """Decimals for three digits that count of the largest value, six at most."""
    largest = max((abs(value) for value in values if not math.isnan(value)), default=0.0)
    return 1 if largest == 0 else min(6, max(1, 2 - math.floor(math.log10(largest))))
