"""What an adapter folder says of itself is read once and believed only where config and tensors agree."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from monolora import MonoLoraConfig
from monolora.checkpoint import AdapterFileError
from monolora.vllm.adapter_folders import check_rank, files_state, peft_type, served_config

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
EXACT = "monolora merge ADAPTER OUT --method exact"
Saved = Callable[..., tuple[Path, torch.Tensor]]
MakeLlama = Callable[..., LlamaForCausalLM]


@pytest.fixture
def mono(saved: Saved) -> Path:
    """A MonoLoRA adapter as it is saved."""
    return saved()[0]


@pytest.fixture
def lora(make_llama: MakeLlama, tmp_path: Path) -> Path:
    """A plain LoRA adapter as PEFT saves it."""
    get_peft_model(make_llama(), LoraConfig(target_modules=["q_proj"], r=2)).save_pretrained(str(tmp_path / "lora"))
    return tmp_path / "lora"


def _configure(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))


def _without(folder: Path, key: str) -> None:
    config = json.loads((folder / CONFIG).read_text())
    del config[key]
    (folder / CONFIG).write_text(json.dumps(config))


def _check_refused(folder: Path, *parts: str) -> None:
    """In one line that has all the parts, the second time as the first."""
    for _ in range(2):
        with pytest.raises(AdapterFileError) as refused:
            served_config(str(folder))
        message = str(refused.value)
        assert "\n" not in message
        for part in parts:
            assert part in message


@pytest.mark.parametrize("activation", ["relu", "identity", "topk:2", "jumprelu"])
def test_served(saved: Saved, activation: str) -> None:
    settings: dict[str, Any] = {
        "r": 3,
        "lora_alpha": 5,
        "use_rslora": True,
        "rank_pattern": {"q_proj": 6},
        "alpha_pattern": {"down_proj": 2},
    }
    config = served_config(str(saved(activation=activation, **settings)[0]))
    assert isinstance(config, MonoLoraConfig)
    assert config.activation == activation
    assert {name: getattr(config, name) for name in settings} == settings


def test_a_config_without_activation_is_relu(mono: Path) -> None:
    """As PEFT reads it too."""
    _without(mono, "activation")
    config = served_config(str(mono))
    assert config is not None
    assert config.activation == "relu" == MonoLoraConfig.from_pretrained(str(mono)).activation


def test_keys_of_a_later_peft_are_no_matter(mono: Path) -> None:
    _configure(mono, of_tomorrow=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert served_config(str(mono)) is not None


def test_plain_lora_is_left_to_vllm(lora: Path) -> None:
    assert peft_type(str(lora)) == "LORA"
    assert served_config(str(lora)) is None
    _without(lora, "peft_type")
    assert peft_type(str(lora)) == "LORA"
    assert served_config(str(lora)) is None


@pytest.mark.parametrize("damage", ["cut off", "missing"])
def test_damaged_plain_lora_is_left_to_vllm(lora: Path, damage: str) -> None:
    weights = lora / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:100])
    if damage == "missing":
        weights.unlink()
    assert served_config(str(lora)) is None


def test_no_adapter_is_left_to_vllm(base_folder: Path, tmp_path: Path) -> None:
    assert peft_type(str(base_folder)) is None
    assert served_config(str(base_folder)) is None
    assert served_config(str(tmp_path / "nowhere")) is None


@pytest.mark.parametrize("content", [b'{"peft_type": "MONOLORA", "r', b"", b"[]", b"\xff\xfe\x00", b"3"])
def test_a_damaged_config(mono: Path, content: bytes) -> None:
    (mono / CONFIG).write_bytes(content)
    _check_refused(mono, f"{mono / CONFIG} is damaged: ", "Copy it again.")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "glu"}, "Unknown activation 'glu'; choose one of relu"),
        ({"r": 0}, "r must be a positive integer, got 0"),
        ({"rank_pattern": {"q_proj": "8"}}, "rank_pattern['q_proj'] must be a positive integer, got '8'"),
        ({"use_dora": True}, "MonoLoRA does not support use_dora"),
    ],
)
def test_a_config_that_cannot_be(mono: Path, changes: dict[str, Any], message: str) -> None:
    _configure(mono, **changes)
    _check_refused(mono, f"{mono} cannot be used: ", message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules_to_save=['lm_head']"),
        ({"trainable_token_indices": [3, 4]}, "trainable_token_indices=[3, 4]"),
        ({"trainable_token_indices": {"embed_tokens": [3]}}, "trainable_token_indices={'embed_tokens': [3]}"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"bias": "all"}, "bias='all'"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
    ],
)
def test_options_that_are_not_served(mono: Path, changes: dict[str, Any], message: str) -> None:
    """The fix that is named serves them all."""
    _configure(mono, **changes)
    _check_refused(mono, f"{mono} has {message}, which is not served beside its base.", EXACT)


@pytest.mark.filterwarnings("ignore::peft.utils.warning.PeftWarning")
@pytest.mark.parametrize(
    "config",
    [
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [3, 4]},
        {"lora_bias": True},
        {"bias": "lora_only"},
    ],
    ids=lambda config: next(iter(config)),
)
def test_adapters_saved_with_such_options(saved: Saved, config: dict[str, Any]) -> None:
    """As the training writes them, with the tensors that go with the option."""
    _check_refused(saved(**config)[0], f"{next(iter(config))}=", EXACT)


def test_truncated(mono: Path) -> None:
    weights = mono / WEIGHTS
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    _check_refused(mono, f"{weights} is truncated or not a safetensors file")


def test_no_weights(mono: Path) -> None:
    (mono / WEIGHTS).unlink()
    _check_refused(mono, f"{mono} holds no weights: {WEIGHTS} is missing. Copy the whole folder.")


def test_a_pickle(mono: Path) -> None:
    torch.save(load_file(mono / WEIGHTS), mono / "adapter_model.bin")
    (mono / WEIGHTS).unlink()
    _check_refused(mono, f"{mono / 'adapter_model.bin'} is a pickle", "safe_serialization=True")


def test_lora_called_monolora(lora: Path) -> None:
    _configure(lora, peft_type="MONOLORA", activation="relu")
    _check_refused(
        lora,
        f"{lora} cannot be used: ",
        "lora_A.weight' belongs to a plain LoRA adapter, but the config says MONOLORA",
        f"Set peft_type to LORA in {CONFIG} if that is what it is.",
    )


@pytest.mark.parametrize("named", ["LORA", "LOHA"])
def test_monolora_called_otherwise(mono: Path, named: str) -> None:
    _configure(mono, peft_type=named)
    _check_refused(
        mono,
        f"monolora_A.weight' in {mono / WEIGHTS} belongs to a MonoLoRA adapter, but the config says {named}",
        f"Set peft_type to MONOLORA in {CONFIG}",
    )


def test_monolora_without_a_name(mono: Path) -> None:
    """vLLM takes it for LoRA's."""
    _without(mono, "peft_type")
    _check_refused(mono, "belongs to a MonoLoRA adapter, but the config says LORA")


def test_some_tensors_renamed(mono: Path) -> None:
    """One of LoRA's among ours is enough."""
    tensors = load_file(mono / WEIGHTS)
    last = sorted(tensors)[-1]
    tensors[last.replace("monolora_", "lora_")] = tensors.pop(last)
    save_file(tensors, mono / WEIGHTS)
    _check_refused(mono, f"Tensor {last.replace('monolora_', 'lora_')!r} belongs to a plain LoRA adapter")
    _configure(mono, peft_type="LORA")
    _check_refused(mono, "belongs to a MonoLoRA adapter")


def test_read_once_for_each_state(mono: Path) -> None:
    first = served_config(str(mono))
    assert first is not None
    assert first.activation == "relu"
    assert served_config(str(mono)) is first
    _configure(mono, activation="identity")
    changed = served_config(str(mono))
    assert changed is not None
    assert changed.activation == "identity"


def test_what_changes_is_read_again(mono: Path, tmp_path: Path) -> None:
    """Each way in which a folder's files change between two requests."""
    good = tmp_path / "good"
    shutil.copytree(mono, good)
    assert served_config(str(mono)) is not None
    weights = mono / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    _check_refused(mono, "truncated")
    shutil.copy(good / WEIGHTS, weights)
    assert served_config(str(mono)) is not None
    before = weights.stat()
    weights.write_bytes(b"\xff" * before.st_size)  # as long as before
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    _check_refused(mono, "truncated")
    shutil.copy(good / WEIGHTS, weights)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert served_config(str(mono)) is not None
    weights.write_bytes(b"\xff" * (before.st_size + 1))
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))  # as old as before
    _check_refused(mono, "truncated")
    weights.unlink()
    _check_refused(mono, "holds no weights")
    shutil.copy(good / WEIGHTS, weights)
    (mono / CONFIG).unlink()
    assert served_config(str(mono)) is None


def test_the_state_is_that_of_both_files(mono: Path) -> None:
    states = {files_state(str(mono))}
    for name in (CONFIG, WEIGHTS):
        with (mono / name).open("ab") as file:
            file.write(b" ")
        states.add(files_state(str(mono)))
    (mono / WEIGHTS).unlink()
    states.add(files_state(str(mono)))
    assert len(states) == 4
    assert files_state(str(mono / "nowhere")) == (None, None)


@pytest.mark.parametrize(
    ("ranks", "limit", "flag"),
    [
        ({"r": 4}, 8, None),
        ({"r": 8}, 8, None),
        ({"r": 9}, 8, 16),
        ({"r": 2, "rank_pattern": {"q_proj": 8}}, 8, None),
        ({"r": 2, "rank_pattern": {"q_proj": 40, "down_proj": 17}}, 16, 64),
        ({"r": 2}, 1, 8),
        ({"r": 512}, 16, 512),
    ],
)
def test_the_rank(ranks: dict[str, Any], limit: int, flag: int | None) -> None:
    """Against vLLM's own config, whose ranks are a few fixed ones: the flag that is named starts an engine."""
    lora_config_class = pytest.importorskip("vllm.config.lora").LoRAConfig
    config = MonoLoraConfig(**ranks)
    engine = lora_config_class(max_lora_rank=limit)
    if flag is None:
        check_rank(config, "an/adapter", engine)
        return
    rank = max([config.r, *(config.rank_pattern or {}).values()])
    with pytest.raises(AdapterFileError, match=f"an/adapter has rank {rank}.* was started for {limit}") as refused:
        check_rank(config, "an/adapter", engine)
    assert f"--max-lora-rank {flag} (max_lora_rank={flag} of LLM)" in str(refused.value)
    check_rank(config, "an/adapter", lora_config_class(max_lora_rank=flag))


def test_a_rank_beyond_vllm() -> None:
    """No flag would help, and none is named."""
    largest = pytest.importorskip("vllm.config.lora").LoRAConfig(max_lora_rank=512)
    with pytest.raises(AdapterFileError, match=f"an/adapter has rank 513, .* up to 512. .*{EXACT}") as refused:
        check_rank(MonoLoraConfig(r=513), "an/adapter", largest)
    assert "--max-lora-rank" not in str(refused.value)


def test_the_saved_adapter_is_a_good_one(mono: Path, base_folder: Path, ids: torch.Tensor, saved: Saved) -> None:
    """The tests above spoil something that PEFT loads."""
    folder, logits = saved("again")
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base_folder), str(folder))
    with torch.no_grad():
        assert torch.allclose(model.eval()(ids).logits, logits, atol=1e-6)
    assert served_config(str(folder)) is not None
