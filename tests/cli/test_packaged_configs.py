"""``monolora configs``, and ``--config NAME`` from any folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from monolora import cli
from monolora.cli import packaged_configs
from monolora.cli.config_file import load_yaml
from monolora.errors import InputError

ROOT = Path(__file__).parents[2]


def test_every_configuration_of_the_project_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    folders = ("recipes", "eval")
    names = {
        path.stem for folder in folders for path in (ROOT / folder).rglob("*.yaml") if path.parent.name != "accelerate"
    }
    assert {line.split()[0] for line in lines if line.startswith("  ")} >= names
    assert max(map(len, lines)) <= 140  # a purpose fits a terminal


def test_a_name_is_read_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = load_yaml(ROOT / "recipes/configs/sst2-smollm2.yaml")
    assert load_yaml(Path("sst2-smollm2")) == load_yaml(Path("sst2-smollm2.yaml")) == whole


def test_a_file_of_the_user_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("laptop").mkdir()  # a folder is no configuration
    assert load_yaml(Path("laptop"))["suite"]
    Path("keeping").write_text("seed: 7\n")
    assert load_yaml(Path("keeping")) == {"seed": 7}
    assert packaged_configs.resolved(Path("elsewhere/silence")) == Path("elsewhere/silence")


def test_an_unknown_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"--config sst2-smolm2: .* monolora configs lists"):
        load_yaml(Path("sst2-smolm2"))
