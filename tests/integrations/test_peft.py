"""What registering changes in PEFT and transformers, and what they do with our adapters where nobody registered."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, PeftType, get_peft_model, inject_adapter_in_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import hotswap
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from safetensors.torch import load
from torch import nn
from transformers import LlamaForCausalLM
from transformers.integrations.peft import PeftAdapterMixin

from monolora import MonoLoraConfig, MonoLoraLayer, MonoLoraModel
from monolora.checkpoint import AdapterFileError
from monolora.integrations import register
from monolora.peft_type import extend_peft_type
from tests.support import forks

Saved = Callable[..., tuple[Path, torch.Tensor]]

# Run where monolora is not imported. Prints, a loader and adapter each, what came of it and what was warned of.
STOCK = """
import json, logging, sys, warnings
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import LlamaForCausalLM

base, *adapters = sys.argv[1:]
loaders = {
    "peft": lambda adapter: PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), adapter),
    "auto": AutoPeftModelForCausalLM.from_pretrained,
    "transformers": lambda adapter: LlamaForCausalLM.from_pretrained(base).load_adapter(adapter),
}
found = {}
for adapter in adapters:
    for name, load in loaders.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                result = load(adapter)
                outcome = sorted(result.missing_keys) if name == "transformers" else "loaded"
            except Exception as error:
                outcome = f"{type(error).__name__}: {error}"
        found[f"{name} {adapter.rsplit('/')[-1]}"] = [outcome, " ".join(str(w.message) for w in caught)]
assert "monolora" not in sys.modules
print(json.dumps(found))
"""


@pytest.fixture
def in_a_stock_process(saved: Saved, base_folder: Path, tmp_path: Path) -> dict[str, tuple[Any, str]]:
    adapter, _ = saved("ours")
    edited = shutil.copytree(adapter, tmp_path / "edited")
    config = json.loads((edited / "adapter_config.json").read_text())
    (edited / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "LORA"}))
    run = forks.run(STOCK, base_folder, adapter, edited)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_stock_loaders_refuse_our_adapters(in_a_stock_process: dict[str, tuple[Any, str]]) -> None:
    """The type is unknown to them. With the type edited to LORA, they find none of the tensors they look for.

    PEFT 0.21 warns of that and names them; transformers 5.19 logs a report and returns them. Neither loads any.
    """
    found = in_a_stock_process
    for loader in ("peft", "auto", "transformers"):
        outcome, _ = found[f"{loader} ours"]
        assert outcome == "KeyError: 'MONOLORA'", loader
    for loader in ("peft", "auto"):
        outcome, warned = found[f"{loader} edited"]
        assert outcome == "loaded"
        assert "Unexpected keyword arguments ['activation']" in warned
        assert "Found missing adapter keys while loading the checkpoint" in warned
        for layer in (0, 1):
            for module in ("self_attn.q_proj", "mlp.down_proj"):
                for matrix in "AB":
                    assert f"layers.{layer}.{module}.lora_{matrix}.default.weight" in warned
    outcome, _ = found["transformers edited"]
    assert len(outcome) == 8
    assert all("lora_" in name for name in outcome)


def test_the_tables_of_peft_know_the_method() -> None:
    member = PeftType("MONOLORA")
    assert PEFT_TYPE_TO_CONFIG_MAPPING[member] is MonoLoraConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[member] is MonoLoraModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[member] == "lora_"
    assert peft.get_peft_config({"peft_type": "MONOLORA", "activation": "identity"}) == MonoLoraConfig(
        activation="identity"
    )


def test_registering_twice_changes_nothing() -> None:
    before = (
        list(PeftType),
        peft.peft_model.load_peft_weights,
        hotswap.hotswap_adapter_from_state_dict,
        PeftAdapterMixin.load_adapter,
    )
    register()
    extend_peft_type()
    assert before == (
        list(PeftType),
        peft.peft_model.load_peft_weights,
        hotswap.hotswap_adapter_from_state_dict,
        PeftAdapterMixin.load_adapter,
    )


def test_the_native_wrap_keeps_the_signature(base_folder: Path) -> None:
    """Positional arguments as transformers takes them, and its own errors for bad calls."""
    model = LlamaForCausalLM.from_pretrained(base_folder)
    with pytest.raises(ValueError, match="pass a `peft_model_id` or a `peft_config`"):
        model.load_adapter()
    with pytest.raises((OSError, ValueError), match="no-such-adapter"):
        model.load_adapter(str(base_folder / "no-such-adapter"))
    with pytest.raises(TypeError):
        model.load_adapter(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)


def test_a_weights_file_in_the_current_folder_is_not_looked_at(
    saved: Saved, base_folder: Path, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, expected = saved()
    config = MonoLoraConfig.from_pretrained(str(adapter))
    weights = adapter / "adapter_model.safetensors"
    tensors = load(weights.read_bytes())
    weights.write_bytes(b"garbage")
    monkeypatch.chdir(adapter)
    model = LlamaForCausalLM.from_pretrained(base_folder)
    model.load_adapter(None, "mine", config, tensors)
    assert torch.equal(model(ids).logits, expected)


# Hotswap


def test_hotswap_gives_what_loading_gives(saved: Saved, base_folder: Path, ids: torch.Tensor) -> None:
    one, first = saved("one")
    two, second = saved("two", seed=2, lora_alpha=40)
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base_folder), str(one))
    for adapter, expected in ((two, second), (one, first), (two, second)):
        hotswap_adapter(model, str(adapter), "default")
        assert torch.equal(model(ids).logits, expected)


def test_hotswap_under_a_compiled_model(saved: Saved, base_folder: Path) -> None:
    one, _ = saved("one")
    two, _ = saved("two", seed=2, lora_alpha=40)
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base_folder), str(one))
    expected = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base_folder), str(two))
    hotswap_adapter(torch.compile(model, backend="eager"), str(two), "default")
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert model.base_model.model.model.layers[1].mlp.down_proj.scaling["default"] == 40 / 4


@pytest.mark.parametrize("rank", [2, 7])
def test_hotswap_to_another_rank(saved: Saved, base_folder: Path, ids: torch.Tensor, rank: int) -> None:
    one, _ = saved("one")
    two, expected = saved("two", seed=2, r=rank, rank_pattern={"q_proj": rank + 1})
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base_folder), str(one))
    hotswap_adapter(model, str(two), "default")
    torch.testing.assert_close(model(ids).logits, expected)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert (layer.r["default"], layer.scaling["default"]) == (rank + 1, 8 / (rank + 1))


def test_hotswap_to_an_adapter_of_fewer_modules(saved: Saved, base_folder: Path, ids: torch.Tensor) -> None:
    one, _ = saved("one")
    two, expected = saved("two", seed=2, target_modules=["q_proj"])
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base_folder), str(one))
    hotswap_adapter(model, str(two), "default")
    torch.testing.assert_close(model(ids).logits, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["embed_tokens"]}, "embed_tokens.*cannot be swapped in: hotswap handles units of linear"),
        ({"modules_to_save": ["lm_head"]}, r"has the foreign tensor 'base_model\.model\.lm_head\.weight'"),
    ],
)
def test_hotswap_of_more_than_a_and_b_is_refused(
    saved: Saved, base_folder: Path, settings: dict[str, Any], message: str
) -> None:
    """PEFT 0.21 fails on it with a bare KeyError."""
    adapter, _ = saved("one", **settings)
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base_folder), str(adapter))
    with pytest.raises(AdapterFileError, match=message):
        hotswap_adapter(model, str(adapter), "default")


SWAPS: dict[str, dict[str, Any]] = {
    "alpha": {"lora_alpha": 40},
    "alphas": {"alpha_pattern": {r".*\.1\.mlp\.down_proj": 40}},
    "fewer-units": {"r": 2, "lora_alpha": 5},
    "more-units": {"r": 7, "lora_alpha": 5},
    "ranks": {"rank_pattern": {"q_proj": 2, "down_proj": 6}},
    "fewer-modules": {"target_modules": ["q_proj"], "r": 3},
    "some-layers": {"layers_to_transform": [1], "lora_alpha": 3},
}


@pytest.mark.parametrize("native", [False, True], ids=["peft", "transformers"])
@pytest.mark.parametrize("swap", SWAPS)
def test_what_is_saved_after_a_hotswap_is_what_was_swapped_in(
    saved: Saved, base_folder: Path, ids: torch.Tensor, tmp_path: Path, swap: str, native: bool
) -> None:
    one, first = saved("one")
    two, second = saved("two", seed=2, **SWAPS[swap])
    model: Any = LlamaForCausalLM.from_pretrained(base_folder)
    if native:
        model.load_adapter(str(one))
    else:
        model = PeftModel.from_pretrained(model, str(one))
    for adapter, expected in ((two, second), (one, first), (two, second)):
        if native:
            model.load_adapter(str(adapter), adapter_name="default", hotswap=True)
        else:
            hotswap_adapter(model, str(adapter), "default")
        torch.testing.assert_close(model(ids).logits, expected)
    model.save_pretrained(tmp_path / "swapped")
    config, in_file = (MonoLoraConfig.from_pretrained(str(f)).to_dict() for f in (tmp_path / "swapped", two))
    assert config == in_file | {"auto_mapping": config["auto_mapping"], "task_type": config["task_type"]}
    again = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base_folder), str(tmp_path / "swapped"))
    assert torch.equal(again(ids).logits, second)


def test_native_hotswap_needs_an_adapter_and_one_of_its_kind(saved: Saved, base_folder: Path, tmp_path: Path) -> None:
    ours, _ = saved("ours")
    model = LlamaForCausalLM.from_pretrained(base_folder)
    with pytest.raises(ValueError, match="no adapter named 'default' to swap out"):
        model.load_adapter(str(ours), adapter_name="default", hotswap=True)
    model.load_adapter(str(ours))
    with pytest.raises(ValueError, match="Adapter with name default already exists"):
        model.load_adapter(str(ours))
    other, _ = saved("other", activation="softplus")
    with pytest.raises(ValueError, match="Configs are incompatible: for activation, relu != softplus"):
        model.load_adapter(str(other), adapter_name="default", hotswap=True)


def test_an_adapter_that_trains_more_than_a_and_b_is_not_swapped_out(saved: Saved, base_folder: Path) -> None:
    """What it trained besides would stay, and be taken for the other adapter's."""
    more, _ = saved("more", modules_to_save=["lm_head"])
    two, _ = saved("two", seed=2)
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base_folder), str(more))
    with pytest.raises(
        AdapterFileError, match=r"lm_head\.modules_to_save.*cannot be swapped in: hotswap handles units"
    ):
        hotswap_adapter(model, str(two), "default")


def test_a_model_that_is_prepared_for_compilation_is_saved_without_the_padding(
    saved: Saved, base_folder: Path, ids: torch.Tensor, tmp_path: Path
) -> None:
    adapter, expected = saved()
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base_folder), str(adapter))
    prepare_model_for_compiled_hotswap(model, target_rank=8)
    model.save_pretrained(tmp_path / "again")
    again = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base_folder), str(tmp_path / "again"))
    assert torch.equal(again(ids).logits, expected)


def test_hotswap_after_preparing_for_compilation(saved: Saved, base_folder: Path, ids: torch.Tensor) -> None:
    """Ranks are padded and scalings are tensors then; the padded units add nothing."""
    one, first = saved("one")
    two, second = saved("two", seed=2, r=6, lora_alpha=5)
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base_folder), str(one))
    prepare_model_for_compiled_hotswap(model, target_rank=8)
    torch.testing.assert_close(model(ids).logits, first)
    hotswap_adapter(model, str(two), "default")
    torch.testing.assert_close(model(ids).logits, second)


def test_hotswap_refuses_another_activation_and_plain_lora(
    saved: Saved, base_folder: Path, ids: torch.Tensor, tmp_path: Path
) -> None:
    ours, expected = saved("ours")
    other, _ = saved("other", activation="softplus")
    lora = get_peft_model(LlamaForCausalLM.from_pretrained(base_folder), LoraConfig(target_modules=["q_proj"]))
    lora.save_pretrained(tmp_path / "lora")
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base_folder), str(ours))
    with pytest.raises(ValueError, match="Configs are incompatible: for activation, relu != softplus"):
        hotswap_adapter(model, str(other), "default")
    with pytest.raises(ValueError, match="Incompatible PEFT types found: MONOLORA and LORA"):
        hotswap_adapter(model, str(tmp_path / "lora"), "default")
    with pytest.raises(ValueError, match="Incompatible PEFT types found: LORA and MONOLORA"):
        hotswap_adapter(lora, str(ours), "default")
    assert torch.equal(model(ids).logits, expected)


# LoRA and MonoLoRA on one model: the activation must not be lost on the way


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`", "ignore:You are trying to modify a model with PEFT")
@pytest.mark.parametrize("add", [inject_adapter_in_model, get_peft_model], ids=lambda add: add.__name__)
@pytest.mark.parametrize("first", [LoraConfig, MonoLoraConfig])
def test_one_model_does_not_carry_both(first: type[LoraConfig], add: Callable[..., nn.Module]) -> None:
    second = MonoLoraConfig if first is LoraConfig else LoraConfig
    model = inject_adapter_in_model(first(target_modules=["0"]), nn.Sequential(nn.Linear(3, 2)))
    config = second(target_modules=["0"])
    arguments = (model, config) if add is get_peft_model else (config, model)
    with pytest.raises(ValueError, match=r"cannot carry both LoRA and MonoLoRA adapters.*activation='identity'"):
        add(*arguments, adapter_name="second")
    layer = model[0]
    assert list(layer.lora_A) == ["default"]
    assert isinstance(layer, MonoLoraLayer) is (first is MonoLoraConfig)


def test_nor_does_a_peft_model(make_llama: Callable[..., LlamaForCausalLM]) -> None:
    for first, second in ((LoraConfig, MonoLoraConfig), (MonoLoraConfig, LoraConfig)):
        model = get_peft_model(make_llama(), first())
        with pytest.raises(ValueError, match="Cannot combine adapters with different peft types"):
            model.add_adapter("second", second())
