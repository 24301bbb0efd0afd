"""Mixed batches: every row under its own adapter, in forward and in generate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import LlamaForCausalLM

from monolora import MonoLoraConfig

NAMES = ["second", "__base__", "default"]


@pytest.fixture
def model(
    make_llama: Callable[..., LlamaForCausalLM], adapt: Callable[..., PeftModel], fill: Callable[..., nn.Module]
) -> PeftModel:
    """Two adapters of different ranks, activations and targets, the embedding among them."""
    model = adapt(make_llama(), target_modules=["q_proj", "embed_tokens"])
    config = MonoLoraConfig(target_modules=["q_proj", "down_proj"], r=2, activation="softplus")
    model.add_adapter("second", config)
    fill(model, 2, "second")
    return model.eval()


def _alone(model: PeftModel, name: str, run: Callable[[PeftModel], torch.Tensor]) -> torch.Tensor:
    """What ``run`` gives with one adapter active, or none."""
    if name == "__base__":
        with model.disable_adapter():
            return run(model)
    model.set_adapter(name)
    return run(model)


def test_forward_gives_each_row_what_it_gets_alone(model: PeftModel, ids: torch.Tensor) -> None:
    mixed = model(ids, adapter_names=NAMES).logits
    for row, name in enumerate(NAMES):
        alone = _alone(model, name, lambda model, row=row: model(ids[row : row + 1]).logits[0])
        torch.testing.assert_close(mixed[row], alone, msg=name)
    assert not torch.allclose(mixed[0], model(ids).logits[0])


def test_the_order_of_rows_does_not_matter(model: PeftModel, ids: torch.Tensor) -> None:
    order = [2, 0, 1]
    mixed = model(ids, adapter_names=NAMES).logits
    again = model(ids[order], adapter_names=[NAMES[i] for i in order]).logits
    torch.testing.assert_close(again, mixed[order])


def test_all_rows_under_one_adapter_is_that_adapter(model: PeftModel, ids: torch.Tensor) -> None:
    torch.testing.assert_close(model(ids, adapter_names=["default"] * 3).logits, model(ids).logits)


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_generate_gives_each_row_what_it_gets_alone(
    model: PeftModel, ids: torch.Tensor, search: dict[str, Any]
) -> None:
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0, **search}
    mixed = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), adapter_names=NAMES, **settings)
    for row, name in enumerate(NAMES):
        one = ids[row : row + 1]
        alone = _alone(
            model,
            name,
            lambda model, one=one: model.generate(input_ids=one, attention_mask=torch.ones_like(one), **settings)[0],
        )
        assert mixed[row].tolist() == alone.tolist(), name
    assert len({tuple(row[6:]) for row in mixed.tolist()}) == 3


def test_an_unknown_name_is_refused(model: PeftModel, ids: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"non-existing adapter\(s\): third"):
        model(ids, adapter_names=["third", "default", "default"])


def test_so_are_mixed_batches_in_training(model: PeftModel, ids: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="in training mode"):
        model.train()(ids, adapter_names=NAMES)
