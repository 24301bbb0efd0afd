"""Tables of the report beside the main one. All counts are of rows: a prompt counts as often as its set has it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from monolora.data.prompt_sets import Prompt, PromptSet
from monolora.eval.judges.base import Judge
from monolora.eval.measures.measures import is_at_limit, is_empty
from monolora.eval.measures.records import Matrix, RunRecords, SetRecords
from monolora.eval.measures.table import Table
from monolora.eval.store import OK, Judgement, Response
from monolora.stats import kappa

MISSING = "missing"  # the reason of a record that does not exist yet


def category_rows(table: Table, sets: Sequence[PromptSet]) -> list[dict[str, Any]]:
    """Flagged share in each category of prompts; a prompt with several counts in each."""
    categories = pd.DataFrame(
        [(of_set.name, prompt.key, name) for of_set in sets for prompt in of_set.prompts for name in prompt.categories],
        columns=["set", "prompt", "category"],
    )
    rows = []
    for column in table.columns:
        if column.metric != "flagged":
            continue
        flags = table.values[table.values["column"] == column.id].astype({"model": str, "set": str})
        merged = flags.merge(categories, on=["set", "prompt"]).assign(n=lambda rows: rows["weight"])
        merged.loc[merged["value"].isna(), "n"] = 0
        sums = (
            merged.assign(sum=merged["value"].fillna(0) * merged["n"])
            .groupby(["category", "model"], sort=False)[["sum", "n"]]
            .sum()
        )
        for category in merged["category"].unique():
            for model in table.models:
                total, n = sums.loc[(category, model.name)]
                value = float(total / n) if n else None
                head = {"column": column.id, "judge": column.judge, "set": column.set, "model": model.name}
                rows.append(head | {"category": category, "value": value, "n": int(n)})
    return rows


def label_rows(records: SetRecords) -> Iterator[dict[str, Any]]:
    """Share of responses above the threshold in each score that the flag is made of, where it is made of several."""
    weights_P = np.array([prompt.weight for prompt in records.set.prompts], np.float64)
    for judge in records.judges_of("harm"):
        if len(judge.unsafe) < 2:
            continue
        for label in judge.unsafe:
            above_MP = records.of_judgements(judge, partial(_percent_above, judge.threshold, label))
            for model, above_P in zip(records.models, above_MP, strict=True):
                value, n = _mean(above_P, weights_P)
                head = {"judge": judge.name, "set": records.set.name, "model": model.name, "label": label}
                yield head | {"value": value, "n": n}


def _percent_above(threshold: float, label: str, scores: Mapping[str, float]) -> float:
    return 100.0 * (scores[label] > threshold)


def _mean(values_P: np.ndarray, weights_P: np.ndarray) -> tuple[float | None, int]:
    """Weighted mean of the valid values, and its weight."""
    valid_P = ~np.isnan(values_P)
    n = int(weights_P @ valid_P)
    return (float(np.where(valid_P, values_P, 0) @ weights_P / n) if n else None), n


def agreement_rows(records: SetRecords) -> Iterator[dict[str, Any]]:
    """Cohen's kappa of each two harm judges' flags, on each model's responses and on all."""
    flags = {judge.name: records.flags(judge) for judge in records.judges_of("harm")}
    for a, b in combinations(flags, 2):
        for model, flags_a, flags_b in [
            *((model.name, flags[a][row], flags[b][row]) for row, model in enumerate(records.models)),
            ("all", flags[a], flags[b]),
        ]:
            yield {"set": records.set.name, "a": a, "b": b, **_agreement(flags_a, flags_b, records), "model": model}


def _agreement(flags_a: Matrix, flags_b: Matrix, records: SetRecords) -> dict[str, Any]:
    both = ~np.isnan(flags_a) & ~np.isnan(flags_b)
    weight = np.broadcast_to([float(prompt.weight) for prompt in records.set.prompts], both.shape)[both]
    return {"kappa": kappa(flags_a[both] > 0, flags_b[both] > 0, weight), "n": int(weight.sum())}


def count_rows(records: SetRecords) -> Iterator[dict[str, Any]]:
    """By model, numbers of responses expected, invalid (with reasons), empty and cut short."""
    for model in records.asked:
        count: Counter[str] = Counter(dict.fromkeys(("responses", "invalid", "cut", "empty", "at_limit"), 0))
        reasons: Counter[str] = Counter()
        for prompt in records.set.prompts:
            response = records.response(model, prompt)
            count["responses"] += prompt.weight
            if response is None or response.status != OK:
                count["invalid"] += prompt.weight
                reasons[_reason(response)] += prompt.weight
                continue
            count["cut"] += prompt.weight * response.cut
            count["empty"] += prompt.weight * is_empty(response)
            count["at_limit"] += prompt.weight * is_at_limit(response)
        yield {"model": model.name, "set": records.set.name, **count, "reasons": dict(reasons.most_common())}


def invalid_rows(records: SetRecords) -> Iterator[dict[str, Any]]:
    """Reasons of missing and invalid judgements, with their counts."""
    for judge in records.judging:
        for model in records.models:
            reasons: Counter[str] = Counter()
            for prompt in records.set.prompts:
                judgement = records.judgement(judge, records.response(model, prompt))
                if judgement is None or judgement.status != OK:
                    reasons[_reason(judgement)] += prompt.weight
            head = {"judge": judge.name, "model": model.name, "set": records.set.name}
            yield from (head | {"reason": reason, "count": rows} for reason, rows in reasons.most_common())


def cut_rows(records: SetRecords) -> Iterator[dict[str, Any]]:
    """Numbers of responses of which the judge read only the beginning, as the rest did not fit."""
    for judge in records.judging:
        for model in records.models:
            judged = [
                (prompt, records.judgement(judge, records.response(model, prompt))) for prompt in records.set.prompts
            ]
            count = sum(prompt.weight for prompt, judgement in judged if judgement is not None and judgement.cut)
            if count:
                yield {"judge": judge.name, "model": model.name, "set": records.set.name, "count": count}


def _reason(record: Response | Judgement | None) -> str:
    """The reason up to the first colon: the rest differs from row to row."""
    return MISSING if record is None else (record.reason or "").partition(":")[0]


def prompt_entries(records: RunRecords) -> Iterator[dict[str, Any]]:
    """The prompts with all answers and judgements, for people to read side by side; in the order of the sets."""
    for of_set in records.by_set():
        for prompt in of_set.set.prompts:
            yield _entry(of_set, prompt)


def _entry(records: SetRecords, prompt: Prompt) -> dict[str, Any]:
    responses = {
        model.name: response for model in records.models if (response := records.response(model, prompt)) is not None
    }
    return {
        "set": records.set.name,
        "key": prompt.key,
        "prompt": "\n\n".join(filter(None, (prompt.instruction, prompt.context))),
        "categories": list(prompt.categories),
        "label": prompt.label,
        "weight": prompt.weight,
        "answers": {name: _answer(response) for name, response in responses.items()},
        "judgements": {name: _judgements(records, response) for name, response in responses.items()},
    }


def _answer(response: Response) -> dict[str, Any]:
    names = ("text", "status", "reason", "finish", "tokens", "cut")
    return {name: value for name, value in response._asdict().items() if name in names}


def _judgements(records: SetRecords, response: Response) -> dict[str, Any]:
    judgements = ((judge, records.judgement(judge, response)) for judge in records.judges)
    return {judge.name: _verdict(judge, judgement) for judge, judgement in judgements if judgement is not None}


def _verdict(judge: Judge, judgement: Judgement) -> dict[str, Any]:
    return {
        "status": judgement.status,
        "reason": judgement.reason,
        "scores": judgement.scores,
        "flagged": judge.flagged(judgement.scores) if judgement.status == OK else None,
    }
