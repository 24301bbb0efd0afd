"""Law 4, second half: a file that is not what it should be is refused, by every loader, with what is wrong by name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model, set_peft_model_state_dict
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from monolora import MonoLoraConfig, MonoLoraLayer
from monolora.checkpoint import (
    AdapterFileError,
)

Tensors = dict[str, torch.Tensor]
Saved = Callable[..., tuple[Path, torch.Tensor]]
WEIGHTS = "adapter_model.safetensors"
FIRST = "base_model.model.model.layers.0.mlp.down_proj.monolora_A.weight"


def _peft(adapter: Path, base: Path) -> None:
    PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), str(adapter))


def _peft_second(adapter: Path, base: Path) -> None:
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base), MonoLoraConfig(target_modules=["q_proj"]))
    model.load_adapter(str(adapter), adapter_name="second")


def _transformers(adapter: Path, base: Path) -> None:
    LlamaForCausalLM.from_pretrained(base).load_adapter(str(adapter))


def _transformers_auto(adapter: Path, base: Path) -> None:
    LlamaForCausalLM.from_pretrained(adapter)


def _hotswap(adapter: Path, base: Path) -> None:
    config = MonoLoraConfig(target_modules=["q_proj", "down_proj"], r=4)
    hotswap_adapter(get_peft_model(LlamaForCausalLM.from_pretrained(base), config), str(adapter), "default")


LOADERS = (_peft, _peft_second, _transformers, _transformers_auto, _hotswap)


def _nan(tensors: Tensors) -> Tensors:
    return tensors | {FIRST: tensors[FIRST].index_fill(0, torch.tensor([1]), float("nan"))}


def _infinite(tensors: Tensors) -> Tensors:
    return tensors | {FIRST: tensors[FIRST].index_fill(0, torch.tensor([1]), float("inf"))}


def _wrong_rank(tensors: Tensors) -> Tensors:
    return tensors | {FIRST: tensors[FIRST][:3].contiguous()}


def _missing(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name != FIRST}


def _foreign(tensors: Tensors) -> Tensors:
    return tensors | {FIRST.replace("layers.0", "layers.7"): tensors[FIRST].clone()}


def _unknown(tensors: Tensors) -> Tensors:
    return tensors | {"base_model.model.something": torch.zeros(2)}


def _plain_lora(tensors: Tensors) -> Tensors:
    return {name.replace("monolora_", "lora_"): tensor for name, tensor in tensors.items()}


FAULTS: dict[Callable[[Tensors], Tensors], str] = {
    _nan: r"layers\.0\.mlp\.down_proj\.lora_A\.\w+\.weight' has NaN or infinite values",
    _infinite: r"layers\.0\.mlp\.down_proj\.lora_A\.\w+\.weight' has NaN or infinite values",
    _wrong_rank: r"layers\.0\.mlp\.down_proj\.lora_A.*has shape \(3, 24\) in the file, this model needs \(4, 24\)",
    _missing: r"lacks tensor '.*layers\.0\.mlp\.down_proj\.lora_A\.\w+\.weight' \(1 ",
    _foreign: r"has the foreign tensor '.*layers\.7\.mlp\.down_proj\.lora_A",
    _unknown: r"has the foreign tensor '.*something'",
    _plain_lora: r"Tensor '.*layers\.0\.mlp\.down_proj\.lora_A.*' belongs to a plain LoRA adapter, but the config says",
}


@pytest.mark.parametrize("load", LOADERS, ids=lambda load: load.__name__[1:])
@pytest.mark.parametrize("spoil", FAULTS, ids=lambda spoil: spoil.__name__[1:])
def test_a_bad_tensor_is_refused_with_its_name(
    saved: Saved, base_folder: Path, spoil: Callable[[Tensors], Tensors], load: Callable[[Path, Path], None]
) -> None:
    adapter, _ = saved()
    save_file(spoil(load_file(adapter / WEIGHTS)), adapter / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(AdapterFileError, match=FAULTS[spoil]):
        load(adapter, base_folder)


@pytest.mark.parametrize("load", LOADERS, ids=lambda load: load.__name__[1:])
def test_a_truncated_file_is_refused_with_its_name(
    saved: Saved, base_folder: Path, load: Callable[[Path, Path], None]
) -> None:
    adapter, _ = saved()
    os.truncate(adapter / WEIGHTS, (adapter / WEIGHTS).stat().st_size // 2)
    with pytest.raises(AdapterFileError, match=rf"{WEIGHTS} is truncated or not a safetensors file.*Copy it again"):
        load(adapter, base_folder)


@pytest.mark.parametrize("load", LOADERS, ids=lambda load: load.__name__[1:])
def test_a_pickle_is_refused_with_its_name(saved: Saved, base_folder: Path, load: Callable[[Path, Path], None]) -> None:
    adapter, _ = saved()
    torch.save(load_file(adapter / WEIGHTS), adapter / "adapter_model.bin")
    (adapter / WEIGHTS).unlink()
    with pytest.raises(AdapterFileError, match=r"adapter_model\.bin is a pickle.*safe_serialization=True"):
        load(adapter, base_folder)


def test_a_pickle_is_not_read_past_the_config_either(saved: Saved, base_folder: Path) -> None:
    adapter, _ = saved()
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base_folder), str(adapter))
    torch.save(load_file(adapter / WEIGHTS), adapter / "adapter_model.bin")
    (adapter / WEIGHTS).unlink()
    with pytest.raises(AdapterFileError, match="is a pickle"):
        model.load_adapter(str(adapter), adapter_name="default")  # as when training is resumed


@pytest.mark.parametrize("fault", [_nan, _missing, _foreign, _wrong_rank])
def test_a_refused_native_load_leaves_no_adapter_behind(
    saved: Saved, base_folder: Path, ids: torch.Tensor, fault: Callable[[Tensors], Tensors]
) -> None:
    adapter, _ = saved()
    save_file(fault(load_file(adapter / WEIGHTS)), adapter / WEIGHTS, metadata={"format": "pt"})
    model = LlamaForCausalLM.from_pretrained(base_folder)
    expected = model(ids).logits
    with pytest.raises(AdapterFileError):
        model.load_adapter(str(adapter))
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    assert torch.equal(model(ids).logits, expected)


def test_a_refused_hotswap_changes_nothing(saved: Saved, base_folder: Path, ids: torch.Tensor) -> None:
    adapter, expected = saved()
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base_folder), str(adapter))
    for fault in FAULTS:
        bad = shutil.copytree(adapter, adapter.with_name(fault.__name__))
        save_file(fault(load_file(adapter / WEIGHTS)), bad / WEIGHTS, metadata={"format": "pt"})
        with pytest.raises(AdapterFileError):
            hotswap_adapter(model, str(bad), "default")
        assert torch.equal(model(ids).logits, expected)


def test_a_missing_saved_module_is_refused_with_its_name(saved: Saved, base_folder: Path) -> None:
    adapter, _ = saved(modules_to_save=["lm_head"])
    tensors = load_file(adapter / WEIGHTS)
    del tensors["base_model.model.lm_head.weight"]
    save_file(tensors, adapter / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(KeyError, match=r"lm_head\.weight"):  # PEFT's own
        _peft(adapter, base_folder)
    with pytest.raises(AdapterFileError, match=r"lacks tensor 'lm_head\.modules_to_save\.default\.weight'"):
        _transformers(adapter, base_folder)


def test_an_adapter_of_another_width_is_refused_with_both_models_named(
    saved: Saved, make_llama: Callable[..., LlamaForCausalLM], tmp_path: Path
) -> None:
    adapter, _ = saved()
    make_llama(hidden_size=32).save_pretrained(tmp_path / "wider")
    for load in (_peft, _transformers, _hotswap):
        with pytest.raises(AdapterFileError, match=r"trained on '.*tiny-llama', this model is '.*wider': load it on"):
            load(adapter, tmp_path / "wider")


@pytest.mark.parametrize("load", [_peft, _peft_second, _transformers, _hotswap], ids=lambda load: load.__name__[1:])
def test_an_adapter_that_fits_a_model_of_another_name_is_loaded_with_a_warning(
    saved: Saved, base_folder: Path, tmp_path: Path, load: Callable[[Path, Path], None]
) -> None:
    adapter, _ = saved()
    shutil.copytree(base_folder, tmp_path / "other")
    shutil.copytree(base_folder, tmp_path / "elsewhere" / "tiny-llama")
    with pytest.warns(UserWarning, match=r"trained on '.*tiny-llama', this model is '.*other'.*fits? both"):
        load(adapter, tmp_path / "other")
    load(adapter, tmp_path / "elsewhere" / "tiny-llama")  # the same name somewhere else: warnings are errors here


def test_no_warning_where_a_name_is_not_known(
    saved: Saved, make_llama: Callable[..., LlamaForCausalLM], base_folder: Path
) -> None:
    adapter, _ = saved()
    PeftModel.from_pretrained(make_llama(), str(adapter))
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    _peft(adapter, base_folder)


def test_plain_lora_adapters_are_none_of_our_business(base_folder: Path, tmp_path: Path, ids: torch.Tensor) -> None:
    """What PEFT does with LoRA, pickles included, stays as it is."""
    lora = get_peft_model(LlamaForCausalLM.from_pretrained(base_folder), LoraConfig(init_lora_weights=False))
    expected = lora(ids).logits
    lora.save_pretrained(tmp_path / "pickle", safe_serialization=False)
    again = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base_folder), str(tmp_path / "pickle"))
    assert torch.equal(again(ids).logits, expected)
    hotswap_adapter(again, str(tmp_path / "pickle"), "default")
    assert torch.equal(again(ids).logits, expected)


def test_a_state_dict_without_a_file_is_checked_alike(saved: Saved, base_folder: Path, ids: torch.Tensor) -> None:
    adapter, expected = saved()
    config, tensors = MonoLoraConfig.from_pretrained(str(adapter)), load_file(adapter / WEIGHTS)
    for spoil in (None, *FAULTS):
        native = LlamaForCausalLM.from_pretrained(base_folder)
        injected = inject_adapter_in_model(config, LlamaForCausalLM.from_pretrained(base_folder))
        if spoil is None:
            native.load_adapter(peft_config=config, adapter_state_dict=dict(tensors))
            set_peft_model_state_dict(injected, tensors)
            assert torch.equal(native(ids).logits, expected)
            assert torch.equal(injected(ids).logits, expected)
            continue
        with pytest.raises(AdapterFileError):
            native.load_adapter(peft_config=config, adapter_state_dict=spoil(tensors))
        with pytest.raises(AdapterFileError, match=FAULTS[spoil]):
            set_peft_model_state_dict(injected, spoil(tensors))


def test_tensors_left_empty_by_zero_3_are_warned_of_when_saving(
    saved: Saved, base_folder: Path, tmp_path: Path
) -> None:
    adapter, _ = saved()
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base_folder), str(adapter))
    layer = next(module for module in model.modules() if isinstance(module, MonoLoraLayer))
    layer.lora_A["default"].weight.data = torch.empty(0)
    with pytest.warns(UserWarning, match=r"1 LoRA tensor\(s\) have invalid shape.*ZeRO-3"):
        model.save_pretrained(tmp_path / "empty")
