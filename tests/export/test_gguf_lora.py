"""LoRA adapters in GGUF files: what llama.cpp adds to a base's matrices by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from peft import LoraConfig, PeftModel, get_peft_model

from monolora import MonoLoraConfig
from monolora.errors import InputError
from monolora.export import adopt_gguf_lora, write_gguf_lora
from tests.support.tiny_families import tiny_model

IDS = torch.tensor([[5, 30, 17, 42, 26, 99, 3]])
MODULES = ["q_proj", "k_proj", "v_proj", "down_proj"]
PATTERNS: dict[str, Any] = {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"down_proj": 3}, "use_rslora": True}


def adapted(config: LoraConfig, family: str = "llama") -> PeftModel:
    """A tiny model with random matrices."""
    model: Any = get_peft_model(tiny_model(family), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) / 4)
    return model.eval()


def read(file: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A file's fields, and what it adds to each matrix of the base, as llama.cpp computes it."""
    reader = GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    found = {t.name: torch.tensor(dequantize(t.data, t.tensor_type)) for t in reader.tensors}
    names = {name.removesuffix(".lora_a") for name in found if name.endswith(".lora_a")}
    assert found.keys() == {f"{name}.lora_{matrix}" for name in names for matrix in "ab"}
    added = {}
    for name in names:
        A, B = found[f"{name}.lora_a"], found[f"{name}.lora_b"]
        added[name] = fields["adapter.lora.alpha"] / len(A) * (B @ A)
    return fields, added


def in_pairs(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """As llama.cpp's converter permutes queries and keys."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, lora_alpha=8, target_modules=MODULES),
        LoraConfig(r=4, lora_alpha=8, target_modules=MODULES, **PATTERNS),
        MonoLoraConfig(r=4, lora_alpha=8, target_modules=MODULES, activation="identity"),
    ],
    ids=["LoRA", "patterns", "MonoLoRA"],
)
@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0"])
def test_what_is_added(tmp_path: Path, config: LoraConfig, kind: str) -> None:
    """Scaling B A, the matrices of queries and keys in llama.cpp's order; read back it is the same adapter."""
    torch.manual_seed(0)
    model = adapted(config)
    write_gguf_lora(model, "adapter", tmp_path / "a.gguf", kind)
    fields, added = read(tmp_path / "a.gguf")
    assert (fields["general.type"], fields["adapter.type"]) == ("adapter", "lora")
    assert fields["general.architecture"] == "llama"
    if config.alpha_pattern == {}:
        assert fields["adapter.lora.alpha"] == 8
    close = {
        "f32": {"rtol": 1e-5, "atol": 1e-6},
        "f16": {"rtol": 1e-2, "atol": 3e-3},
        "q8_0": {"rtol": 0, "atol": 0.02},
    }
    names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "down_proj": "ffn_down"}
    assert len(added) == 2 * len(MODULES)
    for name, layer in model.get_base_model().named_modules():
        end = name.rpartition(".")[2]
        if end in MODULES and hasattr(layer, "lora_A"):
            A, B = (getattr(layer, f"lora_{matrix}")["default"].weight for matrix in "AB")
            expected = layer.scaling["default"] * (B @ A).detach()
            if end in ("q_proj", "k_proj"):
                expected = in_pairs(expected, heads=2)
            found = added[f"blk.{name.split('.')[2]}.{names[end]}.weight"]
            torch.testing.assert_close(found, expected, **close[kind])
    with torch.no_grad():
        before = model(IDS).logits
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.zero_()
        adopt_gguf_lora(model, "adapter", tmp_path / "a.gguf")
        after = model(IDS).logits
    torch.testing.assert_close(after, before, **close[kind] | ({"atol": 0.5} if kind == "q8_0" else {}))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            MonoLoraConfig(r=2, target_modules=MODULES),
            r"run keeps the activation relu, .* monolora merge run run-lora --as lora; then export run-lora\.",
        ),
        (LoraConfig(r=2, target_modules=MODULES, use_dora=True), r"trains .*lora_magnitude_vector.* too"),
        (LoraConfig(r=2, target_modules=MODULES, lora_bias=True), r"trains .*lora_B\.bias too"),
        (LoraConfig(r=2, target_modules=MODULES, modules_to_save=["norm"]), r"trains .*norm\.weight too"),
        (
            LoraConfig(r=2, target_modules=["embed_tokens", *MODULES]),
            r"trains model\.embed_tokens\.lora_embedding_A too",
        ),
    ],
    ids=["activation", "DoRA", "bias", "saved", "embeddings"],
)
@pytest.mark.filterwarnings("ignore:`lora_bias=True`")
@pytest.mark.filterwarnings("ignore:Adapter 'default'. 8 LoRA tensor")
def test_what_has_no_place(tmp_path: Path, config: LoraConfig, said: str) -> None:
    with pytest.raises(InputError, match=said):
        write_gguf_lora(adapted(config), "run", tmp_path / "a.gguf", "f16")
    assert not (tmp_path / "a.gguf").exists()


def test_what_else_is_refused(tmp_path: Path) -> None:
    plain = LoraConfig(r=2, target_modules=["q_proj"])
    with pytest.raises(InputError, match="'q4_k'; choose one of f32, f16, bf16, q8_0"):
        write_gguf_lora(adapted(plain), "run", tmp_path / "a.gguf", "q4_k")
    with pytest.raises(InputError, match="models of type opt are not exported"):
        write_gguf_lora(adapted(plain, "opt"), "run", tmp_path / "a.gguf", "f16")
    model = adapted(LoraConfig(r=2, target_modules=["lm_head"]))
    model.get_base_model().config.tie_word_embeddings = True  # type: ignore[union-attr]
    with pytest.raises(InputError, match="adapts lm_head"):
        write_gguf_lora(model, "run", tmp_path / "a.gguf", "f16")
