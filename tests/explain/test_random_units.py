"""Random units leave the model as it is, read what they should, and fire as often as the units they stand for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from monolora import MonoLoraConfig
from monolora.explain import Layout, Text, collect
from monolora.explain.collector import units_by_text
from monolora.explain.random_units import (
    fired_share,
    fired_share_thresholds,
    own_thresholds,
    random_units,
    shrunk,
)

IDS = torch.tensor([[5, 9, 2, 31, 7, 7, 40, 3]])
TEXTS = [Text(number, IDS[0, : 3 + number].tolist(), start=1) for number in range(5)]


def _mono(**options: Any) -> MonoLoraConfig:
    return MonoLoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, **options)


def _lora() -> LoraConfig:
    return LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"], init_lora_weights=False)


def _model(config: Any) -> PeftModel:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(vocab_size=50, **shape)), config)
    return model.eval()


@pytest.mark.parametrize("config", [_mono, lambda: _mono(activation="topk:2"), lambda: _mono(activation="gelu"), _lora])
@torch.no_grad()
def test_the_model_computes_what_it_did(config: Callable[[], Any]) -> None:
    model = _model(config())
    layout, before = Layout.of(model), model(IDS).logits
    with random_units(model, layout, 2) as layouts:
        assert [random.units for random in layouts] == [layout.units] * 2
        assert torch.equal(model(IDS).logits, before)
        (_, parts), *_ = units_by_text(model, TEXTS, [layout, *layouts], pad_token_id=0)
        own, first, second = parts
        assert own.shape == first.shape == second.shape
        assert first.std() > 0
        assert not torch.allclose(first, second)
    assert torch.equal(model(IDS).logits, before)
    assert list(model.peft_config) == model.active_adapters == ["default"]


@torch.no_grad()
def test_units_by_text_are_those_of_a_pass_one_by_one() -> None:
    model = _model(_mono())
    layout = Layout.of(model)
    found = {text.number: h for text, (h,) in units_by_text(model, TEXTS, [layout], pad_token_id=0, batch_size=2)}
    for text in TEXTS:
        alone = collect(model, [text], pad_token_id=0)
        assert found[text.number].mean(0).numpy() == pytest.approx(alone.mean, abs=1e-6)
        assert len(found[text.number]) == alone.tokens


def test_units_are_cut_to_a_share_of_tokens_and_rarer_ones_are_left() -> None:
    torch.manual_seed(1)
    h = torch.randn(200, 6).clamp(min=0)
    h[:, 3] = 0
    h[9:, 5] = 0
    threshold = own_thresholds(h, 0.1)
    assert fired_share(shrunk(h, threshold, signed=False)).tolist() == pytest.approx(
        [0.1, 0.1, 0.1, 0.0, 0.1, float((h[:, 5] > 0).float().mean())]
    )
    assert threshold[3] == threshold[5] == 0
    assert torch.equal(shrunk(h, own_thresholds(h, 1), signed=False), h)
    kept = shrunk(h, threshold, signed=False)
    assert torch.equal(kept[kept > 0], (h - threshold)[kept > 0])


def test_both_signs_are_cut_alike() -> None:
    torch.manual_seed(1)
    h = torch.randn(200, 3)
    cut = shrunk(h, own_thresholds(h, 0.25), signed=True)
    assert fired_share(cut).tolist() == pytest.approx([0.25] * 3)
    assert torch.equal(cut[cut != 0].sign(), h[cut != 0].sign())
    assert (h[cut == 0].abs().amax() < h[cut != 0].abs().amin() + 1).item()


def test_random_units_fire_as_often_as_asked() -> None:
    torch.manual_seed(1)
    z = torch.randn(100, 4) + torch.tensor([5.0, -5.0, 0.0, 1.0])
    share = torch.tensor([0.0, 0.2, 0.5, 1.0])
    h = shrunk(z, fired_share_thresholds(z, share), signed=False)
    assert fired_share(h).tolist() == pytest.approx([0.0, 0.2, 0.5, 0.99])
    assert (h >= 0).all()
