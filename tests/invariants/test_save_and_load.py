"""Law 4, first half: what is saved is loaded bit for bit, through safetensors, by every loader there is.

The second half, what is refused, is in tests/test_checkpoint.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel

Saved = Callable[..., tuple[Path, torch.Tensor]]
Loader = Callable[[Path, Path], torch.nn.Module]

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all-linear": {"target_modules": "all-linear", "activation": "topk:2"},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r".*\.1\.mlp\.down_proj": 32}, "use_rslora": True},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "tokens": {"trainable_token_indices": [3, 9]},
    "some-layers": {"layers_to_transform": [1], "activation": "softplus"},
}


def _with_peft(adapter: Path, base: Path) -> PeftModel:
    return PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), str(adapter))


def _with_peft_and_little_memory(adapter: Path, base: Path) -> PeftModel:
    return PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), str(adapter), low_cpu_mem_usage=True)


def _with_peft_auto(adapter: Path, base: Path) -> PeftModel:
    return AutoPeftModelForCausalLM.from_pretrained(str(adapter))


def _with_transformers(adapter: Path, base: Path) -> PreTrainedModel:
    model = LlamaForCausalLM.from_pretrained(base)
    model.load_adapter(str(adapter))
    return model


def _with_transformers_auto(adapter: Path, base: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(adapter)


LOADERS = (
    _with_peft,
    _with_peft_and_little_memory,
    _with_peft_auto,
    _with_transformers,
    _with_transformers_auto,
)


@pytest.mark.parametrize("load", LOADERS, ids=lambda load: load.__name__[1:])
@pytest.mark.parametrize("settings", SETTINGS)
def test_every_loader_gives_the_saved_model(
    saved: Saved, base_folder: Path, ids: torch.Tensor, load: Loader, settings: str
) -> None:
    adapter, expected = saved(**SETTINGS[settings])
    model = load(adapter, base_folder)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, expected)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("settings", SETTINGS)
def test_the_files_tensors_come_back_bit_for_bit(saved: Saved, base_folder: Path, settings: str) -> None:
    adapter, _ = saved(**SETTINGS[settings])
    in_file = load_file(adapter / "adapter_model.safetensors")
    again = get_peft_model_state_dict(_with_peft(adapter, base_folder))
    assert in_file.keys() == again.keys()
    assert all(torch.equal(in_file[name], again[name]) for name in in_file)


@pytest.mark.parametrize("settings", SETTINGS)
def test_only_safetensors_and_only_our_names_are_written(saved: Saved, settings: str) -> None:
    adapter, _ = saved(**SETTINGS[settings])
    assert {path.name for path in adapter.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    names = load_file(adapter / "adapter_model.safetensors").keys()
    assert not [name for name in names if re.search(r"\.lora_", name)]
    assert [name for name in names if re.search(r"\.monolora_(embedding_)?[AB](\.weight)?$", name)]


def test_an_adapter_in_bfloat16_stays_in_bfloat16(saved: Saved, base_folder: Path, ids: torch.Tensor) -> None:
    adapter, _ = saved()
    half = LlamaForCausalLM.from_pretrained(base_folder, dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(half, str(adapter), autocast_adapter_dtype=False)
    model.save_pretrained(adapter / "half")
    in_file = load_file(adapter / "half" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in in_file.values()} == {torch.bfloat16}
    again = PeftModel.from_pretrained(
        LlamaForCausalLM.from_pretrained(base_folder, dtype=torch.bfloat16),
        str(adapter / "half"),
        autocast_adapter_dtype=False,
    )
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_transformers_saves_what_peft_loads(saved: Saved, base_folder: Path, ids: torch.Tensor, tmp_path: Path) -> None:
    adapter, expected = saved()
    _with_transformers(adapter, base_folder).save_pretrained(tmp_path / "again")
    in_file, again = (load_file(f / "adapter_model.safetensors") for f in (adapter, tmp_path / "again"))
    assert in_file.keys() == again.keys()
    assert torch.equal(_with_peft(tmp_path / "again", base_folder)(ids).logits, expected)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # said of every second native adapter
def test_several_adapters_whose_names_begin_alike(
    saved: Saved, base_folder: Path, ids: torch.Tensor, tmp_path: Path
) -> None:
    one, first = saved("one")
    two, second = saved("two", seed=2, target_modules=["q_proj"])
    for load in (PeftModel.load_adapter, LlamaForCausalLM.load_adapter):
        model = LlamaForCausalLM.from_pretrained(base_folder)
        if load is PeftModel.load_adapter:
            model = PeftModel.from_pretrained(model, str(one), adapter_name="x1")
        else:
            model.load_adapter(str(one), adapter_name="x1")
        load(model, str(two), adapter_name="x")
        load(model, str(two), adapter_name="x12")
        for name, expected in (("x1", first), ("x", second), ("x12", second)):
            model.set_adapter(name)
            assert torch.equal(model(ids).logits, expected), name


def test_training_goes_on_from_a_loaded_adapter(saved: Saved, base_folder: Path) -> None:
    adapter, _ = saved()
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base_folder), str(adapter), is_trainable=True)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in model.named_parameters() if "lora_" in name
    }
