"""What setuptools packs: every file of the three folders, under ``monolora``, from the checkout as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from setuptools import Distribution
from setuptools.config.pyprojecttoml import apply_configuration

ROOT = Path(__file__).parents[1]


def _files(folder: str, packed_as: str) -> set[str]:
    """Files below a folder, links to folders left out, as they are named in the wheel."""
    paths = (path for path in (ROOT / folder).rglob("*") if path.is_file())
    names = {path.relative_to(ROOT / folder) for path in paths if "__pycache__" not in path.parts}
    linked = {link.name for link in (ROOT / folder).iterdir() if link.is_symlink()}
    return {f"{packed_as}/{name}" for name in names if name.parts[0] not in linked}


# Folders of assets are no packages; setuptools would rather have them be such.
@pytest.mark.filterwarnings("ignore:.*Package .* is absent from the")
def test_every_file_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    distribution = apply_configuration(Distribution({"name": "monolora", "script_name": "setup.py"}), "pyproject.toml")
    build = distribution.get_command_obj("build_py")
    build.ensure_finalized()
    packed = {str(Path(name).relative_to(Path(build.build_lib))) for name in build.get_outputs(include_bytecode=False)}
    assert packed == (
        _files("monolora", "monolora") | _files("recipes", "monolora/recipes") | _files("eval", "monolora/eval")
    )
