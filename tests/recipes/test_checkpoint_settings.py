"""The flags of the programs that make a checkpoint of an adapter, and check it."""

from __future__ import annotations

from typing import Any

from monolora.cli.flags import FlagParser
from monolora.merge.linearize import TOKENS_PER_INPUT
from monolora.recipes import checkpoint_settings
from monolora.recipes.checkpoint_settings import Loading, Merge, Verification


def parsed(kind: type[Any], *words: str) -> Any:
    return FlagParser("test", None).parse_into(words, kind)


def test_a_default_that_is_named_elsewhere() -> None:
    """The module that owns it imports torch, and the settings do not."""
    assert checkpoint_settings.TOKENS_PER_INPUT == 2 * TOKENS_PER_INPUT


def test_a_merge() -> None:
    assert parsed(Merge, "one", "two", "out") == Merge(adapter=("one", "two"), out="out")
    words = ("--as", "lora", "--no-affine", "--weights", "1", "-0.5", "--max-memory", "0=20GiB", "--task-samples", "0")
    assert parsed(Merge, "one", "two", "out", *words) == Merge(
        adapter=("one", "two"),
        out="out",
        form="lora",
        affine=False,
        loading=Loading(weights=(1.0, -0.5), max_memory=("0=20GiB",)),
        verification=Verification(task_samples=0),
    )
