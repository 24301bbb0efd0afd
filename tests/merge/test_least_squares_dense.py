"""A dense export is the stock checkpoint ``W + s B A'``, tensor by tensor and in its logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from monolora import MonoLoraConfig
from monolora.errors import InputError
from monolora.merge import LinearMap, export_dense, linearize
from monolora.merge.unload import Units, active_units
from tests.support import forks
from tests.support.merge_inputs import shift, text

Make = Callable[..., PreTrainedModel]
Adapt = Callable[..., PeftModel]

TIED = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
SAVED = pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
BIAS = pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed but the targeted layer")

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all-linear": {"target_modules": "all-linear"},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r".*\.1\.mlp\.down_proj": 32}, "use_rslora": True},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "both": {"target_modules": ["lm_head", "embed_tokens"]},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "saved norm": {"modules_to_save": ["norm"]},
    "tokens": {"trainable_token_indices": [3, 9]},
    "tokens, head": {"trainable_token_indices": [3, 9], "target_modules": ["lm_head"]},
    "biases": {"bias": "lora_only", "target_modules": ["q_proj", "v_proj"]},
    "lora_bias": {"lora_bias": True, "target_modules": ["q_proj", "v_proj"]},
    "some layers": {"layers_to_transform": [1]},
}

PLACES = dict.fromkeys(("model.embed_tokens", "model.norm", "lm_head", "model.rotary_emb", "model.layers.0"), "cpu")
PLACES["model.layers.1"] = "disk"

STOCK = """
import sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
folders, ids = sys.argv[2:], load_file(sys.argv[1])["ids"]
with torch.no_grad():
    logits = {folder: AutoModelForCausalLM.from_pretrained(folder)(ids).logits for folder in folders}
assert not [name for name in sys.modules if name.startswith("monolora")]
save_file(logits, sys.argv[1])
"""


def _lora(base: PreTrainedModel, fill: Callable[..., Any], **settings: Any) -> PeftModel:
    """The same adapter as `adapt` makes, as PEFT's LoRA."""
    config = LoraConfig(**{"target_modules": ["q_proj", "down_proj"], "r": 4, "task_type": "CAUSAL_LM"} | settings)
    return shift(fill(get_peft_model(base, config)).eval())


@torch.no_grad()
def _logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return model(ids).logits


def _close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("settings", "tied"),
    # Where a head is tied to trained tokens, PEFT puts the adapter around its own wrapper of the head.
    [(name, tied) for name in SETTINGS for tied in (False, True) if (name, tied) != ("tokens, head", True)],
)
@TIED
def test_linear_units_merge_as_in_lora(
    make_llama: Make, adapt: Adapt, fill: Callable, ids: torch.Tensor, tmp_path: Path, settings: str, tied: bool
) -> None:
    """Against PEFT's LoRA of the same weights. (PEFT's merge into one of two tied weights changes both.)"""

    def base() -> PreTrainedModel:
        made = make_llama(tie_word_embeddings=tied, attention_bias="bias" in settings)
        return shift(made.requires_grad_(False))  # type: ignore[arg-type]

    lora = _lora(base(), fill, **SETTINGS[settings])
    expected = _logits(lora, ids)
    model = shift(adapt(base(), activation="identity", **SETTINGS[settings]))
    _close(_logits(model, ids), expected)
    export_dense(model, linearize(model, None), tmp_path)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path)
    _close(_logits(merged, ids), expected)
    if not tied:
        _close(_logits(lora.merge_and_unload(), ids), expected)
    parted = tied and settings in ("embedding", "head", "both", "modules_to_save")
    assert merged.config.tie_word_embeddings is (tied and not parted)
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) is (tied and not parted)


def _merged_by_hand(
    weights: Mapping[str, torch.Tensor], units: Mapping[str, Units], maps: Mapping[str, LinearMap]
) -> dict[str, torch.Tensor]:
    """The base's tensors with ``s B A'`` and ``s (B c + b)`` added, in float64."""
    found = {name: tensor.double() for name, tensor in weights.items()}
    for name, (_, B, b, scaling, *_) in units.items():
        delta, weight = scaling * B.double() @ maps[name].A.double(), found[f"{name}.weight"]
        transposed = "wte" in name or "embed" in name or name.rpartition(".")[2].startswith("c_")
        assert weight.shape == (delta.T if transposed else delta).shape
        found[f"{name}.weight"] = weight + (delta.T if transposed else delta)
        for bias in (b, None if maps[name].intercept is None else B.double() @ maps[name].intercept.double()):
            if bias is not None:
                found[f"{name}.bias"] = found[f"{name}.bias"] + scaling * bias.double()
    return found


def _check_tensors(base: PreTrainedModel, model: PeftModel, folder: Path, **kwargs: Any) -> PreTrainedModel:
    """Calibrate, export, and compare every tensor; the tensors that no unit touches are the same bits."""
    weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    maps, units = linearize(model, text()), active_units(model)
    expected = _merged_by_hand(weights, units, maps)
    export_dense(model, maps, folder, **kwargs)
    merged = AutoModelForCausalLM.from_pretrained(folder)
    found = merged.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == weights[name].dtype
        if name.rpartition(".")[0] not in units:
            assert torch.equal(found[name], weights[name]), name
        assert torch.allclose(found[name], tensor.to(found[name].dtype), rtol=1e-5, atol=1e-6), name
    return merged


@pytest.mark.parametrize("settings", ["plain", "all-linear", "patterns", "both"])
def test_tensors(make_llama: Make, adapt: Adapt, tmp_path: Path, settings: str) -> None:
    _check_tensors(make_llama(), adapt(make_llama(), **SETTINGS[settings]), tmp_path)


@pytest.mark.parametrize("lora_bias", [False, True])
def test_intercepts_become_biases(make_gpt2: Make, adapt: Adapt, tmp_path: Path, lora_bias: bool) -> None:
    """Conv1D's weight is transposed; a bias on B goes the same way as the intercept."""
    settings: dict[str, Any] = {"target_modules": ["c_attn", "c_proj"], "lora_bias": lora_bias}
    model = adapt(make_gpt2(), fan_in_fan_out=True, **settings)
    base = make_gpt2().state_dict()
    merged = _check_tensors(make_gpt2(), model, tmp_path).state_dict()
    assert not torch.equal(merged["transformer.h.0.attn.c_attn.bias"], base["transformer.h.0.attn.c_attn.bias"])


@TIED
def test_gpt2s_embeddings(make_gpt2: Make, adapt: Adapt, ids: torch.Tensor, tmp_path: Path) -> None:
    """Exact, and tied no longer."""
    model = adapt(make_gpt2(), target_modules=["wte", "wpe"])
    expected = _logits(model, ids)
    export_dense(model, linearize(model, None), tmp_path)
    _close(_logits(AutoModelForCausalLM.from_pretrained(tmp_path), ids), expected)


@BIAS
def test_a_bias_on_b_needs_a_bias(make_llama: Make, adapt: Adapt, ids: torch.Tensor, tmp_path: Path) -> None:
    model = adapt(make_llama(), lora_bias=True)
    expected, maps = _logits(model, ids), linearize(model, None)
    with pytest.raises(InputError, match=r"self_attn.q_proj has no bias that it could go to.* Merge exactly, or as a"):
        export_dense(model, maps, tmp_path / "dense")
    assert not (tmp_path / "dense").exists()
    assert torch.equal(_logits(model, ids), expected)


def test_a_bfloat16_base_is_rounded_once(make_llama: Make, adapt: Adapt, tmp_path: Path) -> None:
    base = make_llama(dtype=torch.bfloat16)
    model = adapt(make_llama(dtype=torch.bfloat16), target_modules="all-linear")
    expected = _merged_by_hand(base.state_dict(), active_units(model), maps := linearize(model, text()))
    export_dense(model, maps, tmp_path)
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        assert tensor.dtype == torch.bfloat16
        near = (tensor.double() - expected[name]).abs() <= expected[name].abs() * 2**-8 * 1.001 + 1e-7
        assert near.all(), name
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_base_is_dequantized(make_llama: Make, adapt: Adapt, tmp_path: Path, bits: int) -> None:
    make_llama(hidden_size=64, intermediate_size=64).save_pretrained(tmp_path / "base")
    config = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)

    def load() -> PreTrainedModel:
        return LlamaForCausalLM.from_pretrained(tmp_path / "base", quantization_config=config)

    model = adapt(load())
    maps, units = linearize(model, text(60)), active_units(model)
    expected = _merged_by_hand(load().dequantize().state_dict(), units, maps)
    export_dense(model, maps, tmp_path / "dense")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert "quantization_config" not in vars(merged.config)
    # On some CPUs the forward of the calibration rounds the scale of each block of 4-bit weights to bfloat16.
    block = 2**-8 * float(load_file(tmp_path / "base" / "model.safetensors")["lm_head.weight"].abs().max())
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=block if bits == 4 else 1e-6)


def test_shards_generation_config_and_tokenizer(make_llama: Make, adapt: Adapt, tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 3}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", chat_template="mine")
    model = adapt(make_llama(), target_modules="all-linear")
    model.generation_config.repetition_penalty = 1.3
    merged = _check_tensors(make_llama(), model, tmp_path, tokenizer=tokenizer, max_shard_size="4KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert merged.generation_config.repetition_penalty == 1.3
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == "mine"


@pytest.mark.filterwarnings("ignore:for base_model.model")  # PEFT's, of every adapter for layers on the disk
@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")
@TIED
@SAVED
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_offloaded_models(
    make_llama: Make, adapt: Adapt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    """Calibrated and exported from the disk: the same tensors as from memory."""
    monkeypatch.chdir(tmp_path)  # PEFT writes the files of offloaded adapters below the current folder
    in_memory = adapt(make_llama(tie_word_embeddings=tied), target_modules=["q_proj", "up_proj", "lm_head"][: 3 - tied])
    in_memory.save_pretrained(tmp_path / "adapter")
    make_llama(tie_word_embeddings=tied).save_pretrained(tmp_path / "base")
    export_dense(in_memory, linearize(in_memory, text()), tmp_path / "expected")
    # Either half of the layers find no room in memory, or one is put on the disk by name.
    auto: dict[str, Any] = {"device_map": "auto", "max_memory": {"cpu": 16_000}}
    room = {"device_map": PLACES} if tied else auto
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base", offload_folder="offload", **room)
    assert "disk" in base.hf_device_map.values()
    room = {"device_map": {f"base_model.model.{name}": place for name, place in PLACES.items()}} if tied else auto
    model = PeftModel.from_pretrained(base, tmp_path / "adapter", offload_dir="offload2", **room)
    model.eval()
    assert any(parameter.device.type == "meta" for parameter in model.parameters())
    before = (tmp_path / "base" / "model.safetensors").read_bytes()
    export_dense(model, linearize(model, text()), tmp_path / "dense")
    assert (tmp_path / "base" / "model.safetensors").read_bytes() == before
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("expected", "dense"))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, msg=name)


def test_a_sum_of_adapters(make_llama: Make, adapt: Adapt, fill: Callable, tmp_path: Path) -> None:
    model = adapt(make_llama())
    model.add_adapter("other", MonoLoraConfig(target_modules=["q_proj", "up_proj"], r=2))
    fill(model, 5, "other")
    model.add_weighted_adapter(["default", "other"], [1.0, -0.5], "sum", "cat")
    model.set_adapter("sum")
    _check_tensors(make_llama(), model.eval(), tmp_path)


@TIED
def test_stock_transformers_load_it(make_llama: Make, adapt: Adapt, ids: torch.Tensor, tmp_path: Path) -> None:
    """In a process that knows nothing of monolora."""
    expected = {}
    for settings in ("plain", "head", "lora_bias"):
        folder = tmp_path / settings
        base = make_llama(tie_word_embeddings=settings == "head", attention_bias=settings == "lora_bias")
        model = adapt(base, activation="identity", **SETTINGS[settings])
        expected[str(folder)] = _logits(model, ids)
        export_dense(model, linearize(model, None), folder)
    save_file({"ids": ids}, tmp_path / "exchange")
    run = forks.run(STOCK, tmp_path / "exchange", *expected)
    assert run.returncode == 0, run.stderr
    found = load_file(tmp_path / "exchange")
    assert found.keys() == expected.keys()
    for folder, logits in expected.items():
        _close(found[folder], logits)
