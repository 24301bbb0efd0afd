"""``monolora doctor``."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from monolora import doctor
from monolora.doctor import Finding, examine


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, Finding]]:
    """What it finds, by name; without a mirror."""
    monkeypatch.delenv("MONOLORA_DATA", raising=False)
    return lambda: {finding.what.strip(): finding for finding in examine()}


def test_here(found: Callable[[], dict[str, Finding]]) -> None:
    findings = found()
    assert torch.__version__.split("+")[0] == findings["torch"].state.split("+")[0]  # PyPI's wheel lacks its +cu130
    assert findings["data"].state == "from the hub"
    assert "MONOLORA_DATA" in findings["data"].fix
    assert findings["bfloat16"].state in ("in hardware", "emulated")
    assert {"python", "peft", "trl", "device", "smollm2-135m-instruct", "cache"} <= findings.keys()


def test_vllm(found: Callable[[], dict[str, Finding]], monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be missing, and then nothing else is wrong; another version is named with the one that is needed."""
    monkeypatch.setitem(sys.modules, "vllm", None)
    missing = found()["vllm"]
    assert (missing.state, "pip install 'vllm" in missing.fix) == ("unavailable", True)
    other = ModuleType("vllm")
    vars(other)["__version__"] = "0.31.2"
    monkeypatch.setitem(sys.modules, "vllm", other)
    assert "this is vLLM 0.31.2" in found()["vllm"].fix
    vars(other)["__version__"] = "0.32.5"
    assert found()["vllm"] == Finding("vllm", "0.32.5")


def test_a_mirror(found: Callable[[], dict[str, Finding]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "stanfordnlp" / "sst2").mkdir(parents=True)
    monkeypatch.setenv("MONOLORA_DATA", str(tmp_path))
    findings = found()
    assert findings["data"].state == str(tmp_path)
    assert findings["stanfordnlp/sst2"].state == "here"
    assert str(tmp_path) in findings["PKU-Alignment/BeaverTails"].fix


def test_what_is_missing_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def version(name: str) -> str:
        if name == "trl":
            raise importlib.metadata.PackageNotFoundError
        return "1.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setenv("MONOLORA_DATA", str(tmp_path / "nowhere"))
    findings = {finding.what: finding for finding in examine()}
    assert findings["trl"] == Finding("trl", "missing", "pip install trl")
    assert findings["data"].state == "missing"
    assert "unset it" in findings["data"].fix
    assert doctor.main([]) == 1
    assert "trl is missing: pip install trl\n" in capsys.readouterr().out


def test_nothing_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: iter([Finding("python", "3")]))
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    assert "python" in out
    assert out.rstrip().endswith("Next: monolora demo")
