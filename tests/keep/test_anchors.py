"""Anchors: which prompts, whose answers, what is held out, what the evaluation keeps for itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from monolora import workers
from monolora.data import prompt_sets
from monolora.data.chat_template import prompt_ids
from monolora.data.example import Example
from monolora.data.prompt_sets import Prompt, PromptSet
from monolora.errors import InputError, RunError
from monolora.keep import anchors
from monolora.keep.anchors import Anchor, answered, base_key, divided, read_prompts
from tests.support.forks import VLLM
from tests.support.requirements import NEEDS_VLLM

Write = Callable[..., str]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONOLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MONOLORA_DATA", raising=False)


def test_embedded_sets_in_equal_parts_without_a_network() -> None:
    """As many of each, in an order that no seed of a run changes."""
    examples = read_prompts(["chat", "refusals"], 40).examples
    embedded = {name: {p.instruction for p in prompt_sets.load(name).prompts} for name in ("chat", "refusals")}
    assert [sum(e.instruction in embedded[name] for e in examples) for name in embedded] == [20, 20]
    assert read_prompts(["chat", "refusals"], 40).examples == examples
    assert read_prompts(["chat,refusals"], 60).examples[:40] == examples


@pytest.mark.parametrize("names", [["chat", "refusals"], ["chat", "contrasts", "refusals", "contrast-pairs"]])
def test_held_out_prompts_are_of_every_set(names: list[str]) -> None:
    """A tenth of each, or nearly so: every tenth of sets in a fixed turn would be of the first set alone."""
    examples = read_prompts(names, 400).examples
    anchors = divided([Anchor([index], [1]) for index in range(len(examples))])
    held_out = [examples[anchor.context[0]].instruction for anchor in anchors.held_out]
    for name in names:
        own = {prompt.instruction for prompt in prompt_sets.load(name).prompts}
        assert sum(text in own for text in held_out) >= 0.4 * len(held_out) / len(names)


def test_files_with_prompts_and_with_messages(write_rows: Write) -> None:
    """One example a row; what a conversation ends with is not part of the prompt."""
    prompts = write_rows([{"prompt": "How are you?"}, {"prompt": "how  are YOU?"}, {"prompt": "Bye"}], "p.jsonl")
    assert sorted(e.instruction for e in read_prompts([prompts], 10).examples) == ["Bye", "How are you?"]
    turns = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}]
    messages = write_rows([{"messages": turns}, {"messages": [{"role": "user", "content": "Three?"}]}], "m.jsonl")
    examples = read_prompts([messages], 10).examples
    assert sorted(e.messages[-1]["content"] for e in examples) == ["One?", "Three?"]
    assert not any(e.response for e in examples)


def test_evaluated_prompts_are_dropped_by_text(write_rows: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their case and spaces; the held-out rows of the task too; and their number is given."""
    evaluated = PromptSet(name="b", purpose="safety", spec={}, prompts=(Prompt("k", "Tell me\nABOUT it"),))
    load = prompt_sets.load

    def patched(name: str, *args: Any, **options: Any) -> PromptSet:
        return evaluated if name in ("beavertails", "beavertails-eval", "xstest") else load(name, *args, **options)

    monkeypatch.setattr(prompt_sets, "load", patched)
    rows = write_rows([{"prompt": text} for text in ("tell me about  it", "Rate this: a", "Something else")])
    prompts = read_prompts([rows], 10, [Example("Rate this:", "", "a")])
    tested = read_prompts([rows], 10, [Example("rate this: a", "")])
    assert [e.instruction for e in tested.examples] == ["Something else"]
    assert tested.evaluated == 2
    assert prompts.evaluated == 2
    assert len(read_prompts([rows], 10, from_evaluation=True).examples) == 3


def test_no_prompt_left_is_one_line_with_a_fix(write_rows: Write) -> None:
    """All of them are the task's own test."""
    rows = write_rows([{"prompt": "a"}, {"prompt": "b"}])
    with pytest.raises(InputError, match=r"all 2 prompts are used by the evaluation, the task's test or.*Give other"):
        read_prompts([rows], 10, [Example("a", ""), Example("b", "")])
    with pytest.raises(InputError, match="Unknown set of prompts"):
        read_prompts(["refusal"], 10)


def _answered(model: Any, tokenizer: PreTrainedTokenizerBase, number: int = 6, **options: Any) -> list[Anchor]:
    examples = read_prompts(["chat"], number).examples
    settings = {"base": "f", "max_new_tokens": 5, "batch_size": 4}
    settings |= {} if "dtype" in options else {"dtype": model.dtype}
    return answered(examples, tokenizer, partial(nullcontext, model), **settings | options)


def test_answers_are_the_models_own_greedy_ones(chat_model: Path, chat_tokenizer: PreTrainedTokenizerBase) -> None:
    """Against one argmax a token, without a cache, prompt by prompt; up to the end token."""
    model = LlamaForCausalLM.from_pretrained(chat_model, dtype=torch.float32)
    made = _answered(model, chat_tokenizer)
    expected = []
    for example in read_prompts(["chat"], 6).examples:
        ids = prompt_ids(example, chat_tokenizer)
        answer: list[int] = []
        while len(answer) < 5 and model.generation_config.eos_token_id not in answer:
            with torch.no_grad():
                answer.append(int(model(input_ids=torch.tensor([ids + answer])).logits[0, -1].argmax()))
        expected.append(Anchor(ids, answer))
    spoken = [anchor for anchor in expected if chat_tokenizer.decode(anchor.answer, skip_special_tokens=True).strip()]
    assert made == spoken


def test_answers_are_made_once(chat_model: Path, chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """From the cache the second time, whole or not at all; another base, dtype or length is another entry."""
    model = LlamaForCausalLM.from_pretrained(chat_model, dtype=torch.float32)
    made = _answered(model, chat_tokenizer)
    (entry,) = (tmp_path / "cache" / "anchors").iterdir()

    class Silent:
        dtype = torch.float32

        def __getattr__(self, name: str) -> Any:
            raise AssertionError("the model is not asked again")

    assert _answered(Silent(), chat_tokenizer) == made
    for other in ({"base": "g"}, {"max_new_tokens": 4}, {"number": 5}):
        _answered(model, chat_tokenizer, **other)
    _answered(model.to(torch.bfloat16), chat_tokenizer)
    assert len(list(entry.parent.iterdir())) == 5
    model.float()
    for damage in ("{", json.dumps({"answers": [[1]]}), json.dumps({})):
        entry.write_text(damage)
        assert _answered(model, chat_tokenizer) == made


@pytest.mark.vllm
@NEEDS_VLLM
def test_vllm_gives_transformers_answers(
    chat_model: Path, chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Token for token, up to end tokens and with them, in the order of the prompts; and the model is not asked."""
    monkeypatch.setattr(workers, "subprocess", VLLM)
    monkeypatch.setattr(anchors, "VLLM_PROMPTS", 1)
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    model = LlamaForCausalLM.from_pretrained(chat_model, dtype=torch.float32)
    end = _answered(model, chat_tokenizer)[0].answer[1]
    model.generation_config.eos_token_id = end
    model.save_pretrained(tmp_path / "base")
    chat_tokenizer.save_pretrained(tmp_path / "base")
    made = _answered(None, chat_tokenizer, base="vllm", dtype=torch.float32, folder=str(tmp_path / "base"))
    assert made == _answered(model, chat_tokenizer, base="transformers")
    assert made[0].answer[-1] == end
    assert len({len(anchor.answer) for anchor in made}) > 1


def test_transformers_answers_where_vllm_does_not(
    chat_model: Path,
    chat_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a warning if vLLM fails; without one for few prompts or a base that is quantized when it is loaded."""

    def fail(target: str, job: dict[str, Any], log: Path) -> Any:
        raise RunError("vLLM does not start with base: no memory")

    monkeypatch.setattr(anchors, "worker_rows", fail)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    model = LlamaForCausalLM.from_pretrained(chat_model, dtype=torch.float32)
    made = _answered(model, chat_tokenizer, folder=str(chat_model))
    monkeypatch.setattr(anchors, "VLLM_PROMPTS", 1)
    assert _answered(model, chat_tokenizer, base="g") == made
    with pytest.warns(UserWarning, match="so transformers does: vLLM does not start with base: no memory"):
        assert _answered(model, chat_tokenizer, base="h", folder=str(chat_model)) == made


def test_a_base_that_says_nothing_is_refused(chat_model: Path, chat_tokenizer: PreTrainedTokenizerBase) -> None:
    """Its first token is always the end."""
    model = LlamaForCausalLM.from_pretrained(chat_model, dtype=torch.float32)
    end = model.generation_config.eos_token_id
    torch.nn.init.zeros_(model.lm_head.weight)
    model.lm_head.bias = torch.nn.Parameter(torch.nn.functional.one_hot(torch.tensor(end), model.vocab_size).float())
    with pytest.raises(InputError, match="answers 6 of 6 prompts with nothing"):
        _answered(model, chat_tokenizer)


@pytest.mark.parametrize("number", [2, 9, 10, 11, 500])
def test_a_tenth_is_held_out(number: int) -> None:
    """Rounded up, and apart."""
    made = [Anchor([index], [index]) for index in range(number)]
    split = divided(made)
    assert len(split.held_out) == -(-number // anchors.HELD_OUT)
    assert sorted(split.train + split.held_out) == made


def test_one_anchor_cannot_be_divided() -> None:
    """It would be learned from or measured on, not both."""
    with pytest.raises(InputError, match="one more"):
        divided([Anchor([1], [1])])


def test_a_quantized_base_is_another_base() -> None:
    """Its answers differ; a dense one is its fingerprint."""
    dense = {"load_in_4bit": False, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": False}
    four = dense | {"load_in_4bit": True}
    keys = {base_key("f", config) for config in (dense, four, four | {"bnb_4bit_quant_type": "fp4"}, {})}
    assert len(keys) == 3
    assert base_key("f", dense) == "f"
