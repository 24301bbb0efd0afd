"""Batched answers and log-probabilities against one row at a time: float32, no padding, transformers alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Olmo2Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen3Config,
)

from monolora import MonoLoraConfig
from monolora import inference as inference_module
from monolora.data.chat_template import Split
from monolora.inference import GREEDY, Inference, evaluating, generate
from monolora.shared_prefix import unsupported
from tests.support.tiny_configs import SMALL

KINDS = ("llama", "monolora", "gpt2")
GENERATING: list[PreTrainedConfig] = [
    LlamaConfig(**SMALL, num_key_value_heads=1),
    Qwen2Config(**SMALL, num_key_value_heads=1),
    Qwen3Config(**SMALL, num_key_value_heads=1, head_dim=8),
    PhiConfig(**SMALL),
    GPTNeoXConfig(**SMALL),
    MistralConfig(**SMALL, num_key_value_heads=1, sliding_window=8),
    Gemma2Config(**SMALL, num_key_value_heads=1, head_dim=8, sliding_window=8),
    Olmo2Config(**SMALL, num_key_value_heads=1),
]


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, chat_model: Path, fill: Callable[..., Any]) -> PreTrainedModel:
    """A Llama, one with an adapter, and a GPT-2, whose positions are absolute: padding that shifts them shows."""
    if request.param == "gpt2":
        config = GPT2Config(vocab_size=500, n_embd=32, n_layer=2, n_head=2, n_positions=128)
        config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 0
        return GPT2LMHeadModel(config).eval()
    base = AutoModelForCausalLM.from_pretrained(chat_model, dtype=torch.float32)
    if request.param == "monolora":
        base = fill(get_peft_model(base, MonoLoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])))
    return base.eval()


@pytest.fixture
def inference(model: PreTrainedModel, chat_tokenizer: PreTrainedTokenizerBase) -> Inference:
    """Three rows at a time, so that eight rows make a ragged last batch."""
    return Inference(model=model, tokenizer=chat_tokenizer, batch_size=3)


@pytest.fixture
def prompts() -> list[list[int]]:
    """Eight prompts of different lengths."""
    draw = torch.Generator().manual_seed(5)
    return [torch.randint(3, 500, (length,), generator=draw).tolist() for length in (9, 1, 4, 17, 4, 2, 30, 5)]


@torch.no_grad()
def _log_probs(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """Log-probabilities of the next token after every place of one row."""
    return torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].double(), -1)


def test_generate(inference: Inference, prompts: list[list[int]]) -> None:
    expected = []
    for prompt in prompts:
        ids = list(prompt)
        while len(ids) < len(prompt) + 7:
            ids.append(int(_log_probs(inference.model, ids)[-1].argmax()))
            if ids[-1] == inference.tokenizer.eos_token_id:
                break
        expected.append(inference.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True))
    assert inference.generate(prompts, 7) == expected


START = list(range(10, 30))


def _adapted(config: PreTrainedConfig, attention: str, fill: Callable[..., Any]) -> tuple[Any, list[int]]:
    """A model with an adapter, and the numbers of tokens that it reads, pass by pass."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    model = fill(get_peft_model(base, MonoLoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))).eval()
    seen: list[int] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0].numel()))
    return model, seen


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("config", GENERATING, ids=lambda config: config.model_type)
def test_log_probs_after_a_common_prefix(
    config: PreTrainedConfig, attention: str, fill: Callable[..., Any], chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    """The distributions are those of every row by itself, also where an answer begins within the prefix."""
    model, seen = _adapted(config, attention, fill)
    inference = Inference(model=model, tokenizer=chat_tokenizer, batch_size=3)
    for context, read_once in ((START, 19), (START[:12], 11)):
        answer = START[len(context) :]
        splits = [Split(context, [*answer, *more]) for more in ([40], [41, 42, 43, 44, 45, 46, 47], [41, 40])]
        seen.clear()
        found = inference.answer_distributions(splits)
        shared = read_once if unsupported(model) == "" else 0
        assert sum(seen) == 3 * 27 - 2 * shared
        for split, row_TV in zip(splits, found, strict=True):
            wanted_TV = _log_probs(model, split.context + split.answer)[len(context) - 1 : -1]
            torch.testing.assert_close(row_TV.double(), wanted_TV, rtol=0, atol=1e-4)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("config", GENERATING, ids=lambda config: config.model_type)
def test_generate_after_a_common_prefix(config: PreTrainedConfig, attention: str, fill: Callable[..., Any]) -> None:
    """The tokens are those of every prompt by itself; the prefix is read once, or by every row where it must be."""
    model, seen = _adapted(config, attention, fill)
    model.generation_config.eos_token_id = None
    prompts = [[*START, 40], [*START, 41, 42, 43, 44, 45, 46, 47], [*START, 41, 40]]
    tokens_BN = generate(model, prompts, 0, max_new_tokens=6, **GREEDY)
    assert seen[0] == (20 if unsupported(model) == "" else 3 * 27)
    for prompt, row in zip(prompts, tokens_BN.tolist(), strict=True):
        ids = torch.tensor([prompt])
        for token in row:  # without any cache
            assert int(model(input_ids=ids, use_cache=False).logits[0, -1].argmax()) == token
            ids = torch.cat([ids, torch.tensor([[token]])], 1)


def test_generate_without_a_common_prefix_or_with_virtual_tokens() -> None:
    """Prompt tuning puts tokens in front of all others: whole rows then, as for prompts that have little in common."""
    model = AutoModelForCausalLM.from_config(GENERATING[0]).eval()
    tuned = get_peft_model(copy.deepcopy(model), PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")).eval()
    assert "virtual tokens" in unsupported(tuned)
    alone = [generate(model, [prompt], 0, max_new_tokens=4, **GREEDY)[0] for prompt in ([3, 4], [5, 6, 7])]
    both = generate(model, [[3, 4], [5, 6, 7]], 0, max_new_tokens=4, **GREEDY)
    assert both.tolist() == [row.tolist() for row in alone]


def test_generate_is_greedy_whatever_the_model_asks_for(inference: Inference, prompts: list[list[int]]) -> None:
    plain = inference.generate(prompts, 7)
    asks = inference.model.generation_config
    asks.do_sample, asks.temperature, asks.top_p, asks.repetition_penalty = True, 0.3, 0.5, 3.0
    assert inference.generate(prompts, 7) == plain


def test_next_token_log_probs(inference: Inference, prompts: list[list[int]]) -> None:
    tokens = [[5 + row, 400 - row] for row in range(len(prompts))]
    found = inference.next_token_log_probs(prompts, tokens)
    for prompt, wanted, values in zip(prompts, tokens, found, strict=True):
        assert values == pytest.approx(_log_probs(inference.model, prompt)[-1, wanted].tolist(), abs=1e-5)


@pytest.mark.parametrize("most_places", [2048, 4])
def test_answer_log_probs(
    inference: Inference, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch, most_places: int
) -> None:
    """Also where a batch's logits are made in parts."""
    monkeypatch.setattr(inference_module, "MAX_POSITIONS", most_places)
    answers = [[7, 8, 9], [11], [12] * 6, [13, 14], [], [15], [2], [16, 17]]
    splits = [Split(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    expected = []
    for prompt, answer in splits:
        after = _log_probs(inference.model, prompt + answer)
        expected.append(sum(float(after[len(prompt) - 1 + k, token]) for k, token in enumerate(answer)))
    assert inference.answer_log_probs(splits, "test") == pytest.approx(expected, abs=1e-4)


def _expected_sums(model: PreTrainedModel, prompts: list[list[int]], continuations: list[list[int]]) -> Any:
    """One row at a time."""
    expected = []
    for prompt in prompts:
        row = []
        for continuation in continuations:
            after = _log_probs(model, prompt + continuation)
            row.append(sum(float(after[len(prompt) - 1 + k, token]) for k, token in enumerate(continuation)))
        expected.append(row)
    return torch.tensor(expected)


@pytest.mark.parametrize("continuations", [[[7, 8, 9], [11], [12] * 6], [[5], [6]]])
@pytest.mark.parametrize("most_places", [2048, 4])
def test_continuation_log_probs(
    inference: Inference,
    prompts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    most_places: int,
    continuations: list[list[int]],
) -> None:
    """The same continuations after every prompt, which is read once; also where a batch is divided."""
    monkeypatch.setattr(inference_module, "MAX_POSITIONS", most_places)
    found = torch.tensor(inference.continuation_log_probs(prompts, continuations, "test"))
    torch.testing.assert_close(
        found.double(), _expected_sums(inference.model, prompts, continuations).double(), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize(
    "config",
    [
        MambaConfig(vocab_size=500, hidden_size=16, state_size=4, num_hidden_layers=2, expand=2, pad_token_id=0),
        MistralConfig(
            vocab_size=500,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            sliding_window=3,
            pad_token_id=0,
        ),
    ],
)
def test_continuations_where_a_prefix_is_no_list_of_keys(
    config: PreTrainedConfig, chat_tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> None:
    """A recurrent state, and keys that fall out of a window."""
    model = AutoModelForCausalLM.from_config(config).eval()
    inference = Inference(model=model, tokenizer=chat_tokenizer, batch_size=3)
    continuations = [[7, 8, 9, 10, 11], [12, 13]]
    found = torch.tensor(inference.continuation_log_probs(prompts, continuations, "test"))
    torch.testing.assert_close(
        found.double(), _expected_sums(model, prompts, continuations).double(), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("model", ["monolora"], indirect=True)
def test_sparsity_passes_over_padding(inference: Inference, prompts: list[list[int]]) -> None:
    together = inference.sparsity(prompts)
    alone = [inference.sparsity([prompt]) for prompt in prompts]
    tokens = sum(map(len, prompts))
    assert together.tokens == tokens
    assert together.zeros * tokens == pytest.approx(sum(each.zeros * each.tokens for each in alone))


def test_evaluating_gives_back_what_it_found(chat_model: Path) -> None:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(chat_model), LoraConfig(task_type="CAUSAL_LM")).train()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert all(module.training for module in model.modules())
    assert not model.get_output_embeddings()._forward_pre_hooks
