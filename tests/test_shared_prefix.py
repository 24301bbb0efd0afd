"""A prefix that is computed once: outputs and gradients of the plain way, and what cannot be shared."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedConfig,
)

from monolora import MonoLoraConfig
from monolora.shared_prefix import common_length, common_prefix, shared_prefix, unsupported
from monolora.sparsity import SparsityMeter
from tests.support.tiny_configs import SMALL

LLAMA = LlamaConfig(**SMALL, num_key_value_heads=1)
GPT2 = GPT2Config(vocab_size=100, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
ADAPTERS = {
    "relu": MonoLoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    "topk": MonoLoraConfig(r=4, target_modules="all-linear", activation="topk:2", task_type="CAUSAL_LM"),
    "lora": LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
}
Rows = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=5)


@given(Rows, st.integers(0, 8))
def test_the_common_prefix(rows: list[list[int]], most: int) -> None:
    width = min(map(len, rows))
    rows = [row[:width] for row in rows]
    expected = next((k for k in range(min(width, most)) if len({row[k] for row in rows}) > 1), min(width, most))
    assert common_prefix(torch.tensor(rows), most) == expected


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=6))
def test_the_common_length(sequences: list[list[int]]) -> None:
    """Against a comparison of every sequence with the first."""
    expected = 0
    while all(len(ids) > expected and ids[expected] == sequences[0][expected] for ids in sequences):
        expected += 1
    assert common_length(sequences) == expected


def _model(config: PreTrainedConfig, adapter: str, fill: Callable[..., Any]) -> Any:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config).double()
    own = copy.deepcopy(ADAPTERS[adapter])
    own.fan_in_fan_out = config is GPT2
    return fill(get_peft_model(base, own, autocast_adapter_dtype=False)).double().train()


def _batch(shared: int) -> dict[str, torch.Tensor]:
    """Four rows with a common beginning, padded on the right."""
    torch.manual_seed(1)
    ids = torch.randint(3, 100, (4, shared + 7))
    ids[:, :shared] = ids[0, :shared]
    ids[:, shared] = torch.arange(4)
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 2, 5, 1)):
        mask[row, mask.shape[1] - padding :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _loss(model: Any, batch: dict[str, torch.Tensor], first: int, length: int) -> torch.Tensor:
    """Of the tokens from ``first`` on, padding left out."""
    logits = model(**batch).logits[:, first - 1 - length : -1]
    targets = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)[:, first:]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_losses_and_gradients_are_those_of_the_plain_way(
    config: PreTrainedConfig, adapter: str, attention: str, fill: Callable[..., Any]
) -> None:
    """In double precision, to rounding, which in Llama's norms is single; absolute positions and rotary ones."""
    model, batch = _model(config, adapter, fill), _batch(9)
    model.get_base_model().set_attn_implementation(attention)
    found = []
    for most in (0, 11):
        model.zero_grad()
        with shared_prefix(model, batch["input_ids"], most) as length:
            assert length == (9 if most else 0)
            loss = _loss(model, batch, 12, length)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
    assert max(float(grad.abs().max()) for grad in found[0][1:]) > 1e-3
    largest = max(float(grad.abs().max()) for grad in found[0])
    for plain, shared in zip(*found, strict=True):
        torch.testing.assert_close(shared, plain, rtol=0, atol=largest * (1e-12 if config is GPT2 else 1e-7))


def test_a_prefix_ends_before_what_is_needed_and_must_be_worth_it(fill: Callable[..., Any]) -> None:
    model, batch = _model(LLAMA, "relu", fill), _batch(9)
    for most, expected in ((5, 5), (4, 0), (100, 9)):  # 3 of 4 rows save 4 of 16 tokens: 19 %
        with shared_prefix(model, batch["input_ids"], most) as length:
            assert length == expected
    with shared_prefix(model, batch["input_ids"][:1], 9) as length:
        assert length == 0
    same = batch["input_ids"][:1].repeat(4, 1)
    with shared_prefix(model, same, 100) as length:  # rows that are all alike leave one token
        assert length == same.shape[1] - 1
    plain = model(**batch).logits  # nothing is left behind
    torch.testing.assert_close(model(**batch).logits, plain, rtol=0, atol=0)
    assert plain.shape[1] == 16


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (MambaConfig(vocab_size=100, hidden_size=16, state_size=4, num_hidden_layers=2), "no plain list"),
        (MistralConfig(**SMALL, num_key_value_heads=1, sliding_window=8), "no plain list"),
        (Gemma2Config(**SMALL, num_key_value_heads=1, head_dim=8), "no plain list"),
        (LLAMA, ""),
    ],
)
def test_models_whose_prefix_is_no_list_of_keys(config: PreTrainedConfig, reason: str) -> None:
    model = AutoModelForCausalLM.from_config(config).train()
    assert reason in unsupported(model)
    assert bool(reason) == bool(unsupported(model))
    ids = _batch(9)["input_ids"]
    with shared_prefix(model, ids, 9) as length:
        assert length == (0 if reason else 9)


def test_weights_that_are_sharded_later() -> None:
    """DeepSpeed and FSDP take a model that has been read from before."""
    model = AutoModelForCausalLM.from_config(LLAMA)
    assert unsupported(model) == ""
    next(model.parameters()).ds_id = 0
    assert unsupported(model) == "its weights are sharded"


def test_what_a_training_draws_or_computes_again(fill: Callable[..., Any]) -> None:
    """Dropout and gradient checkpointing: while training only."""
    dropping = MonoLoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.1, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_config(LLAMA), dropping)
    assert "dropout" in unsupported(model.train())
    assert unsupported(model.eval()) == ""
    model = _model(LLAMA, "relu", fill)
    model.get_base_model().gradient_checkpointing_enable()
    assert "checkpointing" in unsupported(model)


def test_units_are_counted_for_every_row(fill: Callable[..., Any]) -> None:
    """Sparsity is the same, whichever way."""
    model, batch = _model(LLAMA, "relu", fill), _batch(9)
    found = []
    for most in (0, 9):
        meter = SparsityMeter(model)
        with meter.measuring(), shared_prefix(model, batch["input_ids"], most):
            model(**batch)
        found.append(meter.result())
    assert found[0] == found[1]
    assert found[0].tokens == int(batch["attention_mask"].sum())
