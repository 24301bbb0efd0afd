"""``monolora sft --keep …``: what is trained, recorded and refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from monolora.keep import silence
from monolora.keep.silence import Silence
from monolora.recipes.training.arguments import joined
from tests.support.program_runs import Outcome

Run = Callable[..., Outcome]
KEEP = ("--keep-samples", "20", "--keep-answer-tokens", "4")
STEPS = ("--save-steps", "2", "--skip-eval")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONOLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MONOLORA_DATA", raising=False)


EXAMPLE = Path(__file__).parents[3] / "recipes" / "study" / "first_tokens.py"


def _weights(outcome: Outcome) -> dict[str, torch.Tensor]:
    assert outcome.status == 0, outcome.err
    return load_file(outcome.folder / "adapter_model.safetensors")


def test_silence_on_embedded_anchors(run_sft: Run) -> None:
    """No data, no network: the report is in the record, on the terminal and on the card."""
    outcome = run_sft("--keep", "silence", *KEEP)
    keeping = outcome.record["results"]["keeping"]
    assert (keeping["anchors"], keeping["held_out"], keeping["evaluated"]) == (18, 2, 0)
    assert keeping["keepers"]["silence"]["weight"] == Silence.default_weight
    assert 0 < keeping["keepers"]["silence"]["anchor_tokens"] < 20_000
    assert list(keeping["sets"]) == ["held-out anchors"]
    assert outcome.record["fingerprints"]["anchors"]
    logged = [entry for entry in outcome.record["history"] if "loss" in entry]
    assert all("keep_silence" in entry and 0 <= entry["keep_silent"] <= 1 for entry in logged)
    assert any(f"anchors silent {logged[-1]['keep_silent']:.1%}" in line for line in outcome.err)
    assert "tokens with all units silent" in outcome.out
    card = (outcome.folder / "README.md").read_text()
    assert f"Kept of the base, by `silence:{Silence.default_weight}`" in card
    assert "| KL to the base, nats a token |" in card


def test_a_keeper_from_outside(run_sft: Run) -> None:
    """It trains and is recorded like any other; the file's code is among what a resumed run must share."""
    outcome = run_sft("--keep", f"{EXAMPLE}:FirstTokens:0.5", *KEEP, "--skip-eval")
    assert outcome.record["results"]["keeping"]["keepers"]["first-tokens"]["weight"] == 0.5
    assert len(outcome.record["fingerprints"]["keeper first-tokens"]) == 16
    assert all("keep_first-tokens" in entry for entry in outcome.record["history"] if "loss" in entry)


def test_a_run_without_scores_has_no_report_but_what_it_names(run_sft: Run) -> None:
    """How it was kept is recorded all the same, and the card says that nothing was measured."""
    flags = ("--keep", "kl", *KEEP, "--skip-eval")
    outcome = run_sft(*flags)
    keeping = outcome.record["results"]["keeping"]
    assert keeping["keepers"]["kl"]["weight"] == 3
    assert keeping["sets"] == {}
    assert "KL to the base" not in outcome.out
    assert "kept by `kl:3`. Nothing was measured" in (outcome.folder / "README.md").read_text()
    named = run_sft(*flags, "--keep-report", "refusals", "--overwrite")
    assert list(named.record["results"]["keeping"]["sets"]) == ["refusals"]


@pytest.mark.parametrize(
    "flags",
    [
        ("--adapter", "lora", "--keep", "silence", "--keep", "replay:0.5", "--keep", "kl"),
        ("--adapter", "none", "--keep", "replay", "kl:0.1"),
        ("--activation", "topk:2", "--keep", "silence", "--gradient-checkpointing"),
        ("--packing", "--keep", "silence", "kl", "--keep-first-tokens", "2"),
        ("--load-in-4bit", "--keep", "silence", "kl"),
    ],
)
def test_keepers_combine(run_sft: Run, flags: tuple[str, ...]) -> None:
    """With every adapter, with checkpointing and with packing; each method's loss is logged."""
    outcome = run_sft(*flags, *KEEP, "--skip-eval")
    assert outcome.status == 0, outcome.err
    record = outcome.record
    names = {word.partition(":")[0] for word in record["config"]["keep"]}
    assert set(record["results"]["keeping"]["keepers"]) == names
    logged = set.union(*(set(entry) for entry in record["history"]))
    assert {f"keep_{name}" for name in names - {"replay"}} <= logged
    assert record["rows"].get("replayed") == ({"lora": 16, "none": 3}[flags[1]] if "replay" in names else None)


def test_the_penalty_makes_units_silent(run_sft: Run) -> None:
    """A large weight, against the smallest: fewer units are on when training ends."""
    on = []
    for weight in ("0.003", "3"):
        outcome = run_sft("--keep", f"silence:{weight}", *KEEP, "--num-train-epochs", "4", "--skip-eval", name=weight)
        on.append(outcome.record["results"]["keeping"]["keepers"]["silence"]["on_anchors_trained"])
    assert on[1] < 0.5 * on[0]


def test_accumulated_batches_are_one_batch(run_sft: Run) -> None:
    """The keepers' losses come once a step, whatever a step is divided into."""
    flags = ("--keep", "silence:0.5", "kl", *KEEP, "--skip-eval", "--optim", "sgd", "--learning-rate", "0.5")
    flags += ("--train-sampling-strategy", "sequential")
    whole = _weights(run_sft(*flags, name="whole"))
    parts = _weights(
        run_sft(*flags, "--per-device-train-batch-size", "1", "--gradient-accumulation-steps", "4", name="parts")
    )
    plain = _weights(run_sft(*flags[flags.index("--skip-eval") :], name="plain"))
    assert any(not torch.allclose(whole[name], plain[name], atol=1e-4) for name in whole)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-4, atol=1e-5)


def test_resumed_is_uninterrupted(run_sft: Run) -> None:
    """Bit for bit, and only with the same anchors."""
    flags = (*STEPS, "--keep", "silence", "replay", "kl", *KEEP)
    done = run_sft(*flags)
    weights = _weights(done)
    checkpoint = str(done.folder / "checkpoint-2")
    again = _weights(run_sft(*flags, "--resume-from-checkpoint", checkpoint, name="again"))
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())
    for other in (("--keep", "silence"), ("--keep", "silence", "replay", "kl:0.5")):
        refused = run_sft(*STEPS, *other, *KEEP, "--resume-from-checkpoint", checkpoint, name="other")
        assert refused.status == 2
        assert "--keep" in refused.err[-1]
    record = json.loads((done.folder / "run.json").read_text())
    record["fingerprints"]["anchors"] = "0"
    (done.folder / "run.json").write_text(json.dumps(record))
    refused = run_sft(*flags, "--resume-from-checkpoint", checkpoint, name="other")
    assert refused.status == 2
    assert "The anchors of --keep-prompts" in refused.err[-1]


def _recorded() -> dict[str, bytes]:
    """The activations in the cache, by the names of their files."""
    folder = Path(os.environ["MONOLORA_CACHE"]) / "activations"
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_silence_goes_on(run_sft: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent adapter keeps its A and its penalty, and the anchors' inputs stay those of the base."""
    monkeypatch.setattr(silence, "OVERLAP", 0.95)  # a random model hardly tells anchors from the task
    flags = ("--keep", "silence", *KEEP, *STEPS)
    first = run_sft(*flags, name="first")
    weights = _weights(first)
    recorded = _recorded()
    go_on = ("--adapter-from", str(first.folder), *flags)
    monkeypatch.setenv("MONOLORA_CACHE", str(tmp_path / "another-cache"))
    still = _weights(run_sft(*go_on, "--learning-rate", "1e-12", name="still"))
    assert all(torch.allclose(still[name], tensor, atol=1e-6) for name, tensor in weights.items())
    assert _recorded() == recorded != {}
    second = run_sft(*go_on, name="second")
    kept = second.record["results"]["keeping"]["keepers"]["silence"]
    trained = first.record["results"]["keeping"]["keepers"]["silence"]["on_anchors_trained"]
    assert kept["on_anchors"] == pytest.approx(trained)
    again = run_sft(*go_on, "--resume-from-checkpoint", str(second.folder / "checkpoint-2"), name="again")
    for name, tensor in _weights(second).items():
        assert torch.equal(_weights(again)[name], tensor)


def test_silence_needs_an_adapter_that_was_trained_with_it(run_sft: Run) -> None:
    start = run_sft("--skip-eval", name="start").folder
    refused = run_sft("--adapter-from", str(start), "--keep", "silence", *KEEP, "--skip-eval")
    assert refused.status == 2
    assert "units of --adapter-from are on for" in refused.err[-1]
    assert "Give an adapter that was trained with --keep silence, or use --keep kl or replay." in refused.err[-1]
    for keeper in ("kl", "replay"):
        outcome = run_sft("--adapter-from", str(start), "--keep", keeper, *KEEP, "--skip-eval", name=keeper)
        assert outcome.status == 0, outcome.err


def test_trained_biases_leave_no_base_to_keep(run_sft: Run) -> None:
    start = run_sft("--skip-eval", "--lora-bias", "all", name="start").folder
    refused = run_sft("--adapter-from", str(start), "--keep", "kl", *KEEP)
    assert refused.status == 2
    assert f"--adapter-from {start} has trained its biases" in refused.err[-1]


def test_report_sets_are_measured_without_a_keeper(run_sft: Run, write_rows: Callable[..., str]) -> None:
    """So that plain LoRA has the same report."""
    rows = write_rows([{"prompt": f"What is {number}?"} for number in range(5)], "mine.jsonl")
    outcome = run_sft("--adapter", "lora", "--keep-report", rows, "--keep-report", "refusals", "--skip-eval")
    keeping = outcome.record["results"]["keeping"]
    assert keeping["keepers"] == {}
    assert {name: report["anchors"] for name, report in keeping["sets"].items()} == {"mine": 5, "refusals": 100}
    assert keeping["sets"]["mine"]["silent"]["mean"] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--keep", "silense"),
            "Unknown --keep 'silense'; choose one of silence, replay, kl, first-tokens, none, FILE.py:CLASS. Did you",
        ),
        (("--keep", "silence:0"), "--keep silence:0: the weight must be a number above 0"),
        (("--keep", "kl:much"), "--keep kl:much: the weight must be a number above 0, got 'much'"),
        (("--keep", "kl", "--keep", "kl:2"), "--keep kl is given twice"),
        (("--keep", "replay:1.5", *KEEP), "the share of all rows must be below 1"),
        (("--adapter", "none", "--keep", "silence"), "--adapter none has none. Use replay or kl."),
        (("--activation", "softplus", "--keep", "silence"), "softplus is never zero"),
        (("--keep", "silence", "--lora-bias", "all"), "--lora-bias trains weights that act on every token"),
        (("--keep", "silence", "--lora-modules-to-save", "lm_head"), "--lora-modules-to-save trains weights"),
        (("--keep", "silence", "--trainable-token-indices", "1"), "--trainable-token-indices trains weights"),
        (("--keep", "silence", "--init-lora-weights", "false"), "--init-lora-weights false asks for others"),
        (("--keep", "none", "--keep-samples", "3"), "--keep-samples has no effect without --keep"),
        (("--keep", "kl", "--keep-tokens", "3"), "--keep-tokens has no effect without --keep silence"),
        (("--keep", "silence", "--keep-first-tokens", "3"), "--keep-first-tokens has no effect without --keep kl"),
        (("--keep", "silence", "--keep-samples", "0"), "--keep-samples must be at least 1"),
        (("--keep", "silence", "--keep-samples", "1", "--keep-answer-tokens", "4"), "one more is needed"),
        (("--keep", "silence", "--keep-prompts", "nowhere.jsonl"), "nowhere.jsonl"),
        (
            ("--keep", "silence", "--keep-prompts", "task:demo", "--keep-samples", "150"),
            "The anchors cannot be told from the task",
        ),
        (("--keep-report", "refusal"), "Unknown set of prompts 'refusal'"),
    ],
)
def test_what_cannot_work_is_one_line(run_sft: Run, flags: tuple[str, ...], message: str) -> None:
    """Status 2, and nothing is written."""
    outcome = run_sft(*flags)
    assert outcome.status == 2
    assert message in outcome.err[-1]
    assert not outcome.folder.exists()


def test_repeated_flags_are_one() -> None:
    """Of a flag with several values argparse takes the last mention alone."""
    words = ["--keep", "a", "--seed", "1", "--keep", "b", "c", "--keep-report=x", "--keep_report", "y", "--keep", "d"]
    flags = ("--keep", "--keep-report")
    assert joined(words, flags) == ["--keep", "a", "b", "c", "d", "--seed", "1", "--keep-report", "x", "y"]
    assert joined(["--seed", "1", "--seed", "2"], flags) == ["--seed", "1", "--seed", "2"]


def test_anchors_in_a_yaml_file(run_sft: Run, tmp_path: Path) -> None:
    """Lists, as for other flags; the command line replaces them."""
    config: dict[str, Any] = {"keep": ["replay:0.2"], "keep_samples": 20, "keep_answer_tokens": 4, "skip_eval": True}
    (tmp_path / "keep.yaml").write_text(json.dumps(config))
    assert run_sft("--config", str(tmp_path / "keep.yaml")).record["rows"]["replayed"] == 4
    other = run_sft("--config", str(tmp_path / "keep.yaml"), "--keep", "kl", name="other")
    assert other.record["config"]["keep"] == ["kl"]
