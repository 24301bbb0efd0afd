"""``monolora superposition figures``, and the command that picks the steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from monolora import cli
from monolora.recipes.superposition.figures import OF_RUN, OF_THEORY
from tests.support.toy_records import make_records


def test_all_figures_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_records(tmp_path, 2, sparsities=(0.0, 0.5, 0.9), train_samples=(1000,))
    assert cli.main(["superposition", "figures", "--out", str(tmp_path), "--sparsity", "0.5"]) == 0
    made = {path.name for path in (tmp_path / "figures").iterdir()}
    assert made == {f"{name}.{kind}" for name in (*OF_RUN, *OF_THEORY) for kind in ("png", "svg")}
    assert "With superposition, S = 0.5" in (tmp_path / "figures" / "fig5a.svg").read_text()
    shown = capsys.readouterr().out
    assert all(f"{name}: " in shown for name in (*OF_RUN, *OF_THEORY))


def test_without_a_run_the_theory_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["superposition", "figures", "--out", str(tmp_path / "new")]) == 0
    assert {path.stem for path in (tmp_path / "new" / "figures").iterdir()} == set(OF_THEORY)
    assert f"there is no run in {tmp_path / 'new'}: monolora superposition run --out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["figures", "--out", "{file}"], 2, "is a file. Name the folder of a run"),
        (["figures", "--sparsity", "0.7", "--out", "{run}"], 2, "0.7"),
        (["figures", "--sparsity", "x"], 2, "--sparsity"),
        (["figure"], 2, "Did you mean figures"),
        (["--out", "x"], 2, "Which step?"),
    ],
)
def test_bad_input(
    words: list[str], status: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    make_records(tmp_path / "run", 1, sparsities=(0.0, 0.9), train_samples=(100,))
    named = [word.format(file=tmp_path / "file", run=tmp_path / "run") for word in words]
    assert cli.main(["superposition", *named]) == status
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_without_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["superposition"]) == 2
    assert cli.main(["superposition", "--help"]) == 0
    assert "monolora superposition verify" in capsys.readouterr().out
