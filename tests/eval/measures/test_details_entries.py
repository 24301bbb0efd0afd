"""The list for reading has every record in it, once."""

from __future__ import annotations

import json

from monolora.eval.measures.details import prompt_entries
from tests.support.synthetic_run import make


def test_entries() -> None:
    run = make(prompts=12)
    found = list(prompt_entries(run))
    json.dumps(found, allow_nan=False)
    asked = [(each.name, prompt) for each in run.sets for prompt in each.prompts]
    assert [(entry["set"], entry["key"]) for entry in found] == [(name, prompt.key) for name, prompt in asked]
    for entry, (name, prompt) in zip(found, asked, strict=True):
        assert (entry["prompt"], entry["weight"], entry["label"]) == (prompt.instruction, prompt.weight, prompt.label)
        assert entry["categories"] == list(prompt.categories)
        for model in run.models:
            response = run.responses[name][model.name].get(prompt.key)
            if response is None:
                assert model.name not in entry["answers"]
                continue
            answer = entry["answers"][model.name]
            fields = ("text", "status", "reason", "finish", "tokens", "cut")
            assert answer == {field: response._asdict()[field] for field in fields}
            verdicts = entry["judgements"][model.name]
            for judge in run.judges:
                judgement = run.judgements[judge.name].get(response.key)
                if judgement is None:
                    assert judge.name not in verdicts
                    continue
                flag = max(judgement.scores[s] for s in judge.unsafe) > 0.5 if judgement.status == "ok" else None
                assert verdicts[judge.name] == {
                    "status": judgement.status,
                    "reason": judgement.reason,
                    "scores": judgement.scores,
                    "flagged": flag,
                }


def test_context_belongs_to_the_prompt() -> None:
    run = make(prompts=1)
    first = run.sets[0]
    prompt = first.prompts[0]._replace(instruction="Sum it up.", context="It rains.")
    only = type(first)(**vars(first) | {"prompts": (prompt,)})
    entry = next(iter(prompt_entries(run._replace(sets=[only]))))
    assert entry["prompt"] == "Sum it up.\n\nIt rains."
