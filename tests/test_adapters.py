"""Loading an adapter folder with its base: the same logits, or one line on what is wrong with it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from monolora.adapters import SUM, adapter_tokenizer, load_adapted, load_sum
from monolora.errors import InputError

FILE = "adapter_model.safetensors"
Saved = tuple[Path, torch.Tensor]


@pytest.fixture(autouse=True)
def _tokenizer(base_folder: Path) -> None:
    """The base model gets a tokenizer without a padding token."""
    words = {f"w{number}": number for number in range(3, 64)}
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, **words}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(base_folder)


def test_load(saved: Callable[..., Saved], ids: torch.Tensor) -> None:
    folder, logits = saved()
    model, tokenizer = load_adapted(str(folder), dtype=torch.float32)
    assert not model.training
    assert torch.equal(model(ids).logits, logits)
    assert tokenizer.pad_token == "</s>"


def test_the_adapters_own_tokenizer_comes_first(saved: Callable[..., Saved], base_folder: Path) -> None:
    folder, _ = saved()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base_folder)
    tokenizer.chat_template = "mine"
    tokenizer.save_pretrained(folder)
    assert load_adapted(str(folder))[1].chat_template == "mine"


def test_other_base(
    saved: Callable[..., Saved], base_folder: Path, make_llama: Callable[..., LlamaForCausalLM], tmp_path: Path
) -> None:
    """A base of another shape is refused with both names; one of the same shape and another name is warned of."""
    folder, _ = saved()
    PreTrainedTokenizerFast.from_pretrained(base_folder).save_pretrained(tmp_path / "wide")
    make_llama(hidden_size=32).save_pretrained(tmp_path / "wide")
    with pytest.raises(InputError, match=f"trained on '{base_folder}', this model is '{tmp_path / 'wide'}'"):
        load_adapted(str(folder), str(tmp_path / "wide"))
    PreTrainedTokenizerFast.from_pretrained(base_folder).save_pretrained(tmp_path / "same")
    make_llama(seed=3).save_pretrained(tmp_path / "same")
    with pytest.warns(UserWarning, match="Its shapes fit both"):
        load_adapted(str(folder), str(tmp_path / "same"))


def _rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(folder / FILE)), folder / FILE)


def _reconfigure(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def _as_pickle(folder: Path) -> None:
    torch.save(load_file(folder / FILE), folder / "adapter_model.bin")
    (folder / FILE).unlink()


def _first(tensors: dict[str, torch.Tensor], value: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    name = min(tensors)
    return tensors | {name: value(tensors[name])}


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda f: (f / FILE).write_bytes((f / FILE).read_bytes()[:200]), "truncated"),
    "cut at the end": (lambda f: (f / FILE).write_bytes((f / FILE).read_bytes()[:-8]), "truncated"),
    "empty": (lambda f: (f / FILE).write_bytes(b""), "truncated"),
    "NaN": (lambda f: _rewrite(f, lambda t: _first(t, lambda v: v * float("nan"))), "has NaN or infinite values"),
    "shape": (lambda f: _rewrite(f, lambda t: _first(t, lambda v: v[:2].clone())), r"has shape \(2, .* needs \(4,"),
    "missing": (lambda f: _rewrite(f, lambda t: dict(sorted(t.items())[1:])), "lacks tensor"),
    "foreign": (
        lambda f: _rewrite(f, lambda t: t | {"base_model.model.x": torch.zeros(2)}),
        "foreign tensor",
    ),
    "a norm of the base": (
        lambda f: _rewrite(f, lambda t: t | {"base_model.model.model.norm.weight": torch.ones(16)}),
        "foreign tensor '.*model.norm.weight'",
    ),
    "a head of the base": (
        lambda f: _rewrite(f, lambda t: t | {"base_model.model.lm_head.weight": torch.ones(64, 16)}),
        "lm_head.weight' would overwrite a weight of the base model",
    ),
    "int8": (lambda f: _rewrite(f, lambda t: _first(t, lambda v: v.to(torch.int8))), "is of type I8"),
    "alpha": (lambda f: _reconfigure(f, lora_alpha=float("nan")), "lora_alpha must be a finite number, got nan"),
    "alphas": (lambda f: _reconfigure(f, alpha_pattern={"q_proj": float("inf")}), r"alpha_pattern\['q_proj'\] must be"),
    "dropout": (lambda f: _reconfigure(f, lora_dropout=float("nan")), "lora_dropout must be a number from 0 to 1"),
    "pattern": (lambda f: _reconfigure(f, target_modules="(([a-z_.0-9]+)+)+!"), "target_modules .* matches nothing"),
    "saved pattern": (lambda f: _reconfigure(f, modules_to_save=["((a+)+)+!"]), "which is no module's name"),
    "of plain LoRA": (
        lambda f: _rewrite(f, lambda t: {name.replace("monolora_", "lora_"): value for name, value in t.items()}),
        "belongs to a plain LoRA adapter",
    ),
    "pickle": (_as_pickle, "is a pickle"),
    "no weights": (lambda f: (f / FILE).unlink(), "adapter_model.safetensors is missing"),
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "holds no adapter"),
    "config is no JSON": (lambda f: (f / "adapter_config.json").write_text("{"), "is not JSON: Expecting"),
    "config is a list": (
        lambda f: (f / "adapter_config.json").write_text("[]"),
        "is damaged: input should be a valid dict",
    ),
    "unknown method": (lambda f: _reconfigure(f, peft_type="FOO"), "its peft_type 'FOO' is no method of PEFT"),
    "unknown activation": (lambda f: _reconfigure(f, activation="rlu"), "Unknown activation 'rlu'"),
    "rank 0": (lambda f: _reconfigure(f, r=0), "r must be a positive integer"),
    "no base": (lambda f: _reconfigure(f, base_model_name_or_path=None), "names no base model. Give it with --model"),
    "base is gone": (
        lambda f: _reconfigure(f, base_model_name_or_path="/nowhere/x"),
        "There is no model at /nowhere",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged(saved: Callable[..., Saved], name: str) -> None:
    folder, _ = saved()
    damage, says = DAMAGE[name]
    damage(folder)
    with pytest.raises(InputError, match=says) as caught:
        load_adapted(str(folder))
    assert "\n" not in str(caught.value)


@pytest.fixture
def lora(base_folder: Path, tmp_path: Path, fill: Callable[..., Any]) -> Path:
    """A plain LoRA adapter."""
    config = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    fill(get_peft_model(LlamaForCausalLM.from_pretrained(base_folder), config)).save_pretrained(tmp_path / "lora")
    return tmp_path / "lora"


def test_lora(lora: Path) -> None:
    model, _ = load_adapted(str(lora))
    assert model.peft_config["default"].peft_type == "LORA"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: dict(sorted(t.items())[1:]), r"lacks tensor '.*q_proj\.lora_A\.weight'"),
        (lambda t: _first(t, lambda v: v * float("nan")), "has NaN or infinite values"),
        (lambda t: _first(t, lambda v: v.to(torch.int8)), "is of type I8"),
        (lambda t: t | {"base_model.model.model.norm.weight": torch.ones(16)}, r"foreign tensor '.*norm\.weight'"),
        (lambda t: t | {"base_model.model.lm_head.weight": torch.ones(64, 16)}, r"lm_head\.weight' would overwrite"),
        (
            lambda t: t | {"base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight": torch.ones(16, 16)},
            r"foreign tensor '.*q_proj\.base_layer\.weight'",
        ),
    ],
)
def test_damaged_lora(lora: Path, change: Callable[..., Any], says: str) -> None:
    """PEFT only warns of the one, and loads the other without a word."""
    _rewrite(lora, change)
    with pytest.raises(InputError, match=says):
        load_adapted(str(lora))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lora_alpha": float("inf")}, "lora_alpha must be a finite number, got inf"),
        ({"lora_alpha": 1e300}, r"lora_alpha must be a finite number, got 1e\+300"),
        ({"lora_alpha": True}, "lora_alpha must be a finite number, got True"),
        ({"alpha_pattern": {"q_proj": float("nan")}}, r"alpha_pattern\['q_proj'\] must be a finite number"),
        ({"target_modules": "(([a-z_.0-9]+)+)+!"}, "target_modules .* matches nothing"),
        ({"exclude_modules": "(([a-z_.0-9]+)+)+"}, "No modules were targeted|excluded"),
        ({"rank_pattern": {"(?!x)(([a-z_.0-9]+)+)+!": 2}}, "rank_pattern has the pattern .* cannot be checked safely"),
    ],
)
def test_bad_settings_of_lora(lora: Path, settings: dict[str, Any], says: str) -> None:
    _reconfigure(lora, **settings)
    with pytest.raises(InputError, match=says):
        load_adapted(str(lora))


def test_embeddings_of_lora_on_a_resized_base(
    base_folder: Path, tmp_path: Path, fill: Callable[..., Any], ids: torch.Tensor
) -> None:
    model = LlamaForCausalLM.from_pretrained(base_folder)
    model.resize_token_embeddings(70)
    config = LoraConfig(
        r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM", use_dora=True
    )
    adapted = fill(get_peft_model(model, config)).eval()
    with pytest.warns(UserWarning, match="resized"):
        adapted.save_pretrained(tmp_path / "lora")
    torch.testing.assert_close(
        load_adapted(str(tmp_path / "lora"), dtype=torch.float32)[0](ids).logits, adapted(ids).logits
    )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"r": "8"}, "r: input should be a valid integer, got '8'"),
        ({"lora_alpha": None}, "lora_alpha must be a finite number, got None"),
        ({"lora_dropout": "x"}, "lora_dropout must be a number from 0 to 1, got 'x'"),
        ({"target_modules": 5}, "target_modules"),
        ({"target_modules": [1]}, "target_modules"),
        ({"rank_pattern": [1]}, "rank_pattern: input should be a valid dictionary, got a list"),
        ({"alpha_pattern": {"a": "b"}}, "alpha_pattern['a'] must be a finite number"),
        ({"modules_to_save": "lm_head"}, "modules_to_save: input should be a valid list, got 'lm_head'"),
        ({"bias": 3}, "bias: input should be a valid string, got 3"),
        ({"layers_to_transform": "x"}, "layers_to_transform"),
        ({"trainable_token_indices": "a"}, "trainable_token_indices"),
        ({"base_model_name_or_path": 5}, "base_model_name_or_path: input should be a valid string, got 5"),
        ({"peft_type": ["LORA"]}, "peft_type: input should be a valid string, got a list"),
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_settings_of_another_type(
    lora: Path, base_folder: Path, settings: dict[str, Any], says: str, named: bool
) -> None:
    """Whether the base is given or the adapter's own."""
    _reconfigure(lora, **settings)
    with pytest.raises(InputError, match=rf"adapter_config.json (is damaged|cannot be used): {re.escape(says)}"):
        load_adapted(str(lora), str(base_folder) if named else None)


def test_another_method(base_folder: Path, tmp_path: Path) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(LlamaForCausalLM.from_pretrained(base_folder), config).save_pretrained(tmp_path / "prompt")
    assert load_adapted(str(tmp_path / "prompt"))[0].peft_config["default"].peft_type == "PROMPT_TUNING"


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.5, -2.0]])
def test_a_weighted_sum(
    saved: Callable[..., Saved], base_folder: Path, ids: torch.Tensor, weights: list[float]
) -> None:
    """Against the sum of what each adapter adds to each layer's output; they adapt other layers."""
    folders = [saved("one")[0], saved("other", 2, r=3, target_modules=["q_proj", "up_proj"])[0]]
    model, tokenizer = load_sum([str(folder) for folder in folders], weights, dtype=torch.float32)
    assert not model.training
    assert tokenizer.pad_token == "</s>"
    assert (list(model.peft_config), model.active_adapters) == ([SUM], [SUM])
    alone = [load_adapted(str(folder), dtype=torch.float32)[0].get_base_model() for folder in folders]
    base = LlamaForCausalLM.from_pretrained(base_folder)
    with torch.no_grad():
        for name in ("q_proj", "down_proj", "up_proj"):
            layers = [_layer_1(each, name) for each in (base, model.get_base_model(), *alone)]
            x = torch.randn(5, _layer_1(base, name).in_features)
            plain, together, *each = (layer(x) for layer in layers)
            expected = sum(weight * (y - plain) for weight, y in zip(weights, each, strict=True))
            torch.testing.assert_close(together - plain, expected, rtol=1e-4, atol=1e-5)
        model(ids)


def _layer_1(model: Any, name: str) -> Any:
    layer = model.model.layers[1]
    return getattr(layer.self_attn if name == "q_proj" else layer.mlp, name)


def test_a_sum_of_one(saved: Callable[..., Saved], base_folder: Path, ids: torch.Tensor) -> None:
    folder, logits = saved()
    model, _ = load_sum([str(folder)], [1.0], dtype=torch.float32)
    assert list(model.peft_config) == ["default"]
    assert torch.equal(model(ids).logits, logits)
    none, _ = load_sum([str(folder)], [0.0], dtype=torch.float32)
    assert list(none.peft_config) == [SUM]
    torch.testing.assert_close(none(ids).logits, LlamaForCausalLM.from_pretrained(base_folder)(ids).logits)


def test_one_lora_alone_is_no_sum(lora: Path, saved: Callable[..., Saved]) -> None:
    assert load_sum([str(lora)], [1.0])[0].peft_config["default"].peft_type == "LORA"
    with pytest.raises(InputError, match="lora is no MonoLoRA adapter; only those are added up or weighted"):
        load_sum([str(saved()[0]), str(lora)], [1.0, 1.0])
    with pytest.raises(InputError, match="lora is no MonoLoRA adapter; only those are added up or weighted"):
        load_sum([str(lora)], [2.0])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"activation": "softplus"}, "cannot be added up: Cannot combine adapters of different activations"),
        ({"modules_to_save": ["norm"]}, "cannot be added up: .* train more than A and B"),
    ],
)
def test_adapters_that_cannot_be_added_up(saved: Callable[..., Saved], settings: dict[str, Any], says: str) -> None:
    one, other = saved("one")[0], saved("other", **settings)[0]
    with pytest.raises(InputError, match=says) as caught:
        load_sum([str(one), str(other)], [1.0, 1.0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cut", "NaN", "shape", "missing", "no config", "unknown activation"])
def test_a_damaged_second_adapter(saved: Callable[..., Saved], name: str) -> None:
    one, other = saved("one")[0], saved("other")[0]
    damage, says = DAMAGE[name]
    damage(other)
    with pytest.raises(InputError, match=says):
        load_sum([str(one), str(other)], [1.0, 1.0])


def test_tokenizers(base_folder: Path, tmp_path: Path) -> None:
    """The adapter's comes first, then the base's; a padding token is kept, or given where there is none."""
    assert adapter_tokenizer(str(tmp_path), str(base_folder)).pad_token == "</s>"
    own = PreTrainedTokenizerFast.from_pretrained(base_folder, pad_token="<unk>", chat_template="mine")
    own.save_pretrained(tmp_path / "own")
    found = adapter_tokenizer(str(tmp_path / "own"), "/nowhere")
    assert (found.pad_token, found.chat_template) == ("<unk>", "mine")
    with pytest.raises(InputError, match="There is no model at /nowhere"):
        adapter_tokenizer(str(tmp_path), "/nowhere")
    (tmp_path / "own" / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="own has no usable tokenizer"):
        adapter_tokenizer(str(tmp_path / "own"), str(base_folder))
