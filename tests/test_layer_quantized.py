"""QLoRA's way with bitsandbytes, for real on the CPU: load quantized, adapt, train, save, load again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import BitsAndBytesConfig, LlamaForCausalLM

from monolora import MonoLoraConfig, MonoLoraLayer
from monolora.layer import monolora_class

QUANTIZATIONS = {
    "8bit": (BitsAndBytesConfig(load_in_8bit=True), bnb.nn.Linear8bitLt, "MonoLoraLinear8bitLt"),
    "4bit": (
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32),
        bnb.nn.Linear4bit,
        "MonoLoraLinear4bit",
    ),
}


@pytest.fixture
def ids(ids: torch.Tensor) -> torch.Tensor:
    """Where bitsandbytes puts the models."""
    return ids.cuda() if torch.cuda.is_available() else ids


@pytest.fixture(params=QUANTIZATIONS)
def load(request: pytest.FixtureRequest, make_llama: Callable[..., LlamaForCausalLM], tmp_path: Path) -> Callable:
    """Loads one and the same small Llama, quantized; ``load.base_class`` and ``load.class_name`` say how."""
    config, base_class, class_name = QUANTIZATIONS[request.param]
    make_llama(hidden_size=64, intermediate_size=64).save_pretrained(tmp_path / "base")

    def load_() -> LlamaForCausalLM:
        return LlamaForCausalLM.from_pretrained(tmp_path / "base", quantization_config=config).eval()

    load_.base_class, load_.class_name = base_class, class_name  # type: ignore[attr-defined]
    return load_


def test_train_save_and_load_again(load: Callable, ids: torch.Tensor, tmp_path: Path) -> None:
    base = load().train()  # bitsandbytes packs 4-bit weights for inference at the first call in evaluation mode
    with torch.no_grad():
        expected = base(ids).logits
    model = get_peft_model(base, MonoLoraConfig(target_modules="all-linear", r=4))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert type(layer).__name__ == load.class_name
    assert type(layer) is monolora_class(type(layer).__mro__[2])
    assert type(layer.base_layer) is load.base_class
    with torch.no_grad():
        assert torch.equal(model(ids).logits, expected)

    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "lora_" in name
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(8):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1

    model.eval().save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(load(), str(tmp_path / "adapter"))
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits)
        native = load()
        native.load_adapter(str(tmp_path / "adapter"))
        torch.testing.assert_close(native(ids).logits, model(ids).logits)


def test_mixed_batches_and_merging(load: Callable, adapt: Callable[..., PeftModel], ids: torch.Tensor) -> None:
    model = adapt(load())
    with torch.no_grad():
        mixed = model(ids, adapter_names=["default", "__base__", "default"]).logits
        torch.testing.assert_close(mixed[0], model(ids).logits[0], atol=1e-4, rtol=1e-4)
        with model.disable_adapter():
            torch.testing.assert_close(mixed[1], model(ids).logits[1], atol=1e-4, rtol=1e-4)
    layer = next(module for module in model.modules() if isinstance(module, MonoLoraLayer))
    with pytest.raises(NotImplementedError, match="`monolora merge"):
        layer.merge()
    with pytest.raises(ValueError, match="`monolora merge"):
        model.merge_and_unload()
