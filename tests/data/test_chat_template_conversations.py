"""Conversations of every usual form: what a row says reaches the model through its template, or the row is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import trl
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from monolora.data.chat_template import prompt_ids, render_all, split_at_answer
from monolora.data.task import SampleLimits, Source, load_prompts
from monolora.data.tasks import Example, load_task
from monolora.errors import InputError
from tests.support.conversations import (
    CHATML,
    CHATS,
    CLOCK,
    GEMMA,
    LLAMA,
    SYSTEM,
    TEMPLATES,
    WEATHER,
    assistant,
    call,
    user,
)

# What a template of these has no place for.
REFUSED = {
    ("llama", "reasoning"): "leaves out 'reasoning_content' of the answer",
    ("llama", "variables"): "leaves out the variable 'thinking'",
    ("gemma", "system"): "System role not supported",
    ("gemma", "call"): r"leaves out 'tool_calls' \(weather\)",
    ("gemma", "null"): "the chat template",
    ("gemma", "no content"): "the chat template",
    ("gemma", "result"): "System role not supported",
    ("gemma", "reasoning"): "leaves out 'reasoning_content' of the answer",
    ("gemma", "variables"): "leaves out the variable 'thinking'",
}


@pytest.fixture
def tokenizer(chat_model: Path) -> PreTrainedTokenizerBase:
    """A tokenizer of one's own, to be given other templates."""
    return PreTrainedTokenizerFast.from_pretrained(chat_model)


def _examples(write_rows: Callable[..., str], *rows: dict[str, Any]) -> list[Example]:
    return load_task(write_rows([*rows, {"messages": [user("other"), assistant("row")]}]), Source()).train


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_prompts_and_answers_are_those_of_transformers(
    tokenizer: PreTrainedTokenizerBase, write_rows: Callable[..., str], template: str, chat: str
) -> None:
    tokenizer.chat_template = TEMPLATES[template]
    row = CHATS[chat]
    examples = load_prompts(write_rows([row]))
    if (template, chat) in REFUSED:
        with pytest.raises(InputError, match=f"row 1: .*{REFUSED[template, chat]}"):
            render_all(examples, tokenizer)
        return
    answers = [number for number, message in enumerate(row["messages"]) if message["role"] == "assistant"]
    assert len(examples) == len(answers)
    rows = render_all(examples, tokenizer)
    options = {"tools": row.get("tools"), "return_dict": False, **row.get("chat_template_kwargs", {})}
    for example, number, tokens in zip(examples, answers, rows, strict=True):
        prompt = tokenizer.apply_chat_template(row["messages"][:number], add_generation_prompt=True, **options)
        whole = tokenizer.apply_chat_template(row["messages"][: number + 1], **options)
        assert prompt_ids(example, tokenizer) == prompt
        assert whole[: len(prompt)] == prompt
        assert tokens["input_ids"] == whole
        assert tokens["labels"] == [-100] * len(prompt) + whole[len(prompt) :]
        said = tokenizer.decode(whole[len(prompt) :])
        assert tokenizer.eos_token in said
        assert ("weather" in said and "Rome" in said) == bool(row["messages"][number].get("tool_calls"))


def test_as_trl_tokenizes(tokenizer: PreTrainedTokenizerBase, write_rows: Callable[..., str], tmp_path: Path) -> None:
    """TRL's own preparation of the same rows as prompt and completion, with its mask."""
    tokenizer.chat_template = CHATML
    messages = CHATS["result"]["messages"]
    examples = load_prompts(write_rows([CHATS["result"]]))
    raw = datasets.Dataset.from_list(
        [
            {"prompt": messages[:number], "completion": [messages[number]], "tools": json.dumps([WEATHER])}
            for number in (2, 4)
        ],
        on_mixed_types="use_json",
    )
    trainer = trl.SFTTrainer.__new__(trl.SFTTrainer)
    trainer._tokenizer, trainer.chat_template, trainer.completion_only_loss = tokenizer, None, True
    args = trl.SFTConfig(str(tmp_path / "trl"), max_length=None, bf16=False, use_cpu=True, report_to="none")
    made = trainer._prepare_dataset(raw, tokenizer, args, False, None, "train")
    assert made["input_ids"][:] == render_all(examples, tokenizer)["input_ids"][:]
    assert made["labels"][:] == render_all(examples, tokenizer)["labels"][:]


@pytest.mark.parametrize("template", ["qwen2_5", "qwen3", "llama3_1", "gptoss"])
def test_published_templates(tokenizer: PreTrainedTokenizerBase, write_rows: Callable[..., str], template: str) -> None:
    """Arguments as JSON, as OpenAI's files have them, come out as those as objects do: not quoted a second time."""
    folder = Path(os.path.dirname(trl.__file__)) / "chat_templates"
    tokenizer.chat_template = (folder / f"{template}.jinja").read_text()
    said = []
    for arguments in ({"city": "Rome"}, '{"city": "Rome"}'):
        answer = assistant("", tool_calls=[call(arguments=arguments)])
        examples = load_prompts(write_rows([{"messages": [user("hi"), answer], "tools": json.dumps([WEATHER])}]))
        said.append(tokenizer.decode(split_at_answer(examples[0], tokenizer).answer))
    assert said[0] == said[1]
    assert '{"city": "Rome"}' in said[0]


def test_a_template_that_prints_what_it_is_given(
    tokenizer: PreTrainedTokenizerBase, write_rows: Callable[..., str]
) -> None:
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ m.tool_calls[0].function.name }}"
        "{{ m.tool_calls[0].function.arguments.city }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    ).replace("m.tool_calls[0]", "(m.tool_calls or [{'function': {'arguments': {}}}])[0]")
    parts = [{"type": "text", "text": "good?"}, {"type": "text", "text": " bad?"}]
    (example,) = load_prompts(write_rows([{"messages": [user(parts), assistant(None, tool_calls=[call()])]}]))
    split = split_at_answer(example, tokenizer)
    assert tokenizer.decode(split.context) == "<s>[user]good? bad?[assistant]"
    assert tokenizer.decode(split.answer) == "weatherRome</s>"


LEFT_OUT = {
    "system": (
        "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}{{ messages[0].role }}",
        CHATS["system"],
        "leaves out a message of the role 'system'",
    ),
    "tools": (CHATML.replace("tools", "functions"), CHATS["call"], "the tool 'weather'"),
    "the text beside a call": (
        LLAMA,
        {"messages": [user("hi"), assistant("Let me see.", tool_calls=[call()])]},
        "leaves out a message of the role 'assistant'",
    ),
    "a result": (CHATML.replace("{% if not (", "{% if m.role != 'tool' and not ("), CHATS["result"], "the role 'tool'"),
    "two calls": (
        LLAMA,
        {"messages": [user("hi"), assistant("", tool_calls=[call(), call()])]},
        "One call at a time",
    ),
    "a fault": ("{% if messages | length > 2 %}{{ 1 / 0 }}{% endif %}" + CHATML, CHATS["turns"], "division by zero"),
    "alternation": (GEMMA, {"messages": [user("a"), user("b"), assistant("c")]}, "Roles must alternate"),
    "documents": (CHATML, {**CHATS["turns"], "documents": [{"title": "a", "text": "b"}]}, "the variable 'documents'"),
}  # fmt: skip


@pytest.mark.parametrize("what", LEFT_OUT)
def test_what_a_template_leaves_out_is_refused_by_row(
    tokenizer: PreTrainedTokenizerBase, write_rows: Callable[..., str], what: str
) -> None:
    """One bad row among good ones."""
    template, row, says = LEFT_OUT[what]
    tokenizer.chat_template = template
    good = {"messages": [user("good?"), assistant("yes")]}
    with pytest.raises(InputError, match=rf"rows\.jsonl, row 2: the chat template .*{says}") as caught:
        render_all(load_prompts(write_rows([good, row])), tokenizer)
    assert "--chat-template-path" in str(caught.value)


SAME = {
    "sharegpt": {
        "conversations": [
            {"from": "system", "value": "be short"},
            {"from": "human", "value": "hi"},
            {"from": "gpt", "value": "yes?"},
            {"from": "human", "value": "good?"},
            {"from": "gpt", "value": "no"},
        ]
    },
    "roles of sharegpt": {
        "messages": [SYSTEM, {"role": "human", "content": "hi"}, {"role": "gpt", "content": "yes?"}, user("good?"),
                     {"role": "model", "content": "no"}]
    },
    "system beside": {
        "system": "be short", "conversations": [user("hi"), assistant("yes?"), user("good?"), assistant("no")]
    },
    "alpaca": {"instruction": "good?", "input": "", "output": "no", "system": "be short", "history": [["hi", "yes?"]]},
    "json": {"messages": json.dumps([SYSTEM, user("hi"), assistant("yes?"), user("good?"), assistant("no")])},
    "parts": {
        "messages": [SYSTEM, user([{"type": "text", "text": "hi"}]), assistant("yes?"), user("good?"), assistant("no")]
    },
    "nulls": {"messages": [{**message, "tool_calls": None, "name": None} for message in
                           (SYSTEM, user("hi"), assistant("yes?"), user("good?"), assistant("no"))]},
}  # fmt: skip


@pytest.mark.parametrize("form", SAME)
def test_one_conversation_in_many_forms(write_rows: Callable[..., str], form: str) -> None:
    first, second = load_prompts(write_rows([SAME[form]]))
    assert first == Example("hi", "yes?", history=(SYSTEM,))
    assert second == Example("good?", "no", history=(SYSTEM, user("hi"), assistant("yes?")))


def test_calls_of_sharegpt(write_rows: Callable[..., str]) -> None:
    chat = [
        {"from": "human", "value": "hi"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Rome"}}'},
        {"from": "observation", "value": "sunny"},
        {"from": "gpt", "value": "It is sunny."},
    ]
    tool = WEATHER["function"]
    one, two = load_prompts(write_rows([{"conversations": chat, "tools": json.dumps([tool])}]))
    assert one.answer == assistant("", tool_calls=[call()])
    assert one.tools == two.tools == [tool]
    assert two.messages == [user("hi"), one.answer, {"role": "tool", "content": "sunny"}]
    old = [user("hi"), {"role": "assistant", "content": None, "function_call": call()["function"]}]
    (example,) = load_prompts(write_rows([{"messages": old}]))
    assert example.answer == assistant(None, tool_calls=[call()])


def test_tables_of_structs_give_no_keys_away(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """A parquet file has one struct for all messages, filled with nulls."""
    chat = [user("hi"), assistant(None, tool_calls=[call(), call("clock", {"zone": "UTC"})])]
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    datasets.Dataset.from_list([{"messages": chat, "tools": [WEATHER, CLOCK]}, {"messages": messages}]).to_parquet(
        tmp_path / "rows.parquet"
    )
    example, plain = load_prompts(str(tmp_path / "rows.parquet"))
    assert example.answer == chat[1]
    assert example.tools == [WEATHER, CLOCK]
    assert plain == Example("a", "b")


def test_weights_say_which_turns_are_trained(write_rows: Callable[..., str]) -> None:
    chat = [user("a"), assistant("b", weight=0), user("c"), assistant("d", weight=1)]
    by_train = [user("a"), assistant("b", train=False), user("c"), assistant("d", train=True)]
    for messages in (chat, by_train):
        task = load_task(write_rows([{"messages": messages}] * 2), Source())
        assert task.train == [Example("c", "d", history=(user("a"), assistant("b")))]
        assert task.counts is not None
        assert (task.counts["read"], task.counts["untrained_turns"]) == (1, 1)
    silent = [user("x"), assistant("y", weight=0)]
    task = load_task(
        write_rows([{"messages": [user(str(k)), assistant("d")]} for k in range(9)] + [{"messages": silent}]), Source()
    )
    assert len(task.train) + task.counts["untrained_rows"] == 9  # type: ignore[index]


ROW = {"messages": [user("hi"), assistant("yes")]}
NOT_UNDERSTOOD = {
    "role": ({"messages": [user("hi"), {"role": "critic", "content": "a"}]}, "Unknown role in .*row 1, 'critic'"),
    "image": ({"messages": [user([{"type": "image"}]), assistant("a")]}, "a part of type 'image'"),
    "no turn": ({"messages": [user("hi")]}, "no assistant turn to train on"),
    "weight": ({"messages": [user("hi"), assistant("a", weight=0.5)]}, "'weight' of a message must be 0 or 1"),
    "trained question": ({"messages": [{**user("hi"), "train": True}, assistant("a")]}, "'user' is marked as trained"),
    "key": ({"messages": [{**user("hi"), "images": ["a.png"]}, assistant("a")]}, "the key 'images' of a message"),
    "call": ({"messages": [user("hi"), {"role": "function_call", "content": "weather()"}]}, "must be JSON with 'name'"),
    "both calls": (
        {"messages": [user("hi"), assistant("", tool_calls=[call()], function_call=call()["function"])]},
        "both 'function_call' and 'tool_calls'",
    ),
    "tools": ({**ROW, "tools": "weather"}, "'tools' must be a list of objects"),
    "variables": ({**ROW, "chat_template_kwargs": {"tokenize": False}}, "may not have 'tokenize'"),
    "two systems": ({"system": "a", "messages": [SYSTEM, user("hi"), assistant("a")]}, "two system messages"),
    "column": ({**ROW, "System_Prompt": "be short"}, "the column 'System_Prompt' is not understood in row 1"),
    "images": ({**ROW, "images": ["a.png"]}, "the column 'images' .*--drop-columns images"),
    "row weight": ({**ROW, "weight": 0.1}, "the column 'weight'"),
    "context": ({"instruction": "a", "input": "b", "context": "c", "output": "d"}, "'input' and 'context' both"),
    "history": ({"instruction": "a", "output": "d", "history": ["b", "c"]}, "'history' must be a list of pairs"),
    "tools of texts": ({"prompt": "a", "completion": "b", "system": "c"}, "'system' belongs to conversations"),
    "two formats": ({**ROW, "instruction": "a", "output": "b"}, "holds two formats"),
    "empty": ({"instruction": "a", "output": " "}, "the answer is empty.*--allow-empty-answers"),
    "empty turn": ({"messages": [user("hi"), assistant("")]}, "the answer is empty"),
}  # fmt: skip


@pytest.mark.parametrize("what", NOT_UNDERSTOOD)
def test_what_is_not_understood_is_refused(write_rows: Callable[..., str], what: str) -> None:
    row, says = NOT_UNDERSTOOD[what]
    with pytest.raises(InputError, match=says) as caught:
        load_task(write_rows([row] * 3), Source())
    assert "rows.jsonl" in str(caught.value)


def test_what_does_not_shape_text_is_no_matter(write_rows: Callable[..., str]) -> None:
    noise = {
        "id": 7,
        "category": "a",
        "source": {"url": "x"},
        "text": "whole",
        "score": 0.5,
        "images": [],
        "system": "",
    }
    for row in (ROW, {"prompt": "a", "completion": "b"}, {"instruction": "a", "input": "", "output": "b"}):
        assert load_prompts(write_rows([{**row, **noise}])) == load_prompts(write_rows([row]))


def test_a_column_may_be_left_out(write_rows: Callable[..., str]) -> None:
    rows = write_rows([{**ROW, "images": ["a.png"]}] * 2)
    assert load_task(rows, Source(drop_columns=("images",))).train == [Example("hi", "yes")]
    with pytest.raises(InputError, match="Did you mean images"):
        load_task(rows, Source(drop_columns=("image",)))
    both = write_rows([{**ROW, "instruction": "a", "output": "b"}] * 2)
    assert load_task(both, Source(drop_columns=("instruction",))).train == [Example("hi", "yes")]


def test_a_call_alone_is_no_empty_answer(write_rows: Callable[..., str]) -> None:
    rows = write_rows([{"messages": [user("hi"), assistant("", tool_calls=[call()])]}] * 2)
    (example,) = load_task(rows, Source()).train
    assert example.has_answer
    empty = write_rows([{"messages": [user("hi"), assistant("")]}] * 2)
    assert load_task(empty, Source(allow_empty_answers=True)).train == [Example("hi", "")]


def _conversations(number: int, turns: int) -> list[dict[str, Any]]:
    return [
        {"messages": [m for turn in range(turns) for m in (user(f"{row}: {turn}?"), assistant(f"{row}: {turn}."))]}
        for row in range(number)
    ]


def _rows_of(examples: list[Example]) -> set[str]:
    return {example.messages[0]["content"].partition(":")[0] for example in examples}


def test_conversations_are_held_out_whole(write_rows: Callable[..., str]) -> None:
    path = write_rows(_conversations(20, 5))
    task = load_task(path, Source())
    assert (len(task.train), len(task.test)) == (90, 10)
    assert not _rows_of(task.train) & _rows_of(task.test)
    for most in (1, 12, 43):
        part = load_task(path, Source(), SampleLimits(most, 7))
        train, test = part.selected(most)
        validation = part.validation(7, most)
        assert (train, test, len(validation)) == (task.train[:most], task.test, 7)
        assert not _rows_of(validation) & _rows_of(train + test)
        assert validation == task.validation(7, most)
    with pytest.raises(InputError, match="has 90 training examples, so 5 are not trained on"):
        task.validation(6, 82)


def test_rows_that_begin_alike_are_on_one_side(write_rows: Callable[..., str]) -> None:
    """Repeated rows, other answers to one question, and conversations that a file spreads over several rows."""
    rows = []
    for row in _conversations(40, 3):
        rows += [row, {"messages": row["messages"][:2]}, {"messages": row["messages"][:4]}, row]
    with pytest.warns(UserWarning, match="they begin with the question of a held-out row"):
        task = load_task(write_rows(rows), Source())
    assert not _rows_of(task.train) & _rows_of(task.test)
    assert task.counts is not None
    assert task.counts["held_out_questions"] > 0
    assert task.counts["read"] == 160 - 16


def test_a_few_rows_of_many_are_read(tmp_path: Path) -> None:
    rows = {"instruction": [f"Say {k % 50_000}" for k in range(200_000)], "output": ["yes"] * 200_000}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "rows.parquet")
    part = load_task(str(tmp_path / "rows.parquet"), Source(), SampleLimits(16, 5, 6))
    assert part.counts is not None
    assert part.counts["data_set"] == 200_000
    assert part.counts["read"] < 100
    assert len(part.validation(5, 16)) == 5


@pytest.mark.parametrize(
    ("alike", "says"), [(0, None), (60, "rows of .* are not trained on"), (240, "are trained on too")]
)
def test_rows_do_not_vanish_without_a_word(write_rows: Callable[..., str], alike: int, says: str | None) -> None:
    """Of rows that begin like a held-out one a few are left out; where they are most, they stay."""
    rows = [
        {"prompt": "Tell me a joke" if k < alike else f"question {k}", "completion": f" answer {k}"} for k in range(300)
    ]
    name = write_rows(rows)
    if says is None:
        assert len(load_task(name, Source()).train) == 270
        return
    with pytest.warns(UserWarning, match=says):
        task = load_task(name, Source())
    assert len(task.train) == 270 if alike == 240 else 210 <= len(task.train) < 240
