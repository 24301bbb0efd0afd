"""Jobs of the generation engines: prompts for a base and its adapters."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from monolora.adapters import load_adapted
from monolora.model_files import save_generation_config
from tests.support.evaluated import Evaluated

PROMPTS = [[1, 40, 41], [1, 50], [1, 60, 61, 62, 63, 64], [1, 70, 71, 72], [1, 80, 81, 82, 83]]


LONGEST = (12, 3, 12, 5, 12)


def job(evaluated: Evaluated, done: tuple[str, ...] = (), **settings: Any) -> dict[str, Any]:
    return {
        "model": str(evaluated.base),
        "adapters": {"lora": str(evaluated.lora), "mono": str(evaluated.mono)},
        "items": [
            {"key": f"{name}-{number}", "adapter": name, "token_ids": ids, "max_new_tokens": most}
            for name in (None, "lora", "mono")
            for number, (ids, most) in enumerate(zip(PROMPTS, LONGEST, strict=True))
        ],
        "done": list(done),
        "share": (0, 1),
        "settings": {
            "dtype": "float32", "seed": 0, "temperature": 0.0, "top_p": 1.0, "batch_size": 2,
        } | settings,
    }  # fmt: skip


def ending_early(evaluated: Evaluated, folder: Path) -> dict[str, Any]:
    """A job whose MonoLoRA adapter, by its folder, ends with the token that it answers the first prompt with."""
    shutil.copytree(evaluated.mono, folder)
    model, _ = load_adapted(str(folder), str(evaluated.base), dtype="float32")
    with torch.no_grad():
        token = int(model(torch.tensor([PROMPTS[0]])).logits[0, -1].argmax())
    save_generation_config(GenerationConfig(eos_token_id=[token, 2]), folder)
    engine_job = job(evaluated)
    engine_job["adapters"]["mono"] = str(folder)
    return engine_job
