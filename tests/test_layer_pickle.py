"""Copies of an adapted model: deepcopy, and pickle into a process that has not imported monolora."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners import lora
from transformers import BitsAndBytesConfig, LlamaForCausalLM

from monolora import MonoLoraConfig, MonoLoraLayer
from monolora.layer import monolora_class
from tests.support import forks

UNPICKLE = """
import pickle, sys, torch
with open(sys.argv[1], "rb") as file:
    model = pickle.load(file)
    config = pickle.load(file)
    ids, expected = pickle.load(file)
    layer_class = pickle.load(file)
assert torch.equal(model(ids).logits, expected)
print(type(model).__name__, config.peft_type.value, config.activation, layer_class.__name__)
"""


@pytest.fixture
def model(make_llama: Callable[..., LlamaForCausalLM], adapt: Callable[..., PeftModel]) -> PeftModel:
    return adapt(make_llama(), target_modules=["q_proj", "embed_tokens"])


def test_a_deep_copy_is_equal_and_apart(model: PeftModel, ids: torch.Tensor) -> None:
    expected = model(ids).logits
    copied = copy.deepcopy(model)
    assert torch.equal(copied(ids).logits, expected)
    for name, parameter in copied.named_parameters():
        if "lora_" in name:
            parameter.data.zero_()
    copied.delete_adapter("default")
    assert torch.equal(model(ids).logits, expected)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.activation == {"default": "relu"}


def test_a_pickle_is_read_by_a_new_process(model: PeftModel, ids: torch.Tensor, tmp_path: Path) -> None:
    """The class over a quantized layer too, which is made only when it is asked for."""
    things = (model, model.peft_config["default"], (ids, model(ids).logits.detach()), monolora_class(lora.Linear4bit))
    with open(tmp_path / "things.pkl", "wb") as file:
        for thing in things:
            pickle.dump(thing, file)
    run = forks.run(UNPICKLE, tmp_path / "things.pkl")
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["PeftModelForCausalLM", "MONOLORA", "relu", "MonoLoraLinear4bit"]


def test_a_quantized_layer_pickles(make_llama: Callable[..., LlamaForCausalLM], tmp_path: Path) -> None:
    make_llama(hidden_size=64).save_pretrained(tmp_path)
    quantized = LlamaForCausalLM.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True)
    ).eval()
    quantized.add_adapter(MonoLoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False))
    layer, x = quantized.model.layers[0].self_attn.q_proj, torch.randn(2, 64)
    again = pickle.loads(pickle.dumps(layer))
    assert type(again) is type(layer)
    assert isinstance(again, MonoLoraLayer)
    assert torch.equal(again(x), layer(x))
