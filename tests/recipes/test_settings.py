"""The flags of the programs that are one step."""

from __future__ import annotations

from typing import Any

import pytest

from monolora import hub
from monolora.cli.flags import FlagParser
from monolora.errors import InputError
from monolora.recipes.settings import Judge, Prune


def parsed(kind: type[Any], *words: str) -> Any:
    return FlagParser("test", None).parse_into(words, kind)


def test_a_default_that_is_named_elsewhere() -> None:
    """The module that owns it imports torch, and the settings do not."""
    assert Judge().model == hub.MINILM


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
