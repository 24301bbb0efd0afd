"""Law 4, first half: what is saved is loaded bit for bit, through safetensors, by every loader there is.

Whatever ``save_pretrained`` writes: of a resized vocabulary or not, with embeddings tied or not, with saved modules and
trained tokens, PEFT writes some tensors twice, and base weights beside them.

The second half, what is refused, is in tests/test_checkpoint.py.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from monolora import MonoLoraConfig
from monolora.adapters import load_adapted
from monolora.merge import export_dense, export_exact, export_lora, linearize

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


# What is trained besides A and B, or where A and B are: with these PEFT writes more than the adapter's own tensors.
BESIDE: dict[str, dict[str, Any]] = {
    "nothing": {},
    "head": {"modules_to_save": ["lm_head"]},
    "embeddings": {"modules_to_save": ["embed_tokens"]},
    "both": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "tied-modules": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "tokens": {"trainable_token_indices": [3, 9]},
    "tokens-of-the-head": {"trainable_token_indices": {"lm_head": [3, 5]}},
    "tokens-of-both": {"trainable_token_indices": {"embed_tokens": [3, 9], "lm_head": [3, 5]}},
    "tied-tokens": {"trainable_token_indices": [3, 9], "ensure_weight_tying": True},
    "adapted": {"target_modules": ["q_proj", "embed_tokens"]},
    "tied-adapted": {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
}
VOCABULARY, RESIZED = 64, 70


class Finished(NamedTuple):
    """An adapter as a run leaves it: its folder, the base's, the base as it was trained on, and the model's logits."""

    adapter: Path
    base_folder: Path
    base: Callable[[], LlamaForCausalLM]
    logits: torch.Tensor


@pytest.fixture
def finished(make_llama: Callable[..., LlamaForCausalLM], tmp_path: Path, ids: torch.Tensor) -> Callable[..., Finished]:
    """``finished(tied, resized, **config)``: all that is trainable has noise in it."""

    def finish(tied: bool, resized: bool, **config: Any) -> Finished:
        folder = tmp_path / "base"
        make_llama(tie_word_embeddings=tied).save_pretrained(folder)
        _tokenizer(VOCABULARY).save_pretrained(folder)

        def base() -> LlamaForCausalLM:
            model = LlamaForCausalLM.from_pretrained(folder)
            if resized:
                model.resize_token_embeddings(RESIZED)
            return model

        settings = {"target_modules": ["q_proj"], "r": 4, "task_type": "CAUSAL_LM"} | config
        model = get_peft_model(base(), MonoLoraConfig(**settings))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(torch.randn_like(parameter) * 0.3)
        model.eval().save_pretrained(tmp_path / "adapter")
        if resized:
            _tokenizer(RESIZED).save_pretrained(tmp_path / "adapter")
        with torch.no_grad():
            return Finished(tmp_path / "adapter", folder, base, model(ids).logits)

    return finish


def _tokenizer(words: int) -> PreTrainedTokenizerFast:
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{number}": number for number in range(3, words)}
    model = models.WordLevel(vocabulary, unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), eos_token="</s>")


def _peft(run: Finished) -> torch.nn.Module:
    return PeftModel.from_pretrained(run.base(), str(run.adapter))


def _peft_auto(run: Finished) -> torch.nn.Module:
    return AutoPeftModelForCausalLM.from_pretrained(str(run.adapter))


def _beside_another(run: Finished) -> torch.nn.Module:
    model = get_peft_model(run.base(), MonoLoraConfig(target_modules=["q_proj"]))
    model.load_adapter(str(run.adapter), "second")
    model.set_adapter("second")
    return model


def _beside_itself(run: Finished) -> torch.nn.Module:
    model = PeftModel.from_pretrained(run.base(), str(run.adapter))
    model.load_adapter(str(run.adapter), "second")
    model.set_adapter("second")
    return model


def _natively(run: Finished) -> torch.nn.Module:
    model = run.base()
    model.load_adapter(str(run.adapter))
    return model


def _resumed(run: Finished) -> torch.nn.Module:
    config = MonoLoraConfig.from_pretrained(str(run.adapter))
    model = get_peft_model(run.base(), config)
    Trainer(model, TrainingArguments(str(run.adapter / "out"), use_cpu=True))._load_from_checkpoint(str(run.adapter))
    return model


def _for_programs(run: Finished) -> torch.nn.Module:
    return load_adapted(str(run.adapter), dtype=torch.float32)[0]


def _merged_exactly(run: Finished) -> torch.nn.Module:
    export_exact(load_adapted(str(run.adapter), dtype=torch.float32)[0], run.adapter / "exact")
    return AutoModelForCausalLM.from_pretrained(run.adapter / "exact")


LOADERS_OF_FINISHED = (
    _peft, _peft_auto, _beside_another, _beside_itself, _natively, _resumed, _for_programs, _merged_exactly,
)  # fmt: skip
# Said by PEFT as it saves: that it writes embeddings, and what tied embeddings can complicate.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:You have requested `ensure_weight_tying`"),
    pytest.mark.filterwarnings("ignore:ensure_weight_tying=True but"),
]


@pytest.mark.parametrize("resized", [False, True], ids=["", "resized"])
@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
@pytest.mark.parametrize("beside", BESIDE)
def test_every_loader_takes_what_is_saved_besides_a_and_b(
    finished: Callable[..., Finished], ids: torch.Tensor, beside: str, tied: bool, resized: bool
) -> None:
    run = finished(tied, resized, **BESIDE[beside])
    with torch.no_grad():
        for load in LOADERS_OF_FINISHED:
            logits = load(run).eval()(ids).logits
            if beside == "tied-adapted":  # the head's A and B are the embedding's, read across: that rounds otherwise
                torch.testing.assert_close(logits, run.logits, msg=load.__name__)
            else:
                assert torch.equal(logits, run.logits), load.__name__


@pytest.mark.parametrize(("tied", "resized"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("beside", BESIDE)
def test_it_is_merged_too(
    finished: Callable[..., Finished], ids: torch.Tensor, tmp_path: Path, beside: str, tied: bool, resized: bool
) -> None:
    """Without an activation a linear map loses nothing: checkpoint and LoRA adapter give the model's logits."""
    run = finished(tied, resized, activation="identity", **BESIDE[beside])
    model, tokenizer = load_adapted(str(run.adapter), dtype=torch.float32)
    maps = linearize(model, None, affine=False)
    export_lora(model, maps, tmp_path / "lora", tokenizer)
    export_dense(model, maps, tmp_path / "dense", tokenizer)
    as_lora, _ = load_adapted(str(tmp_path / "lora"), dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(as_lora(ids).logits, run.logits)
        torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(tmp_path / "dense")(ids).logits, run.logits)


def test_a_vocabulary_that_was_padded(finished: Callable[..., Finished], ids: torch.Tensor) -> None:
    """The file has more rows than the tokenizer has tokens; then it is the file that tells."""
    run = finished(False, True)
    _tokenizer(RESIZED - 3).save_pretrained(run.adapter)
    assert torch.equal(_for_programs(run)(ids).logits, run.logits)


def test_a_larger_tokenizer_alone_resizes_the_base(saved: Saved, base_folder: Path) -> None:
    adapter, _ = saved()
    _tokenizer(VOCABULARY).save_pretrained(base_folder)
    _tokenizer(RESIZED).save_pretrained(adapter)
    model, tokenizer = load_adapted(str(adapter))
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) == RESIZED


NAMES = ("lora_A", "lora_B", "lora_embedding_A", "monolora_A", "monolora_B", "model")
BESIDES = [SETTINGS["embedding"], SETTINGS["modules_to_save"], SETTINGS["tokens"]]


@pytest.mark.parametrize(
    ("name", "settings"),
    [*((name, {}) for name in NAMES), *((name, settings) for name in ("lora_A", "monolora_B") for settings in BESIDES)],
)
def test_an_adapter_may_be_called_as_its_tensors_are(
    saved: Saved, base_folder: Path, ids: torch.Tensor, tmp_path: Path, name: str, settings: dict[str, Any]
) -> None:
    adapter, expected = saved(**settings)
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base_folder), str(adapter), adapter_name=name)
    model.save_pretrained(tmp_path / "again")
    again = tmp_path / "again" / name
    in_file = load_file(again / "adapter_model.safetensors")
    assert in_file.keys() == load_file(adapter / "adapter_model.safetensors").keys()
    native = LlamaForCausalLM.from_pretrained(base_folder)
    native.load_adapter(str(again), name)
    for loaded in (
        PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base_folder), str(again)),
        PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base_folder), str(again), adapter_name=name),
        native,
    ):
        assert torch.equal(loaded(ids).logits, expected)
    if not settings:
        hotswap_adapter(model, str(again), name)
        assert torch.equal(model(ids).logits, expected)


@pytest.mark.parametrize("name", ["a.b", ".", "weight", "bias"])
def test_names_that_cannot_be_told_from_others_are_refused(saved: Saved, base_folder: Path, name: str) -> None:
    adapter, _ = saved()
    with pytest.raises(ValueError, match=rf"An adapter cannot be called '{re.escape(name)}'.*Choose one without a dot"):
        PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base_folder), str(adapter), adapter_name=name)


def test_an_adapter_that_peft_would_save_without_its_tensors_is_not_saved(
    saved: Saved, base_folder: Path, tmp_path: Path
) -> None:
    """PEFT takes every name with ".lora_A." in it for one of the adapter "lora_A"."""
    adapter, _ = saved()
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base_folder), str(adapter))
    model.load_adapter(str(adapter), "lora_A")
    with pytest.raises(ValueError, match=r"'default' cannot be saved.*of another adapter.*lora_A.*Give that one"):
        model.save_pretrained(tmp_path / "again", selected_adapters=["default"])


class _Odd(torch.nn.Module):
    """A base whose modules are called as the tensors of adapters are."""

    def __init__(self) -> None:
        super().__init__()
        self.lora_A = torch.nn.ModuleDict({"x": torch.nn.Linear(3, 3), "monolora_B": torch.nn.Linear(3, 3)})
        self.monolora_A = torch.nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.monolora_A(self.lora_A["monolora_B"](self.lora_A["x"](x)))


@pytest.mark.parametrize("targets", [["lora_A.x"], ["monolora_B"], ["monolora_A"], ["x", "monolora_A"]])
def test_modules_of_the_base_may_be_called_as_its_tensors_are(
    fill: Callable[..., torch.nn.Module], tmp_path: Path, targets: list[str]
) -> None:
    base, x = _Odd(), torch.randn(4, 3)
    config = MonoLoraConfig(target_modules=targets, r=2, bias="all")
    model: Any = fill(get_peft_model(copy.deepcopy(base), config))
    model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(PeftModel.from_pretrained(base, str(tmp_path / "adapter"))(x), model(x))
