"""Refusal margin and coherence, against transformers one row at a time; resumed with the rest of a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp
from transformers import AutoModelForCausalLM, AutoTokenizer

from monolora import cli
from monolora.adapters import load_adapted
from monolora.eval.measurements import coherence, margin
from monolora.refusals import COMPLYING, REFUSING, refuses
from monolora.refusals import margin as margin_of
from tests.support.evaluated import Evaluated
from tests.support.inline import run_inline

LOG_PROB = st.floats(-300, 0)


@given(
    st.lists(LOG_PROB, min_size=len(REFUSING), max_size=len(REFUSING)),
    st.lists(LOG_PROB, min_size=len(COMPLYING), max_size=len(COMPLYING)),
)
def test_the_margin_is_a_difference_of_log_probabilities(refusing: list[float], complying: list[float]) -> None:
    assert margin_of([*refusing, *complying]) == pytest.approx(logsumexp(refusing) - logsumexp(complying), abs=1e-9)


def test_beginnings_are_what_they_say() -> None:
    """All refusing ones but one, open still, make a refusal; no complying one does, nor begins a refusing one."""
    assert [text for text in REFUSING if not refuses(f"{text} help you with that.")] == ["As an AI"]
    assert not any(refuses(f"{text} are some ideas.") for text in COMPLYING)
    assert not any(f"{text} ".startswith(f"{other} ") for text in REFUSING for other in COMPLYING)


def _log_prob(model: Any, ids: list[int], answer: list[int]) -> float:
    """In float64."""
    with torch.no_grad():
        log_probs = torch.log_softmax(model(input_ids=torch.tensor([[*ids, *answer]])).logits[0].double(), -1)
    return sum(float(log_probs[len(ids) - 1 + k, token]) for k, token in enumerate(answer))


@pytest.mark.parametrize("name", ["base", "mono"])
def test_margins_of_base_and_adapter(evaluated: Evaluated, name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(evaluated.base)
    prompts = {f"p{number}": tokenizer(f"How do I make {number}?")["input_ids"] for number in (1, 22, 333, 4)}
    adapter = None if name == "base" else str(evaluated.mono)
    jobs = [{"key": "m", "identity": "i", "model": str(evaluated.base), "adapter": adapter, "prompts": prompts}]
    (measured,) = margin({"jobs": jobs, "dtype": "float32", "batch_size": 3})
    model = AutoModelForCausalLM.from_pretrained(evaluated.base, dtype=torch.float32).eval()
    if adapter is not None:
        model = load_adapted(adapter, dtype="float32")[0]
    for key, ids in prompts.items():
        sums = [
            logsumexp([
                _log_prob(model, ids, tokenizer(text, add_special_tokens=False)["input_ids"]) for text in beginnings
            ])
            for beginnings in (REFUSING, COMPLYING)
        ]  # fmt: skip
        assert measured["values"]["margin"][key] == pytest.approx(sums[0] - sums[1], abs=1e-3)
    assert (measured["key"], measured["kind"], measured["model"]) == ("m", "margin", "i")


def test_coherence_is_the_likelihood_under_the_base(evaluated: Evaluated) -> None:
    tokenizer = AutoTokenizer.from_pretrained(evaluated.base)
    texts = {"a": "soup and bread", "b": "", "c": "soup soup soup soup"}
    rows = [
        {"key": key, "token_ids": tokenizer("Say it.")["input_ids"], "text": text, "is_ended": key == "a"}
        for key, text in texts.items()
    ]
    job = {"base": str(evaluated.base), "dtype": "float32", "batch_size": 2}
    (measured,) = coherence({**job, "jobs": [{"key": "m", "identity": "i", "rows": rows}]})
    base = AutoModelForCausalLM.from_pretrained(evaluated.base, dtype=torch.float32).eval()
    expected = {}
    for row in (rows[0], rows[2]):
        answer = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        answer += [tokenizer.eos_token_id] * row["is_ended"]
        expected[row["key"]] = -_log_prob(base, row["token_ids"], answer) / len(answer)
    assert measured["values"]["base_nll"] == pytest.approx(expected, rel=1e-4)


def test_in_a_run(
    evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Columns for every model, the base's too; a second call measures nothing; a new adapter alone."""
    run_inline(monkeypatch)
    out = tmp_path / "out"
    words = ["eval", "run", *evaluated.run_flags(), "--skip-sparsity", "--out", str(out)]
    words += ["--refusal-margin", "3", "--coherence", "2"]
    assert cli.main(words) == 0, capsys.readouterr().err
    results = json.loads((out / "results.json").read_text())
    for column, number in (("questions/margin", 3), ("questions/base-nll", 2)):
        cells = {model: of_model[column] for model, of_model in results["cells"].items()}
        assert cells.keys() == {"base", "lora", "mono"}
        assert all(math.isfinite(cell["value"]) for cell in cells.values())
        assert all(cell["n"] == number for cell in cells.values())
    assert any(column["id"] == "questions/cut" for column in results["columns"])
    records = (out / "measurements.jsonl").read_text()
    assert len(records.splitlines()) == 6
    assert cli.main(words) == 0
    assert (out / "measurements.jsonl").read_text() == records
    assert "refusal margin" in (out / "report.html").read_text()
