"""A LoRA export is read by stock PEFT, and gives the dense export's logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from monolora import MonoLoraConfig
from monolora.adapters import load_sum
from monolora.errors import InputError
from monolora.merge import export_dense, export_lora, linearize
from monolora.merge.unload import active_units
from tests.support import forks
from tests.support.merge_inputs import shift, text

Make = Callable[..., PreTrainedModel]
Adapt = Callable[..., PeftModel]

pytestmark = [
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`"),
    pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed but the targeted layer"),
    pytest.mark.filterwarnings("ignore:Adapter 'default'.*have invalid shape"),  # PEFT's, of every bias on B
    pytest.mark.filterwarnings("ignore:Careful, disabling adapter layers with bias"),
]

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "softplus": {"activation": "softplus"},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r".*\.1\.mlp\.down_proj": 32}},
    "rslora": {"use_rslora": True},
    "rslora, patterns": {"use_rslora": True, "rank_pattern": {r".*\.0\..*q_proj": 9}, "lora_alpha": 5},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"], "rank_pattern": {"q_proj": 2}},
    "lora_bias": {"lora_bias": True, "target_modules": ["q_proj", "v_proj"], "alpha_pattern": {"v_proj": 3}},
    "saved norm": {"modules_to_save": ["norm"]},
    "tokens": {"trainable_token_indices": [3, 9]},
    "biases": {"bias": "lora_only", "target_modules": ["q_proj", "v_proj"]},
    "some layers": {"layers_to_transform": [1]},
    "regex": {"target_modules": r".*\.0\..*(q|down)_proj"},
    "all but": {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
}

STOCK = """
import sys, torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
ids, base, *folders = load_file(sys.argv[1])["ids"], *sys.argv[2:]
logits = {}
for folder in folders:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    with torch.no_grad():
        logits[folder] = model(ids).logits
assert not [name for name in sys.modules if name.startswith("monolora")]
save_file(logits, sys.argv[1])
"""


@torch.no_grad()
def _logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return model(ids).logits


def _close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


def _check(model: PeftModel, base: PreTrainedModel, ids: torch.Tensor, folder: Path) -> PeftModel:
    """Export both ways; returns the LoRA adapter on the base."""
    adapted = _logits(model, ids)
    maps = linearize(model, text(), affine=False)
    export_lora(model, maps, folder / "lora")
    assert torch.equal(_logits(model, ids), adapted)
    export_dense(model, maps, folder / "dense")
    lora = PeftModel.from_pretrained(base, folder / "lora")
    assert type(lora.base_model) is LoraModel
    assert type(lora.peft_config["default"]) is LoraConfig
    assert not lora.peft_config["default"].rank_pattern
    found = _logits(lora, ids)
    _close(found, _logits(AutoModelForCausalLM.from_pretrained(folder / "dense"), ids))
    with lora.disable_adapter():
        assert (found - _logits(lora, ids)).abs().max() > 0.01
    return lora


@pytest.mark.parametrize("settings", SETTINGS)
def test_peft_reads_it(make_llama: Make, adapt: Adapt, ids: torch.Tensor, tmp_path: Path, settings: str) -> None:
    base, again = (make_llama(attention_bias="bias" in settings) for _ in range(2))
    model = shift(adapt(base, **SETTINGS[settings]))
    ranks = {each.A.shape[0] for each in active_units(model).values()}
    lora = _check(model, again, ids, tmp_path)
    assert lora.peft_config["default"].r == max(ranks)


def test_gpt2(make_gpt2: Make, adapt: Adapt, ids: torch.Tensor, tmp_path: Path) -> None:
    model = adapt(make_gpt2(), target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, rank_pattern={"c_attn": 3})
    _check(model, make_gpt2(), ids, tmp_path)


def test_a_bias_on_b_without_a_bias_below(make_llama: Make, adapt: Adapt, ids: torch.Tensor, tmp_path: Path) -> None:
    """A LoRA adapter has a place for it where a dense checkpoint has none."""
    model = adapt(make_llama(), lora_bias=True, activation="identity")
    expected = _logits(model, ids)
    export_lora(model, linearize(model, None), tmp_path)
    _close(_logits(PeftModel.from_pretrained(make_llama(), tmp_path), ids), expected)


def test_the_active_adapter_of_several(
    make_llama: Make, adapt: Adapt, fill: Callable, ids: torch.Tensor, tmp_path: Path
) -> None:
    model = adapt(make_llama())
    model.add_adapter("other", MonoLoraConfig(target_modules=["q_proj", "up_proj"], r=2))
    fill(model, 5, "other")
    model.add_weighted_adapter(["default", "other"], [1.0, -0.5], "sum", "cat")
    for name in ("other", "sum"):
        model.set_adapter(name)
        maps = linearize(model.eval(), None)
        export_lora(model, maps, tmp_path / name)
        lora = PeftModel.from_pretrained(make_llama(), tmp_path / name)
        assert len(load_file(tmp_path / name / "adapter_model.safetensors")) == 2 * len(maps)
        found = {key: layer.get_delta_weight("default") for key, layer in lora.named_modules() if key[17:] in maps}
        assert len(found) == len(maps)
        for key, units in active_units(model).items():
            delta = units.scaling * units.B @ units.A / 2
            torch.testing.assert_close(found[f"base_model.model.{key}"], delta)


def test_a_loaded_sum(saved: Callable, base_folder: Path, ids: torch.Tensor, tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 3}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="a")
    tokenizer.save_pretrained(base_folder)
    one, other = saved("one")[0], saved("other", 2, r=3, target_modules=["q_proj", "v_proj"])[0]
    model, tokenizer = load_sum([str(one), str(other)], [1.0, -0.5], dtype=torch.float32)
    _check(model, AutoModelForCausalLM.from_pretrained(base_folder), ids, tmp_path)


def test_the_folder(base_folder: Path, adapt: Adapt, tmp_path: Path) -> None:
    """One rank and one scaling for all; the dtype, the base's name and the tokenizer stay."""
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 3}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", chat_template="mine")
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    model = adapt(base, rank_pattern={"q_proj": 2}, lora_alpha=16, use_rslora=True)
    folder = tmp_path / "lora"
    export_lora(model.to(torch.bfloat16), linearize(model, None), folder, tokenizer)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["base_model_name_or_path"] == str(base_folder)
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (4, 4, False)
    assert (config["rank_pattern"], config["alpha_pattern"], config["inference_mode"]) == ({}, {}, True)
    assert "activation" not in config
    tensors = load_file(folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert {min(tensor.shape) for tensor in tensors.values()} == {4}
    assert AutoTokenizer.from_pretrained(folder).chat_template == "mine"


def test_one_scaling_is_kept(make_llama: Make, adapt: Adapt, tmp_path: Path) -> None:
    """B is the very B then."""
    model = adapt(make_llama(), lora_alpha=3, use_rslora=True, r=5)
    export_lora(model, linearize(model, None), tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    for name, units in active_units(model).items():
        assert torch.equal(tensors[f"base_model.model.{name}.lora_B.weight"], units.B)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["lora_alpha"] / config["r"] == pytest.approx(3 / 5**0.5, rel=1e-9)


def test_intercepts_are_refused(make_gpt2: Make, adapt: Adapt, tmp_path: Path) -> None:
    model = adapt(make_gpt2(), target_modules=["c_attn"], fan_in_fan_out=True)
    with pytest.raises(InputError, match="A LoRA adapter cannot hold intercepts"):
        export_lora(model, linearize(model, text()), tmp_path / "lora")
    assert not (tmp_path / "lora").exists()


def test_stock_peft_loads_it(make_llama: Make, adapt: Adapt, ids: torch.Tensor, tmp_path: Path) -> None:
    """In a process that knows nothing of monolora."""
    make_llama().save_pretrained(tmp_path / "base")
    expected = {}
    for settings in ("plain", "rslora, patterns", "embedding", "tokens"):
        model = adapt(make_llama(), **SETTINGS[settings] | {"activation": "identity"})
        expected[str(tmp_path / settings)] = _logits(model, ids)
        export_lora(model, linearize(model, None), tmp_path / settings)
    save_file({"ids": ids}, tmp_path / "exchange")
    run = forks.run(STOCK, tmp_path / "exchange", tmp_path / "base", *expected)
    assert run.returncode == 0, run.stderr
    found = load_file(tmp_path / "exchange")
    assert found.keys() == expected.keys()
    for folder, logits in expected.items():
        _close(found[folder], logits)
