"""What is checked of the tokenized rows, on rows that TRL made and on rows made wrong by hand."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import datasets
import pytest
from torch import nn
from transformers import PreTrainedTokenizerBase

from monolora.data.tasks import Example, demo
from monolora.errors import InputError, RunError
from monolora.recipes.training.data_checks import (
    bos_in_front,
    check_alive,
    check_finite,
    check_training_rows,
    check_truncation,
    documents,
    packed_lengths,
    preview,
)
from monolora.sparsity import Sparsity
from monolora.terminal import Terminal

EXAMPLES = demo.load().train[:12]
BOS, EOS, NO = 1, 2, -100


def _check(tokenizer: PreTrainedTokenizerBase, *rows: tuple[list[int], list[int]], **options: Any) -> float:
    table = datasets.Dataset.from_list([{"input_ids": ids, "labels": labels} for ids, labels in rows])
    return check_training_rows(table, tokenizer, wanted=len(rows), max_length=9, **options)


def test_right_rows(chat_tokenizer: PreTrainedTokenizerBase) -> None:
    assert _check(chat_tokenizer, ([BOS, 5, 6, 7, EOS], [NO, NO, NO, 7, EOS])) == 1
    # A newline after the end token, and a row that truncation cut.
    assert _check(chat_tokenizer, ([BOS, 5, 7, EOS, 9], [NO, NO, 7, EOS, 9]), ([BOS, 5, 7], [NO, NO, 7])) == 0.5


@pytest.mark.parametrize(
    ("ids", "labels", "says"),
    [
        ([BOS, 5, 6, EOS], [BOS, 5, 6, EOS], "not on answers only"),
        ([BOS, 5, 6, 7, EOS], [NO, 5, NO, 7, EOS], "not on all of it"),
        ([BOS, 5, 6, EOS], [NO, NO, 7, EOS], "not on all of it"),
        ([BOS, BOS, 6, EOS], [NO, NO, 6, EOS], "begins with '<s>' twice"),
        ([5, 6, 7, EOS], [NO, NO, 7, EOS], "do not begin with '<s>'"),
        ([BOS, 5, 6, 7], [NO, NO, 6, 7], "end token '</s>' is trained in no example"),
        ([BOS, 5, 6, 7], [NO] * 4, "lose every trained token when cut to --max-length 9"),
    ],
)
def test_wrong_rows(chat_tokenizer: PreTrainedTokenizerBase, ids: list[int], labels: list[int], says: str) -> None:
    with pytest.raises(InputError, match=says):
        _check(chat_tokenizer, (ids, labels))


def test_rows_with_several_answers(chat_tokenizer: PreTrainedTokenizerBase) -> None:
    """Each has an end token to be learned; what is between them is not."""
    ids, labels = [BOS, 5, 7, EOS, 6, 8, EOS], [NO, NO, 7, EOS, NO, 8, EOS]
    assert _check(chat_tokenizer, (ids, labels), joined=True) == 1
    assert _check(chat_tokenizer, (ids[:-1], labels[:-1]), joined=True) == 0.5
    assert _check(chat_tokenizer, (ids * 2, labels * 2), joined=True, lengths=[7, 7]) == 1
    with pytest.raises(InputError, match="not on all of it"):
        _check(chat_tokenizer, (ids, labels))
    with pytest.raises(InputError, match="not on all of it"):
        _check(chat_tokenizer, (ids, [*labels[:-1], 9]), joined=True)


def test_bos_in_front(chat_tokenizer: PreTrainedTokenizerBase, chat_model: Any) -> None:
    assert bos_in_front(chat_tokenizer)
    other = type(chat_tokenizer).from_pretrained(chat_model)
    other.bos_token = None
    assert not bos_in_front(other)


@pytest.mark.parametrize(
    ("strategy", "length"), [("bfd", "150"), ("bfd", "400"), ("wrapped", "40"), ("wrapped", "150"), ("wrapped", "400")]
)
def test_packed_rows_are_taken_apart(
    trained_rows: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerBase, strategy: str, length: str
) -> None:
    """The documents in TRL's packed rows are the rows that TRL makes without packing, in some order."""
    flags = ("--packing", "--packing-strategy", strategy, "--max-length", length)
    rows = trained_rows(EXAMPLES, chat_tokenizer)
    packed = trained_rows(EXAMPLES, chat_tokenizer, *flags)
    assert len(packed) != len(rows)
    lengths = list(packed_lengths(packed, rows))
    assert sorted(documents(packed, lengths)) == sorted(documents(rows))
    assert check_training_rows(packed, chat_tokenizer, 12, int(length), lengths) == 1


def test_packed_rows_are_checked(chat_tokenizer: PreTrainedTokenizerBase) -> None:
    good = [BOS, 5, 7, EOS]
    with pytest.raises(InputError, match="do not begin"):
        _check(chat_tokenizer, ([*good, 5, 7, EOS], [NO, NO, 7, EOS, NO, 7, EOS]), lengths=[4, 3])
    with pytest.raises(InputError, match="twice"):
        _check(chat_tokenizer, ([*good, BOS, BOS, EOS], [NO, NO, 7, EOS, NO, NO, EOS]), lengths=[4, 3])


def test_cut_examples_are_counted(trained_rows: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerBase) -> None:
    examples = [Example("good?", "positive"), Example("good?", "positive " * 30)]
    rows = trained_rows(examples, chat_tokenizer, "--max-length", "24")
    assert check_training_rows(rows, chat_tokenizer, 2, 24) == 0.5


def _labels(*rows: tuple[int, int]) -> datasets.Dataset:
    """Rows of so many tokens before the answer and in it."""
    return datasets.Dataset.from_dict({"labels": [[NO] * before + [5] * answer for before, answer in rows]})


def test_what_truncation_takes_is_counted() -> None:
    rows = _labels((4, 4), (2, 8), *[(2, 2)] * 98)
    assert check_truncation(rows, None, 100) == (0, 0)
    assert check_truncation(rows, 8, 100) == (0, 1)
    assert check_truncation(rows, 4, 100) == (1, 1)  # a hundredth dropped, and no more
    with pytest.warns(UserWarning, match="2 of 100 examples lose every trained token when cut to --max-length 4"):
        assert check_truncation(_labels((4, 4), (9, 1), *[(2, 2)] * 98), 4, 100) == (2, 0)
    with pytest.warns(UserWarning, match="1 of 2 examples"):
        check_truncation(_labels((4, 4), (2, 2)), 4, 2)
    with pytest.raises(InputError, match=r"2 of 3 examples lose every trained token.* Raise --max-length\."):
        check_truncation(_labels((4, 4), (5, 1), (2, 2)), 4, 3)


def test_preview_shows_three_with_whole_letters(
    trained_rows: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    examples = [Example("good — bad?", "größe é", context=f"[bold]{k}[/bold]") for k in range(5)]
    printed = io.StringIO()
    preview(trained_rows(examples, chat_tokenizer), chat_tokenizer, Terminal(file=printed, width=20))
    text = printed.getvalue()
    assert text.count("⟦größe é</s>⟧") == 3
    assert "[bold]2[/bold]" in text  # not taken for rich's markup
    assert "[bold]3" not in text


def test_check_finite() -> None:
    layer = nn.Linear(2, 2)
    check_finite(layer, [{"loss": 1.0, "step": 1}, {"train_runtime": 2.0}])
    with pytest.raises(RunError, match="loss at step 3 is nan"):
        check_finite(layer, [{"loss": 1.0, "step": 2}, {"loss": float("nan"), "step": 3}])
    layer.bias.data[0] = float("inf")
    with pytest.raises(RunError, match="bias has NaN or infinite values"):
        check_finite(layer, [])
    layer.bias.requires_grad = False
    check_finite(layer, [])


def test_check_alive() -> None:
    check_alive(Sparsity(zeros=0.9, dead_units=7, units=8, tokens=3, modules={}))
    with pytest.raises(RunError, match="all 8 units are zero"):
        check_alive(Sparsity(zeros=1.0, dead_units=8, units=8, tokens=3, modules={}))
