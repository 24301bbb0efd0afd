"""Drift against distributions worked out answer by answer; resumed with the rest of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from monolora import cli, shared_prefix
from monolora.adapters import load_adapted
from monolora.drift import answer_drifts
from monolora.eval.measurements import _split, drift
from monolora.inference import Inference
from monolora.units import adapted_layers
from tests.support.evaluated import Evaluated
from tests.support.inline import run_inline

FLAGS = ("--drift", "5", "--skip-sparsity")


@pytest.fixture(scope="module")
def rows(evaluated: Evaluated) -> list[dict[str, Any]]:
    tokenizer = AutoTokenizer.from_pretrained(evaluated.base)
    texts = ["a boat of paper", "", "soup", "tea and bread and a song", "a kite", "no answer"]
    return [
        {
            "key": f"k{number}",
            "token_ids": tokenizer(f"How do I make {number}?")["input_ids"],
            "text": text,
            "is_ended": number != 5,
        }
        for number, text in enumerate(texts)
    ]


def _job(evaluated: Evaluated, rows: list[dict[str, Any]], **job: Any) -> dict[str, Any]:
    measurement = {"key": "m", "identity": "i", "model": str(evaluated.base), "adapter": None, "set": "s"} | job
    return {
        "jobs": [measurement], "base": str(evaluated.base), "rows": {"s": rows}, "dtype": "float32", "batch_size": 4,
    }  # fmt: skip


@torch.no_grad()
def _kl(base: Any, tuned: Any, tokenizer: Any, row: dict[str, Any]) -> float:
    """One answer, its positions one by one, in float64."""
    answer = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
    answer += [tokenizer.eos_token_id] * row["is_ended"]
    ids = torch.tensor([[*row["token_ids"], *answer]])
    p, q = (torch.log_softmax(model(input_ids=ids).logits[0].double(), -1) for model in (base, tuned))
    positions = range(len(row["token_ids"]) - 1, ids.shape[1] - 1)
    return sum(
        float(torch.nn.functional.kl_div(q[t], p[t], reduction="sum", log_target=True)) for t in positions
    ) / len(answer)


@pytest.mark.parametrize("name", ["lora", "mono"])
def test_an_adapter_against_its_base(evaluated: Evaluated, rows: list[dict[str, Any]], name: str) -> None:
    adapter = str(getattr(evaluated, name))
    (measurement,) = drift(_job(evaluated, rows, adapter=adapter))
    base = AutoModelForCausalLM.from_pretrained(evaluated.base, dtype=torch.float32).eval()
    tuned, tokenizer = load_adapted(adapter, dtype="float32")
    expected = {row["key"]: _kl(base, tuned, tokenizer, row) for row in rows}
    assert min(expected.values()) > 0.01
    assert measurement["values"]["kl"] == pytest.approx(expected, rel=1e-3)
    assert (measurement["key"], measurement["kind"], measurement["model"]) == ("m", "drift", "i")


def test_a_whole_model_against_the_base(evaluated: Evaluated, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    shutil.copytree(evaluated.base, tmp_path / "whole")
    model = LlamaForCausalLM.from_pretrained(evaluated.base)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    model.save_pretrained(tmp_path / "whole")
    (measurement,) = drift(_job(evaluated, rows, model=str(tmp_path / "whole")))
    base = AutoModelForCausalLM.from_pretrained(evaluated.base, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(evaluated.base)
    assert measurement["values"]["kl"] == pytest.approx(
        {row["key"]: _kl(base, model.eval(), tokenizer, row) for row in rows}, rel=1e-3
    )
    (none,) = drift(_job(evaluated, rows))
    assert set(none["values"]["kl"].values()) == {0.0}  # the base from itself


def test_an_answer_without_tokens_is_left_out(evaluated: Evaluated, rows: list[dict[str, Any]]) -> None:
    silent = rows[1] | {"is_ended": False}
    (measurement,) = drift(_job(evaluated, [rows[0], silent], adapter=str(evaluated.mono)))
    assert measurement["values"]["kl"].keys() == {"k0"}


def test_memory_bounds_a_batch(
    evaluated: Evaluated, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (usual,) = drift(_job(evaluated, rows, adapter=str(evaluated.mono)))
    monkeypatch.setattr("monolora.inference.MAX_POSITIONS", 1)
    (single,) = drift(_job(evaluated, rows, adapter=str(evaluated.mono)))
    assert single["values"]["kl"] == pytest.approx(usual["values"]["kl"], rel=1e-4)


@pytest.mark.parametrize("saved", [0.01, 2.0], ids=["common prefix once", "whole rows"])
@torch.no_grad()
def test_silent_tokens_are_those_on_which_every_unit_is_zero(
    evaluated: Evaluated, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, saved: float
) -> None:
    """With one layer's A scaled by 0, and one unit of the other, so that some tokens are silent; unit by unit."""
    shared, expanded_cache = [], shared_prefix.expanded_cache
    monkeypatch.setattr(shared_prefix, "SAVED", saved)
    monkeypatch.setattr(
        shared_prefix, "expanded_cache", lambda *args: shared.append(args[1].shape[1]) or expanded_cache(*args)
    )
    tuned, tokenizer = load_adapted(str(evaluated.mono), dtype="float32")
    splits = {row["key"]: _split(row, tokenizer) for row in rows}
    first, *others = adapted_layers(tuned)
    for layer in (first, *others):
        A = layer.lora_A["default"].weight
        A[1 if layer is first else 0 :] = 0
    on: list[torch.Tensor] = []
    first.lora_A["default"].register_forward_hook(lambda module, args, output: on.append(output[0, :, 0] > 0))
    expected = {}
    for key, split in splits.items():
        on.clear()
        tuned(input_ids=torch.tensor([split.context + split.answer]))
        expected[key] = 1 - float(on[0].float().mean())
    assert 0 < min(expected.values()) < max(expected.values()) < 1
    inference = Inference(model=tuned, tokenizer=tokenizer, batch_size=4)
    drifts = answer_drifts(inference, inference, tuned.disable_adapter, list(splits.values()))
    keys = list(splits)
    assert {keys[drift.number]: drift.silent for drift in drifts} == pytest.approx(expected)
    assert all(length > 0 for length in shared)
    assert bool(shared) == (saved < 1)


def test_a_run_measures_further_sets_along_the_bases_answers(
    evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base alone answers a set that is in no suite; what was measured before is not measured again."""
    run_inline(monkeypatch)
    out, more = tmp_path / "out", tmp_path / "more.jsonl"
    more.write_text("".join(json.dumps({"prompt": f"Where is {what}?"}) + "\n" for what in ("tea", "soup", "bread")))
    words = ["eval", "run", *evaluated.run_flags(), *FLAGS, "--out", str(out)]
    assert cli.main(words) == 0
    before = (out / "measurements.jsonl").read_text()
    assert cli.main([*words, "--drift-sets", f"{evaluated.prompts},{more}"]) == 0
    after = (out / "measurements.jsonl").read_text()
    assert after.startswith(before)
    assert len(after.splitlines()) == 2 * len(before.splitlines())
    results = json.loads((out / "results.json").read_text())
    counts = {(row["model"], row["set"]): row["responses"] for row in results["counts"]}
    assert counts["base", "more"] == 3
    assert ("mono", "more") not in counts
    for name in ("questions", "more"):
        assert results["cells"]["mono"][f"{name}/drift"]["value"] > 0
        assert results["cells"]["lora"][f"{name}/silent"]["value"] == 0
        assert 0 <= results["cells"]["mono"][f"{name}/silent"]["value"] <= 100
        assert results["cells"]["base"][f"{name}/silent"] is None
    assert "more" in (out / "report.html").read_text()


def test_a_run_measures_it_once(
    evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_inline(monkeypatch)
    words = ["eval", "run", *evaluated.run_flags(), *FLAGS, "--out", str(tmp_path / "out")]
    assert cli.main(words) == 0
    records = [json.loads(line) for line in (tmp_path / "out" / "measurements.jsonl").read_text().splitlines()]
    assert [record["kind"] for record in records] == ["drift", "drift"]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    for model, record in zip(("lora", "mono"), records, strict=True):
        values = record["values"]["kl"].values()
        cell = results["cells"][model]["questions/drift"]
        assert cell["value"] == pytest.approx(sum(values) / 5)
        assert cell["n"] == len(values) == 5
        assert cell["low"] < cell["value"] < cell["high"]
    assert results["cells"]["base"]["questions/drift"] is None
    page = (tmp_path / "out" / "report.html").read_text()
    assert "drift" in page
    for name in ("generate.parallel_rows", "measurements.worker_rows"):
        monkeypatch.setattr(f"monolora.eval.{name}", None)  # nothing is computed again
    assert cli.main(words) == 0
