"""`unload` takes an adapted model apart without losing anything."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from transformers import BitsAndBytesConfig, LlamaForCausalLM, PreTrainedModel

from monolora import MonoLoraConfig
from monolora.merge import unload

Adapt = Callable[..., PeftModel]
Make = Callable[..., PreTrainedModel]


def test_the_base_is_plain_and_the_units_are_the_adapters(make_llama: Make, adapt: Adapt, ids: torch.Tensor) -> None:
    model = adapt(make_llama(), target_modules=["q_proj", "embed_tokens"], rank_pattern={"embed_tokens": 2})
    layer = model.base_model.model.model.layers[1].self_attn.q_proj
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    base, units = unload(model)
    assert type(base) is LlamaForCausalLM
    assert not any(isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)) for module in base.modules())
    assert "peft_config" not in vars(base)
    assert torch.equal(base(ids).logits, make_llama()(ids).logits)
    assert set(units) == {f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)} | {"model.embed_tokens"}
    q = units["model.layers.1.self_attn.q_proj"]
    assert torch.equal(q.A, A)
    assert torch.equal(q.B, B)
    assert (q.bias, q.scaling, q.activation) == (None, 2.0, "relu")
    assert [tuple(t.shape) for t in units["model.embed_tokens"][:2]] == [(2, 64), (16, 2)]


def test_conv1d_and_biases(make_gpt2: Make, adapt: Adapt) -> None:
    _, units = unload(adapt(make_gpt2(), target_modules=["c_attn"], lora_bias=True, fan_in_fan_out=True))
    A, B, bias, *_ = units["transformer.h.0.attn.c_attn"]
    assert bias is not None
    assert [tuple(t.shape) for t in (A, B, bias)] == [(4, 16), (48, 4), (48,)]


def test_trained_modules_tokens_and_biases_are_in_place(make_llama: Make, adapt: Adapt) -> None:
    model = adapt(
        make_llama(attention_bias=True),
        modules_to_save=["lm_head"],
        trainable_token_indices=[3, 9],
        bias="lora_only",
        target_modules=["q_proj"],
    )
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_" not in name:
            parameter.data.fill_(5.0)
    base, _ = unload(model)
    assert isinstance(base, LlamaForCausalLM)
    assert bool((base.lm_head.weight == 5).all())
    assert bool((base.model.embed_tokens.weight[[3, 9]] == 5).all())
    assert torch.equal(base.model.embed_tokens.weight[4], make_llama(attention_bias=True).model.embed_tokens.weight[4])
    assert bool((base.model.layers[0].self_attn.q_proj.bias == 5).all())


def test_tied_tokens_stay_tied(make_llama: Make, adapt: Adapt) -> None:
    model = adapt(make_llama(tie_word_embeddings=True), trainable_token_indices=[3])
    for name, parameter in model.named_parameters():
        if "trainable_tokens_delta" in name:
            parameter.data.fill_(5.0)
    base, _ = unload(model)
    assert base.get_output_embeddings().weight is base.get_input_embeddings().weight
    assert bool((base.get_output_embeddings().weight[3] == 5).all())


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_tied_units_share_no_memory(make_llama: Make, adapt: Adapt) -> None:
    """They could not be written to safetensors otherwise."""
    both = {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True}
    _, units = unload(adapt(make_llama(tie_word_embeddings=True), **both))
    assert torch.equal(units["lm_head"].A, units["model.embed_tokens"].B.T)
    assert len({tensor.data_ptr() for unit in units.values() for tensor in (unit.A, unit.B)}) == 4


@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes_bases_are_dequantized(make_llama: Make, adapt: Adapt, tmp_path, bits: int) -> None:
    make_llama(hidden_size=64, intermediate_size=64).save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)

    def load() -> LlamaForCausalLM:
        return LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=config)

    expected = load().dequantize()
    base, units = unload(adapt(load()))
    assert type(base.get_submodule("model.layers.0.self_attn.q_proj")) is torch.nn.Linear
    assert "quantization_config" not in vars(base.config)
    assert len(units) == 4
    for (name, one), (_, other) in zip(base.named_parameters(), expected.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_several_active_adapters_are_refused(make_llama: Make, adapt: Adapt) -> None:
    model = adapt(make_llama())
    model.add_adapter("other", MonoLoraConfig(target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(ValueError, match=r'add_weighted_adapter\(.*"cat"\)'):
        unload(model)


def test_only_the_active_adapter_counts(make_llama: Make, adapt: Adapt) -> None:
    model = adapt(make_llama())
    model.add_adapter("other", MonoLoraConfig(target_modules=["v_proj"], r=2))
    model.set_adapter("other")
    _, units = unload(model)
    assert set(units) == {f"model.layers.{i}.self_attn.v_proj" for i in (0, 1)}


def test_another_method_is_refused(make_llama: Make) -> None:
    with pytest.raises(ValueError, match="no MonoLoRA adapter but LoraModel"):
        unload(get_peft_model(make_llama(), LoraConfig(target_modules=["q_proj"])))
