"""MonoLoraModel within PEFT: targets, adapters by name, training settings, and what it will not do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model, inject_adapter_in_model
from peft.utils.error import NoMatchingPeftModuleError
from torch import nn
from transformers import LlamaForCausalLM, MambaConfig, MambaForCausalLM

from monolora import MonoLoraConfig, MonoLoraLayer, MonoLoraModel, monolora_reference

Make = Callable[..., LlamaForCausalLM]
Adapt = Callable[..., PeftModel]


def _grads(model: nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# Targets


def test_the_default_targets_are_loras(make_llama: Make) -> None:
    model = get_peft_model(make_llama(), MonoLoraConfig())
    adapted = {name.rpartition(".")[-1] for name, layer in model.named_modules() if isinstance(layer, MonoLoraLayer)}
    assert adapted == {"q_proj", "v_proj"}
    assert isinstance(model.base_model, MonoLoraModel)


@pytest.mark.parametrize("targets", [["q_prj", "k_prj"], "q_prj"])
def test_targets_that_match_nothing_are_answered_with_the_nearest_names(make_llama: Make, targets: Any) -> None:
    with pytest.raises(NoMatchingPeftModuleError, match=r"not found in the base model.*Nearest module names: .*q_proj"):
        get_peft_model(make_llama(), MonoLoraConfig(target_modules=targets))


def test_so_are_those_of_a_second_adapter(make_llama: Make) -> None:
    model = get_peft_model(make_llama(), MonoLoraConfig())
    with pytest.raises(NoMatchingPeftModuleError, match=r"Nearest module names: .*q_proj"):
        model.add_adapter("second", MonoLoraConfig(target_modules=["q_prj"]))
    assert list(model.peft_config) == ["default"]


def test_a_model_that_peft_knows_no_targets_for_is_answered_with_its_names() -> None:
    model = nn.Sequential()
    model.add_module("project", nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"specify `target_modules`.*Module names in this model: project\."):
        get_peft_model(model, MonoLoraConfig())


def test_other_errors_come_without_module_names(make_llama: Make) -> None:
    with pytest.raises(ValueError, match="is not supported") as error:
        get_peft_model(make_llama(), MonoLoraConfig(target_modules=["input_layernorm"]))
    assert "odule names" not in str(error.value)


@pytest.mark.parametrize("targets", [["attention"], ["out_proj"], "all-linear"])
def test_multihead_attention_is_refused_by_name(targets: Any) -> None:
    """Its out_proj is never called, so that an adapter on it would do nothing."""
    model = nn.Sequential(nn.Linear(4, 4))
    model.add_module("attention", nn.MultiheadAttention(4, 2))
    with pytest.raises(ValueError, match=r"does not support nn\.MultiheadAttention, nor its out_proj.*exclude_modules"):
        get_peft_model(model, MonoLoraConfig(target_modules=targets))


def test_mambas_uncalled_projection_is_refused_as_for_lora() -> None:
    config = MambaConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, state_size=4)
    with pytest.raises(ValueError, match="'out_proj' is incompatible with Mamba"):
        get_peft_model(MambaForCausalLM(config), MonoLoraConfig(target_modules=["out_proj"]))


def test_injection_without_a_peft_model(make_llama: Make, fill: Callable[..., nn.Module], ids: torch.Tensor) -> None:
    base, config = make_llama(), MonoLoraConfig(target_modules=["up_proj"])
    x = torch.randn(2, 16)
    model = fill(inject_adapter_in_model(config, base))
    layer = model.model.layers[0].mlp.up_proj
    expected = monolora_reference(
        x, layer.weight, None, layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.scaling["default"]
    )
    torch.testing.assert_close(layer(x), expected)
    again = get_peft_model(make_llama(), config)
    assert torch.equal(fill(again)(ids).logits, model(ids).logits)


# Adapters by name


def test_set_disable_and_delete(
    make_llama: Make, adapt: Adapt, fill: Callable[..., nn.Module], ids: torch.Tensor
) -> None:
    base = make_llama()(ids).logits
    model = adapt(make_llama())
    model.add_adapter("second", MonoLoraConfig(target_modules=["v_proj"], activation="softplus"))
    fill(model, 2, "second")
    first = model(ids).logits
    with model.disable_adapter():
        assert torch.equal(model(ids).logits, base)
    assert torch.equal(model(ids).logits, first)
    model.set_adapter("second")
    second = model(ids).logits
    assert not torch.allclose(second, first)
    assert not torch.allclose(second, base)
    model.set_adapter("default")
    model.delete_adapter("second")
    assert torch.equal(model(ids).logits, first)
    assert not [name for name, _ in model.named_parameters() if "second" in name]


def test_the_status_peft_reports(make_llama: Make, adapt: Adapt) -> None:
    status = adapt(make_llama()).get_model_status()
    assert status.peft_types == {"default": "MONOLORA"}
    assert status.enabled
    assert status.active_adapters == status.available_adapters == ["default"]
    assert status.merged_adapters == []
    assert status.trainable_params == sum((16 + 16) * 4 + (24 + 16) * 4 for _ in range(2))


def test_unload_gives_the_base_back(make_llama: Make, adapt: Adapt, ids: torch.Tensor) -> None:
    model = adapt(make_llama(), target_modules=["q_proj", "embed_tokens"]).unload()
    assert torch.equal(model(ids).logits, make_llama()(ids).logits)
    assert not any(isinstance(module, MonoLoraLayer) for module in model.modules())


# What it will not do


def test_trainers_that_merge_for_vllm_are_told_what_to_set(make_llama: Make, adapt: Adapt) -> None:
    """TRL calls this before it generates for the first time (``VLLMGeneration.sync_weights``), before any training."""
    with pytest.raises(ValueError, match=r"GRPO with use_vllm=True.*set use_vllm=False"):
        adapt(make_llama()).merge_adapter()


@pytest.mark.parametrize("method", ["merge_and_unload", "merge_adapter", "unmerge_adapter"])
def test_merging_names_the_command_that_does_it(make_llama: Make, adapt: Adapt, ids: torch.Tensor, method: str) -> None:
    model = adapt(make_llama())
    expected = model(ids).logits
    with pytest.raises((ValueError, NotImplementedError), match="`monolora merge ADAPTER OUT`"):
        getattr(model, method)()
    assert torch.equal(model(ids).logits, expected)
    assert not model.supports_lora_conversion()


def test_converting_to_an_initial_model_is_refused(make_llama: Make, adapt: Adapt, tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="does not support path_initial_model_for_weight_conversion"):
        adapt(make_llama()).save_pretrained(tmp_path, path_initial_model_for_weight_conversion=str(tmp_path / "init"))


# Training


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_gives_the_same_gradients(
    make_llama: Make, adapt: Adapt, ids: torch.Tensor, reentrant: bool, dropout: float
) -> None:
    grads = []
    for checkpointing in (False, True):
        model = adapt(make_llama(), lora_dropout=dropout).train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(0)
        grads.append(_grads(model, ids))
    plain, checkpointed = grads
    assert plain.keys() == {name for name in checkpointed if "lora_" in name}
    for name, grad in plain.items():
        torch.testing.assert_close(checkpointed[name], grad, msg=name)


def test_a_bfloat16_base_keeps_a_float32_adapter_unless_told_otherwise(make_llama: Make, ids: torch.Tensor) -> None:
    for autocast, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        model = get_peft_model(
            make_llama(dtype=torch.bfloat16),
            MonoLoraConfig(target_modules="all-linear"),
            autocast_adapter_dtype=autocast,
        )
        assert {p.dtype for name, p in model.named_parameters() if "lora_" in name} == {dtype}
        assert model(ids).logits.dtype == torch.bfloat16
        assert {grad.dtype for grad in _grads(model, ids).values()} == {dtype}


def test_autocast_over_a_bfloat16_base_with_float32_masters(make_llama: Make, adapt: Adapt, ids: torch.Tensor) -> None:
    exact = _grads(adapt(make_llama()), ids)
    model = adapt(make_llama(dtype=torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        grads = _grads(model, ids)
    assert grads.keys() == exact.keys()
    for name, grad in grads.items():
        assert grad.dtype == torch.float32
        torch.testing.assert_close(grad, exact[name], atol=0.15 * exact[name].abs().max().item(), rtol=0, msg=name)


def test_only_the_adapter_moves_in_training(make_llama: Make, ids: torch.Tensor) -> None:
    model = get_peft_model(make_llama(), MonoLoraConfig(target_modules="all-linear", r=4)).train()
    base = {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" not in name}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(15):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert all(torch.equal(p, base[name]) for name, p in model.named_parameters() if name in base)


def test_tied_embeddings_share_one_adapter_and_train(make_llama: Make, ids: torch.Tensor) -> None:
    """The head's map is the transpose of the embedding's: A_head = B_embedᵀ, B_head = A_embedᵀ."""
    base = make_llama(tie_word_embeddings=True)
    expected = base(ids).logits
    config = MonoLoraConfig(target_modules=["embed_tokens"], ensure_weight_tying=True, r=3)
    model = get_peft_model(base, config).train()
    assert torch.equal(model(ids).logits, expected)
    embed, head = model.base_model.model.model.embed_tokens, model.base_model.model.lm_head
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(10):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    A, B = head.lora_A["default"].weight, head.lora_B["default"].weight
    assert torch.equal(A, embed.lora_embedding_B["default"].T)
    assert torch.equal(B, embed.lora_embedding_A["default"].T)
    x = torch.randn(2, 16)
    torch.testing.assert_close(
        head(x), monolora_reference(x, head.base_layer.weight, None, A, B, head.scaling["default"])
    )
