"""The explorer's page and the data of its script: columns for the list, and a line of JSON a unit for the rest.

Texts of tokens and labels stand once in a table, the most frequent first; elsewhere they are indices into it. Numbers
have four significant digits; NaN is null. A context's activations are in thousandths of the largest of its unit.

Shapes: U units, E bins.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from monolora.eval.explain.finding import finding
from monolora.eval.explain.records import Context, Contrast, Counts, DatasetFeatures, End, Explained, UnitLogits
from monolora.eval.explain.score_report import RANDOM, score_tables
from monolora.eval.explain.settings import KEPT
from monolora.reporting.html import flat, rendered, script_json, script_lines

LEVELS = 999
IN_LIST = 4  # top tokens of an end that the list shows

Strings = Mapping[str, int]


class ExplorerData(NamedTuple):
    """The page's blocks of JSON.

    Attributes:
        head: for the list; see :func:`explorer_data`.
        common: a line a unit: logits ``l`` (how, raised, lowered), changes ``a`` (value, low, high, p, q) and contrasts
            ``c``.
        datasets: by data set, a line a unit; see :func:`_unit_on_dataset`.
    """

    head: dict[str, Any]
    common: Iterator[dict[str, Any]]
    datasets: list[Iterator[dict[str, Any]]]


class ModuleParts(NamedTuple):
    """A module's name, the first number in its path, the last word of it, and a short name that only it has."""

    name: str
    layer: int | None
    kind: str
    short: str


def explorer_data(explained: Explained) -> ExplorerData:
    """The data of the page's script."""
    strings = {text: index for index, (text, _) in enumerate(_all_strings(explained).most_common())}
    modules = list(dict.fromkeys(name.module for name in explained.units))
    module_index = {module: k for k, module in enumerate(modules)}
    head = {
        "adapter": explained.adapter,
        "signed": explained.is_signed,
        "prunable": explained.is_prunable,
        "strings": list(strings),
        "modules": module_parts(modules),
        "module": [module_index[name.module] for name in explained.units],
        "number": [name.unit for name in explained.units],
        "kept": next((k for k, dataset in enumerate(explained.datasets) if dataset.name == KEPT), None),
        "datasets": [_dataset_head(dataset, strings) for dataset in explained.datasets],
        "measures": [
            [measure.title, measure.unit, measure.dataset, measure.prompts, number(measure.adapted)]
            for measure in explained.ablations.measures
        ],
        "everything": list(map(numbers, explained.ablations.everything)),
        "changes": _change_columns(explained),
        "contrasts": [
            {"a": pair.a, "b": pair.b, "texts": [pair.texts_a, pair.texts_b], "auc": numbers(pair.auc)}
            for pair in explained.contrasts
        ],
    }
    common = (_common(explained, unit, strings) for unit in range(len(explained.units)))
    return ExplorerData(head, common, [_units_on_dataset(dataset, strings) for dataset in explained.datasets])


def module_parts(modules: Iterable[str]) -> list[ModuleParts]:
    """The parts of module names; short names that two modules would share are the whole names."""
    all_parts = []
    for name in modules:
        words = name.split(".")
        layer = next((int(word) for word in words if word.isascii() and word.isdecimal()), None)
        short = words[-1] if layer is None else f"L{layer} {words[-1]}"
        all_parts.append(ModuleParts(name, layer, words[-1], short))
    often = Counter(parts.short for parts in all_parts)
    return [parts if often[parts.short] == 1 else parts._replace(short=parts.name) for parts in all_parts]


def number(value: float) -> float | None:
    """Four significant digits; None for what JSON has no number for."""
    if not math.isfinite(value):
        return None
    cut = float(f"{value:.4g}")
    return int(cut) if cut.is_integer() else cut


def numbers(values: Iterable[float]) -> list[float | None]:
    """:func:`number` of each."""
    return list(map(number, values))


def share(value: float) -> float | None:
    """:func:`number` of a share; 1 only where it is all."""
    return number(value if value == 1 else min(value, 0.9999))


def _all_strings(explained: Explained) -> Counter[str]:
    counted: Counter[str] = Counter()
    for dataset in explained.datasets:
        counted.update(dataset.labels)
        for end in dataset.ends:
            counted.update(label for label in end.label if label is not None)
            for context in chain.from_iterable(end.contexts):
                counted.update(context.tokens)
                if context.label is not None:
                    counted[context.label] += 1
            counted.update(mean.token for mean in chain.from_iterable(end.tokens))
    for logits in explained.logits:
        if logits is not None:
            counted.update(token for token, _ in chain(logits.raised, logits.lowered))
    return counted


def _dataset_head(dataset: DatasetFeatures, strings: Strings) -> dict[str, Any]:
    strongest = dataset.ends[0]
    columns = {
        "firing": list(map(share, dataset.firing)),
        "max": numbers(dataset.max),
        "min": numbers(dataset.min),
        "effect": numbers(dataset.effect),
        "consistency": numbers(strongest.consistency),
        "information": numbers(dataset.information),
        "q": numbers(dataset.information_q),
        "faithfulness": None if dataset.faithfulness is None else numbers(dataset.faithfulness),
        "probe": None if dataset.probe is None else numbers(dataset.probe),
    }
    return {
        "name": dataset.name,
        "gated": dataset.is_gated,
        "tokens": dataset.tokens,
        "labels": [strings[label] for label in dataset.labels],
        "strongest": dataset.strongest,
        "chance": number(dataset.chance),
        "edges": numbers(dataset.edges),
        "columns": columns,
        "label": [None if label is None else strings[label] for label in strongest.label],
        "told": [strings[label] for label in dataset.probe_label or ()],
        "top": [
            [[strings[mean.token] for mean in tokens[:IN_LIST]] for tokens in of_ends]
            for of_ends in zip(*(end.tokens for end in dataset.ends), strict=True)
        ],
    }


def _units_on_dataset(dataset: DatasetFeatures, strings: Strings) -> Iterator[dict[str, Any]]:
    return (_unit_on_dataset(dataset, unit, strings) for unit in range(len(dataset.firing)))


def _unit_on_dataset(dataset: DatasetFeatures, unit: int, strings: Strings) -> dict[str, Any]:
    """Numbers ``n`` (mean, standard deviation, consistency of the texts on which it fires, q of the information),
    histogram ``h`` (first bin that has tokens, counts from there to the last that has), ``s`` the largest activation
    of the contexts, ``e`` ends and ``p`` partners.
    """
    every = chain.from_iterable(context.activations for end in dataset.ends for context in end.contexts[unit])
    largest = max((abs(value) for value in every if not math.isnan(value)), default=0.0)
    return {
        "n": numbers([dataset.mean[unit], dataset.std[unit], dataset.consistency[unit], dataset.information_q[unit]]),
        "h": _histogram(dataset.histogram_UE[unit]),
        "s": number(largest),
        "e": [_end(end, unit, largest, strings) for end in dataset.ends],
        "p": [[partner.unit, number(partner.correlation)] for partner in dataset.partners[unit]],
    }


def _histogram(counts_E: Counts) -> list[int]:
    filled = np.flatnonzero(counts_E)
    return [int(filled[0]), *counts_E[filled[0] : filled[-1] + 1].tolist()] if len(filled) else []


def _end(end: End, unit: int, largest: float, strings: Strings) -> list[Any]:
    label = end.label[unit]
    return [
        number(end.consistency[unit]),
        None if label is None else strings[label],
        [_context(context, largest, strings) for context in end.contexts[unit]],
        [[strings[mean.token], number(mean.mean), mean.times] for mean in end.tokens[unit]],
    ]


def _context(context: Context, largest: float, strings: Strings) -> list[Any]:
    """Text, label, value, peak, whether it is cut (1 before, 2 after, 3 both), tokens, activations."""
    factor = LEVELS / largest if largest else 0.0
    return [
        context.text,
        None if context.label is None else strings[context.label],
        number(context.value),
        context.peak,
        context.cut_before + 2 * context.cut_after,
        [strings[token] for token in context.tokens],
        [level(value, factor) for value in context.activations],
    ]


def level(value: float, factor: float) -> int | None:
    """An activation as a whole number: 0 only where it is 0, None for NaN."""
    if value != value:
        return None
    return round(value * factor) or (value > 0) - (value < 0)


def _common(explained: Explained, unit: int, strings: Strings) -> dict[str, Any]:
    changes = explained.ablations.changes.get(unit)
    return {
        "l": _logits(explained.logits[unit], strings),
        "a": None if changes is None else list(map(numbers, changes)),
        "c": [_contrast(contrast, unit) for contrast in explained.contrasts],
    }


def _logits(logits: UnitLogits | None, strings: Strings) -> list[Any] | None:
    if logits is None:
        return None
    sides = ([[strings[token], number(value)] for token, value in side] for side in (logits.raised, logits.lowered))
    return [logits.how, *sides]


def _contrast(contrast: Contrast, unit: int) -> list[float | None]:
    return [
        number(contrast.p[unit]),
        number(contrast.q[unit]),
        share(contrast.firing_a[unit]),
        share(contrast.firing_b[unit]),
    ]


def _change_columns(explained: Explained) -> list[list[float | None]]:
    """By measure, the change of each unit; None for those that were not ablated."""
    changes = explained.ablations.changes
    return [
        [number(changes[unit][index].value) if unit in changes else None for unit in range(len(explained.units))]
        for index in range(len(explained.ablations.measures))
    ]


_FOLDER = Path(__file__).parent / "page"
_STYLES = ("explorer.css", "unit.css")
_SCRIPTS = (
    "tools.js",
    "records.js",
    "search.js",
    "table.js",
    "list.js",
    "figures.js",
    "unit.js",
    "marks.js",
    "keys.js",
)
_LAST = "explorer.js"  # the one that starts


def explorer_page(explained: Explained) -> str:
    """The whole page."""
    data = explorer_data(explained)
    short = {parts.name: parts.short for parts in data.head["modules"]}
    names = [f"{short[name.module]}:{name.unit}" for name in explained.units]
    return rendered(
        _FOLDER,
        "explorer.html.j2",
        style="".join(map(_read, _STYLES)),
        script='(() => {\n"use strict";\n' + "\n".join(map(_read, (*_SCRIPTS, _LAST))) + "})();",
        title=explained.title,
        message=finding(explained, names),
        explained=explained,
        modules=len(data.head["modules"]),
        made=list(flat(explained.origin)),
        scores=score_tables(explained.scores),
        random=RANDOM,
        has_kept=data.head["kept"] is not None,
        data=script_json(data.head),
        common=script_lines(data.common),
        datasets=map(script_lines, data.datasets),
    )


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")
