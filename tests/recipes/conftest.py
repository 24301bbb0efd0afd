"""What the tests of the programs share: tiny models with tokenizers trained here, and a way to run a program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from monolora import cli
from monolora.data.chat_template import render_all
from monolora.data.tasks import Example
from monolora.recipes import merge_report, sft
from monolora.recipes.training.arguments import parse
from monolora.recipes.training.models import load_model, make_trainer, peft_config
from monolora.run_record import SFT
from tests.support.merge_runs import Ended, contents
from tests.support.program_runs import QUICK, Outcome, lines_of


@pytest.fixture
def run_sft(chat_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """``run_sft(*flags, model=chat_model, name="run")``: ``recipes/sft.py`` in this process, tiny and in float32."""

    def run(*flags: str, model: Path = chat_model, name: str = "run") -> Outcome:
        folder = tmp_path / name
        capsys.readouterr()
        status = sft.main(["--model", str(model), "--output-dir", str(folder), *QUICK, *flags])
        printed = capsys.readouterr()
        if status == 0 and folder.is_dir():
            assert SFT.foreign(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == []
        return Outcome(status, folder, printed.out, lines_of(printed.err))

    return run


@pytest.fixture(scope="session")
def trained(chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``trained(*flags, model=chat_model)``: the folder of a tiny run, made once a session. Copy it to change it."""
    made: dict[tuple[str, ...], Path] = {}

    def folder(*flags: str, model: Path = chat_model) -> Path:
        words = ("--model", str(model), *QUICK, *flags)
        if words not in made:
            made[words] = tmp_path_factory.mktemp("trained") / "run"
            with torch.random.fork_rng(devices=[]):
                assert sft.main([*words, "--output-dir", str(made[words])]) == 0
        return made[words]

    return folder


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """``run_cli(*words)``: the command ``monolora`` in this process, without a mirror of data sets."""
    monkeypatch.delenv("MONOLORA_DATA", raising=False)

    def run(*words: str | Path) -> Ended:
        capsys.readouterr()
        status = cli.main(list(map(str, words)))
        printed = capsys.readouterr()
        return Ended(status, " ".join(printed.out.split()), lines_of(printed.err))

    return run


@pytest.fixture
def refused(run_sft: Callable[..., Outcome]) -> Callable[..., str]:
    """``refused(*flags)``: the message of a run that must end with one line, status 2, and no output folder."""

    def run(*flags: str, **options: Any) -> str:
        outcome = run_sft(*flags, **options)
        assert outcome.status == 2
        assert not outcome.folder.exists()
        assert outcome.err[-1].startswith("error: ")
        assert not any("Traceback" in line for line in outcome.err)
        return outcome.err[-1].removeprefix("error: ")

    return run


@pytest.fixture
def trained_rows(chat_model: Path, tmp_path: Path) -> Callable[..., Any]:
    """``trained_rows(examples, tokenizer, *flags)``: the tokenized rows as TRL's trainer has them."""

    def rows(examples: list[Example], tokenizer: PreTrainedTokenizerBase, *flags: str) -> Any:
        arguments = parse(["--model", str(chat_model), "--output-dir", str(tmp_path / "rows"), *QUICK, *flags])
        model = load_model(str(chat_model), arguments)
        rendered = render_all(examples, tokenizer)
        return make_trainer(model, tokenizer, peft_config(arguments), rendered, arguments).train_dataset

    return rows


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where the merge goes."""
    return tmp_path / "out"


@pytest.fixture
def merge(run_cli: Callable[..., Ended], out: Path) -> Callable[..., Path]:
    """``merge(*words)``: a merge that must succeed without a word on stderr; returns its folder."""

    def run(*words: str | Path, folder: Path = out) -> Path:
        flags = next((k for k, word in enumerate(words) if str(word).startswith("--")), len(words))
        ended = run_cli("merge", *words[:flags], folder, *words[flags:], "--verify-tokens", "150")
        assert (ended.status, ended.err) == (0, [])
        assert "The merge keeps" in ended.out
        assert list(folder.parent.glob(".*")) == []
        assert merge_report.KIND.foreign(contents(folder)) == []
        return folder

    return run
