"""What the tests of the suite evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

_THINGS = ("a boat", "soup", "a kite", "bread", "a map", "a song", "a garden", "tea", "a shelf", "a hat", "a poem")
QUESTIONS: list[dict[str, Any]] = [
    {"prompt": f"How do I make {thing}?", "category": "craft" if thing.startswith("a ") else "food"}
    for thing in _THINGS
] + [{"prompt": "How do I make tea?", "category": "food"}]


class Evaluated(NamedTuple):
    """Folders of a base model and two adapters on it; a file with prompts, one of them twice; a judge's folder."""

    base: Path
    lora: Path
    mono: Path
    prompts: Path
    judge: Path

    def flags(self) -> list[str]:
        """The flags that name the models."""
        return ["--model", str(self.base), "--adapter", f"lora={self.lora}", "--adapter", f"mono={self.mono}"]

    def run_flags(self) -> list[str]:
        """The flags of a run that takes seconds."""
        return [
            *self.flags(), "--suite", str(self.prompts), "--judges", f"classifier:{self.judge},refusal",
            "--engine", "hf", "--dtype", "float32", "--max-new-tokens", "6", "--batch-size", "4",
            "--judge-batch-size", "5",
        ]  # fmt: skip
