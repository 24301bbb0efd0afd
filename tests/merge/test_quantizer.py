"""How transformers loads an exact checkpoint, what it refuses, and what it does where monolora is not imported."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
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
    pipeline,
)
from transformers.quantizers import auto
from trl.trainer.utils import create_model_from_path

from monolora.checkpoint import AdapterFileError
from monolora.errors import InputError
from monolora.hub import load_causal_lm
from monolora.integrations import register
from monolora.merge import export_exact
from monolora.merge.baked import BakedLinear, baked_layers
from monolora.merge.files import weight_files
from monolora.merge.quantizer import (
    NEEDS_MONOLORA,
    MonoLoraHfQuantizer,
    MonoLoraQuantizationConfig,
    check_checkpoint,
)
from monolora.recipes.training.arguments import parse
from monolora.recipes.training.models import load_model
from tests.support import forks
from tests.support.tiny_chat import train_tokenizer

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
    run = forks.run(STOCK, folder)
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


def _groups(config: dict[str, Any]) -> Any:
    return config["quantization_config"]["groups"]


# What is wrong with config.json, and what the refusal names.
DAMAGED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "module": (lambda c: _groups(c)[0].update(modules=["evil"]), "names 'evil', which this model does not have"),
    "one more": (lambda c: _groups(c)[0]["modules"].append("evil.q_proj"), "names 'evil.q_proj'"),
    "no linear layer": (lambda c: _groups(c)[0]["modules"].append("model.norm"), "into model.norm: it is a"),
    "a tensor": (lambda c: _groups(c)[0]["modules"].append("model.norm.weight"), "names 'model.norm.weight'"),
    "fewer modules": (lambda c: _groups(c)[0]["modules"].pop(0), "q_proj.monolora_.' of .* config.json does not name"),
    "twice": (lambda c: _groups(c)[0]["modules"].append("model.layers.1.mlp.down_proj"), "is named 2 times"),
    "twice, in two groups": (lambda c: _groups(c).append(_groups(c)[0]), "is named 2 times"),
    "twice, in two spellings": (lambda c: _groups(c)[0]["modules"].append("layers.1.mlp.down_proj"), "named 2 times"),
    "no list": (lambda c: _groups(c)[0].update(modules="model.layers.1.mlp.down_proj"), "not a list of names"),
    "no modules": (lambda c: _groups(c)[0].update(modules=[]), "not a list of names"),
    "no groups": (lambda c: c["quantization_config"].update(groups=[]), "groups is .*, not a list of groups"),
    "group of numbers": (lambda c: c["quantization_config"].update(groups=[3]), "a group is 3, not a mapping"),
    "unknown field": (lambda c: _groups(c)[0].update(code="import os"), "a group is .*, not a mapping of activation"),
    "activation": (lambda c: _groups(c)[0].update(activation="rellu"), "Did you mean 'relu'"),
    "scaling": (lambda c: _groups(c)[0].update(scaling=float("nan")), "scaling of a group is nan, not a finite number"),
    "infinite": (lambda c: _groups(c)[0].update(scaling=float("inf")), "scaling of a group is inf"),
    "scaling of text": (lambda c: _groups(c)[0].update(scaling="2"), "scaling of a group is '2'"),
    "rank": (lambda c: _groups(c)[0].update(r=0), "r of a group is 0, not a whole number"),
    "fraction": (lambda c: _groups(c)[0].update(r=2.5), "r of a group is 2.5, not a whole number"),
    "bias": (lambda c: _groups(c)[0].update(bias="no"), "bias of a group is 'no', not true or false"),
    "bias without": (lambda c: _groups(c)[0].update(bias=True), "lacks tensor '.*monolora_B_bias'"),
    "dtype": (lambda c: _groups(c)[0].update(dtype="int8"), "dtype of a group is 'int8', not one of float32"),
    "no dtype": (lambda c: _groups(c)[0].update(dtype="nn"), "dtype of a group is 'nn'"),
    "other dtypes": (
        lambda c: c["quantization_config"].update(other_dtypes={"int8": ["a"]}),
        "other_dtypes has 'int8'",
    ),
    "other names": (
        lambda c: c["quantization_config"].update(other_dtypes={"float16": ["model.norm"]}),
        "names 'model.norm'",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_config_that_contradicts_model_or_files_is_refused(exact: tuple[Path, torch.Tensor], name: str) -> None:
    """By transformers, and by what vLLM calls before it makes the model."""
    change, says = DAMAGED[name]
    _edit(exact[0], change)
    with pytest.raises(ValueError, match=says):
        AutoModelForCausalLM.from_pretrained(exact[0])
    with pytest.raises(ValueError, match=says):
        check_checkpoint(AutoConfig.from_pretrained(exact[0]), weight_files(exact[0]))


BASE_TENSOR = "model.layers.0.mlp.up_proj.weight"
DAMAGED_TENSORS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "foreign": (
        lambda t: t.update({"model.layers.0.mlp.up_proj.monolora_A": t[TENSOR].clone()}),
        "up_proj.monolora_A' of .* config.json does not name",
    ),
    "of another kind": (lambda t: t.update({f"{TENSOR}_bias": torch.zeros(16)}), f"{TENSOR}_bias' of .*does not name"),
    "unknown": (lambda t: t.update({"evil.monolora_A": torch.zeros(())}), "'evil.monolora_A' of .* does not name"),
    "int8": (lambda t: t.update({TENSOR: t[TENSOR].to(torch.int8)}), f"'{TENSOR}' is of dtype I8, not of floats"),
    "bool": (lambda t: t.update({TENSOR: t[TENSOR] > 0}), f"'{TENSOR}' is of dtype BOOL"),
    "complex": (lambda t: t.update({TENSOR: t[TENSOR].to(torch.complex64)}), f"'{TENSOR}' is of dtype C64"),
    "float8": (lambda t: t.update({TENSOR: t[TENSOR].to(torch.float8_e4m3fn)}), f"'{TENSOR}' is of dtype F8_E4M3"),
    "infinite": (lambda t: t[TENSOR].view(-1)[0].fill_(-torch.inf), f"'{TENSOR}' has NaN or infinite"),
    "transposed": (lambda t: t.update({TENSOR: t[TENSOR].T.contiguous()}), r"\(4, 16\) in the file, .* says \(16, 4\)"),
    "base, of another shape": (
        lambda t: t.update({BASE_TENSOR: t[BASE_TENSOR][:5].clone()}),
        rf"'{BASE_TENSOR}' has shape \(5, 16\) in the file",
    ),
    "base, int8": (lambda t: t.update({BASE_TENSOR: t[BASE_TENSOR].to(torch.int8)}), f"'{BASE_TENSOR}' is of dtype I8"),
}


@pytest.mark.parametrize("name", DAMAGED_TENSORS)
def test_tensors_that_contradict_the_config_are_refused(exact: tuple[Path, torch.Tensor], name: str) -> None:
    change, says = DAMAGED_TENSORS[name]
    _rewrite(exact[0], change)
    with pytest.raises(AdapterFileError, match=says):
        AutoModelForCausalLM.from_pretrained(exact[0])
    with pytest.raises(AdapterFileError, match=says):
        check_checkpoint(AutoConfig.from_pretrained(exact[0]), weight_files(exact[0]))


def test_a_tensor_in_two_files_is_refused(make_llama: Make, adapt: Adapt, tmp_path: Path) -> None:
    export_exact(adapt(make_llama()), tmp_path, max_shard_size="8KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    check_checkpoint(AutoConfig.from_pretrained(tmp_path), weight_files(tmp_path))
    other = tmp_path / next(file for file in index.values() if file != index[TENSOR])
    tensor = load_file(tmp_path / index[TENSOR])[TENSOR]
    save_file(load_file(other) | {TENSOR: tensor}, other, metadata={"format": "pt"})
    with pytest.raises(AdapterFileError, match=f"'{TENSOR}' of .* is there twice"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    other.unlink()
    with pytest.raises(ValueError, match=other.name):
        check_checkpoint(AutoConfig.from_pretrained(tmp_path), weight_files(tmp_path))


def test_a_head_that_the_class_lacks_is_compared_all_the_same(
    make_llama: Make, adapt: Adapt, ids: torch.Tensor, tmp_path: Path
) -> None:
    export_exact(adapt(make_llama(), target_modules=["q_proj", "lm_head"]), tmp_path)
    assert len(baked_layers(AutoModel.from_pretrained(tmp_path))) == 2
    _rewrite(tmp_path, lambda tensors: [tensors.pop(f"lm_head.monolora_{matrix}") for matrix in "AB"])
    with pytest.raises(AdapterFileError, match=r"lacks tensor 'lm_head.monolora_A' \(1 missing\)"):
        AutoModel.from_pretrained(tmp_path)


QUANTIZED = {"4 bits": BitsAndBytesConfig(load_in_4bit=True), "as in JSON": {"quant_method": "gptq", "bits": 4}}


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("loader", [AutoModelForCausalLM, LlamaForCausalLM])
def test_quantizing_at_load_is_refused(exact: tuple[Path, torch.Tensor], loader: Any, name: str) -> None:
    with pytest.raises(InputError, match=r"cannot be quantized while it is loaded. Leave quantization_config out"):
        loader.from_pretrained(exact[0], quantization_config=QUANTIZED[name])


def test_no_quantization_asked_for_in_so_many_words(exact: tuple[Path, torch.Tensor], ids: torch.Tensor) -> None:
    """By every way that None can take; another model's config takes it as ever."""
    folder, expected = exact
    config = AutoConfig.from_pretrained(folder, quantization_config=None)
    models = [
        AutoModelForCausalLM.from_pretrained(folder, quantization_config=None),
        AutoModelForCausalLM.from_pretrained(folder, config=config),
        AutoModelForCausalLM.from_pretrained(folder, config=config, quantization_config=None),
        LlamaForCausalLM.from_pretrained(folder, quantization_config=None),
        LlamaForCausalLM.from_pretrained(
            folder, config=LlamaConfig.from_pretrained(folder, quantization_config=None), quantization_config=None
        ),
        create_model_from_path(str(folder), quantization_config=None, dtype="float32", device_map=None),
        load_causal_lm(str(folder), dtype="float32", quantization_config=None),
    ]
    with torch.no_grad():
        assert all(torch.equal(model(ids).logits, expected) for model in models)
    assert AutoConfig.from_pretrained(folder, quantization_config={"quant_method": "gptq"}).quantization_config == {
        "quant_method": "gptq"
    }
    plain = {"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}
    assert LlamaConfig.from_dict(plain, quantization_config=None).quantization_config is None


def test_training_and_pipelines_load_it(make_llama: Make, adapt: Adapt, tmp_path: Path) -> None:
    """Both hand None through: the recipe's loader, and what ``pipeline`` is given for the model."""
    tokenizer = train_tokenizer()
    export_exact(adapt(make_llama(vocab_size=len(tokenizer))), tmp_path, tokenizer)
    model = load_model(str(tmp_path), parse(["--model", str(tmp_path), "--dtype", "float32"]))
    assert len(baked_layers(model)) == 4
    generate = pipeline("text-generation", model=str(tmp_path), model_kwargs={"quantization_config": None})
    assert len(baked_layers(generate.model)) == 4


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
