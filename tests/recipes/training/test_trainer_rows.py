"""The trainer's rows are the library's: context without loss, answer with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from monolora.data.chat_template import split_at_answer
from monolora.data.tasks import Example

PLAIN = Example("Say it", "positive")
WITH_CONTEXT = Example("Is it good", "negative", context="The soup was awful.")
VERBATIM = Example("Q: good or bad? A:", " good", verbatim=True)


@pytest.mark.parametrize("example", [PLAIN, WITH_CONTEXT, VERBATIM], ids=["plain", "context", "text"])
@pytest.mark.parametrize("kind", ["chat", "plain"])
def test_training_takes_the_same_split(
    trained_rows: Callable[..., list[dict[str, Any]]],
    chat_tokenizer: PreTrainedTokenizerBase,
    plain_tokenizer: PreTrainedTokenizerBase,
    example: Example,
    kind: str,
) -> None:
    tokenizer = {"chat": chat_tokenizer, "plain": plain_tokenizer}[kind]
    context, answer = split_at_answer(example, tokenizer)
    (row,) = trained_rows([example], tokenizer)
    assert row["input_ids"] == context + answer
    assert row["labels"] == [-100] * len(context) + answer
