"""Law 4, second half: a file that is not what it should be is refused, by every loader, with what is wrong by name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model, set_peft_model_state_dict
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel, LlamaForCausalLM

from monolora import MonoLoraConfig, MonoLoraLayer
from monolora.checkpoint import AdapterFileError

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


def _norm_of_the_base(tensors: Tensors) -> Tensors:
    return tensors | {"base_model.model.model.norm.weight": torch.full((16,), 9.0)}


def _head_of_the_base(tensors: Tensors) -> Tensors:
    return tensors | {"base_model.model.lm_head.weight": torch.full((64, 16), 9.0)}


def _adapted_weight_of_the_base(tensors: Tensors) -> Tensors:
    return tensors | {"base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight": torch.ones(16, 16)}


def _bias_that_no_config_names(tensors: Tensors) -> Tensors:
    return tensors | {"base_model.model.model.layers.1.mlp.down_proj.base_layer.bias": torch.ones(16)}


def _of_int8(tensors: Tensors) -> Tensors:
    return tensors | {FIRST: tensors[FIRST].to(torch.int8)}


def _of_bool(tensors: Tensors) -> Tensors:
    return tensors | {FIRST: tensors[FIRST].bool()}


def _complex(tensors: Tensors) -> Tensors:
    return tensors | {FIRST: tensors[FIRST].to(torch.complex64)}


def _of_float8(tensors: Tensors) -> Tensors:
    return tensors | {FIRST: tensors[FIRST].to(torch.float8_e4m3fn)}


def _plain_lora(tensors: Tensors) -> Tensors:
    return {name.replace("monolora_", "lora_"): tensor for name, tensor in tensors.items()}


FAULTS: dict[Callable[[Tensors], Tensors], str] = {
    _nan: r"layers\.0\.mlp\.down_proj\.lora_A\.\w+\.weight' has NaN or infinite values",
    _infinite: r"layers\.0\.mlp\.down_proj\.lora_A\.\w+\.weight' has NaN or infinite values",
    _wrong_rank: r"layers\.0\.mlp\.down_proj\.lora_A.*has shape \(3, 24\) in the file, this model needs \(4, 24\)",
    _missing: r"lacks tensor '.*layers\.0\.mlp\.down_proj\.lora_A\.\w+\.weight' \(1 ",
    _foreign: r"has the foreign tensor '.*layers\.7\.mlp\.down_proj\.lora_A",
    _unknown: r"has the foreign tensor '.*something'",
    _norm_of_the_base: r"has the foreign tensor '.*model\.norm\.weight'",
    _head_of_the_base: r"lm_head\.weight' (would overwrite a weight of the base model|\(0 missing, 1 foreign)",
    _adapted_weight_of_the_base: r"has the foreign tensor '.*q_proj\.base_layer\.weight'",
    _bias_that_no_config_names: r"has the foreign tensor '.*down_proj\.base_layer\.bias'",
    _of_int8: r"layers\.0\.mlp\.down_proj\.(mono)?lora_A.* is of type I8|of type int8",
    _of_bool: r"layers\.0\.mlp\.down_proj\.(mono)?lora_A.* is of type BOOL|of type bool",
    _complex: r"layers\.0\.mlp\.down_proj\.(mono)?lora_A.* is of type C64|of type complex64",
    _of_float8: r"layers\.0\.mlp\.down_proj\.(mono)?lora_A.* is of type F8_E4M3|of type float8_e4m3fn",
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
    for load in (_peft, _peft_second, _transformers):
        with pytest.raises(AdapterFileError, match=r"lacks tensor '.*lm_head\.modules_to_save\.\w+\.weight'"):
            load(adapter, base_folder)


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


@pytest.mark.parametrize("load", LOADERS[:4], ids=lambda load: load.__name__[1:])
def test_a_refused_file_leaves_the_base_as_it_was(
    saved: Saved, base_folder: Path, load: Callable[[Path, Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, _ = saved()
    tensors = _head_of_the_base(_norm_of_the_base(load_file(adapter / WEIGHTS)))
    save_file(tensors, adapter / WEIGHTS, metadata={"format": "pt"})
    models: list[LlamaForCausalLM] = []
    read = LlamaForCausalLM.from_pretrained

    def remembered(*args: Any, **kwargs: Any) -> LlamaForCausalLM:
        models.append(read(*args, **kwargs))
        return models[-1]

    if load is not _transformers_auto:  # which keeps its model to itself
        monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", remembered)
    with pytest.raises(AdapterFileError):
        load(adapter, base_folder)
    for model in models:
        assert torch.equal(model.model.norm.weight, torch.ones(16))
        assert not (model.lm_head.weight == 9).any()


def test_embeddings_beside_an_adapter_may_add_rows_and_change_none(
    saved: Saved, base_folder: Path, ids: torch.Tensor
) -> None:
    """What ``save_embedding_layers=True`` writes is the base's own, whatever format either was rounded to."""
    adapter, expected = saved()
    _model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base_folder), str(adapter))
    _model.save_pretrained(adapter, save_embedding_layers=True)
    tensors = load_file(adapter / WEIGHTS)
    head, rows = "base_model.model.lm_head.weight", tensors["base_model.model.lm_head.weight"]

    def load(weight: torch.Tensor, resized: bool = False) -> torch.Tensor:
        save_file(tensors | {head: weight}, adapter / WEIGHTS, metadata={"format": "pt"})
        base = LlamaForCausalLM.from_pretrained(base_folder)
        if resized:
            base.resize_token_embeddings(66)
        return PeftModel.from_pretrained(base, str(adapter))(ids).logits

    assert torch.equal(load(rows), expected)
    torch.testing.assert_close(load(rows.bfloat16()), expected, rtol=0.1, atol=0.05)
    with pytest.raises(AdapterFileError, match=r"lm_head\.weight' would overwrite a weight of the base"):
        load(rows.index_add(0, torch.tensor([63]), torch.full((1, 16), 0.1)))
    with pytest.raises(AdapterFileError, match=r"has shape \(66, 16\) .*needs \(64, 16\)\. Resize .* to 66 rows"):
        load(torch.cat([rows, torch.ones(2, 16)]))
    tensors["base_model.model.model.embed_tokens.weight"] = torch.cat(
        [tensors["base_model.model.model.embed_tokens.weight"], torch.ones(2, 16)]
    )
    assert torch.equal(load(torch.cat([rows, torch.ones(2, 16)]), resized=True)[..., :64], expected)
    with pytest.raises(AdapterFileError, match=r"lm_head\.weight' would overwrite a weight of the base"):
        load(torch.cat([rows * 2, torch.ones(2, 16)]), resized=True)


def test_a_copy_that_differs_is_refused(saved: Saved, base_folder: Path) -> None:
    adapter, _ = saved(modules_to_save=["lm_head"])
    tensors = load_file(adapter / WEIGHTS)
    tensors["base_model.model.lm_head.modules_to_save.weight"] = tensors["base_model.model.lm_head.weight"] + 1
    save_file(tensors, adapter / WEIGHTS, metadata={"format": "pt"})
    for load in (_peft, _transformers):
        with pytest.raises(AdapterFileError, match=r"twice, and '.*lm_head\.modules_to_save\.weight' differs"):
            load(adapter, base_folder)


def test_a_tensor_under_two_names_is_refused(saved: Saved, base_folder: Path) -> None:
    adapter, _ = saved()
    tensors = load_file(adapter / WEIGHTS)
    tensors[FIRST.replace(".weight", ".default.weight").replace("monolora_A", "lora_A")] = tensors[FIRST] + 1
    save_file(tensors, adapter / WEIGHTS, metadata={"format": "pt"})
    for load in (_peft, _transformers):
        with pytest.raises(AdapterFileError, match="holds a tensor under two names"):
            load(adapter, base_folder)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_the_config_asks_for_come_back(
    make_gpt2: Callable[[], GPT2LMHeadModel], fill: Callable[..., Any], ids: torch.Tensor, tmp_path: Path, bias: str
) -> None:
    make_gpt2().save_pretrained(tmp_path / "gpt2")
    config = MonoLoraConfig(target_modules=["c_attn"], bias=bias, fan_in_fan_out=True, modules_to_save=["c_proj"])
    model = fill(get_peft_model(GPT2LMHeadModel.from_pretrained(tmp_path / "gpt2"), config)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(".bias") and parameter.requires_grad:
            parameter.data += torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "adapter")
    expected = model(ids).logits
    native = GPT2LMHeadModel.from_pretrained(tmp_path / "gpt2")
    native.load_adapter(str(tmp_path / "adapter"))
    peft = PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained(tmp_path / "gpt2"), str(tmp_path / "adapter"))
    assert torch.equal(native(ids).logits, expected)
    assert torch.equal(peft(ids).logits, expected)
    tensors = load_file(tmp_path / "adapter" / WEIGHTS)
    del tensors[next(name for name in tensors if name.endswith("c_attn.base_layer.bias"))]
    save_file(tensors, tmp_path / "adapter" / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(AdapterFileError, match=r"lacks tensor '.*c_attn\.base_layer\.bias'"):
        PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained(tmp_path / "gpt2"), str(tmp_path / "adapter"))
