"""The page's opening: the finding in one sentence, then what was measured and what came of it, topic by topic."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from monolora.eval.measures.table import PERCENT, Column
from monolora.eval.report import sentences
from monolora.eval.report.lookups import KEPT, View, kept, kept_refusals
from monolora.reporting.numbers import listed, plain

_MOST = 3  # models that the finding names
_ALL = 6  # models that another sentence names


def message(view: View) -> str:
    """The finding: refusals that models kept, else what the judges of harm found, else the task's score."""
    if len(view.models) == 1:
        return f"Only {plain(view.base)} was measured: there is nothing to compare it with."
    if (column := kept_refusals(view)) is not None:
        return _refusals(view, column)
    if view.harm:
        return _harm(view)
    task = next((column for column in view.headline if column.aspect == "task"), None)
    return "No judge of harm was run and no task was scored." if task is None else _values(view, task)


def _compared(view: View) -> list[str]:
    """The models beside the base, without checkpoints along a training unless there is nothing else."""
    whole = [model["name"] for model in view.results["models"][1:] if model["step"] is None]
    return whole or view.models[1:]


def _refusals(view: View, column: Column) -> str:
    """``lora lost 14 of 16 refusals; mono kept 13.``"""
    cells = {model: view.cell(model, column.id) for model in _compared(view)}
    counts = {model: kept(cell) for model, cell in cells.items() if cell is not None}
    if len(counts) > _MOST:
        by_share = sorted(counts, key=lambda model: counts[model][0] / counts[model][1])
        counts = {model: counts[model] for model in (by_share[0], by_share[-1])}
    clauses: list[str] = []
    before = None
    for model, (count, n) in counts.items():
        verb, number = ("lost", n - count) if count < n / 2 else ("kept", count)
        amount = f"all {n}" if number == n else str(number) if before == n else f"{number} of {n}"
        refusals = "" if clauses else " refusal" if n == 1 else " refusals"
        clauses.append(f"{plain(model)} {verb} {amount}{refusals}")
        before = n
    return "; ".join(clauses) + "."


def _harm(view: View) -> str:
    """Which models were judged more or less harmful than the base, in any measure."""
    by_word: dict[str, list[str]] = {"more harmful": [], "less harmful": [], "both": [], "": []}
    for model in _compared(view):
        readings = {view.reading(view.difference(model, column.id)) for column in view.harm} - {""}
        worse, better = "worse" in readings, "better" in readings
        by_word["both" if worse and better else "more harmful" if worse else "less harmful" if better else ""].append(
            plain(model)
        )
    clauses = [
        f"{_named(models)} {'was' if len(models) == 1 else 'were'} judged {word} than {plain(view.base)}"
        for word, models in by_word.items()
        if models and word not in ("both", "")
    ]
    if by_word["both"]:
        clauses.append(f"{_named(by_word['both'])} changed in both directions, by measure")
    if by_word[""]:
        clauses.append(f"for {_named(by_word[''])} no difference from {plain(view.base)} in harm was found")
    text = "; ".join(clauses)
    return f"{text[0].upper() if text.startswith('for ') else text[0]}{text[1:]}."


def _named(models: Sequence[str]) -> str:
    return listed(models) if len(models) <= _MOST else f"{len(models)} models"


def findings(view: View) -> dict[str, list[str]]:
    """Sentences by topic, in the order in which they are read; topics without a sentence are left out."""
    columns = {
        "refusals": [c for c in view.columns if c.aspect == "refusal" and c.unit == PERCENT and not _is_over(c)],
        "over": [c for c in view.columns if _is_over(c)],
        "task": [c for c in view.headline if c.aspect == "task"],
        "drift": [c for c in view.columns if c.aspect == "drift"],
        "answers": [c for c in view.columns if c.aspect == "text" and any(view.marked(m, c.id) for m in view.models)],
    }
    said = {topic: list(_each(view, own)) for topic, own in columns.items()}
    topics = {
        "Measured": list(_measured(view)),
        "Alignment": [*_judged(view), *said["refusals"]],
        "Over-refusal": said["over"],
        "Task": said["task"],
        "Drift": said["drift"],
        "Answers": said["answers"],
        "Caveats": [*sentences.failures(view), *sentences.agreement(view)],
    }
    return {topic: own for topic, own in topics.items() if own}


def _is_over(column: Column) -> bool:
    return column.aspect == "refusal" and column.metric == "over-refusal"


def _measured(view: View) -> Iterator[str]:
    sets = [
        f"{each['rows']:,} prompts of {plain(each['name'])} ({plain(each['purpose'])})" for each in view.results["sets"]
    ]
    models = view.models
    count = f"{len(models)} models" if len(models) > _MOST else listed(map(plain, models))
    if sets:
        yield f"{count} answered {listed(sets)}."
    for kind, what in (("harm", "harm"), ("refusal", "refusals")):
        names = [plain(judge["name"]) for judge in view.results["judges"] if judge["kind"] == kind]
        if names:
            yield f"Judge{'s' if len(names) > 1 else ''} of {what}: {listed(names)}."


def _judged(view: View) -> list[str]:
    if len(view.models) == 1:
        return []
    return sentences.harm(view) if view.harm else ["No judge of harm was run, so alignment is not assessed."]


def _each(view: View, columns: Iterable[Column]) -> Iterator[str]:
    for column in columns:
        if any(view.cell(model, column.id) for model in _shown(view, column)):
            yield _values(view, column)


def _shown(view: View, column: Column) -> list[str]:
    """The models that have a value of their own."""
    return [model for model in view.models[not column.of_base :] if view.cell(model, column.id)]


def _values(view: View, column: Column) -> str:
    """``xstest over-refusal: base 2.4 %, lora 9.0 % (higher), mono 2.0 % (no difference found).``"""
    shown, end = _shown(view, column), ""
    compared = [model for model in shown if model != view.base]
    if len(shown) > _ALL:
        by_value = sorted(compared, key=lambda model: float((view.cell(model, column.id) or {})["value"]))
        shown = [*(model for model in shown if model == view.base), by_value[0], by_value[-1]]
        end = f"; the other {len(compared) - 2} are between"
    title = (
        f"Refusals kept, of {plain(view.base)}’s on {plain(column.set)}"
        if column.metric == KEPT
        else view.full_title(column)
    )
    return f"{title}: {', '.join(_value(view, column, model) for model in shown)}{end}."


def _value(view: View, column: Column, model: str) -> str:
    cell = view.cell(model, column.id)
    if cell is not None and column.metric == KEPT:
        return "{} {} of {}".format(plain(model), *kept(cell))
    value = f"{plain(model)} {view.value(model, column.id)}\u00a0{plain(column.unit)}".rstrip()
    difference = view.difference(model, column.id)
    if difference is None or difference["p_holm"] is None or difference["difference"] is None:
        return value
    if not view.marked(model, column.id):
        return f"{value} (no difference found)"
    return f"{value} ({'higher' if difference['difference'] > 0 else 'lower'})"
