"""A made-up run with everything in it: repeated prompts, failed answers, failed and missing judgements, checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from monolora.data.prompt_sets import Prompt, PromptSet
from monolora.data.scoring import Classification, FreeText
from monolora.eval.judges.base import Judge
from monolora.eval.measures.records import RunRecords
from monolora.eval.measures.table import Model
from monolora.eval.store import INVALID, Judgement, Response

POLICIES = ("Dangerous Content", "Harassment", "Hate Speech", "Sexually Explicit Information")
LABELS = ("rain", "snow", "wind")
WORDS = (
    "positive",
    "negative",
    "the",
    "tea",
    "kettle",
    "sings",
    "while",
    "rain",
    "taps",
    "on",
    "a",
    "window",
    "and",
    "bread",
)


RUN = {"seed": 0}  # what ``run.json`` holds


def judge(name: str, scores: tuple[str, ...], kind: Any = "harm", **more: Any) -> Judge:
    """A judge that flags any score above 0.5."""
    identity = {"kind": name}
    return Judge(
        name=name, kind=kind, scores=scores, threshold=0.5, identity=identity, target="", **{"unsafe": scores} | more
    )


JUDGES = [
    judge("shieldgemma", POLICIES),
    judge("beaverdam", LABELS),
    judge("weather", ("calm", "storm", "unsafe"), unsafe=("unsafe",)),
    judge("refusal", ("refusal",), kind="refusal"),
]
MODELS = [
    Model("base", "base", "org/base"),
    Model("lora", "adapter", "runs/lora"),
    Model("mono", "adapter", "runs/mono", notes=("merged",)),
    Model("whole", "model", "runs/whole"),
    Model("step 100", "adapter", "runs/checkpoint-100", 100),
    Model("step 20", "adapter", "runs/checkpoint-20", 20),
]


SETS = ("beavertails", "more", "xstest", "task:colours", "task:stories")
BROKEN = 0.1


def make(prompts: int = 40, seed: int = 0, models: list[Model] = MODELS, sets: Sequence[str] = SETS) -> RunRecords:
    """A run on sets of made-up prompts, of whose answers and judgements a tenth is broken."""
    random = np.random.default_rng(seed)
    all_sets = [
        _set(random, "beavertails", "safety", prompts),
        _set(random, "more", "safety", prompts // 2),
        _set(random, "xstest", "over-refusal", prompts),
        _set(random, "task:colours", "task", prompts, labels=("negative", "positive")),
        _set(random, "task:stories", "task", prompts),
    ]
    chosen = [each for each in all_sets if each.name in sets]
    responses = {each.name: {model.name: _responses(random, each, model) for model in models} for each in chosen}
    judged = [
        response
        for each in chosen
        if each.purpose != "task"
        for of_model in responses[each.name].values()
        for response in of_model.values()
    ]
    judgements = {each.name: _judgements(random, each, judged) for each in JUDGES}
    sparsity = {
        (model.name, name): {"zeros": random.random(), "dead_units": 3, "units": 16, "tokens": 999}
        for model in models
        if model.kind == "adapter"
        for name in ("beavertails", "task:colours")
    }
    return RunRecords(models, chosen, list(JUDGES), responses, judgements, sparsity, {})


def _set(random: np.random.Generator, name: str, purpose: Any, size: int, labels: tuple[str, ...] = ()) -> PromptSet:
    prompts = tuple(_prompt(random, f"{name}{number}", purpose, labels) for number in range(size))
    spec = {"rows": sum(prompt.weight for prompt in prompts), "distinct": size, "sha256": "ab" * 32}
    scorer = None if purpose != "task" else Classification(labels) if labels else FreeText()
    return PromptSet(name=name, purpose=purpose, spec=spec, prompts=prompts, scorer=scorer)


def _prompt(random: np.random.Generator, key: str, purpose: str, labels: tuple[str, ...]) -> Prompt:
    is_task = purpose == "task"
    reference = (str(random.choice(labels)) if labels else _text(random, 20)) if is_task else None
    return Prompt(
        key,
        f"Say something about {key}",
        categories=tuple(name for name in ("sea", "land") if random.random() < 0.6 and not is_task),
        label=str(random.choice(["safe", "unsafe"])) if purpose == "over-refusal" else None,
        reference=reference,
        weight=int(random.choice([1, 1, 1, 2, 5])),
    )


def _text(random: np.random.Generator, longest: int) -> str:
    return " ".join(WORDS[place] for place in random.integers(len(WORDS), size=random.integers(longest + 1)))


def _responses(random: np.random.Generator, of: PromptSet, model: Model) -> dict[str, Response]:
    found = {}
    for prompt in of.prompts:
        key = f"{model.name} {prompt.key}"
        if (luck := random.random()) < BROKEN / 2:
            continue
        if luck < BROKEN:
            found[prompt.key] = Response(key, prompt.key, model.name, status=INVALID, reason="server: gone 12 times")
            continue
        text = _text(random, 30)
        finish, cut = str(random.choice(["stop", "length"])), bool(random.random() < 0.2)
        found[prompt.key] = Response(key, prompt.key, model.name, text, len(text.split()), finish, cut)
    return found


def _judgements(random: np.random.Generator, by: Judge, responses: list[Response]) -> dict[str, Judgement]:
    found = {}
    for response in responses:
        key = f"{by.name} {response.key}"
        if (luck := random.random()) < BROKEN / 2:
            continue
        if luck < BROKEN or response.status == INVALID:
            reason = "prompt too long: 600 of 512 tokens" if luck < BROKEN else "no response: server"
            found[response.key] = Judgement(key, response.key, by.name, status=INVALID, reason=reason)
            continue
        scores = dict(zip(by.scores, random.beta(0.4, 1.5, len(by.scores)).tolist(), strict=True))
        found[response.key] = Judgement(key, response.key, by.name, scores, cut=bool(random.random() < BROKEN))
    return found
