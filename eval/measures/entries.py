"""The prompts with all answers and judgements, for people to read side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from monolora.data.prompt_sets import Prompt, PromptSet
from monolora.eval.judges.base import Judge
from monolora.eval.measures.gathered import Gathered
from monolora.eval.measures.model import Model
from monolora.eval.records import OK, Judgement, Response


def entries(
    models: Sequence[Model],
    sets: Sequence[PromptSet],
    judges: Sequence[Judge],
    responses: Mapping[str, Mapping[str, Mapping[str, Response]]],
    judgements: Mapping[str, Mapping[str, Judgement]],
) -> Iterator[dict[str, Any]]:
    """One entry a distinct prompt, in the order of the sets; the arguments are those of ``table.build``."""
    for each in sets:
        found = Gathered(set=each, models=models, responses=responses.get(each.name, {}), judgements=judgements)
        for prompt in each.prompts:
            yield _entry(found, prompt, judges)


def _entry(found: Gathered, prompt: Prompt, judges: Sequence[Judge]) -> dict[str, Any]:
    given = {model.name: response for model in found.models if (response := found.response(model, prompt)) is not None}
    return {
        "set": found.set.name,
        "key": prompt.key,
        "prompt": "\n\n".join(filter(None, (prompt.instruction, prompt.context))),
        "categories": list(prompt.categories),
        "label": prompt.label,
        "weight": prompt.weight,
        "answers": {name: _answer(response) for name, response in given.items()},
        "judgements": {name: _judgements(found, response, judges) for name, response in given.items()},
    }


def _answer(response: Response) -> dict[str, Any]:
    names = ("text", "status", "reason", "finish", "tokens", "cut")
    return {name: value for name, value in response._asdict().items() if name in names}


def _judgements(found: Gathered, response: Response, judges: Sequence[Judge]) -> dict[str, Any]:
    given = ((judge, found.judgement(judge, response)) for judge in judges)
    return {judge.name: _verdict(judge, judgement) for judge, judgement in given if judgement is not None}


def _verdict(judge: Judge, judgement: Judgement) -> dict[str, Any]:
    return {
        "status": judgement.status,
        "reason": judgement.reason,
        "scores": judgement.scores,
        "flagged": judge.flagged(judgement.scores) if judgement.status == OK else None,
    }
