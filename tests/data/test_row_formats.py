"""Rows of the usual formats, and what is refused where it is unclear which one is meant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from monolora.data.chat_template import IGNORED, prompt_ids, render_all, split_at_answer
from monolora.data.datasets import load_dataset
from monolora.data.scoring import WholeText
from monolora.data.task import Source, dataset_task, read_examples
from monolora.data.tasks import Example, Task
from monolora.errors import InputError

Write = Callable[..., str]


def _examples(path: str) -> list[Example]:
    return read_examples(load_dataset(path)["train"], path)


def test_sharegpt_is_what_the_same_messages_are(write_rows: Write) -> None:
    """Roles of several dialects, a system message, calls and their results, turns that are not trained on."""
    call = {"name": "weather", "arguments": {"city": "Rome"}}
    turns = [
        ("system", "system", "Be brief."), ("human", "user", "Hi"), ("gpt", "assistant", "Hello"),
        ("human", "user", "Weather?"), ("function_call", "assistant", call), ("observation", "tool", "sunny"),
        ("gpt", "assistant", "It is sunny."), ("chatgpt", "assistant", "Anything else?"),
    ]  # fmt: skip
    sharegpt, messages = [], []
    for theirs, role, value in turns[:-1]:
        sharegpt.append({"from": theirs, "value": value if isinstance(value, str) else [value]})
        content = {"content": value} if isinstance(value, str) else {"content": ""}
        calls = {} if isinstance(value, str) else {"tool_calls": [{"type": "function", "function": value}]}
        messages.append({"role": role, **content, **calls})
    # The model's own name for itself, and a mark of what is trained.
    shorter = [{"from": "user", "value": "Bye"}, {"from": "assistant", "value": "Bye!", "weight": 1}]
    same = [{"role": "user", "content": "Bye"}, {"role": "assistant", "content": "Bye!"}]
    first = _examples(write_rows([{"conversations": sharegpt}, {"conversations": shorter}] * 2, "sharegpt.jsonl"))
    second = _examples(write_rows([{"messages": messages}, {"messages": same}] * 2, "messages.jsonl"))
    assert first == second
    assert [example.response for example in first] == ["Hello", "", "It is sunny.", "Bye!"] * 2
    bad = [{"conversations": [{"from": "narrator", "value": "x"}]}]
    with pytest.raises(InputError, match=r"Unknown role in .*row 1, 'narrator'; choose one of"):
        _examples(write_rows(bad * 2, "bad.jsonl"))


def test_question_and_answer_are_instruction_and_output(write_rows: Write) -> None:
    rows = [
        {"question": "q", "context": "c", "answer": "a", "system": "s", "id": 1},
        {"question": "r", "context": None, "answer": "b", "system": "", "id": 2},
    ] * 2
    named = {"question": "instruction", "answer": "output"}
    same = [{named.get(key, key): value for key, value in row.items()} for row in rows]
    assert _examples(write_rows(rows, "qa.jsonl")) == _examples(write_rows(same, "instructions.jsonl"))
    with pytest.raises(InputError, match="row 1: 'question' must be a text, found nothing"):
        _examples(write_rows([rows[0] | {"question": ""}] * 2, "bad.jsonl"))
    with pytest.raises(InputError, match="row 1: 'answer' must be a text, found a value of type int"):
        _examples(write_rows([rows[0] | {"answer": 3}] * 2, "bad.jsonl"))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"question": "q", "answer": "a", "prompt": "p", "completion": "c"}, r"two formats, completion \+ prompt and "),
        ({"question": "q", "answer": "a", "messages": "m"}, "two formats, messages and answer .*--drop-columns answer"),
        ({"question": "q", "answer": "a", "choices": ["a", "b"]}, "column 'choices' is not understood in row 1"),
        ({"question": "q", "answer": "a", "documents": "d"}, "'documents' must be a list of objects"),
        ({"text": "t", "label": 1}, "column 'label' is not understood in row 1"),
        ({"text": "t", "summary": "s"}, "column 'summary' is not understood in row 1"),
        ({"text": "t", "prompt": "p"}, "column 'prompt' is not understood in row 1"),
        ({"text": "t", "instruction": "i"}, "column 'instruction' is not understood in row 1"),
        ({"text": "t", "system": "s"}, "column 'system' is not understood in row 1"),
        ({"text": "", "id": 1}, "row 1: 'text' must be a text, found nothing"),
        (
            {"question": "q", "answers": ["a"]},
            r"columns answers, question; needed are .*'question' \+ 'answer'",
        ),
    ],
)
def test_unclear_rows_are_refused_by_name(write_rows: Write, row: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        _examples(write_rows([row] * 2))


def test_columns_can_be_left_out(write_rows: Write) -> None:
    path = write_rows([{"text": "t", "label": 1}, {"text": "u", "label": 2}])
    whole = {Example("", "t", verbatim=True), Example("", "u", verbatim=True)}
    for source in (Source(drop_columns=("label",)), Source(columns=("text",))):
        task = dataset_task(path, source)
        assert set(task.train + task.test) == whole
        assert task.columns == ("text", ("text",), ("label",))
    with pytest.raises(InputError, match=r"Unknown column of .*rows.jsonl 'txt'; choose one of text, label"):
        dataset_task(path, Source(columns=("txt",)))


def test_a_conversation_goes_before_its_text(write_rows: Write) -> None:
    """Published conversations often come with the text that a template made of them."""
    row = {"prompt": "p", "completion": " c", "text": "p c"}
    assert _examples(write_rows([row] * 2)) == [Example("p", " c", verbatim=True)] * 2


def test_a_whole_text_is_trained_on_from_its_second_token(
    write_rows: Write, chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    path = write_rows([{"text": f"The {word} is here."} for word in ("cat", "dog", "cow")])
    task = dataset_task(path, Source())
    assert task.scorer == WholeText()
    assert task.columns is not None
    assert task.columns.format == "text"
    tokenizer = chat_tokenizer
    for example, row in zip(task.train, render_all(task.train, tokenizer), strict=True):
        ids = tokenizer(example.response + tokenizer.eos_token)["input_ids"]
        first = max(1, len(tokenizer("")["input_ids"]))
        assert row == {"input_ids": ids, "labels": [IGNORED] * first + ids[first:]}
        assert split_at_answer(example, tokenizer).answer == ids[first:]
        assert prompt_ids(example, tokenizer) == tokenizer(example.response)["input_ids"]


@pytest.mark.filterwarnings("ignore:.*begin with the question of a held-out row")
def test_whole_texts_are_held_out_by_themselves(write_rows: Write) -> None:
    """They have no question by which they could be told apart."""
    task: Task = dataset_task(write_rows([{"text": f"t{k % 19}"} for k in range(20)]), Source())
    held_out = {example.response for example in task.test}
    assert held_out.isdisjoint(example.response for example in task.train)
    assert task.counts is not None
    assert len(task.train) + len(task.test) + task.counts["held_out_questions"] == 20
