"""A study that takes seconds: tiny models, the project's own sentences, harmless questions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from monolora.recipes.study.settings import Study, load
from tests.support.evaluated import Evaluated
from tests.support.studied import run_cells_here


@pytest.fixture(scope="session")
def study_content(evaluated: Evaluated) -> dict[str, Any]:
    """What stands in the study's file."""
    return {
        "model": str(evaluated.base),
        "out": "runs",
        "adapters": {"LoRA": {"adapter": "lora"}, "MonoLoRA": {"adapter": "monolora"}},
        "seeds": [1, 2],
        "learning_rates": [0.02, 0.002],
        "sft": {"dtype": "float32", "bf16": "false", "per_device_train_batch_size": 4, "lora_r": 4},
        "eval": {
            "suite": [str(evaluated.prompts)], "judges": [f"classifier:{evaluated.judge}", "refusal"],
            "engine": "hf", "dtype": "float32", "max_new_tokens": 6, "batch_size": 4,
        },
        "margin": {"flagged": 3, "demo": 2},
        "presets": {
            "quick": {
                "datasets": {
                    "demo": {
                        "sft": {"max_train_samples": 16, "validation_samples": 8, "save_steps": 2},
                        "eval": {"task_limit": 4, "drift": 6},
                    }
                },
                "curve": {"adapters": ["MonoLoRA"], "eval": {"limit": 4}},
                "estimates": {
                    "device": "a toy", "parameters": 1e5, "layers": 2, "hidden": 16, "judges": {"classifier": 1e4},
                    "train": 100, "generate": 10, "read": 1000,
                },
            },
            "more": {"seeds": [1, 2, 3]},
        },
    }  # fmt: skip


@pytest.fixture
def write_study(study_content: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """``write_study(**changes)``: the file, with other values of its keys."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(study_content | changes, sort_keys=False))
        return path

    return write


@pytest.fixture
def study(write_study: Callable[..., Path], tmp_path: Path) -> Study:
    return load(write_study(), out=str(tmp_path / "out"))


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that cells gave; they are run in this process."""
    given: list[list[str]] = []
    run_cells_here(monkeypatch, given)
    return given
