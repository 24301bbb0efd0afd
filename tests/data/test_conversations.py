"""Conversations in one pass: what is learned of each answer, against the answer alone and transformers' own mask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import trl
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from monolora.data.chat_template import IGNORED, answer_spans, render_all
from monolora.data.conversations import Sequences, sequences
from monolora.data.example import Example
from monolora.data.mixture import mixture_task
from monolora.data.mixture_config import Component
from monolora.data.task import NO_LIMITS, Source, read_examples
from monolora.data.tasks import load_task
from monolora.errors import InputError
from monolora.recipes.training.data_checks import check_training_rows, truncated_by
from tests.support.conversations import CHATML, RESULT, SYSTEM, TEMPLATES, WEATHER, assistant, call, user

FOUR = {"messages": [turn for k in range(4) for turn in (user(f"question {k}"), assistant(f"answer {k} is good"))]}
CALLS = {
    "messages": [
        SYSTEM, user("hi"), assistant("", tool_calls=[call()]), RESULT, assistant("sunny"), user("sure?"),
        assistant("yes", weight=0), user("really?"), assistant("no", weight=1),
    ],
    "tools": [WEATHER],
}  # fmt: skip
ONE = {"messages": [user("one"), assistant("turn")]}
# The second question takes the reasoning out of the first answers, so only these are what each other begins with.
THOUGHTS = {
    "messages": [
        user("hi"), assistant("", tool_calls=[call()], reasoning_content="Ask."), RESULT,
        assistant("sunny", reasoning_content="Say."), user("sure?"), assistant("yes", reasoning_content="Repeat."),
    ],
    "tools": [WEATHER],
}  # fmt: skip
THINKING = CHATML.replace("{% if m.reasoning_content and loop.last %}", (
    "{% set last = namespace(user=0) %}{% for n in messages if n.role == 'user' %}"
    "{% set last.user = messages.index(n) %}{% endfor %}{% if m.reasoning_content and loop.index0 > last.user %}"
))  # fmt: skip
_CONTENT = "{% if m.content is string %}{{ m.content }}{% endif %}"
_END = "{% if m.role == 'assistant' %}{{ eos_token }}{% else %}<|im_end|>{% endif %}"
MARKED = THINKING.replace(
    _CONTENT,
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}",
).replace(_END, "{% if m.role != 'assistant' %}<|im_end|>{% endif %}")


@pytest.fixture
def tokenizer(chat_model: Path) -> PreTrainedTokenizerBase:
    """A tokenizer of one's own, to be given other templates."""
    return PreTrainedTokenizerFast.from_pretrained(chat_model)


@pytest.fixture
def read(write_rows: Callable[..., str]) -> Callable[..., list[Example]]:
    """``read(row, …)``: the examples of these rows."""
    return lambda *rows: read_examples(datasets.load_dataset("json", data_files=write_rows(rows))["train"], "rows")


def _joined(examples: list[Example], tokenizer: PreTrainedTokenizerBase, how: str = "auto") -> Sequences:
    return sequences(examples, render_all(examples, tokenizer), tokenizer, how)


def _learned(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [tokenizer.decode(row["input_ids"][start:stop]) for start, stop in answer_spans(row["labels"])]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("how", ["auto", "whole"])
def test_each_answer_is_learned_as_alone(
    tokenizer: PreTrainedTokenizerBase, read: Callable[..., list[Example]], template: str, how: str
) -> None:
    tokenizer.chat_template = TEMPLATES[template]
    made = _joined(read(FOUR, ONE, FOUR), tokenizer, how)
    assert (made.members, made.in_parts) == ([[0, 1, 2, 3], [4], [5, 6, 7, 8]], [])
    for row, chat in zip(made.rows, (FOUR, ONE, FOUR), strict=True):
        messages = chat["messages"]
        ids = tokenizer.apply_chat_template(messages, return_dict=False)
        labels = [IGNORED] * len(ids)
        for turn in range(0, len(messages), 2):
            prompt = tokenizer.apply_chat_template(messages[: turn + 1], add_generation_prompt=True, return_dict=False)
            whole = tokenizer.apply_chat_template(messages[: turn + 2], return_dict=False)
            assert whole[: len(prompt)] == prompt
            assert ids[: len(whole)] == whole
            labels[len(prompt) : len(whole)] = whole[len(prompt) :]
        assert row == {"input_ids": ids, "labels": labels}


PUBLISHED = Path(trl.__file__).parent / "chat_templates"


@pytest.mark.parametrize("template", ["qwen3_training", "llama3_training", "gemma3_training", "qwen2_5_training"])
def test_the_mask_of_transformers(
    tokenizer: PreTrainedTokenizerBase, read: Callable[..., list[Example]], template: str
) -> None:
    """Where TRL's templates mark what a model generates, that is what is learned, but for what follows an end token."""
    tokenizer.chat_template = (PUBLISHED / f"{template}.jinja").read_text()
    (row,) = _joined(read(FOUR), tokenizer).rows
    made = tokenizer.apply_chat_template(FOUR["messages"], return_assistant_tokens_mask=True)
    assert row["input_ids"] == made["input_ids"]
    marked = {at for at, bit in enumerate(made["assistant_masks"]) if bit}
    learned = {at for at, label in enumerate(row["labels"]) if label != IGNORED}
    assert len(answer_spans(row["labels"])) == 4
    assert not {tokenizer.decode(row["input_ids"][at]).strip() for at in learned ^ marked} - {"", "<think>", "</think>"}


PUBLISHED_WHOLE = {
    "qwen2_5": True,
    "llama3_2": True,
    "gemma3": True,
    "deepseekv3": True,
    "qwen3": False,
    "gptoss": False,
}


@pytest.mark.parametrize("template", PUBLISHED_WHOLE)
def test_published_templates(
    tokenizer: PreTrainedTokenizerBase, read: Callable[..., list[Example]], template: str
) -> None:
    tokenizer.chat_template = (PUBLISHED / f"{template}.jinja").read_text()
    examples = read(FOUR)
    assert len(_joined(examples, tokenizer).rows) == (1 if PUBLISHED_WHOLE[template] else 4)
    if not PUBLISHED_WHOLE[template]:
        with pytest.raises(InputError, match=r"row 1: --conversations whole: .* has no \{% generation %\} marks"):
            _joined(examples, tokenizer, "whole")


def test_weights_and_results_of_tools(tokenizer: PreTrainedTokenizerBase, read: Callable[..., list[Example]]) -> None:
    tokenizer.chat_template = CHATML
    made = _joined(read(CALLS), tokenizer)
    (row,) = made.rows
    weather, *texts = _learned(row, tokenizer)
    assert "<tool_call>" in weather
    assert [text.strip() for text in texts] == ["sunny</s>", "no</s>"]
    assert "yes</s>" in tokenizer.decode(row["input_ids"])


def test_rows_with_one_answer_are_left_as_they_are(
    tokenizer: PreTrainedTokenizerBase, read: Callable[..., list[Example]]
) -> None:
    """Equal rows too: they begin with each other."""
    examples = read(
        ONE, ONE, {"messages": [user("two"), assistant("turns"), user("three"), assistant("d", train=False)]}
    )
    for how in ("auto", "whole", "split"):
        rows = render_all(examples, tokenizer)
        made = sequences(examples, rows, tokenizer, how)
        assert made.rows is rows
        assert (made.members, made.is_joined, made.fingerprints()) == ([[0], [1], [2]], False, {})


def test_split(tokenizer: PreTrainedTokenizerBase, read: Callable[..., list[Example]]) -> None:
    examples = read(FOUR)
    rows = render_all(examples, tokenizer)
    assert sequences(examples, rows, tokenizer, "split").rows is rows


def test_earlier_turns_that_are_rendered_otherwise(
    tokenizer: PreTrainedTokenizerBase, read: Callable[..., list[Example]]
) -> None:
    """Divided where the tokens differ; a whole conversation needs marks, and has the losses that these say."""
    tokenizer.chat_template = THINKING
    examples = read(ONE, THOUGHTS, FOUR)
    alone = render_all(examples, tokenizer)
    made = _joined(examples, tokenizer)
    assert made.members == [[0], [1, 2], [3], [4, 5, 6, 7]]
    assert made.in_parts == ["rows, row 2"]
    assert "".join(_learned(made.rows[1], tokenizer)).count("<think>") == 2
    assert made.rows[2] == alone[3]
    with pytest.raises(InputError, match=r"rows, row 2: --conversations whole: .* --chat-template-path"):
        _joined(examples, tokenizer, "whole")

    tokenizer.chat_template = MARKED
    whole = _joined(examples, tokenizer, "whole")
    assert (whole.members, whole.in_parts) == ([[0], [1, 2, 3], [4, 5, 6, 7]], [])
    row = whole.rows[1]
    expected = tokenizer.apply_chat_template(THOUGHTS["messages"], tools=[WEATHER], return_assistant_tokens_mask=True)
    assert row["input_ids"] == expected["input_ids"]
    assert [label != IGNORED for label in row["labels"]] == [bool(bit) for bit in expected["assistant_masks"]]
    assert _learned(row, tokenizer) == ["</s>", "sunny</s>", "yes</s>"]

    messages = [turn | {"weight": 0} if turn.get("content") == "sunny" else turn for turn in THOUGHTS["messages"]]
    (row,) = _joined(read(THOUGHTS | {"messages": messages}), tokenizer, "whole").rows
    assert _learned(row, tokenizer) == ["</s>", "yes</s>"]

    tokenizer.chat_template = MARKED.replace("m.role == 'assistant' %}{% gen", "m.content == 'yes' %}{% gen")
    with pytest.raises(InputError, match="marks 1 of 3 answers"):
        _joined(read(THOUGHTS), tokenizer, "whole")


def test_the_turns_of_a_mixture_are_found(tokenizer: PreTrainedTokenizerBase, write_rows: Callable[..., str]) -> None:
    """Other data sets take their turns in between."""
    chats = [{"messages": [user(f"begin {k}"), *FOUR["messages"][1:]]} for k in range(10)]
    paths = (
        write_rows(chats, "chats.jsonl"),
        write_rows([{"prompt": str(k), "completion": "a"} for k in range(60)], "b.jsonl"),
    )
    task = mixture_task([Component(path) for path in paths], 0, NO_LIMITS)
    made = _joined(task.train, tokenizer)
    sizes = sorted(map(len, made.members))
    assert sizes == [1] * 54 + [4] * 9
    assert sorted(number for members in made.members for number in members) == list(range(len(task.train)))
    for members in made.members:
        assert len({task.train_sources[number] for number in members}) == 1


def test_the_last_answers(write_rows: Callable[..., str], read: Callable[..., list[Example]]) -> None:
    """Of training rows; held-out rows have all of their answers."""
    path = write_rows([{"messages": [user(f"begin {k}"), *FOUR["messages"][1:]]} for k in range(10)])
    every, last = load_task(path, Source()), load_task(path, Source(train_on="last"))
    assert last.train == every.train[3::4]
    assert last.test == every.test
    assert len(last.test) == 4
    assert every.counts is not None
    assert last.counts is not None
    assert last.counts["untrained_turns"] == every.counts["untrained_turns"] + 27
    weighted = [
        turn | {"weight": int(turn["content"] == "answer 1 is good")} if k % 2 else turn
        for k, turn in enumerate(FOUR["messages"])
    ]
    weighted_path = write_rows([{"messages": [user(f"begin {k}"), *weighted[1:]]} for k in range(3)], "weighted.jsonl")
    assert {example.response for example in load_task(weighted_path, Source(train_on="last")).train} == {
        "answer 1 is good"
    }


def test_what_truncation_takes_is_the_same_in_both_ways(
    tokenizer: PreTrainedTokenizerBase, read: Callable[..., list[Example]]
) -> None:
    """At every limit: the same answers are dropped and truncated, and as many end tokens are trained."""
    tokenizer.chat_template = CHATML
    examples = read(FOUR, CALLS, ONE)
    made = _joined(examples, tokenizer)
    tables = [render_all(examples, tokenizer), made.rows]
    for limit in range(1, max(map(len, made.rows["input_ids"])) + 1):
        truncations = {truncated_by(rows["labels"], limit) for rows in tables}
        assert len(truncations) == 1
        cut = [[{name: values[:limit] for name, values in row.items()} for row in rows] for rows in tables]
        found = [_end_tokens(rows, tokenizer, limit) for rows in cut]
        assert found[0] == found[1]
        assert (
            sum(len(answer_spans(row["labels"])) for row in cut[0])
            == sum(len(answer_spans(row["labels"])) for row in cut[1])
            == len(examples) - next(iter(truncations)).dropped
        )


def _end_tokens(rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, limit: int) -> float | str:
    try:
        return check_training_rows(rows, tokenizer, 8, limit, joined=True)
    except InputError as error:
        return str(error)


def test_four_turns_need_less_than_half_the_tokens(
    tokenizer: PreTrainedTokenizerBase, read: Callable[..., list[Example]]
) -> None:
    """Turns of one length: 1 + 2 + 3 + 4 of them against 4."""
    examples = read(*[FOUR] * 3)
    rows = render_all(examples, tokenizer)
    together = sequences(examples, rows, tokenizer)
    alone, joined = (sum(map(len, table["input_ids"])) for table in (rows, together.rows))
    assert alone / joined == pytest.approx(2.5, abs=0.1)


SMALL = {"vocab_size": 500, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
WIDE = SMALL | {"intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8}
NO_DROPOUT = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**WIDE),
    "qwen3": lambda: Qwen3Config(**WIDE),
    "gemma": lambda: GemmaConfig(**WIDE),
    "sliding window": lambda: MistralConfig(**WIDE, sliding_window=20),
    "gpt2": lambda: GPT2Config(vocab_size=500, n_embd=16, n_layer=2, n_head=2, **NO_DROPOUT),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_those_of_one_answer_at_a_time(
    tokenizer: PreTrainedTokenizerBase, read: Callable[..., list[Example]], family: str
) -> None:
    """The sum over all answer tokens."""
    tokenizer.chat_template = CHATML
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]())
    examples = read(FOUR, CALLS, ONE)
    rows = render_all(examples, tokenizer)
    (alone, gradients), (together, same) = (
        _loss(model, table) for table in (rows, sequences(examples, rows, tokenizer).rows)
    )
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in gradients)
    for found, expected in zip(same, gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * largest)


def _loss(model: Any, rows: datasets.Dataset) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model.zero_grad()
    total = torch.zeros(())
    for row in rows:
        logits_TV = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        total = total + torch.nn.functional.cross_entropy(logits_TV, torch.tensor(row["labels"][1:]), reduction="sum")
    total.backward()
    return total.detach(), [parameter.grad.clone() for parameter in model.parameters()]
