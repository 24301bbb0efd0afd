"""Records on disk: whole lines only, each key once, one writer."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monolora.errors import InputError, SaveError
from monolora.eval.store import INVALID, Records, Response, is_invalid, opened

TEXTS = ["plain", "two\nlines\r\n", "\u2028 and \ud800", '{"key": "x"}', "", "日本"]


def response(number: int, **fields: str) -> Response:
    return Response(key=f"k{number}", prompt=f"p{number}", model="m", text=TEXTS[number % len(TEXTS)], **fields)


def filled(path: Path, numbers: range) -> Records[Response]:
    records = Records(path, Response)
    for number in numbers:
        records.add(response(number))
    return records


def test_records_come_back(tmp_path: Path) -> None:
    filled(tmp_path / "a.jsonl", range(6))
    again = Records(tmp_path / "a.jsonl", Response)
    assert list(again.values()) == [response(number) for number in range(6)]
    assert "k3" in again
    assert "k6" not in again
    assert len(again) == 6


@given(cut=st.integers(0, 1000))
@settings(deadline=None, max_examples=60)
def test_a_torn_line_is_cut_off_and_the_rest_is_added_again(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    """Law 8, for the file: wherever writing stopped, going on gives the same bytes as never having stopped."""
    whole = tmp_path_factory.mktemp("store") / "a.jsonl"
    filled(whole, range(6))
    content = whole.read_bytes()
    torn = whole.with_name("torn.jsonl")
    torn.write_bytes(content[: cut % (len(content) + 1)])
    filled(torn, range(6))
    assert torn.read_bytes() == content


def test_no_key_twice(tmp_path: Path) -> None:
    records = filled(tmp_path / "a.jsonl", range(2))
    records.add(response(1)._replace(text="another"))
    assert records["k1"].text == TEXTS[1]
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("damage", ["not json", '{"key": "k"}', '{"key": "k", "foreign": 1}', "[]", "\0"])
def test_a_damaged_line_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.jsonl"
    filled(path, range(3))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], damage, lines[2]]) + "\n")
    with pytest.raises(InputError, match=r"line 2: damaged .* Delete that line"):
        Records(path, Response)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"key": "caf\xe9"}', "utf-8"),
        (b"[1]", "should be a valid string"),
        (b'{"key": "a", "prompt": "b", "model": 3}', "model: input should be a valid string, got 3"),
        (b'{"key": "a", "prompt": "b", "model": "c", "tokens": "4"}', "tokens: input should be a valid integer"),
        (b'{"key": "a", "prompt": "b", "model": "c", "evil": 1}', "evil: extra inputs are not permitted"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_a_line_of_other_types_is_named(tmp_path: Path, line: bytes, says: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(line + b"\n")
    with pytest.raises(InputError, match=rf"a\.jsonl, line 1: damaged \(.*{says}"):
        Records(tmp_path / "a.jsonl", Response)


def test_half_a_character_comes_back(tmp_path: Path) -> None:
    """A server may cut an answer within an emoji; JSON then has one half of a surrogate pair."""
    Records(tmp_path / "a.jsonl", Response).add(Response("a", "b", "c", text="\ud83d"))
    assert [each.text for each in Records(tmp_path / "a.jsonl", Response).values()] == ["\ud83d"]


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    """A limit on the file's size is the next best thing to a full disk: the last write is taken in part."""
    program = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
from pathlib import Path
from monolora.errors import SaveError
from monolora.eval.store import Response
from monolora.eval.store import Records
records = Records(Path({str(tmp_path / "a.jsonl")!r}), Response)
try:
    for number in range(100):
        records.add(Response(key=str(number), prompt="p", model="m", text="x" * 50))
except SaveError as error:
    print(number, error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    number, message = done.stdout.split(" ", 1)
    assert "free space, then give the same command again" in message
    content = (tmp_path / "a.jsonl").read_bytes()
    assert content.endswith(b"\n")
    assert len(Records(tmp_path / "a.jsonl", Response)) == int(number) > 0
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000


def test_a_disk_that_takes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(SaveError, match=r"a\.jsonl"):
        Records(tmp_path / "a.jsonl", Response).add(response(0))


def test_invalid_records_are_dropped_on_request(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    records = filled(path, range(2))
    records.add(response(2, status=INVALID, reason="server: 500"))
    records.drop(is_invalid)
    assert [record.key for record in Records(path, Response).values()] == ["k0", "k1"]
    before = path.stat()
    records.drop(is_invalid)
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert os.listdir(tmp_path) == ["a.jsonl"]


def test_one_writer(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(InputError, match="is in use by process"), opened(tmp_path):
        pass
    with opened(tmp_path) as store:
        assert len(store.responses) == len(store.judgements) == len(store.measurements) == 0
