"""How transformers loads an exact checkpoint, what it refuses, and what it does where monolora is not imported."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)
from transformers.quantizers import auto

from monolora.checkpoint import AdapterFileError
from monolora.merge import export_exact
from monolora.merge.baked import BakedLinear, baked_layers
from monolora.merge.quantizer import NEEDS_MONOLORA, BakedGroup, MonoLoraHfQuantizer, MonoLoraQuantizationConfig
from monolora.register import register

Adapt = Callable[..., PeftModel]
Make = Callable[..., PreTrainedModel]

# Run where monolora is not imported: prints what came of each loader.
STOCK = """
import json, sys
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM
found = {"AutoConfig": AutoConfig.from_pretrained(sys.argv[1]).model_type}
for loader in (AutoModelForCausalLM, LlamaForCausalLM):
    try:
        loader.from_pretrained(sys.argv[1])
        found[loader.__name__] = "loaded"
    except Exception as error:
        found[loader.__name__] = f"{type(error).__name__}: {error}"
assert "monolora" not in sys.modules
print(json.dumps(found))
"""


@pytest.fixture
def exact(make_llama: Make, adapt: Adapt, ids: torch.Tensor, tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """An exact checkpoint, and the logits of the model that was exported."""
    model = adapt(make_llama())
    with torch.no_grad():
        expected = model(ids).logits
    export_exact(model, tmp_path / "exact")
    return tmp_path / "exact", expected


def _edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def _in_a_stock_process(folder: Path) -> dict[str, str]:
    run = subprocess.run([sys.executable, "-c", STOCK, folder], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found: dict[str, str] = json.loads(run.stdout)
    return found


def test_without_monolora_loading_fails_and_says_why(exact: tuple[Path, torch.Tensor]) -> None:
    """The exported folder, and one that was loaded and saved again."""
    folder, _ = exact
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder / "again")
    for place in (folder, folder / "again"):
        found = _in_a_stock_process(place)
        assert found.pop("AutoConfig") == "llama"
        for outcome in found.values():
            assert outcome.startswith("ValueError")
            assert NEEDS_MONOLORA in outcome


def test_config_json_says_what_is_needed_and_no_more(exact: tuple[Path, torch.Tensor]) -> None:
    config = json.loads((exact[0] / "config.json").read_text())
    targets = ("self_attn.q_proj", "mlp.down_proj")
    assert config["quantization_config"] == {
        "quant_method": "monolora",
        "groups": [
            {
                "modules": [f"model.layers.{i}.{name}" for i in (0, 1) for name in targets],
                "r": 4,
                "scaling": 2.0,
                "activation": "relu",
                "bias": False,
                "dtype": "float32",
            }
        ],
    }
    assert "monolora" in config["transformers_weights"]


def test_the_marker_is_written_and_nowhere_else(exact: tuple[Path, torch.Tensor], make_llama: Make) -> None:
    config = AutoConfig.from_pretrained(exact[0])
    model = AutoModelForCausalLM.from_pretrained(exact[0], config=config)
    assert "transformers_weights" not in vars(model.config)
    assert copy.deepcopy(model.config) == model.config
    assert "transformers_weights" not in model.config.to_dict()
    assert "transformers_weights" not in GenerationConfig.from_model_config(model.config).to_dict()
    assert "transformers_weights" not in make_llama().config.to_diff_dict()
    assert type(model.config.quantization_config) is MonoLoraQuantizationConfig


def test_the_config_round_trips(exact: tuple[Path, torch.Tensor]) -> None:
    config = AutoModelForCausalLM.from_pretrained(exact[0]).config.quantization_config
    again = MonoLoraQuantizationConfig.from_dict(json.loads(config.to_json_string()))
    assert again.to_dict() == json.loads(json.dumps(config.to_dict()))


def test_registering_twice_does_nothing() -> None:
    before = auto.AUTO_QUANTIZER_MAPPING["monolora"], PreTrainedConfig.to_diff_dict
    register()
    assert before == (MonoLoraHfQuantizer, PreTrainedConfig.to_diff_dict)


def test_a_loaded_model_is_not_treated_as_quantized(exact: tuple[Path, torch.Tensor], ids: torch.Tensor) -> None:
    model = LlamaForCausalLM.from_pretrained(exact[0])
    assert torch.equal(model.float()(ids).logits, exact[1])
    assert model.to(torch.bfloat16).model.layers[0].self_attn.q_proj.monolora_A.dtype == torch.bfloat16


def test_another_dtype_on_request(exact: tuple[Path, torch.Tensor], ids: torch.Tensor, tmp_path: Path) -> None:
    """As with an adapter beside its base: the base is cast, A and B are not. Casts made later are saved, too."""
    model = LlamaForCausalLM.from_pretrained(exact[0], dtype=torch.bfloat16)
    layer = model.model.layers[0].self_attn.q_proj
    assert (layer.weight.dtype, layer.monolora_A.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(model(ids).logits.float(), exact[1], atol=0.1, rtol=0.1)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    again = LlamaForCausalLM.from_pretrained(tmp_path / "half")
    assert {parameter.dtype for parameter in again.parameters()} == {torch.bfloat16}


def test_lora_on_top(exact: tuple[Path, torch.Tensor], ids: torch.Tensor, tmp_path: Path) -> None:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(exact[0]), LoraConfig(target_modules=["q_proj"], r=2))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert type(layer.base_layer) is BakedLinear
    assert torch.equal(model(ids).logits, exact[1])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    trained = model(ids).logits
    assert not torch.equal(trained, exact[1])
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(ids).logits, trained)
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits, merged(ids).logits)


def test_monolora_on_top_where_nothing_is_baked(
    exact: tuple[Path, torch.Tensor], adapt: Adapt, ids: torch.Tensor, tmp_path: Path
) -> None:
    """A second adapter, on other modules, can be exported once more; on the same modules it is refused by name."""
    model = adapt(AutoModelForCausalLM.from_pretrained(exact[0]), seed=3, target_modules=["v_proj"])
    expected = model(ids).logits
    export_exact(model, tmp_path / "twice")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "twice")
    assert torch.equal(again(ids).logits, expected)
    assert len(baked_layers(again)) == 6
    with pytest.raises(ValueError, match=r"model.layers.0.self_attn.q_proj.*keeps a MonoLoRA adapter already"):
        export_exact(adapt(again, target_modules=["q_proj"]), tmp_path / "thrice")


def test_full_finetuning(exact: tuple[Path, torch.Tensor], ids: torch.Tensor, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(exact[0])
    before = model.model.layers[0].self_attn.q_proj.monolora_B.detach().clone()
    settings = TrainingArguments(tmp_path / "run", max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True)
    rows = [{"input_ids": row, "labels": row} for row in ids]
    Trainer(model, settings, train_dataset=rows).train()
    assert not torch.equal(model.model.layers[0].self_attn.q_proj.monolora_B, before)


def _rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


TENSOR = "model.layers.1.mlp.down_proj.monolora_B"


def test_a_missing_tensor_is_refused(exact: tuple[Path, torch.Tensor]) -> None:
    _rewrite(exact[0], lambda tensors: tensors.pop(TENSOR))
    with pytest.raises(AdapterFileError, match=f"lacks tensor '{TENSOR}' \\(1 missing\\)"):
        AutoModelForCausalLM.from_pretrained(exact[0])


def test_nan_is_refused(exact: tuple[Path, torch.Tensor]) -> None:
    _rewrite(exact[0], lambda tensors: tensors[TENSOR].view(-1)[3].fill_(torch.nan))
    with pytest.raises(AdapterFileError, match=f"'{TENSOR}' has NaN"):
        AutoModelForCausalLM.from_pretrained(exact[0])


def test_another_shape_is_refused(exact: tuple[Path, torch.Tensor]) -> None:
    _edit(exact[0], lambda config: config["quantization_config"]["groups"][0].update(r=3))
    with pytest.raises(AdapterFileError, match=r"has shape \(4, 24\) in the file, config.json says \(3, 24\)"):
        AutoModelForCausalLM.from_pretrained(exact[0])


def test_a_truncated_file_is_refused(exact: tuple[Path, torch.Tensor]) -> None:
    path = exact[0] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(AdapterFileError, match="is truncated"):
        LlamaForCausalLM.from_pretrained(exact[0])


def test_modules_that_the_model_lacks_are_refused(exact: tuple[Path, torch.Tensor]) -> None:
    _edit(exact[0], lambda config: config.update(num_hidden_layers=1))
    with pytest.raises(ValueError, match=r"names 'model.layers.1.self_attn.q_proj', which this model does not have"):
        AutoModelForCausalLM.from_pretrained(exact[0])


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="Did you mean 'relu'"):
        BakedGroup(modules=["q_proj"], r=2, scaling=1.0, activation="rellu", bias=False, dtype="float32")


def test_quantizing_at_load_is_refused(exact: tuple[Path, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="quantized with MonoLoraQuantizationConfig but you are passing"):
        AutoModelForCausalLM.from_pretrained(exact[0], quantization_config=BitsAndBytesConfig(load_in_4bit=True))


def test_tensor_parallelism_is_refused(exact: tuple[Path, torch.Tensor]) -> None:
    config = AutoConfig.from_pretrained(exact[0])
    quantizer = auto.AutoHfQuantizer.from_config(config.quantization_config)
    config.distributed_config = type("DistributedConfig", (), {"tp_plan": "auto", "tp_size": None})()
    with pytest.raises(ValueError, match="tensor parallelism"):
        quantizer.update_tp_plan(config)


def test_a_mixture_of_experts_whose_tensors_are_fused_on_loading(
    adapt: Adapt, ids: torch.Tensor, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2}
    base = MixtralForCausalLM(MixtralConfig(vocab_size=64, num_hidden_layers=2, num_local_experts=2, **sizes)).eval()
    model = adapt(base, target_modules=["q_proj", "o_proj"])
    with torch.no_grad():
        expected = model(ids).logits
        export_exact(model, tmp_path, max_shard_size="8KB")
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, expected)


def test_a_model_whose_names_on_disk_are_others(adapt: Adapt, ids: torch.Tensor, tmp_path: Path) -> None:
    """LLaVA keeps ``model.language_model.layers`` as ``language_model.model.layers``."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**sizes, image_size=8, patch_size=4)
    base = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=LlamaConfig(vocab_size=64, **sizes))
    ).eval()
    model = adapt(base, target_modules=["q_proj", "lm_head"])
    with torch.no_grad():
        expected = model(ids).logits
        export_exact(model, tmp_path)
        assert torch.equal(LlavaForConditionalGeneration.from_pretrained(tmp_path)(ids).logits, expected)
    last = "layers.1.self_attn.q_proj.monolora_A"
    key = next(key for key in load_file(tmp_path / "model.safetensors") if key.endswith(last))
    assert key.startswith("language_model.model.")
    _rewrite(tmp_path, lambda tensors: tensors.pop(key))
    with pytest.raises(AdapterFileError, match=rf"lacks tensor 'model\..*\.{last}' \(1 missing"):
        LlavaForConditionalGeneration.from_pretrained(tmp_path)
