"""``--config`` on a command line, and its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from monolora.cli.config_file import load_yaml, split_config
from monolora.errors import InputError


def test_split_config() -> None:
    assert split_config(["--seed", "1", "--config", "a.yaml", "-x"]) == (Path("a.yaml"), ["--seed", "1", "-x"])
    assert split_config(["--config=a.yaml"]) == (Path("a.yaml"), [])
    assert split_config(["--seed", "1"]) == (None, ["--seed", "1"])
    with pytest.raises(InputError, match="given twice"):
        split_config(["--config", "a", "--config=b"])


def test_load_yaml(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("seed: 1\nadapters: {mono: out}\n")
    assert load_yaml(path) == {"seed": 1, "adapters": {"mono": "out"}}


def test_numbers_of_yaml_1_2_wherever_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: 1e-5\nb: {c: -1E5, d: [1e3, .5e-1, 1.e+2]}\nquoted: '1e-5'\nnone: [e5, 1e, 1e-5x]\nwhole: 12\n")
    loaded = load_yaml(path)
    assert loaded["b"] == {"c": -100_000.0, "d": [1000.0, 0.05, 100.0]}
    assert (loaded["a"], type(loaded["whole"])) == (1e-5, int)
    assert (loaded["quoted"], loaded["none"]) == ("1e-5", ["e5", "1e", "1e-5x"])


def test_aliases_that_stand_for_little_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]\n")
    assert load_yaml(path) == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": [{"x": 1}, {"x": 1}]}


_BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(9 * [f'*{before}'])}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- a", "must be a mapping"),
        ("a: [", "is not YAML"),
        (None, "Cannot read"),
        ("", "must be a mapping"),
        (_BOMB, "aliases .* stand for more than 100,000 values"),
        (
            _BOMB.replace("[", "{<<: [").replace("]", "]}").replace("{<<: [x", "{z: [x"),
            "aliases .* stand for more than",
        ),
        ("a: &a [*a]", "aliases .* stand for more than"),
        ("a: 1\nb: 2\na: 3", "a occurs twice in .a.yaml., line 1"),
        ("b: {c: 1, c: 2}", "c occurs twice"),
        ("a: " + "[" * 5000, "is not YAML: maximum recursion"),
        ("a: 2020-13-45", "is not YAML: month"),
        ("a: !!int x", "is not YAML"),
        ("a: " + 5000 * "9", "is not YAML"),
        ("a: \x00", "is not YAML"),
        ("a: !!python/object/apply:os.system [ls]", "is not YAML"),
        ("? [a]\n: 1", "is not YAML"),
    ],
)
def test_load_yaml_refuses(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match=says):
        load_yaml(tmp_path / "a.yaml")


def test_a_file_in_another_encoding_is_refused_by_line(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes("seed: 1\nmodel: café\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"a\.yaml, line 2: the byte 0xe9 is not UTF-8\. Save the file as UTF-8"):
        load_yaml(tmp_path / "a.yaml")
