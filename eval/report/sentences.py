"""The findings in words: as strong as the statistics allow, and no stronger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from monolora.eval.measures.details import MISSING
from monolora.eval.measures.table import Column
from monolora.eval.report.lookups import View, is_significant, unit
from monolora.reporting.numbers import format_number, format_p, listed, plain

_KAPPA_WORDS = ((0.8, "almost perfect"), (0.6, "substantial"), (0.4, "moderate"), (0.2, "fair"), (0.0, "slight"))
"""Landis and Koch 1977."""


def harm(view: View) -> list[str]:
    """What the judges of harm found: a sentence for each model that changed, and one for all others."""
    quiet = [
        model for model in view.models[1:] if (rows := _measured(view, model)) and not any(map(view.reading, rows))
    ]
    found = [plain(model) + _harm(view, model) for model in view.models[1:] if model not in quiet]
    return [*found, listed(map(plain, quiet)) + _no_change(view, quiet)] if quiet else found


def summary(view: View, model: str) -> str:
    """Harm in the headline columns, then what else changed."""
    return plain(model) + _harm(view, model) + _side_effects(view, model)


def effects(view: View, model: str) -> list[str]:
    """The model's effect on each headline column of harm, a sentence a column."""
    return [_effect(view, column, view.difference(model, column.id)) for column in view.harm]


def failures(view: View) -> list[str]:
    """Responses and judgements that are missing, invalid or cut; may be empty."""
    sentences = []
    invalid = view.results["invalid"]
    for rows, what in (
        ([row for row in invalid if row["reason"] == MISSING], "missing: run `monolora eval score`"),
        ([row for row in invalid if row["reason"] != MISSING], "invalid and left out of every mean"),
        (view.results["judged_in_part"], "of a response whose end did not fit"),
    ):
        for judge, count in _by_judge(rows).items():
            s, are = ("", "is") if count == 1 else ("s", "are")
            sentences.append(f"{count:,} judgement{s} by {plain(judge)} {are} {what}.")
    absent = sum(row["reasons"].get(MISSING, 0) for row in view.results["counts"])
    for key, what in (
        ("invalid", f"are unavailable, {absent:,} of them not asked for yet" if absent else "are unavailable"),
        ("cut", "are to prompts that were cut to fit the context"),
        ("empty", "are empty, which judges may take for safe"),
    ):
        count = sum(row[key] for row in view.results["counts"])
        if count:
            total = sum(row["responses"] for row in view.results["counts"])
            sentences.append(f"{count:,} of {total:,} responses {what}.")
    return sentences


def _by_judge(rows: Iterable[Mapping[str, Any]]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for row in rows:
        counts[row["judge"]] += row["count"]
    return counts


def agreement(view: View) -> list[str]:
    """The judges' agreement on the responses of all models together, a sentence a pair and set."""
    sentences = []
    for row in view.results["agreement"]:
        if row["model"] != "all":
            continue
        pair = f"{plain(row['a'])} and {plain(row['b'])}"
        where = f"on {plain(row['set'])} (n={row['n']})"
        if row["kappa"] is None:
            sentences.append(f"{pair} cannot be compared {where}: all their verdicts are the same.")
        else:
            kappa = format_number(row["kappa"], 2)
            sentences.append(f"{pair} agree with kappa {kappa}, {_kappa_word(row['kappa'])}, {where}.")
    return sentences


def _harm(view: View, model: str) -> str:
    if not view.harm:
        return ": no judge of harm was run, so alignment is not assessed."
    differences = _measured(view, model)
    if not differences:
        return f": nothing valid to compare with {plain(view.base)}."
    findings: dict[str, list[str]] = {"worse": [], "better": []}
    for difference in differences:
        if reading := view.reading(difference):
            findings[reading].append(f"{view.full_title(view.column(difference['column']))} {view.change(difference)}")
    parts = [
        f"{word} than {plain(view.base)} in {len(findings[reading])} of {len(differences)} measures "
        f"({', '.join(findings[reading])})"
        for reading, word in (("worse", "more harmful"), ("better", "less harmful"))
        if findings[reading]
    ]
    if not parts:
        return _no_change(view, [model])
    rest = len(differences) - sum(map(len, findings.values()))
    return f" was judged {' and '.join(parts)}{'; no difference was found in the rest' if rest else ''}."


def _no_change(view: View, models: list[str]) -> str:
    """Absence of evidence, with what it leaves possible: the widest of the intervals of all models."""
    differences = [difference for model in models for difference in _measured(view, model)]
    count = len({difference["column"] for difference in differences})
    where = f"in any of the {count} measures of harm" if count > 1 else "in the measure of harm"
    ends = [
        (abs(difference[key]), difference["column"])
        for difference in differences
        for key in ("low", "high")
        if difference[key] is not None
    ]
    doubt = f"with {_rows(differences)}"
    if ends:
        largest, column = max(ends)
        bound = f"{format_number(largest, view.digits(column))} {unit(view.column(column))}"
        doubt += f", changes of up to {bound} fit the data"
    return f": no difference from {plain(view.base)} was found {where}; {doubt}."


def _measured(view: View, model: str) -> list[Mapping[str, Any]]:
    rows = [view.difference(model, column.id) for column in view.harm]
    return [row for row in rows if row is not None and row["difference"] is not None]


def _changed(view: View, model: str) -> list[Mapping[str, Any]]:
    """All significant differences from the base."""
    rows = [view.difference(model, column.id) for column in view.columns]
    return [row for row in rows if row is not None and is_significant(row)]


def _side_effects(view: View, model: str) -> str:
    """Significant changes beside harm: a model that refuses, repeats or says nothing looks safe too."""
    harm = [column.id for column in view.harm]
    changed = [
        f"{view.full_title(column)} {view.change(row)} {unit(column)}".rstrip()
        for row in _changed(view, model)
        if (column := view.column(row["column"])).id not in harm
    ]
    return f" Also changed: {', '.join(changed)}." if changed else ""


def _rows(differences: list[Mapping[str, Any]]) -> str:
    sizes = sorted({row["n"] for row in differences})
    return f"n={sizes[0]}" if len(sizes) == 1 else f"n from {sizes[0]} to {sizes[-1]}"


def _effect(view: View, column: Column, difference: Mapping[str, Any] | None) -> str:
    title = view.full_title(column)
    if difference is None or difference["difference"] is None:
        return f"{title}: nothing valid to compare."
    if not is_significant(difference):
        change = f"{view.change(difference)} {unit(column)}".rstrip()
        return f"{title}: no difference was found ({change}, {_evidence(view, difference)})."
    verb = "rose" if difference["difference"] > 0 else "fell"
    reading = {"worse": ", which is worse", "better": ", which is better"}.get(view.reading(difference), "")
    size = f"{format_number(abs(difference['difference']), view.digits(column.id))} {unit(column)}".rstrip()
    return f"{title} {verb} by {size}{reading} ({_evidence(view, difference)})."


def _evidence(view: View, difference: Mapping[str, Any]) -> str:
    interval = view.change_interval(difference)
    parts = [f"95% CI {interval}"] if interval else []
    p, adjusted = _equals(difference["p"]), _equals(difference["p_holm"])
    return ", ".join([*parts, f"p{p}", f"Holm p{adjusted}", f"n={difference['n']}"])


def _equals(p: float | None) -> str:
    text = format_p(p)
    return text if text.startswith("<") else f"={text}"


def _kappa_word(kappa: float) -> str:
    return next((word for least, word in _KAPPA_WORDS if kappa > least), "none beyond chance")
