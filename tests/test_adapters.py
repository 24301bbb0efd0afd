"""Loading an adapter folder with its base: the same logits, or one line on what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from monolora.adapters import load_adapted
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
    "of plain LoRA": (
        lambda f: _rewrite(f, lambda t: {name.replace("monolora_", "lora_"): value for name, value in t.items()}),
        "belongs to a plain LoRA adapter",
    ),
    "pickle": (_as_pickle, "is a pickle"),
    "no weights": (lambda f: (f / FILE).unlink(), "adapter_model.safetensors is missing"),
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "holds no adapter"),
    "config is no JSON": (lambda f: (f / "adapter_config.json").write_text("{"), "cannot be used: Expecting"),
    "config is a list": (lambda f: (f / "adapter_config.json").write_text("[]"), "cannot be used"),
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
        (lambda t: dict(sorted(t.items())[1:]), "Found missing adapter keys"),
        (lambda t: _first(t, lambda v: v * float("nan")), "has NaN or infinite values"),
    ],
)
def test_damaged_lora(lora: Path, change: Callable[..., Any], says: str) -> None:
    """PEFT only warns of the one, and loads the other without a word."""
    _rewrite(lora, change)
    with pytest.raises(InputError, match=says):
        load_adapted(str(lora))


def test_another_method(base_folder: Path, tmp_path: Path) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(LlamaForCausalLM.from_pretrained(base_folder), config).save_pretrained(tmp_path / "prompt")
    assert load_adapted(str(tmp_path / "prompt"))[0].peft_config["default"].peft_type == "PROMPT_TUNING"
