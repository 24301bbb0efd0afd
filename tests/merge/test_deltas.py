"""Deltas are what an adapted or merged layer adds to its base layer's output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaForCausalLM, PreTrainedModel

from monolora import MonoLoraConfig
from monolora.errors import InputError
from monolora.merge import export_dense, export_exact, export_lora, linearize
from monolora.merge.deltas import Delta, adapter_deltas, merged_deltas
from tests.support.merge_inputs import text

Make = Callable[..., PreTrainedModel]
Adapt = Callable[..., PeftModel]

pytestmark = [
    pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed but the targeted layer"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`"),
    pytest.mark.filterwarnings("ignore:Adapter 'default'.*have invalid shape"),
]

LLAMA: dict[str, dict[str, Any]] = {
    "plain": {},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "lora_bias": {"lora_bias": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "use_rslora": True},
}


def _input(layer: nn.Module) -> torch.Tensor:
    """Inputs, or all token ids."""
    if isinstance(layer, nn.Embedding):
        return torch.arange(layer.num_embeddings)[None]
    inputs = layer.weight.shape[0] if type(layer).__name__.endswith("Conv1D") else layer.in_features
    return torch.randn(2, 5, int(inputs))


@torch.no_grad()
def _check(deltas: dict[str, Delta], model: nn.Module, base: nn.Module, targets: int) -> None:
    """Each delta against the difference of the two models' own layers."""
    assert len(deltas) == targets
    for name, delta in deltas.items():
        plain = base.get_submodule(name)
        x = _input(plain)
        torch.testing.assert_close(delta(x), model.get_submodule(name)(x) - plain(x), rtol=1e-4, atol=1e-5)
        assert delta(x).norm() > 0.01


@pytest.mark.parametrize("activation", ["relu", "topk:2", "identity"])
@pytest.mark.parametrize("settings", LLAMA)
def test_of_monolora(make_llama: Make, adapt: Adapt, settings: str, activation: str) -> None:
    model = adapt(make_llama(), activation=activation, **LLAMA[settings])
    _check(adapter_deltas(model), model.get_base_model(), make_llama(), 3 if settings == "embedding" else 4)


@pytest.mark.parametrize("settings", LLAMA)
def test_of_lora(make_llama: Make, fill: Callable, settings: str) -> None:
    config = LoraConfig(**{"target_modules": ["q_proj", "down_proj"], "r": 4} | LLAMA[settings])
    model = fill(get_peft_model(make_llama(), config)).eval()
    _check(adapter_deltas(model), model.get_base_model(), make_llama(), 3 if settings == "embedding" else 4)


@pytest.mark.parametrize("kind", [LoraConfig, MonoLoraConfig])
def test_of_adapters_on_gpt2(make_gpt2: Make, fill: Callable, kind: Any) -> None:
    config = kind(target_modules=["c_attn", "wte", "wpe"], r=4, fan_in_fan_out=True)
    model = fill(get_peft_model(make_gpt2(), config)).eval()
    _check(adapter_deltas(model), model.get_base_model(), make_gpt2(), 4)


@pytest.mark.parametrize("kind", [LoraConfig, MonoLoraConfig])
def test_only_the_active_adapter_counts(make_llama: Make, fill: Callable, kind: Any) -> None:
    model = get_peft_model(make_llama(), kind(target_modules=["q_proj"]))
    model.add_adapter("other", kind(target_modules=["v_proj"], r=2))
    fill(model, 3, "other")
    model.set_adapter("other")
    deltas = adapter_deltas(model.eval())
    _check(deltas, model.get_base_model(), make_llama(), 2)
    assert {name.split(".")[-1] for name in deltas} == {"v_proj"}


@pytest.mark.parametrize("kind", ["dense", "exact", "lora"])
@pytest.mark.parametrize("settings", ["plain", "embedding", "patterns"])
def test_of_merges(make_llama: Make, adapt: Adapt, tmp_path: Path, settings: str, kind: str) -> None:
    model = adapt(make_llama(), **LLAMA[settings])
    maps, adapted = linearize(model, text()), adapt(make_llama(), **LLAMA[settings])
    merged: Any
    if kind == "lora":
        export_lora(model, maps, tmp_path)
        merged = PeftModel.from_pretrained(make_llama(), tmp_path)
    else:
        export_dense(model, maps, tmp_path) if kind == "dense" else export_exact(model, tmp_path)
        merged = AutoModelForCausalLM.from_pretrained(tmp_path)
    deltas = merged_deltas(merged, adapted, adapter_deltas(adapted))
    layers = merged.get_base_model() if kind == "lora" else merged
    _check(deltas, layers, make_llama(), len(maps))


def test_of_a_lora_merge_with_biases_on_b(make_llama: Make, adapt: Adapt, tmp_path: Path) -> None:
    model = adapt(make_llama(), lora_bias=True, alpha_pattern={"q_proj": 3})
    export_lora(model, linearize(model, None), tmp_path)
    merged = PeftModel.from_pretrained(make_llama(), tmp_path)
    _check(merged_deltas(merged, model, adapter_deltas(model)), merged.get_base_model(), make_llama(), 4)


def test_of_a_dense_merge_with_intercepts(make_gpt2: Make, adapt: Adapt, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "lora_bias": True}
    model, adapted = (adapt(make_gpt2(), **settings) for _ in range(2))
    export_dense(model, linearize(model, text()), tmp_path)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path)
    _check(merged_deltas(merged, adapted, adapter_deltas(adapted)), merged, make_gpt2(), 6)


def test_over_a_4_bit_base_that_has_run_already(make_llama: Make, adapt: Adapt, tmp_path: Path) -> None:
    """On some CPUs bitsandbytes packs the weights anew at a forward."""
    make_llama(hidden_size=64, intermediate_size=64).save_pretrained(tmp_path / "base")
    config = BitsAndBytesConfig(load_in_4bit=True)

    def load() -> PreTrainedModel:
        return LlamaForCausalLM.from_pretrained(tmp_path / "base", quantization_config=config).eval()

    model, adapted = adapt(load()), adapt(load())
    export_dense(model, linearize(model, None), tmp_path / "dense")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    with torch.no_grad():
        adapted(**text()[0])
    deltas = merged_deltas(merged, adapted, adapter_deltas(adapted))
    with torch.no_grad():
        for name, delta in deltas.items():
            layer = merged.get_submodule(name)
            x = torch.randn(4, 64)
            units = adapted.get_base_model().get_submodule(name)
            half = units.lora_B["default"](units.lora_A["default"](x)) * units.scaling["default"] / 2
            assert delta(x).shape == layer(x).shape
            assert (delta(x) - half).norm() < 0.01 * half.norm()


def test_a_merge_of_something_else(make_llama: Make, make_gpt2: Make, adapt: Adapt) -> None:
    adapted = adapt(make_llama())
    names = list(adapter_deltas(adapted))
    says = r"has no model\.layers\.0\.self_attn\.q_proj \(4 such\): it is a merge of something else"
    with pytest.raises(InputError, match=says):
        merged_deltas(make_gpt2(), adapted, names)
    lora = get_peft_model(make_llama(), LoraConfig(target_modules=["up_proj"]))
    with pytest.raises(InputError, match=says):
        merged_deltas(lora, adapted, names)
