"""The prompts, responses and judgements as the page's script reads them: short keys, numbers cut to what is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from monolora.eval.records import OK
from monolora.eval.report.view import View


def browser_data(view: View, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``models`` and ``judges`` by place, and a row an entry.

    A row has the set ``s``, the prompt ``p``, its categories ``c``, label ``l`` and weight ``w``, an answer ``a`` a
    model and, for each model, a judgement ``j`` a judge; null where there is none.
    """
    judges = view.results["judges"]
    return {
        "models": view.models,
        "judges": [
            {"name": judge["name"], "refusal": judge["kind"] == "refusal", "scores": list(judge["scores"])}
            | {"unsafe": [name in judge["unsafe"] for name in judge["scores"]]}
            for judge in judges
        ],
        "rows": [_row(view.models, judges, entry) for entry in entries],
    }


def _row(models: Sequence[str], judges: Sequence[Mapping[str, Any]], entry: Mapping[str, Any]) -> dict[str, Any]:
    answers, judgements = entry["answers"], entry["judgements"]
    return {
        "s": entry["set"],
        "p": entry["prompt"],
        "c": list(entry["categories"]),
        "l": entry["label"],
        "w": entry["weight"],
        "a": [_answer(answers.get(model)) for model in models],
        "j": [
            [_judgement(judge, judgements.get(model, {}).get(judge["name"])) for judge in judges] for model in models
        ],
    }


def _answer(answer: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Text ``t``, tokens ``n``; ``x`` is why it is invalid, ``cut`` and ``limit`` are there where they are true."""
    if answer is None:
        return None
    marks = {"cut": bool(answer["cut"]), "limit": answer["finish"] == "length"}
    found: dict[str, Any] = {"t": answer["text"], "n": answer["tokens"]} | {
        key: 1 for key, is_so in marks.items() if is_so
    }
    return found if answer["status"] == OK else found | {"x": answer["reason"] or "invalid"}


def _judgement(judge: Mapping[str, Any], judgement: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Flag ``f`` and scores ``v`` in the judge's order; or ``x``, why it is invalid."""
    if judgement is None:
        return None
    if judgement["status"] != OK:
        return {"x": judgement["reason"] or "invalid"}
    scores = judgement["scores"]
    return {"f": int(judgement["flagged"]), "v": [round(scores[name], 4) for name in judge["scores"]]}
