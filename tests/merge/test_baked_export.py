"""What `export_exact` writes gives the adapted model's logits, bit for bit, through every loader there is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    pipeline,
)

from monolora import MonoLoraConfig
from monolora.merge import export_exact
from monolora.merge.baked import baked_layers

Make = Callable[..., PreTrainedModel]
Adapt = Callable[..., PeftModel]

# Said by PEFT; that it does work here is what these tests show.
TIED = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
BIAS = pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed but the targeted layer")

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"lora_dropout": 0.5},
    "all-linear": {"target_modules": "all-linear"},
    "identity": {"activation": "identity"},
    "softplus": {"activation": "softplus"},
    "topk": {"activation": "topk:2"},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r".*\.1\.mlp\.down_proj": 32}, "use_rslora": True},
    "lora_bias": {"lora_bias": True},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "saved norm": {"modules_to_save": ["norm"]},
    "tokens": {"trainable_token_indices": [3, 9]},
    "some layers": {"layers_to_transform": [1]},
}


def _shift(model: PeftModel) -> PeftModel:
    """Move all that is trained outside of A and B, so that losing it shows."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_" not in name:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model


@torch.no_grad()
def _check(model: PeftModel, ids: torch.Tensor, folder: Path, **kwargs: Any) -> PreTrainedModel:
    """Export, load with the Auto class and the model's own, save again, load again: the same logits every time."""
    model_class, expected = type(model.base_model.model), model(ids).logits
    export_exact(model, folder, **kwargs)
    loaded = model_class.from_pretrained(folder)
    assert torch.equal(loaded(ids).logits, expected)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(folder)(ids).logits, expected)
    loaded.save_pretrained(folder / "again")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(folder / "again")(ids).logits, expected)
    return loaded


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("settings", SETTINGS)
@TIED
@BIAS
def test_llama(make_llama: Make, adapt: Adapt, ids: torch.Tensor, tmp_path: Path, settings: str, tied: bool) -> None:
    model = _shift(adapt(make_llama(tie_word_embeddings=tied), **SETTINGS[settings]))
    with torch.no_grad(), model.disable_adapter():
        base = model(ids).logits
    loaded = _check(model, ids, tmp_path)
    assert not torch.equal(loaded(ids).logits, base)


@pytest.mark.parametrize("activation", ["relu", "topk:2"])
@pytest.mark.parametrize("target_modules", [["c_attn", "c_proj"], ["wte", "c_fc"], "all-linear"])
def test_gpt2_whose_linear_maps_are_conv1d(
    make_gpt2: Make, adapt: Adapt, ids: torch.Tensor, tmp_path: Path, activation: str, target_modules: Any
) -> None:
    model = adapt(make_gpt2(), target_modules=target_modules, activation=activation, fan_in_fan_out=True)
    _check(model, ids, tmp_path)


@pytest.fixture
def in_bfloat16(make_llama: Make, tmp_path: Path) -> PreTrainedModel:
    """Loaded, not cast: ``.to`` would round the rotary embedding's frequencies too, which no checkpoint keeps."""
    make_llama().save_pretrained(tmp_path / "base")
    return LlamaForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.bfloat16)


@BIAS
@pytest.mark.parametrize("autocast", [True, False], ids=["float32 adapter", "bfloat16 adapter"])
@pytest.mark.parametrize("settings", ["plain", "all-linear", "embedding", "softplus", "lora_bias", "tokens"])
def test_a_bfloat16_base_keeps_the_adapters_dtype(
    in_bfloat16: PreTrainedModel, fill: Callable, ids: torch.Tensor, tmp_path: Path, settings: str, autocast: bool
) -> None:
    config = MonoLoraConfig(**{"target_modules": ["q_proj", "down_proj"], "r": 4} | SETTINGS[settings])
    model = get_peft_model(in_bfloat16, config, autocast_adapter_dtype=autocast)
    loaded = _check(_shift(fill(model)).eval(), ids, tmp_path)
    dtype = torch.float32 if autocast else torch.bfloat16
    assert {layer.monolora_A.dtype for layer in baked_layers(loaded).values()} == {dtype}
    assert loaded.dtype == torch.bfloat16


def test_a_base_of_mixed_dtypes_keeps_them(
    in_bfloat16: PreTrainedModel, adapt: Adapt, ids: torch.Tensor, tmp_path: Path
) -> None:
    in_bfloat16.model.norm.float()
    in_bfloat16.lm_head.float()
    loaded = _check(adapt(in_bfloat16), ids, tmp_path)
    assert {name for name, p in loaded.named_parameters() if p.dtype == torch.float32 and "monolora" not in name} == {
        "model.norm.weight",
        "lm_head.weight",
    }


def test_autocast_gives_the_same_too(make_llama: Make, adapt: Adapt, ids: torch.Tensor, tmp_path: Path) -> None:
    model = adapt(make_llama())
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(ids).logits
        export_exact(model, tmp_path)
        assert torch.equal(LlamaForCausalLM.from_pretrained(tmp_path)(ids).logits, expected)


GEMMAS = {
    "gemma": (GemmaForCausalLM, GemmaConfig),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", GEMMAS)
@TIED
def test_embeddings_that_scale(adapt: Adapt, ids: torch.Tensor, tmp_path: Path, family: str, dtype: Any) -> None:
    model_class, config_class = GEMMAS[family]
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2}
    base = model_class(config_class(vocab_size=64, num_hidden_layers=2, head_dim=8, **sizes)).eval()
    base.save_pretrained(tmp_path / "base")
    base = model_class.from_pretrained(tmp_path / "base", dtype=dtype)
    _check(adapt(base, target_modules=["embed_tokens", "q_proj"]), ids, tmp_path / "exact")


@TIED
def test_tied_embedding_and_head_adapted_together(
    make_llama: Make, adapt: Adapt, ids: torch.Tensor, tmp_path: Path
) -> None:
    model = adapt(
        make_llama(tie_word_embeddings=True), target_modules=["embed_tokens", "lm_head"], ensure_weight_tying=True
    )
    # PEFT's tied A is a transposed view, the loaded one is not; on some CPUs the product rounds otherwise for a view.
    expected = model(ids).logits
    export_exact(model, tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(ids).logits, expected, rtol=1e-6, atol=1e-6)
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "again")(ids).logits, loaded(ids).logits)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_trained_biases(adapt: Adapt, make_llama: Make, ids: torch.Tensor, tmp_path: Path) -> None:
    model = _shift(adapt(make_llama(attention_bias=True), bias="lora_only", target_modules=["q_proj", "v_proj"]))
    loaded = _check(model, ids, tmp_path)
    assert loaded.model.layers[0].self_attn.q_proj.bias.any()


def test_a_sum_of_adapters(make_llama: Make, adapt: Adapt, fill: Callable, ids: torch.Tensor, tmp_path: Path) -> None:
    model = adapt(make_llama())
    model.add_adapter("other", MonoLoraConfig(target_modules=["q_proj", "up_proj"], r=2))
    fill(model, 5, "other")
    model.add_weighted_adapter(["default", "other"], [1.0, -0.5], "sum", "cat")
    model.set_adapter("sum")
    loaded = _check(model.eval(), ids, tmp_path)
    assert {len(layer.monolora_A) for layer in baked_layers(loaded).values()} == {2, 4, 6}


def test_a_4_bit_base_is_dequantized(make_llama: Make, adapt: Adapt, ids: torch.Tensor, tmp_path: Path) -> None:
    make_llama(hidden_size=64, intermediate_size=64).save_pretrained(tmp_path / "base")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)

    def quantized() -> PreTrainedModel:
        return LlamaForCausalLM.from_pretrained(tmp_path / "base", quantization_config=config)

    with torch.no_grad():
        expected = adapt(quantized().dequantize())(ids).logits
    export_exact(adapt(quantized()), tmp_path / "exact")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "exact")
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, expected)


def test_shards(make_llama: Make, adapt: Adapt, ids: torch.Tensor, tmp_path: Path) -> None:
    _check(adapt(make_llama(), target_modules="all-linear"), ids, tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert (tmp_path / "model.safetensors.index.json").is_file()


def test_generation(make_llama: Make, adapt: Adapt, ids: torch.Tensor, tmp_path: Path) -> None:
    model = adapt(make_llama(), target_modules="all-linear")
    model.generation_config.repetition_penalty = 1.3
    expected = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)
    export_exact(model, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.generation_config.repetition_penalty == 1.3
    assert torch.equal(loaded.generate(input_ids=ids, max_new_tokens=8, do_sample=False), expected)


def test_other_classes_load_it(make_llama: Make, adapt: Adapt, ids: torch.Tensor, tmp_path: Path) -> None:
    """A class without the head leaves the head's units out with it; one with another head loads the rest."""
    model = adapt(make_llama(), target_modules=["q_proj", "lm_head"])
    with torch.no_grad():
        expected = model(ids, output_hidden_states=True).hidden_states[-1]
    export_exact(model, tmp_path)
    with torch.no_grad():
        assert torch.equal(AutoModel.from_pretrained(tmp_path)(ids).last_hidden_state, expected)
        judge = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert torch.equal(judge.model(ids).last_hidden_state, expected)
        judge.model.save_pretrained(tmp_path / "headless")
        headed = AutoModelForCausalLM.from_pretrained(tmp_path / "headless")
        assert torch.equal(headed.model(ids).last_hidden_state, expected)


def test_a_classifier(make_llama: Make, ids: torch.Tensor, tmp_path: Path, fill: Callable) -> None:
    config = make_llama().config
    config.num_labels = 3
    torch.manual_seed(3)
    settings = MonoLoraConfig(target_modules=["q_proj"], task_type="SEQ_CLS", r=2)
    model = fill(get_peft_model(LlamaForSequenceClassification(config), settings)).eval()
    with torch.no_grad():
        expected = model(ids).logits
        export_exact(model, tmp_path)
        assert torch.equal(AutoModelForSequenceClassification.from_pretrained(tmp_path)(ids).logits, expected)


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        unk_token="<unk>",
        chat_template="{% for m in messages %}{{ m.content }}{% endfor %}",
    )


def test_tokenizer_and_pipeline(make_llama: Make, adapt: Adapt, tmp_path: Path) -> None:
    tokenizer = _tokenizer()
    export_exact(adapt(make_llama()), tmp_path, tokenizer)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.chat_template == tokenizer.chat_template
    assert again("a b a").input_ids == [3, 4, 3]
    generate = pipeline("text-generation", model=str(tmp_path))
    assert generate("a b a", max_new_tokens=2, do_sample=False)[0]["generated_text"].startswith("a b a")


@pytest.mark.filterwarnings("ignore:for base_model.model")  # PEFT's, of every adapter for layers on the disk
@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")
def test_offloaded_models(
    make_llama: Make, adapt: Adapt, ids: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loaded with a device map that leaves layers on the disk, exported from there, and loaded so again."""
    monkeypatch.chdir(tmp_path)  # PEFT writes the files of offloaded adapters below the current folder
    adapted = adapt(make_llama(), target_modules="all-linear")
    with torch.no_grad():
        expected = adapted(ids).logits
    adapted.save_pretrained(tmp_path / "adapter")
    make_llama().save_pretrained(tmp_path / "base")
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu", "model.rotary_emb": "cpu"}
    places |= {"model.layers.0": "cpu", "model.layers.1": "disk"}
    settings: dict[str, Any] = {"device_map": places, "offload_folder": tmp_path / "offload"}
    base = LlamaForCausalLM.from_pretrained(tmp_path / "base", **settings)
    under = {f"base_model.model.{name}": place for name, place in places.items()}
    model = PeftModel.from_pretrained(base, tmp_path / "adapter", device_map=under, offload_dir=tmp_path / "offload2")
    with torch.no_grad():
        assert torch.equal(model(ids).logits, expected)
    export_exact(model, tmp_path / "exact")
    with torch.no_grad():
        assert torch.equal(LlamaForCausalLM.from_pretrained(tmp_path / "exact")(ids).logits, expected)
        offloaded = LlamaForCausalLM.from_pretrained(tmp_path / "exact", **settings)
        assert offloaded.model.layers[1].mlp.up_proj.monolora_A.device.type == "meta"
        assert torch.equal(offloaded(ids).logits, expected)
