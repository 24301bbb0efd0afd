"""The flags of the programs that are one step."""

from __future__ import annotations

from typing import Any

import pytest

from monolora import hub
from monolora.cli.flags import FlagParser
from monolora.errors import InputError
from monolora.merge.linearize import TOKENS_PER_INPUT
from monolora.recipes import settings
from monolora.recipes.settings import Judge, Loading, Merge, Prune, Verification


def parsed(kind: type[Any], *words: str) -> Any:
    return FlagParser("test", None).parse_into(words, kind)


def test_defaults_that_are_named_elsewhere() -> None:
    """The modules that own them import torch, and the settings do not."""
    assert Judge().model == hub.MINILM
    assert settings.TOKENS_PER_INPUT == 2 * TOKENS_PER_INPUT


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


def test_where_the_folder_of_a_pruned_adapter_may_stand() -> None:
    before, after = (
        parsed(Prune, "in", "out", "--keep", "a:1", "b:2"),
        parsed(Prune, "in", "--keep", "a:1", "b:2", "out"),
    )
    assert (before.target, before.named) == (after.target, after.named) == ("out", ("a:1", "b:2"))
    twice = parsed(Prune, "in", "--units", "a:1", "--units", "b:2", "out")
    assert (twice.target, twice.named) == ("out", ("a:1", "b:2"))
    assert parsed(Prune, "in", "folder:7", "--units", "a:1").target == "folder:7"
    with pytest.raises(InputError, match="OUT, the folder to write, is missing"):
        parsed(Prune, "in", "--units", "a:1", "folder:7")
