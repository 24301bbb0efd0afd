"""Help and misspelt flags are answered without the libraries that the programs need."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import fields

import pytest
from trl import ModelConfig, SFTConfig

from monolora import cli
from monolora.recipes.training import command
from monolora.recipes.training.arguments import (
    SFT,
    AdapterArguments,
    LoraArguments,
    Program,
    TrainingDefaults,
    make_parser,
)
from monolora.recipes.training.preference_arguments import DPO, KTO

HEAVY = ["torch", "transformers", "peft", "trl", "datasets", "numpy", "scipy", "matplotlib", "vllm", "pydantic"]

# Prints the exit status and the heavy modules of each command line, in one process: once imported, they stay.
SCRIPT = """
import json, sys
from monolora.cli import main

answers = []
for words in json.loads(sys.argv[1]):
    try:
        status = main(words)
    except SystemExit as end:
        status = end.code
    answers.append((words, status, [name for name in json.loads(sys.argv[2]) if name in sys.modules]))
print("\\n" + json.dumps(answers))
"""
STEPS = {"eval": ["run", "report"], "vision": ["probe", "all"], "superposition": ["run", "verify", "figures"]}
PROGRAMS = [[name, *step] for name in cli.COMMANDS for step in ([[each] for each in STEPS.get(name, [])] or [[]])]
LINES = {
    "help": ([[], ["--help"], *([*program, "--help"] for program in PROGRAMS)], {0, 2}),
    "wrong": ([["docter"], ["eval", "rum"], *([*program, "--bogus-flag"] for program in PROGRAMS)], {2}),
}


@pytest.mark.parametrize("kind", LINES)
def test_nothing_heavy_is_imported(kind: str) -> None:
    lines, statuses = LINES[kind]
    words = [sys.executable, "-c", SCRIPT, json.dumps(lines), json.dumps(HEAVY)]
    ended = subprocess.run(words, capture_output=True, text=True, check=True)
    answers = json.loads(ended.stdout.splitlines()[-1])
    assert [words for words, _, _ in answers] == lines
    for _words, status, imported in answers:
        assert status in statuses
        assert imported == []
    assert kind == "help" or ended.stderr.count("error: ") == len(lines)


@pytest.mark.parametrize(("name", "program"), [("sft", SFT), ("dpo", DPO), ("kto", KTO)])
def test_the_copies_of_the_flags(name: str, program: Program) -> None:
    """As ``python -m monolora.recipes.training.command`` writes them, for the versions that are pinned."""
    copy = json.loads(command.COPIES[name].read_text())
    assert copy == command.make_copy(name)
    assert command.help_parser(copy).format_help() == make_parser(program).format_help()


def test_help_shows_our_flags_first_and_all_of_them_on_demand(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every flag that is not TRL's own is shown; the long list has each flag of the parser."""
    monkeypatch.setenv("COLUMNS", "120")
    texts = {}
    for word in ("--help", "--help-all"):
        with pytest.raises(SystemExit):
            cli.main(["sft", word])
        texts[word] = capsys.readouterr().out
    ours = {
        field.name
        for kind in (AdapterArguments, TrainingDefaults, LoraArguments)
        for field in fields(kind)
        if field.init
    } - {field.name for kind in (ModelConfig, SFTConfig) for field in fields(kind)}
    shown = set(re.findall(r"^  --([a-z0-9-]+)", texts["--help"], re.M))
    assert {name.replace("_", "-") for name in ours} <= shown
    assert texts["--help"].index("--adapter") < texts["--help"].index("--learning-rate")
    assert len(texts["--help"].splitlines()) < 130
    every = {option for action in make_parser()._actions for option in action.option_strings}
    assert [option for option in every if option not in texts["--help-all"]] == []


def test_with_other_versions_a_new_copy_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "origin", lambda: {"trl": "1.17.0"})
    monkeypatch.setattr(command, "make_copy", lambda _: {"flags": [], "suggested": ["--new-flag"], "renamed": {}})
    assert cli.main(["sft", "--new-flak", "4"]) == 2
    assert capsys.readouterr().err == "error: Unknown flag --new-flak. Did you mean --new-flag?\n"
