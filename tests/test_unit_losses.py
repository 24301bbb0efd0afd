"""Losses of units against sums over what forward hooks see, and the count of idle steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import LlamaForCausalLM

from monolora import MonoLoraConfig, MonoLoraLayer
from monolora.errors import InputError
from monolora.shared_prefix import shared_prefix
from monolora.unit_losses import UnitLosses
from tests.support.one_layer import adapted

Make = Callable[..., LlamaForCausalLM]
TARGETS = ["q_proj", "down_proj"]


def _model(make_llama: Make, **settings: Any) -> PeftModel:
    """Noise in A and B, in training mode."""
    model = get_peft_model(make_llama(), MonoLoraConfig(**{"target_modules": TARGETS, "r": 5} | settings))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.3)
    return model.train()


def _layers(model: nn.Module) -> list[MonoLoraLayer]:
    return [module for module in model.modules() if isinstance(module, MonoLoraLayer)]


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Three rows of seven tokens, of which the last ones are padding."""
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[0, 4:] = mask[2, 6:] = 0
    return {"input_ids": torch.randint(3, 64, (3, 7)), "attention_mask": mask}


def _hooked(model: PeftModel, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Pre-activations of every layer, as hooks on A see them: with their gradients, outside the fused path."""
    seen: list[torch.Tensor] = []
    hooks = [
        layer.lora_A["default"].register_forward_hook(lambda module, args, z: seen.append(z))  # type: ignore[union-attr]
        for layer in _layers(model)
    ]
    model(**batch)
    for hook in hooks:
        hook.remove()
    return seen


def _gradients(loss: torch.Tensor, model: nn.Module) -> dict[str, torch.Tensor]:
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(named, found, strict=True) if gradient is not None}


@pytest.mark.parametrize("activation", ["relu", "topk:2", "batchtopk:2", "gelu", "jumprelu"])
def test_the_sparsity_loss_is_the_mean_effect_of_real_tokens(
    make_llama: Make, batch: dict[str, torch.Tensor], activation: str
) -> None:
    model = _model(make_llama, activation=activation)
    losses = UnitLosses(model, sparsity_weight=0.7)
    with losses.collecting():
        model(**batch)
    tokens = batch["attention_mask"].sum()
    (found,) = losses.take(tokens).values()
    assert all(layer.unit_observer is None for layer in _layers(model))
    total: Any = 0.0
    for layer, z in zip(_layers(model), _hooked(model, batch), strict=True):
        h = layer._activate(z, "default")
        for unit in range(5):
            direction = layer.scaling["default"] * layer.lora_B["default"].weight[:, unit]  # type: ignore[union-attr]
            for row, length in enumerate([4, 7, 6]):
                for token in range(length):
                    total = total + h[row, token, unit].abs() * direction.norm()
    expected = 0.7 * total / 17 / len(_layers(model))
    if activation != "batchtopk:2":  # whose running threshold has gone one batch further
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(_gradients(found, model), _gradients(expected, model))
    assert found.detach() > 0


def test_the_usage_loss_raises_units_that_were_idle_in_the_last_step(
    make_llama: Make, batch: dict[str, torch.Tensor]
) -> None:
    model = _model(make_llama)
    last = _layers(model)[-1]
    with torch.no_grad():
        last.lora_A["default"].weight[2] = 0  # type: ignore[union-attr, index]
    losses = UnitLosses(model, usage_weight=0.5)
    tokens = batch["attention_mask"].sum()
    for step in range(3):
        with losses.collecting():
            model(**batch)
        (found,) = losses.take(tokens).values()
        z_BTR = _hooked(model, batch)
        total = sum(
            (z * batch["attention_mask"][..., None]).sum((0, 1))[idle > 0].sum()
            for z, idle in zip(z_BTR, losses.idle_steps.values(), strict=True)
        )
        torch.testing.assert_close(found, torch.as_tensor(-0.5 * total / tokens / len(z_BTR)))
        losses.end_step()
        for z, idle in zip(z_BTR, losses.idle_steps.values(), strict=True):
            on = (z[batch["attention_mask"].bool()] > 0).any(0)
            torch.testing.assert_close(idle, torch.where(on, 0, step + 1))
    assert int(losses.idle_steps["model.layers.1.mlp.down_proj"][2]) == 3
    gradients = _gradients(found, model)
    assert gradients
    assert all("lora_A" in name for name in gradients)
    inputs = gradients["base_model.model.model.layers.1.mlp.down_proj.lora_A.default.weight"]
    assert inputs[2].any()  # even where the pre-activation is zero, and a ReLU has no gradient


def test_padding_never_counts(make_llama: Make, batch: dict[str, torch.Tensor]) -> None:
    """Other tokens and more of them change nothing."""
    model = _model(make_llama)
    found = []
    for more in (0, 3):
        losses = UnitLosses(model, sparsity_weight=1.0, usage_weight=1.0)
        losses.idle_steps = {name: steps + 1 for name, steps in losses.idle_steps.items()}
        ids, mask = (torch.nn.functional.pad(tensor, (0, more)) for tensor in batch.values())
        with losses.collecting():
            model(input_ids=torch.where(mask == 1, ids, 5 + more), attention_mask=mask)
        found.append(losses.take(mask.sum()))
        losses.end_step()
        found.append(losses.state_dict())
    torch.testing.assert_close(found[2:], found[:2])


def test_a_shared_prefix_counts_for_every_row(make_llama: Make) -> None:
    model = _model(make_llama)
    ids = torch.randint(3, 64, (3, 8))
    ids[:, :5] = ids[0, :5]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    found = []
    for most in (0, 5):
        losses = UnitLosses(model, sparsity_weight=1.0, usage_weight=1.0)
        losses.idle_steps = {name: steps + 1 for name, steps in losses.idle_steps.items()}
        with shared_prefix(model, ids, most) as prefix, losses.collecting():
            model(**batch)
        assert prefix == most
        found.append(losses.take(float(ids.numel())))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(*(_gradients(losses["sparsity_loss"], model) for losses in found))


def test_parts_of_a_step_add_up(make_llama: Make, batch: dict[str, torch.Tensor]) -> None:
    model = _model(make_llama)
    losses = UnitLosses(model, sparsity_weight=1.0, usage_weight=1.0)
    losses.idle_steps = {name: steps + 1 for name, steps in losses.idle_steps.items()}
    parts, tokens = [], batch["attention_mask"].sum()
    for rows in (slice(0, 3), slice(0, 1), slice(1, 3)):
        with losses.collecting():
            model(**{name: tensor[rows] for name, tensor in batch.items()})
        parts.append(losses.take(tokens))
    for name, whole in parts[0].items():
        torch.testing.assert_close(parts[1][name] + parts[2][name], whole)


def test_checkpointed_layers_give_the_same_gradients(make_llama: Make, batch: dict[str, torch.Tensor]) -> None:
    """The recomputation in the backward pass is not collected again."""
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = _model(make_llama)
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": False})
        losses = UnitLosses(model, sparsity_weight=1.0, usage_weight=1.0)
        losses.idle_steps = {name: steps + 1 for name, steps in losses.idle_steps.items()}
        with losses.collecting():
            loss = model(**batch, labels=batch["input_ids"], use_cache=False).loss
        (loss + sum(losses.take(batch["attention_mask"].sum()).values())).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        assert losses.take(1.0)["sparsity_loss"] == 0
    torch.testing.assert_close(found[1], found[0])


def test_embeddings(make_llama: Make, batch: dict[str, torch.Tensor]) -> None:
    """Their inputs are token ids."""
    model = _model(make_llama, target_modules=["embed_tokens"])
    layer: Any = _layers(model)[0]
    losses = UnitLosses(model, sparsity_weight=1.0, usage_weight=1.0)
    losses.idle_steps = {name: steps + 1 for name, steps in losses.idle_steps.items()}
    with losses.collecting():
        model(**batch)
    tokens = batch["attention_mask"].sum()
    found = losses.take(tokens)
    z = layer.lora_embedding_A["default"].T[batch["input_ids"][batch["attention_mask"].bool()]]
    norms = layer.lora_embedding_B["default"].norm(dim=0) * layer.scaling["default"]
    torch.testing.assert_close(found["sparsity_loss"], (z.relu() * norms).sum() / tokens)
    torch.testing.assert_close(found["usage_loss"], -z.sum() / tokens)


def test_passes_without_gradients_and_other_adapters_are_not_collected(
    make_llama: Make, batch: dict[str, torch.Tensor]
) -> None:
    model = _model(make_llama)
    model.add_adapter("other", MonoLoraConfig(target_modules=TARGETS, r=3))
    losses = UnitLosses(model, sparsity_weight=1.0)
    with losses.collecting():
        with torch.no_grad():
            model(**batch)
        model.set_adapter("other")
        model(**batch)
    assert losses.take(1.0)["sparsity_loss"] == 0


def test_a_convolution_has_no_usage_loss() -> None:
    with pytest.raises(InputError, match="--usage-weight: 0 is a convolution"):
        UnitLosses(adapted(nn.Conv1d(4, 5, 3)), usage_weight=1.0)


def test_the_count_survives_a_state(make_llama: Make, batch: dict[str, torch.Tensor]) -> None:
    model = _model(make_llama)
    with torch.no_grad():
        _layers(model)[0].lora_A["default"].weight[1] = 0  # type: ignore[union-attr, index]
    losses, other = UnitLosses(model), UnitLosses(model)
    for _ in range(2):
        with losses.collecting():
            model(**batch)
        losses.end_step()
    other.load_state_dict(losses.state_dict())
    torch.testing.assert_close(other.idle_steps, losses.idle_steps)
    assert any(steps.any() for steps in other.idle_steps.values())


@pytest.mark.parametrize("activation", ["relu", "topk:8", "batchtopk:8"])
@pytest.mark.parametrize(("rslora", "falls_to"), [(False, 0.8), (True, 0.5)])
@pytest.mark.parametrize("rank", [64, 512])
def test_high_ranks_train_stably(make_llama: Make, activation: str, rslora: bool, falls_to: float, rank: int) -> None:
    """Wider than the model itself: the loss falls without a jump, and everything stays finite.

    Of rank 512 and ``topk:8`` the scaling alpha / r leaves little: the k units of a token share alpha k / r.
    """
    settings = {"target_modules": TARGETS, "r": rank, "lora_alpha": 16, "use_rslora": rslora, "activation": activation}
    model = get_peft_model(make_llama(initializer_range=0.3), MonoLoraConfig(**settings)).train()
    losses = UnitLosses(model, sparsity_weight=1e-3, usage_weight=1e-3)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    ids, curve = torch.randint(3, 64, (4, 12)), []
    for _ in range(25):
        with losses.collecting():
            loss = model(input_ids=ids, labels=ids).loss
        (loss + sum(losses.take(float(ids.numel())).values())).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.end_step()
        curve.append(loss.item())
    assert all(parameter.isfinite().all() for parameter in trained)
    assert max(curve) == curve[0]
    assert curve[-1] < falls_to * curve[0]
