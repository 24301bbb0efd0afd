"""The suite's flags: command line over YAML over the run that is gone on with."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path

import pytest

from monolora.errors import InputError
from monolora.eval.command_line import REPORT_FLAGS, SCORE_FLAGS, parse
from monolora.eval.settings import Settings

OUT = ["--out", "runs/e"]


def test_flags() -> None:
    found = parse(
        [*OUT, "--adapter", "a=x", "--adapter", "b=y/z=1", "--suite", "xstest, beavertails", "--limit", "5"], "p"
    )
    assert found.adapters() == {"a": "x", "b": "y/z=1"}
    assert found.suite == ("xstest", "beavertails")
    assert found.limit == 5
    assert found.judges == ("shieldgemma", "beaverdam", "refusal")
    assert parse([*OUT, "--checkpoints", "r/checkpoint-1", "r/checkpoint-2"], "p").checkpoints == (
        "r/checkpoint-1", "r/checkpoint-2",
    )  # fmt: skip


def test_config_file(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        "model: m\nadapter: {lora: l, mono: n}\nsuite: [beavertails, xstest]\njudges: refusal\nmax_new_tokens: 8\n"
        "temperature: 0.5\nunsafe-only: true\nskip_canary: false\nlimit: null\nout: here\n"
    )
    found = parse(["--config", str(path), "--max-new-tokens", "9", "--adapter", "x=y"], "p")
    assert found == Settings(
        out="here", model="m", adapter=("x=y",), suite=("beavertails", "xstest"),
        judges=("refusal",), max_new_tokens=9, temperature=0.5, unsafe_only=True,
    )  # fmt: skip


def test_a_stage_goes_on_with_the_settings_of_its_run() -> None:
    stored = asdict(parse([*OUT, "--limit", "7", "--judges", "refusal", "--adapter", "a=x"], "p"))
    found = parse([*OUT, "--judges", "beaverdam"], "p", {**stored, "a setting of another version": 1})
    assert (found.limit, found.judges, found.adapter) == (7, ("beaverdam",), ("a=x",))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "Give the run's folder with --out"),
        ([*OUT, "--limt", "3"], "Unknown flag --limt. Did you mean --limit"),
        ([*OUT, "--drift-sets", "chat"], "--drift-sets has no effect without --drift"),
        ([*OUT, "--limit", "0"], "--limit must be at least 1, got 0"),
        ([*OUT, "--limit", "many"], "invalid int value"),
        ([*OUT, "--temperature", "-1"], "--temperature must be at least 0"),
        ([*OUT, "--temperature", "nan"], "--temperature must be at least 0"),
        ([*OUT, "--top-p", "0"], "--top-p must be above 0"),
        ([*OUT, "--gpu-memory-utilization", "40"], "--gpu-memory-utilization must be above 0 and at most 1, got 40"),
        ([*OUT, "--engine", "server"], "--endpoint .* go together"),
        ([*OUT, "--endpoint", "http://localhost:1/v1"], "--endpoint .* go together"),
        ([*OUT, "--judge-engine", "server"], "--judge-endpoint .* go together"),
        ([*OUT, "--engine", "tgi"], "choose from"),
        ([*OUT, "--adapter", "runs/x"], "not NAME=PATH"),
        ([*OUT, "--adapter", "a=x", "--adapter", "a=y"], "the name 'a' is taken"),
        ([*OUT, "--adapter", "base=x"], "the name 'base' is taken"),
    ],
)  # fmt: skip
def test_what_cannot_be(words: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse(words, "p").adapters()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("judge: refusal", "Unknown flag --judge. Did you mean --judges"),
        ("limit: [1, 2]", r"limit must be a whole number, got \[1, 2\]"),
        ("adapter: mono", "not NAME=PATH"),
        ("- a", "must be a mapping"),
    ],
)
def test_what_cannot_be_in_a_file(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match=says):
        parse([*OUT, "--config", str(tmp_path / "a.yaml")], "p").adapters()


def test_lists_in_a_file_are_taken_as_they_stand(tmp_path: Path) -> None:
    """Commas may be part of a path, and checkpoints are found as a shell would."""
    for step in (5, 10):
        (tmp_path / "r" / f"checkpoint-{step}").mkdir(parents=True)
    path = tmp_path / "a.yaml"
    path.write_text(f"judges: ['classifier:a,b/c']\ncheckpoints: {tmp_path}/r/checkpoint-*\n")
    found = parse([*OUT, "--config", str(path)], "p")
    assert found.judges == ("classifier:a,b/c",)
    assert sorted(found.checkpoints) == [f"{tmp_path}/r/checkpoint-{step}" for step in (10, 5)]
    path.write_text(f"checkpoints: ['{tmp_path}/r/step-*']")
    with pytest.raises(InputError, match=r"r/step-\*: no folder matches"):
        parse([*OUT, "--config", str(path)], "p")


def test_a_stage_takes_only_what_it_reads(tmp_path: Path) -> None:
    """But the file of a whole run may hold all the rest."""
    path = tmp_path / "a.yaml"
    path.write_text("limit: 3\nout: x\n")
    assert parse(["--config", str(path), "--seed", "4"], "p", read=REPORT_FLAGS).seed == 4
    with pytest.raises(InputError, match=r"p does not read --max-new-tokens\. See p --help"):
        parse([*OUT, "--max-new-tokens", "4"], "p", read=SCORE_FLAGS)
    with pytest.raises(InputError, match=r"Unknown flag --sed\. Did you mean --seed"):
        parse([*OUT, "--sed", "4"], "p", read=REPORT_FLAGS)
    assert {*SCORE_FLAGS, *REPORT_FLAGS} <= {each.name for each in fields(Settings)}


def test_new_endpoints_take_the_place_of_those_of_the_run() -> None:
    stored = asdict(parse([*OUT, "--judge-engine", "server", "--judge-endpoint", "http://dead:1/v1"], "p"))
    assert parse(OUT, "p", stored).judge_endpoint == ("http://dead:1/v1",)
    assert parse([*OUT, "--judge-endpoint", "http://a:1/v1"], "p", stored).judge_endpoint == ("http://a:1/v1",)
    assert parse([*OUT, "--judge-engine", "hf"], "p", stored).judge_endpoint == ()
