"""Several that watch the same units at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaForCausalLM

from monolora import SparsityMeter
from monolora.explain import Text, collect
from monolora.units import adapted_layers, watch

Make = Callable[..., LlamaForCausalLM]

TEXTS = [Text(0, [5, 6, 7]), Text(1, [8, 9])]


@pytest.fixture(params=["mono", "lora"])
def model(request: pytest.FixtureRequest, make_llama: Make, adapt: Any, fill: Any) -> PeftModel:
    if request.param == "mono":
        return adapt(make_llama())
    return fill(get_peft_model(make_llama(), LoraConfig(target_modules=["q_proj", "down_proj"], r=4))).eval()


def test_a_meter_goes_on_after_a_pass(model: PeftModel, ids: torch.Tensor) -> None:
    meter = SparsityMeter(model)
    with meter.measuring(), torch.no_grad():
        model(input_ids=ids)
        collect(model, TEXTS, pad_token_id=0)
        model(input_ids=ids)
    assert meter.result().tokens == 2 * ids.numel() + 5


@pytest.mark.parametrize("first", [0, 1])
def test_they_end_in_any_order(model: PeftModel, ids: torch.Tensor, first: int) -> None:
    layers, seen = adapted_layers(model), ([], [])
    ends = [watch(layers, lambda layer, name, h, of=of: of.append(h)) for of in seen]
    for which in (first, 1 - first):
        with torch.no_grad():
            model(input_ids=ids)
        for end in ends[which]:
            end()
    with torch.no_grad():
        model(input_ids=ids)
    assert len(seen[first]) == len(layers)
    assert len(seen[1 - first]) == 2 * len(layers)
    assert all(vars(layer).get("unit_observer") is None for layer in layers)


def test_another_observer_stays(make_llama: Make, adapt: Any, ids: torch.Tensor) -> None:
    model, seen = adapt(make_llama()), []
    layers: list[Any] = list(adapted_layers(model))

    def observer(layer: Any, name: str, h: torch.Tensor) -> None:
        seen.append(h)

    for layer in layers:
        layer.unit_observer = observer
    collect(model, TEXTS, pad_token_id=0)
    assert len(seen) == len(layers)
    assert all(layer.unit_observer is observer for layer in layers)
