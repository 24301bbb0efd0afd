"""What the report shows beside the table. All counts are of rows: a prompt counts as often as its set has it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from monolora.eval.judges.base import Judge
from monolora.eval.measures.columns import Measured, weights
from monolora.eval.measures.gathered import Gathered, Matrix
from monolora.eval.measures.model import Model
from monolora.eval.measures.text import is_at_limit, is_empty
from monolora.eval.records import OK, Judgement, Response
from monolora.stats import kappa

MISSING = "missing"  # the reason where nobody was asked yet


def category_rows(columns: Iterable[Measured], models: Sequence[Model]) -> Iterator[dict[str, Any]]:
    """Flagged share in each category of prompts; a prompt with several counts in each."""
    for column in columns:
        for category in dict.fromkeys(name for prompt in column.prompts for name in prompt.categories):
            inside_P = np.array([category in prompt.categories for prompt in column.prompts])
            for place, model in enumerate(models):
                value, n = _mean(column.values[place], weights(column.prompts) * inside_P)
                yield {
                    "column": column.column.id,
                    "model": model.name,
                    "category": category,
                    "value": value,
                    "n": n,
                }


def label_rows(found: Gathered, judges: Iterable[Judge]) -> Iterator[dict[str, Any]]:
    """Share of responses above the threshold in each score that the flag is made of, where it is made of several."""
    for judge in judges:
        if len(judge.unsafe) < 2:
            continue
        for label in judge.unsafe:
            above_MP = found.of_judgements(judge, partial(_percent_above, judge.threshold, label))
            for model, above_P in zip(found.models, above_MP, strict=True):
                value, n = _mean(above_P, weights(found.set.prompts))
                head = {"judge": judge.name, "set": found.set.name, "model": model.name, "label": label}
                yield head | {"value": value, "n": n}


def _percent_above(threshold: float, label: str, scores: Mapping[str, float]) -> float:
    return 100.0 * (scores[label] > threshold)


def agreement_rows(found: Gathered, judges: Sequence[Judge]) -> Iterator[dict[str, Any]]:
    """Cohen's kappa of each two harm judges' flags, on each model's responses and on all."""
    flags = {judge.name: found.flags(judge) for judge in judges}
    for a, b in combinations(flags, 2):
        for model, flags_a, flags_b in [
            *((model.name, flags[a][place], flags[b][place]) for place, model in enumerate(found.models)),
            ("all", flags[a], flags[b]),
        ]:
            yield {"set": found.set.name, "a": a, "b": b, **_agreement(flags_a, flags_b, found), "model": model}


def _agreement(flags_a: Matrix, flags_b: Matrix, found: Gathered) -> dict[str, Any]:
    both = ~np.isnan(flags_a) & ~np.isnan(flags_b)
    weight = np.broadcast_to(weights(found.set.prompts), both.shape)[both]
    return {"kappa": kappa(flags_a[both] > 0, flags_b[both] > 0, weight), "n": int(weight.sum())}


def count_rows(found: Gathered) -> Iterator[dict[str, Any]]:
    """How many responses each model should have, how many of them are invalid and why, empty, or were cut short."""
    for model in found.models:
        count: Counter[str] = Counter(dict.fromkeys(("responses", "invalid", "cut", "empty", "at_limit"), 0))
        reasons: Counter[str] = Counter()
        for prompt in found.set.prompts:
            response = found.response(model, prompt)
            count["responses"] += prompt.weight
            if response is None or response.status != OK:
                count["invalid"] += prompt.weight
                reasons[_reason(response)] += prompt.weight
                continue
            count["cut"] += prompt.weight * response.cut
            count["empty"] += prompt.weight * is_empty(response)
            count["at_limit"] += prompt.weight * is_at_limit(response)
        yield {"model": model.name, "set": found.set.name, **count, "reasons": dict(reasons.most_common())}


def invalid_rows(found: Gathered, judges: Iterable[Judge]) -> Iterator[dict[str, Any]]:
    """Why there is no valid judgement, and how often."""
    for judge in judges:
        for model in found.models:
            reasons: Counter[str] = Counter()
            for prompt in found.set.prompts:
                judgement = found.judgement(judge, found.response(model, prompt))
                if judgement is None or judgement.status != OK:
                    reasons[_reason(judgement)] += prompt.weight
            head = {"judge": judge.name, "model": model.name, "set": found.set.name}
            yield from (head | {"reason": reason, "count": rows} for reason, rows in reasons.most_common())


def cut_rows(found: Gathered, judges: Iterable[Judge]) -> Iterator[dict[str, Any]]:
    """Of how many responses the judge read only the beginning, as the rest did not fit."""
    for judge in judges:
        for model in found.models:
            given = [(each, found.judgement(judge, found.response(model, each))) for each in found.set.prompts]
            count = sum(prompt.weight for prompt, judgement in given if judgement is not None and judgement.cut)
            if count:
                yield {"judge": judge.name, "model": model.name, "set": found.set.name, "count": count}


def _reason(record: Response | Judgement | None) -> str:
    """Up to the first colon: what comes after it differs from row to row."""
    return MISSING if record is None else (record.reason or "").partition(":")[0]


def _mean(values_P: np.ndarray, weights_P: np.ndarray) -> tuple[float | None, int]:
    """Weighted mean of what is valid, and its weight."""
    valid_P = ~np.isnan(values_P)
    n = int(weights_P @ valid_P)
    return (float(np.where(valid_P, values_P, 0) @ weights_P / n) if n else None), n
