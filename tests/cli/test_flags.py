"""Command lines whose every complaint is one line."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, fields
from typing import Any

import pytest

from monolora.cli.config_file import settings_in
from monolora.cli.flags import REQUIRED, FlagParser, Flags, group, nearest, numbers, setting, unknown_flag, words
from monolora.errors import InputError


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
class Settings(Flags):
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


@dataclass(frozen=True, kw_only=True)
class Program(Flags):
    """Arguments without a name, a flag with another, and two groups."""

    adapter: tuple[str, ...] = setting(REQUIRED, "folders", positional=True, nargs="+")
    form: str = setting("dense", "what is written", flag="--as", choices=("dense", "lora"))
    against: str = setting(REQUIRED, "another folder")
    share: float = setting(0.5, "of all", type=float, above=0, at_most=1)
    left: int | None = setting(None, "of them", type=int, at_least=0)
    most: float = setting(0.0, "at the most", type=float, at_most=1)
    shares: tuple[float, ...] = setting((), "which", type=numbers, at_least=0, below=1)
    methods: tuple[str, ...] = setting(("a", "b"), "which", type=words, items=("a", "b"))
    first: Settings = group(Settings)


GIVEN = ("one", "two", "--against", "x")


def test_arguments_flags_and_groups() -> None:
    def parse(*words: str) -> Program:
        return FlagParser("monolora test", None).parse_into(words, Program)

    assert parse(*GIVEN) == Program(adapter=("one", "two"), against="x")
    assert parse(*GIVEN, "--as", "lora", "--steps", "4", "--left", "0") == Program(
        adapter=("one", "two"), against="x", form="lora", left=0, first=Settings(steps=4)
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("one",), "The following arguments are required: --against. See --help."),
        (("--against", "x"), "The following arguments are required: adapter. See --help."),
        ((*GIVEN, "--share", "0"), "--share must be above 0 and at most 1, got 0.0."),
        ((*GIVEN, "--share", "nan"), "--share must be above 0 and at most 1, got nan."),
        ((*GIVEN, "--most", "nan"), "--most must be at most 1, got nan."),
        ((*GIVEN, "--left", "-1"), "--left must be at least 0, got -1."),
        ((*GIVEN, "--shares", "0,1"), "--shares must be at least 0 and below 1, got 1.0."),
        ((*GIVEN, "--shares", "inf"), "--shares must be at least 0 and below 1, got inf."),
        ((*GIVEN, "--methods", "a,c"), "--methods takes a, b, each once; got a, c."),
        ((*GIVEN, "--methods", "a,a"), "--methods takes a, b, each once; got a, a."),
        ((*GIVEN, "--methods", ""), "--methods takes a, b, each once; got nothing."),
        (
            (*GIVEN, "--as", "sparse"),
            "Argument --as: invalid choice: 'sparse' (choose from 'dense', 'lora'). See --help.",
        ),
        ((*GIVEN, "--form", "lora"), "Unknown flag --form. See --help."),
    ],
)
def test_what_a_field_rules_out(words: tuple[str, ...], says: str) -> None:
    with pytest.raises(InputError) as caught:
        FlagParser("monolora test", None).parse_into(words, Program)
    assert str(caught.value) == says


def test_ranges_of_groups_are_checked() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Outer(Flags):
        inner: Program = group(Program)

    with pytest.raises(InputError, match="--left must be at least 0"):
        FlagParser("monolora test", None).parse_into([*GIVEN, "--left", "-1"], Outer)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "The following arguments are required: word. See --help."),
        (["a", "--batch-size", "x"], "Argument --batch-size: invalid int value: 'x'. See --help."),
        (["a", "--batchsize", "4"], "Unknown flag --batchsize. Did you mean --batch-size?"),
        (["a", "--batch_size=4"], "Unknown flag --batch_size. Did you mean --batch-size?"),
        (["a", "--zzz", "4"], "Unknown flag --zzz. See --help."),
        (["a", "b"], "Unexpected argument 'b'; flags begin with --. See --help."),
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
    assert message == "Unknown flag --lora-rank. Did you mean --lora-r or --local-rank?"


@dataclass(frozen=True, kw_only=True)
class Typed(Flags):
    """A field of each kind."""

    name: str = setting("", "a text")
    limit: int | None = setting(None, "how many", type=int)
    rate: float = setting(0.1, "how fast", type=float)
    engine: str = setting("a", "who", choices=("a", "b"))
    fast: bool = setting(False, "hurry")
    careful: bool = setting(True, "take care")
    rates: tuple[float, ...] = setting((), "which", type=numbers)
    sets: tuple[str, ...] = setting((), "which", type=words)
    adapter: tuple[str, ...] = setting((), "one", action="append")


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({"rate": 1e-5, "limit": 3, "name": "x"}, {"rate": 1e-5, "limit": 3, "name": "x"}),
        ({"limit": None, "fast": False, "careful": False}, {"fast": False, "careful": False}),
        ({"rates": [1, 1e-3], "sets": "a, b"}, {"rates": (1.0, 1e-3), "sets": ("a", "b")}),
        ({"sets": ["a,b", 3], "adapter": ["a=b"], "rate": 1}, {"sets": ("a,b", "3"), "adapter": ("a=b",), "rate": 1.0}),
        ({"name": 5, "rate": "1e-5"}, {"name": "5", "rate": 1e-5}),  # as the command line reads them
    ],
)
def test_settings_of_a_file(given: dict[str, Any], read: dict[str, Any]) -> None:
    assert settings_in(given, fields(Typed), "a.yaml") == read


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"name": {"a": 1}}, "a.yaml: name must be a text, got {'a': 1}."),
        ({"name": ["a"]}, "a.yaml: name must be a text, got ['a']."),
        ({"name": True}, "a.yaml: name must be a text, got True."),
        ({"limit": 1.5}, "a.yaml: limit must be a whole number, got 1.5."),
        ({"limit": False}, "a.yaml: limit must be a whole number, got False."),
        ({"limit": "many"}, "a.yaml: limit must be a whole number, got 'many'."),
        ({"limit": [1]}, "a.yaml: limit must be a whole number, got [1]."),
        ({"rate": "fast"}, "a.yaml: rate must be a number, got 'fast'."),
        ({"rate": datetime.date(2020, 1, 2)}, "a.yaml: rate must be a number, got datetime.date(2020, 1, 2)."),
        ({"engine": "c"}, "a.yaml: engine must be one of a, b, got 'c'."),
        ({"fast": "yes"}, "a.yaml: fast must be true or false, got 'yes'."),
        ({"careful": 1}, "a.yaml: careful must be true or false, got 1."),
        ({"rates": ["x"]}, "a.yaml: rates must be a list of float, got ['x']."),
        ({"rates": [[1]]}, "a.yaml: rates must be a list of float, got [[1]]."),
        ({"rates": True}, "a.yaml: rates must be a list of float, got True."),
        ({"sets": {"a": "b"}}, "a.yaml: sets must be a list of str, got {'a': 'b'}."),
        ({"adapter": [{"a": "b"}]}, "a.yaml: adapter must be a list of str, got [{'a': 'b'}]."),
        ({"adapter": {"a": "b"}}, "a.yaml: adapter must be a list of texts, got {'a': 'b'}."),
        ({"limitt": 3}, "a.yaml: Unknown flag --limitt. Did you mean --limit?"),
        ({"a-b": 1, "name": "x" * 1000}, "a.yaml: Unknown flag --a-b. See --help."),
        ({"limit": "x" * 1000}, f"a.yaml: limit must be a whole number, got '{78 * 'x'}…."),
    ],
)
def test_settings_of_a_file_that_cannot_be(given: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        settings_in(given, fields(Typed), "a.yaml")
    assert str(caught.value) == says


_FLAGS = (
    "--learning-rate", "--max-length", "--train-sampling-strategy", "--batch-size", "--num-train-epochs", "--model",
    "--lora-target-modules", "--max-train-samples", "--max-eval-samples", "--save-steps",
)  # fmt: skip


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--early-stopping-patience", []),
        ("--group-by-length", []),
        ("--dataset-streaming", []),
        ("--dataloader-prefetch", []),
        ("--max-seq-length", ["--max-length"]),
        ("--learnig-rate", ["--learning-rate"]),
        ("--learningrate", ["--learning-rate"]),
        ("--mdoel", ["--model"]),
        ("--epochs", ["--num-train-epochs"]),
        ("--target-modules", ["--lora-target-modules"]),
        ("--train-samples", ["--max-train-samples"]),
        ("--max-samples", ["--max-eval-samples", "--max-train-samples"]),
        ("--save-step", ["--save-steps"]),
    ],
)
def test_the_nearest_flag_shares_its_words(word: str, meant: list[str]) -> None:
    assert nearest(word, _FLAGS) == meant


def test_names_that_are_not_utf8_are_refused(parser: FlagParser) -> None:
    """What the system gives for a file's name in Latin-1: it could be opened, but no record could be written."""
    with pytest.raises(InputError, match=r"^caf\\xe9/a is not UTF-8\. Rename it"):
        parser.parse(["caf\udce9/a"])


def test_a_renamed_flag_is_named() -> None:
    message = str(unknown_flag("--max_seq_length", _FLAGS, {"max_seq_length": "It is --max-length."}))
    assert message == "Unknown flag --max_seq_length. It is --max-length."
