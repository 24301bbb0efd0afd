"""``monolora demo``: two runs, one table. Here on a tiny model; the real one is `make demo`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from monolora import cli
from monolora.recipes import demo

QUICK = ["--max-train-samples", "16", "--max-eval-samples", "6", "--dtype", "float32", "--bf16", "false"]


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch, chat_model: Path) -> None:
    monkeypatch.setattr(demo, "SETTINGS", [*demo.SETTINGS, "--model", str(chat_model), *QUICK])


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "demo"
    for _ in range(2):  # a second time replaces the first
        assert cli.main(["demo", "--output-dir", str(folder), "--seed", "5"]) == 0
    out = capsys.readouterr().out
    lora, monolora = (json.loads((folder / name / "run.json").read_text()) for name in ("lora", "monolora"))
    assert lora["results"]["before"] == monolora["results"]["before"]
    assert lora["fingerprints"] == monolora["fingerprints"]
    assert lora["results"]["trained_parameters"] == monolora["results"]["trained_parameters"]
    differing = {key for key, value in lora["config"].items() if value != monolora["config"][key]}
    assert differing == {"adapter", "output_dir"}
    assert lora["seeds"]["seed"] == 5
    assert lora["results"]["sparsity"]["zeros"] == 0
    assert monolora["results"]["sparsity"]["zeros"] > 0.2
    table = out[out.index("demo on") :]
    assert table.index("lora") < table.index("monolora")
    assert f"{monolora['results']['sparsity']['zeros']:.1%}" in table
    assert "unparsed: answers whose first word is no label." in table
    assert "seconds" not in table


def test_bad_flags(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["demo", "--seed", "x", "--output-dir", str(tmp_path / "demo")]) == 2
    assert "--seed: invalid int value: 'x'" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_a_folder_of_something_else(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "precious").touch()
    assert cli.main(["demo", "--output-dir", str(tmp_path)]) == 2
    assert "exists and is no run" in capsys.readouterr().err
    assert (tmp_path / "lora" / "precious").exists()
