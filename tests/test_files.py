"""Text of others: every complaint names the file, the place and the fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typing_extensions import TypedDict

from monolora.errors import InputError
from monolora.files import read_json, read_text, type_problem


class Result(TypedDict):
    """Of a run."""

    seed: int
    loss: float


class Row(NamedTuple):
    """Of a table."""

    name: str
    scores: dict[str, float]


def test_read_text(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("\ufeffcafé\n".encode())
    assert read_text(tmp_path / "a") == "café\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("one\ntwo café\n".encode("latin-1"), "a, line 2: the byte 0xe9 is not UTF-8. Save the file as UTF-8"),
        ("one".encode("utf-16"), "a, line 1: the byte 0xff is not UTF-8"),
        (b"\xc3", "a, line 1: the byte 0xc3 is not UTF-8"),
        (None, "a: No such file or directory. Write it."),
    ],
)
def test_read_text_refuses(tmp_path: Path, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / "a").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_text(tmp_path / "a", "" if content else "Write it.")
    assert says in str(caught.value)


def test_a_name_that_no_file_can_have() -> None:
    with pytest.raises(InputError, match="Cannot read a"):
        read_text("a\0b")


def test_read_json_gives_all_keys(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('{"seed": 1, "loss": 2, "more": [NaN]}')
    assert read_json(tmp_path / "a", "", Result).keys() == {"seed", "loss", "more"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON: Expecting property name .* line 1 column 2 .*Delete it"),
        ("[" * 100_000, "is not JSON: maximum recursion depth"),
        ("9" * 5000, "is not JSON: Exceeds the limit"),
        ("", "is not JSON"),
        ("[]", "is damaged: input should be a valid dictionary, got a list. Delete it"),
        ("null", "is damaged: input should be a valid dictionary, got None"),
        ('{"seed": 1}', "is damaged: loss: field required. Delete it"),
        ('{"seed": true, "loss": 1}', "is damaged: seed: input should be a valid integer, got True"),
        ('{"seed": "1", "loss": 1}', "is damaged: seed: input should be a valid integer, got '1'"),
        ('{"seed": 1, "loss": {"a": 1}}', "is damaged: loss: input should be a valid number, got a dict"),
    ],
)
def test_read_json_refuses(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "a").write_text(text)
    with pytest.raises(InputError, match=says):
        read_json(tmp_path / "a", "Delete it.", Result)


@pytest.mark.parametrize(
    ("value", "kind", "says"),
    [
        ({"name": "a", "scores": {"b": 1, "c": float("nan")}}, Row, ""),
        ({"name": "a", "scores": {"b": "x"}}, Row, "scores.b: input should be a valid number, got 'x'."),
        ({"name": "a", "scores": {}, "x": 1}, Row, "x: extra inputs are not permitted, got 1."),
        (3, float, ""),
        (("a", "b"), tuple[str, ...], ""),
        (("a", 1), tuple[str, ...], "1: input should be a valid string, got 1."),
        (None, int | None, ""),
        ("x" * 100, int, f"input should be a valid integer, got '{56 * 'x'}…."),
    ],
)
def test_type_problem(value: Any, kind: Any, says: str) -> None:
    assert type_problem(value, kind) == says
