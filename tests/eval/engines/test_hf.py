"""Answers by transformers: greedy, as the model gives them one by one, in batches that resuming does not change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from monolora.adapters import load_adapted
from monolora.eval.engines.hf import answers
from tests.support.engine_jobs import ending_early, job
from tests.support.evaluated import Evaluated


def one_by_one(evaluated: Evaluated, name: str | None, ids: list[int], most: int) -> tuple[str, int, str]:
    """A loop over the argmax: no batch, no padding, no cache. It is far from the second: no rounding chooses."""
    if name is None:
        model: Any = LlamaForCausalLM.from_pretrained(evaluated.base)
    else:
        model, _ = load_adapted(str(getattr(evaluated, name)), str(evaluated.base), dtype="float32")
    tokens = list(ids)
    with torch.no_grad():
        while len(tokens) < len(ids) + most and tokens[-1] != 2:
            best = model(torch.tensor([tokens])).logits[0, -1].topk(2)
            assert best.values[0] - best.values[1] > 1e-5
            tokens.append(int(best.indices[0]))
    new = tokens[len(ids) :]
    text = AutoTokenizer.from_pretrained(evaluated.base).decode(new, skip_special_tokens=True)
    return text, len(new), "stop" if new[-1] == 2 else "length"


def test_answers(evaluated: Evaluated) -> None:
    engine_job = job(evaluated)
    rows = {row["key"]: row for row in answers(engine_job)}
    assert len(rows) == 15
    for item in engine_job["items"]:
        expected = one_by_one(evaluated, item["adapter"], item["token_ids"], item["max_new_tokens"])
        row = rows[item["key"]]
        assert (row["text"], row["tokens"], row["finish"]) == expected
    texts = {name: [rows[f"{name}-{number}"]["text"] for number in range(5)] for name in (None, "lora", "mono")}
    assert texts[None] != texts["lora"] != texts["mono"] != texts[None]


def test_an_adapter_ends_where_its_folder_says(evaluated: Evaluated, tmp_path: Path) -> None:
    rows = {row["key"]: row for row in answers(ending_early(evaluated, tmp_path / "mono"))}
    assert (rows["mono-0"]["tokens"], rows["mono-0"]["finish"]) == (1, "stop")
    assert rows["None-0"]["tokens"] > 1


def test_resuming_gives_the_same_rows(evaluated: Evaluated) -> None:
    """Also when it draws: each batch from the seed."""
    for settings in ({}, {"temperature": 1.0, "seed": 3}):
        whole = {row["key"]: row for row in answers(job(evaluated, **settings))}
        done = ("None-0", "None-1", "lora-2", "mono-0", "mono-1", "mono-2", "mono-3", "mono-4")
        rest = {row["key"]: row for row in answers(job(evaluated, done, **settings))}
        assert rest == {key: row for key, row in whole.items() if key not in done}


def test_sampling_is_not_greedy(evaluated: Evaluated) -> None:
    greedy = [row["text"] for row in answers(job(evaluated))]
    drawn = [[row["text"] for row in answers(job(evaluated, temperature=2.0, seed=seed))] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1]
    assert drawn[0] not in (greedy, drawn[2])


def test_prompts_are_drawn_apart(evaluated: Evaluated) -> None:
    """A seed of its own for each prompt: with one for all, resampling prompts would tell nothing of the noise."""
    rows = {row["key"]: row["text"] for row in answers(job(evaluated, temperature=50.0, batch_size=1))}
    assert len({rows[f"None-{number}"] for number in (0, 2, 4)}) == 3  # those that may have as many tokens


@pytest.mark.parametrize("engines", [2, 10])
def test_several_engines_give_the_rows_of_one(evaluated: Evaluated, engines: int) -> None:
    """Bit for bit: also when they draw, and when some rows are done. There are nine batches to share."""
    for done, settings in (((), {}), (("None-0", "lora-2", "mono-0"), {"temperature": 1.0, "seed": 3})):
        engine_job = job(evaluated, done, **settings)
        parts = [list(answers(engine_job | {"share": (rank, engines)})) for rank in range(engines)]
        assert sum(map(bool, parts)) == min(engines, 9)
        assert sorted((row for part in parts for row in part), key=str) == sorted(answers(engine_job), key=str)
