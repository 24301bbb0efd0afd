"""PEFT's tests, out of the source distribution of the installed version, kept in the user's cache."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path


class NoTestsError(RuntimeError):
    """PEFT's tests are unavailable; the message says why and what to do."""


def fetch(version: str) -> Path:
    """A folder with PEFT's tests as the package ``tests``; downloaded once a version.

    Args:
        version: of the installed PEFT.

    Raises:
        NoTestsError: if pip cannot download the source distribution, or it holds no tests.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "monolora" / "peft-tests"
    folder = cache / version
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        archive = _download(version, Path(scratch))
        unpacked = Path(scratch) / "unpacked"
        _unpack_tests(archive, unpacked / "tests")
        unpacked.rename(folder)  # whole or not at all, whenever this is interrupted
    return folder


def _download(version: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", f"peft=={version}", "--dest", str(folder)]
    command += ["--quiet", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    print(f"downloading the source distribution of PEFT {version}", flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise NoTestsError(
            f"{done.stdout.strip()}\npip could not download the source distribution of PEFT {version} (above), which "
            "holds PEFT's tests. They are needed once: run this where a package index can be reached."
        )
    (archive,) = folder.glob("*.tar.gz")
    return archive


def _unpack_tests(archive: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            match = re.fullmatch(r"[^/]+/tests/(test(?:ing)?_\w+\.py)", member.name)
            content = tar.extractfile(member) if match else None
            if match and content:
                (folder / match[1]).write_bytes(content.read())
    if not any(folder.iterdir()):
        raise NoTestsError(f"{archive.name} holds no tests/test_*.py; PEFT has changed what it publishes.")
    (folder / "__init__.py").touch()
