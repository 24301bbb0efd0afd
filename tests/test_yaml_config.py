"""``--config`` on a command line, and its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from monolora.errors import InputError
from monolora.yaml_config import load_yaml, split_config


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


@pytest.mark.parametrize(
    ("text", "says"), [("- a", "must be a mapping"), ("a: [", "is not YAML"), (None, "Cannot read")]
)
def test_load_yaml_refuses(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match=says):
        load_yaml(tmp_path / "a.yaml")
