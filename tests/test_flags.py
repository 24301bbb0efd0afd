"""Command lines whose every complaint is one line."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from monolora.errors import InputError
from monolora.flags import FlagParser, numbers, setting, unknown_flag


@pytest.fixture
def parser() -> FlagParser:
    """A word, a number and a switch."""
    parser = FlagParser("monolora test", "What it is for.")
    parser.add_argument("word")
    parser.add_argument("--batch-size", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    return parser


def test_right_flags(parser: FlagParser) -> None:
    flags = parser.parse(["a", "--batch-size", "4"])
    assert (flags.word, flags.batch_size, flags.json) == ("a", 4, False)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of a program."""

    steps: int = setting(3, "how many", type=int)
    rates: tuple[float, ...] = setting((0.5,), "which", type=numbers)
    fast: bool = setting(False, "hurry")
    careful: bool = setting(True, "take care")


def test_into_settings() -> None:
    def parse(*words: str) -> Settings:
        return FlagParser("monolora test", None).parse_into(words, Settings)

    assert parse() == Settings()
    assert parse("--rates", "0,1", "--fast") == Settings(rates=(0.0, 1.0), fast=True)
    assert parse("--steps=0", "--no-careful") == Settings(steps=0, careful=False)
    with pytest.raises(InputError, match="Did you mean --steps"):
        parse("--step", "4")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "The following arguments are required: word. See --help."),
        (["a", "--batch-size", "x"], "Argument --batch-size: invalid int value: 'x'. See --help."),
        (["a", "--batchsize", "4"], "Unknown flag --batchsize. Did you mean --batch-size?"),
        (["a", "--batch_size=4"], "Unknown flag --batch_size. Did you mean --batch-size?"),
        (["a", "--zzz", "4"], "Unknown flag --zzz. See --help."),
        (["a", "b"], "Cannot tell what 'b' is for; flags begin with --. See --help."),
    ],
)
def test_wrong_flags(parser: FlagParser, words: list[str], says: str) -> None:
    with pytest.raises(InputError) as caught:
        parser.parse(words)
    assert str(caught.value) == says


def test_help(parser: FlagParser, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parser.parse(["--help"])
    assert caught.value.code == 0
    assert "What it is for." in capsys.readouterr().out


def test_unknown_flag_names_both_when_two_are_near() -> None:
    message = str(unknown_flag("--lora-rank", ["--lora_r", "--lora-r", "--local-rank", "--seed"]))
    assert message == "Unknown flag --lora-rank. Did you mean --local-rank or --lora-r?"
