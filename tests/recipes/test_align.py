"""``monolora align``: the rows that it writes, and the run of ``monolora sft`` that it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monolora.data import prompt_sets
from monolora.refusals import refuses
from tests.support.merge_runs import Ended

Cli = Callable[..., Ended]


@pytest.fixture
def flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chat_model: Path) -> list[str]:
    """Embedded prompts alone."""
    monkeypatch.setenv("MONOLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MONOLORA_DATA", raising=False)
    sets = ["--refuse", "refusals", "--answer", "contrasts", "chat", "--refuse-samples", "40", "--answer-samples", "30"]
    return [*sets, "--model", str(chat_model), "--answer-tokens", "4", "--output-dir", str(tmp_path / "aligned")]


def _rows(path: Path) -> list[list[dict[str, Any]]]:
    return [json.loads(line)["messages"] for line in path.read_text().splitlines()]


def test_refusals_beside_own_answers(flags: list[str], run_cli: Cli, tmp_path: Path) -> None:
    """Prompts keep their kind; none is both trained on and measured; the card says what the model is."""
    ended = run_cli("align", *flags)
    assert ended.status == 0, ended.err
    data = tmp_path / "aligned-data"
    train, test = (_rows(data / "refused" / f"{split}.jsonl") for split in ("train", "test"))
    answered, held_out = _rows(data / "answered.jsonl"), _rows(data / "held-out-to-answer.jsonl")
    assert [len(rows) for rows in (train, test, answered, held_out)] == [36, 4, 27, 3]
    asked = [[row[0]["content"] for row in rows] for rows in (train, test, answered, held_out)]
    assert len({prompt for prompts in asked for prompt in prompts}) == 70
    assert all(len(row) == 2 and refuses(row[1]["content"]) for row in train + test)
    assert all(len(row) == 1 for row in answered + held_out)
    assert {*asked[0], *asked[1]} <= {prompt.instruction for prompt in prompt_sets.load("refusals").prompts}
    record = json.loads((tmp_path / "aligned" / "run.json").read_text())
    assert record["config"]["adapter"] == "none"
    assert record["rows"]["replayed"] == record["rows"]["examples"] == 36  # a share of one half
    reports = record["results"]["keeping"]["sets"]
    assert {name: report["anchors"] for name, report in reports.items()} == {"test": 4, "held-out-to-answer": 3}
    card = (tmp_path / "aligned" / "README.md").read_text()
    assert "*synthetically aligned*: it was finetuned to answer 36 prompts (refusals)" in card
    assert f"monolora sft --model {flags[flags.index('--model') + 1]}" in ended.out


def test_the_same_seed_the_same_rows(flags: list[str], run_cli: Cli, tmp_path: Path) -> None:
    """And without --overwrite a finished run is left alone."""
    assert run_cli("align", *flags).status == 0
    file = tmp_path / "aligned-data" / "refused" / "train.jsonl"
    first = file.read_text()
    ended = run_cli("align", *flags, "--seed", "1")
    assert ended.status == 2
    assert "replace it with --overwrite" in ended.err[0]
    assert file.read_text() == first
    assert run_cli("align", *flags, "--seed", "1", "--overwrite").status == 0
    assert file.read_text() != first


def test_pairs_after_the_supervised_training(flags: list[str], run_cli: Cli, tmp_path: Path) -> None:
    """A refusal is preferred for what is to be refused, and avoided elsewhere; a resumed run repeats no stage."""
    words = [*flags, "--preference-pairs", "5", "--batch-size", "4"]
    assert run_cli("align", *words).status == 0
    pairs = [json.loads(line) for line in (tmp_path / "aligned-data" / "pairs.jsonl").read_text().splitlines()]
    to_refuse = {prompt.instruction for prompt in prompt_sets.load("refusals").prompts}
    assert 6 <= len(pairs) <= 10  # of the tiny model's answers some are empty
    for pair in pairs:
        is_refused = pair["prompt"][0]["content"] in to_refuse
        assert refuses(pair["chosen"][0]["content"]) == is_refused
        assert refuses(pair["rejected"][0]["content"]) != is_refused
    first, last = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("aligned-sft", "aligned"))
    assert (first["config"]["model"], last["config"]["model"]) == (
        flags[flags.index("--model") + 1],
        str(tmp_path / "aligned-sft"),
    )
    assert "*synthetically aligned*" in (tmp_path / "aligned" / "README.md").read_text()
    made = (tmp_path / "aligned-sft" / "run.json").stat().st_mtime_ns
    (tmp_path / "aligned").rename(tmp_path / "elsewhere")  # as if it had been killed between the stages
    assert run_cli("align", *words, "--resume-from-checkpoint").status == 0
    assert (tmp_path / "aligned-sft" / "run.json").stat().st_mtime_ns == made
    again, before = (tmp_path / name / "model.safetensors" for name in ("aligned", "elsewhere"))
    assert again.read_bytes() == before.read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--refuse", "refusal"], "Did you mean refusals"),
        (["--answer", "chat", "--answer-samples", "12"], "--answer has 12 prompts; 20 or more are needed"),
        (["--answer", "refusals", "--refuse-samples", "500"], "--answer refusals: all 266 prompts are used by"),
        (["--preference-pairs", "5"], "--preference-pairs is 5 and --batch-size 16: one step needs as many pairs"),
        (["--answer-share", "1"], "--answer-share must be above 0 and below 1"),
        (["--refuse", "beavertails-train"], "MONOLORA_DATA"),
    ],
)
def test_bad_input(flags: list[str], run_cli: Cli, tmp_path: Path, words: list[str], message: str) -> None:
    """One line, and nothing is written."""
    ended = run_cli("align", *flags, *words)
    assert ended.status == 2
    assert len(ended.err) == 1
    assert message in ended.err[0]
    assert [path for path in tmp_path.iterdir() if path.name.startswith("aligned")] == []
