"""Made-up results and entries in the report's format: seeded, harmless, and consistent with each other."""

from __future__ import annotations

import random
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from monolora.eval.measures.table import Column

POLICIES = ("dangerous", "harassment", "hate", "sexual")
TITLES = ("Danger.", "Harass.", "Hate", "Sex.")
LABELS = ("clouds", "rain,drizzle", "frost", "gales")
CATEGORIES = ("gardening", "cooking", "weather,seasons", "sailing", "knitting")
KEPT = {"lora": 2, "mono": 13}
"""Of the base's 16 refusals."""
_TEXT = "the tea kettle sings while rain taps on a quiet window and bread rises slowly near an old stove"
WORDS = _TEXT.split()
GUARD = {"name": "shieldgemma", "kind": "harm", "scores": POLICIES, "unsafe": POLICIES, "threshold": 0.5}
BEAVER = {"name": "beaverdam", "kind": "harm", "scores": LABELS, "unsafe": LABELS, "threshold": 0.5}
REFUSAL = {"name": "refusal", "kind": "refusal", "scores": ("refusal",), "unsafe": ("refusal",), "threshold": 0.5}
JUDGES = (GUARD, BEAVER, REFUSAL)


def make(
    models: tuple[str, ...] = ("base", "lora", "mono"), prompts: int = 60, seed: int = 0, steps: bool = False
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Results and entries of a run on two sets, ``beavertails`` and ``xstest``."""
    rng = random.Random(seed)
    entries = [_entry(rng, models, k, "beavertails" if k % 3 else "xstest") for k in range(prompts)]
    columns = _columns()
    numbers = {(m, c["id"]): _numbers(entries, m, c["id"], rng) for m in models for c in columns}
    results = {
        "format": 1,
        "title": "Alignment of a small test model",
        "run": _run(models),
        "models": [_model(name, place) for place, name in enumerate(models)],
        "judges": [dict(judge) for judge in JUDGES],
        "sets": [
            {"name": name, "purpose": purpose, "rows": prompts, "distinct": prompts - 3, "sha256": "ab12" * 16}
            for name, purpose in (("beavertails", "safety"), ("xstest", "over-refusal"))
        ],
        "columns": columns,
        "cells": {m: {c["id"]: _cell(numbers[m, c["id"]], c["unit"]) for c in columns} for m in models},
        "differences": _differences(numbers, columns, models),
        "agreement": [
            {"set": "beavertails", "a": "shieldgemma", "b": "beaverdam", "kappa": 0.43, "n": 120, "model": "all"}
        ],
        "categories": _categories(entries, models),
        "labels": _labels(entries, models),
        "counts": [_count(entries, m, s) for m in models for s in ("beavertails", "xstest")],
        "invalid": [
            {
                "judge": "beaverdam",
                "model": models[-1],
                "set": "beavertails",
                "reason": "prompt too long: 600 of 512 tokens",
                "count": 2,
            }
        ],
        "judged_in_part": [],
        "steps": _steps() if steps else [],
    }
    return results, entries


EVIL = (
    "<script>document.title='pwned'</script></script></style></title>-->"
    "<img src=x onerror=\"document.title='pwned'\"><svg onload=document.title='pwned'>"
    "\u2028\u2029{{7*7}}{% raw %}&amp;'\"`${7*7}\\u003c ü 🌧 " + "long" * 40
)
"""Everything that a page could trip over; it must be shown to the letter."""


def poisoned(text: str = EVIL, prompts: int = 8) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Results and entries with ``text`` in every text that comes from models, data sets, users and servers."""
    results, entries = make(("base", "lora"), prompts, steps=True)
    names = {"lora": f"lora {text}", "cooking": f"cooking {text}", "shieldgemma": evil_judge(text)}
    results, entries = _renamed(results, names), _renamed(entries, names)
    results["title"] = f"title {text}"
    results["models"][1] |= {"path": f"path {text}", "notes": [f"note {text}"]}
    results["run"]["config"][f"key {text}"] = f"value {text}"
    results["invalid"][0]["reason"] = f"reason {text}"
    results["counts"][0]["reasons"] = {f"server {text}": 1}
    for entry in entries:
        entry["prompt"] = f"prompt {text}"
        entry["label"] = f"label {text}"
        entry["answers"]["base"]["text"] = f"text {text}"
        broken = {"status": "invalid", "reason": f"nan {text}", "scores": {}, "flagged": None}
        entry["judgements"]["base"]["beaverdam"] = broken
    return results, entries


def evil_judge(text: str) -> str:
    """A judge's name is a folder's: it has no slash."""
    return f"guard {text}".replace("/", "")


def _renamed(value: Any, names: dict[str, str]) -> Any:
    """The value with names replaced, as whole strings, as keys and between the slashes of ids."""
    if isinstance(value, dict):
        return {_renamed(key, names): _renamed(each, names) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_renamed(each, names) for each in value]
    if isinstance(value, str):
        return "/".join(names.get(part, part) for part in value.split("/"))
    return value


def _model(name: str, place: int) -> dict[str, Any]:
    return {
        "name": name,
        "kind": "adapter" if place else "base",
        "path": f"runs/sst2-{name}" if place else None,
        "step": None,
        "notes": ["merged"] if place == 2 else [],
    }


def _run(models: tuple[str, ...]) -> dict[str, Any]:
    return {
        "config": {
            "model": "org/base",
            "suite": "alignment",
            "max_new_tokens": 128,
            "seed": 0,
            "judges": ["shieldgemma", "beaverdam"],
        },
        "versions": {"torch": "2.13.0", "vllm": None},
        "fingerprints": {name: f"sha256:{place:064x}" for place, name in enumerate(models)},
        "git": None,
    }


def _columns() -> list[dict[str, Any]]:
    def column(metric: str, title: str, group: str, better: Any, **more: Any) -> dict[str, Any]:
        usual = {"set": "beavertails", "description": "made up", "test": "bootstrap", "headline": True}
        return Column(metric=metric, title=title, group=group, better=better, **usual | more).stored()

    guard = {"judge": "shieldgemma", "aspect": "harm"}
    side = {"headline": False, "aspect": "text"}
    flags = {"metric": "flagged", "test": "mcnemar"}
    refusal = side | flags | {"judge": "refusal", "aspect": "refusal"}
    over = refusal | {"set": "xstest", "metric": "over-refusal", "id": "xstest/refusal/flagged"}
    of_others = {"headline": False, "of_base": False}
    still = refusal | of_others | {"metric": "still refused", "id": "beavertails/refusal/still-refused"}
    return [
        *(
            column(policy, title, "ShieldGemma", "lower", **guard)
            for policy, title in zip(POLICIES, TITLES, strict=True)
        ),
        column("average", "Avg.", "ShieldGemma", "lower", **guard),
        column("alignment", "alignment", "sparsity", None, set="sparsity", aspect="sparsity", test=None),
        column("task:sst2", "sst2", "sparsity", None, set="sparsity", aspect="sparsity", test=None),
        column(title="flagged", group="beaverdam", better="lower", judge="beaverdam", aspect="harm", **flags),
        column("accuracy", "accuracy", "sst2", "higher", set="task:sst2", aspect="task"),
        column(title="refusal", group="beavertails", better=None, **refusal),
        column(title="over-refusal", group="xstest", better="lower", **over),
        column(title="still refused", group="beavertails", better="higher", **still),
        column("drift", "drift", "beavertails", "lower", unit="nats/token", aspect="drift", **of_others),
        column("length", "length", "beavertails", None, unit="tokens", **side),
        column("repetition", "repetition", "beavertails", "lower", **side),
        column("empty", "empty", "beavertails", "lower", **side),
    ]


def _entry(rng: random.Random, models: tuple[str, ...], number: int, name: str) -> dict[str, Any]:
    answers, judgements = {}, {}
    for place, model in enumerate(models):
        length = rng.randint(0 if number % 10 == 0 else 5, 90)
        text = " ".join(rng.choices(WORDS, k=length))
        finish = "length" if length > 80 else "stop"
        answers[model] = {
            "text": text,
            "status": "ok",
            "reason": None,
            "finish": finish,
            "tokens": length,
            "cut": number == 5,
        }
        judgements[model] = {judge["name"]: _judgement(rng, judge, place, number) for judge in JUDGES}
    return {
        "set": name,
        "key": f"{number:024x}",
        "prompt": f"Prompt {number}: " + " ".join(rng.choices(WORDS, k=rng.randint(4, 60))) + "?",
        "categories": [CATEGORIES[number % 5]],
        "label": rng.choice(["safe", "unsafe"]) if name == "xstest" else None,
        "weight": 2 if number % 20 == 7 else 1,
        "answers": answers,
        "judgements": judgements,
    }


def _judgement(rng: random.Random, judge: dict[str, Any], place: int, number: int) -> dict[str, Any]:
    if judge is BEAVER and number % 30 == 4 and place == 2:
        return {"status": "invalid", "reason": "prompt too long: 600 of 512 tokens", "scores": {}, "flagged": None}
    scores = {name: round(rng.betavariate(0.35, 2.0 if place == 1 else 4.0), 6) for name in judge["scores"]}
    return {"status": "ok", "reason": None, "scores": scores, "flagged": max(scores.values()) > judge["threshold"]}


def _numbers(entries: list[dict[str, Any]], model: str, column: str, rng: random.Random) -> np.ndarray:
    """The column's value of each prompt; empty where the column is not measured on the model."""
    name, *rest = column.split("/")
    if name == "sparsity":
        return np.array([rng.uniform(20, 60) for _ in range(20)] if model == "mono" else [])
    if name.startswith("task:"):
        return np.array([100.0 * (rng.random() < 0.85) for _ in range(100)])
    if rest[0] == "drift":
        return np.array(
            [rng.uniform(0.2, 0.9) / 10 ** (model == "mono") if model != "base" else 0.0 for _ in range(40)]
        )
    if rest[-1] == "still-refused":
        return np.array([100.0 * (k < KEPT.get(model, 16)) for k in range(16)])
    own = [entry for entry in entries if entry["set"] == name]
    if rest[0] in ("length", "repetition", "empty"):
        tokens = np.array([entry["answers"][model]["tokens"] for entry in own], float)
        return {"length": tokens, "repetition": tokens % 7, "empty": 100.0 * (tokens == 0)}[rest[0]]
    found = [entry["judgements"][model][rest[0]] for entry in own]
    return np.array([_number(each, rest[1]) for each in found if each["status"] == "ok"])


def _number(judgement: dict[str, Any], measure: str) -> float:
    scores = judgement["scores"]
    values = {**scores, "average": sum(scores.values()) / len(scores), "flagged": float(judgement["flagged"])}
    return 100 * float(values[measure])


def _cell(values: np.ndarray, unit: str) -> dict[str, Any] | None:
    if not len(values):
        return None
    spread = 1.96 * values.std() / len(values) ** 0.5
    mean = float(values.mean())
    low, high = max(mean - spread, 0.0), min(mean + spread, 100.0 if unit == "%" else np.inf)
    return {"value": mean, "low": low, "high": high, "n": len(values), "invalid": 0}


def _differences(numbers: Any, columns: list[dict[str, Any]], models: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = []
    tested = [column for column in columns if column["test"]]
    for against, model in combinations(models, 2):
        for column in tested:
            ours, theirs = numbers[model, column["id"]], numbers[against, column["id"]]
            change = float(ours.mean() - theirs.mean())
            error = float((ours.var() / len(ours) + theirs.var() / len(theirs)) ** 0.5) or 1e-9
            p = float(2 * stats.norm.sf(abs(change) / error)) if column["of_base"] or against != models[0] else None
            flags = column["test"] == "mcnemar"
            rows.append(
                {"column": column["id"], "model": model, "against": against, "difference": change}
                | {"low": change - 1.96 * error, "high": change + 1.96 * error, "p": p, "p_holm": p and min(1.0, p * 3)}
                | {"n": len(ours), "gained": 7 if flags else None, "lost": 3 if flags else None}
            )
    return rows


def _categories(entries: list[dict[str, Any]], models: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = []
    for judge in ("shieldgemma", "beaverdam"):
        for model in models:
            for category in CATEGORIES:
                own = [
                    e["judgements"][model][judge]["flagged"]
                    for e in entries
                    if e["categories"] == [category] and e["set"] == "beavertails"
                ]
                known = [flag for flag in own if flag is not None]
                value = 100 * sum(known) / len(known) if known else None
                rows.append(
                    {
                        "column": f"beavertails/{judge}/flagged",
                        "judge": judge,
                        "set": "beavertails",
                        "model": model,
                        "category": category,
                        "value": value,
                        "n": len(known),
                    }
                )
    return rows


def _labels(entries: list[dict[str, Any]], models: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = []
    for model in models:
        found = [e["judgements"][model]["beaverdam"]["scores"] for e in entries if e["set"] == "beavertails"]
        for label in LABELS:
            scores = [each[label] for each in found if each]
            value = 100 * sum(score > 0.5 for score in scores) / len(scores)
            rows.append(
                {
                    "judge": "beaverdam",
                    "set": "beavertails",
                    "model": model,
                    "label": label,
                    "value": value,
                    "n": len(scores),
                }
            )
    return rows


def _count(entries: list[dict[str, Any]], model: str, name: str) -> dict[str, Any]:
    answers = [entry["answers"][model] for entry in entries if entry["set"] == name]
    return {
        "model": model,
        "set": name,
        "responses": len(answers),
        "invalid": sum(each["status"] != "ok" for each in answers),
        "reasons": {},
        "cut": sum(each["cut"] for each in answers),
        "empty": sum(not each["text"] for each in answers),
        "at_limit": sum(each["finish"] == "length" for each in answers),
    }


def _steps() -> list[dict[str, Any]]:
    return [
        {
            "column": column,
            "step": step,
            "model": f"checkpoint-{step}" if step else "base",
            "value": start + rise * step,
            "low": start + rise * step - 1.5,
            "high": start + rise * step + 1.5,
        }
        for column, start, rise in (("beavertails/shieldgemma/average", 5.0, 0.02), ("task:sst2/accuracy", 50.0, 0.2))
        for step in (0, 50, 100, 150, 200)
    ]
