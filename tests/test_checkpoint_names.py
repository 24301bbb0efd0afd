"""The names of an adapter's tensors and of its base model, and the checks that need no model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model, set_peft_model_state_dict
from torch import nn

from monolora import MonoLoraConfig
from monolora.checkpoint import (
    AdapterFileError,
    Room,
    check_tensors,
    check_weights_file,
    is_monolora_name,
    is_unit_tensor,
    module_of,
    origin_of,
    to_disk_name,
    to_memory_name,
    warn_of_other_base,
)
from monolora.errors import InputError

WEIGHTS = "adapter_model.safetensors"


PARTS = ["q_proj", "lora_A", "x", "lora_embedding_B", "monolora_A", "monolora_head", "lora_Ax"]


@given(st.lists(st.sampled_from(PARTS)), st.sampled_from(["A", "B", "embedding_A"]), st.sampled_from(PARTS))
def test_names_there_and_back(parts: list[str], role: str, adapter: str) -> None:
    """The role alone changes, whatever base modules and adapters are called."""
    end = "" if role == "embedding_A" else ".weight"
    module = ".".join(["model", *parts])
    assert to_disk_name(f"{module}.lora_{role}.{adapter}{end}", adapter) == f"{module}.monolora_{role}.{adapter}{end}"
    assert to_memory_name(f"{module}.monolora_{role}.{adapter}{end}", adapter) == f"{module}.lora_{role}.{adapter}{end}"
    assert to_memory_name(f"{module}.monolora_{role}{end}") == f"{module}.lora_{role}{end}"
    assert is_monolora_name(f"{module}.monolora_{role}{end}")
    assert not is_monolora_name(f"{module}.lora_{role}{end}")
    assert is_unit_tensor(f"{module}.lora_{role}.{adapter}{end}", adapter)


@pytest.mark.parametrize(
    ("key", "adapter", "expected"),
    [
        ("q.lora_A.default.weight", "default", True),
        ("q.lora_B.default.bias", "default", True),
        ("e.lora_embedding_A.default", "default", True),
        ("q.lora_A.default2.weight", "default", False),
        ("q.lora_A.defaul.weight", "default", False),
        ("q.lora_A.a1b.weight", "a.b", False),
        ("q.base_layer.weight", "default", False),
        ("q.lora_magnitude_vector.default.weight", "default", False),
    ],
)
def test_is_unit_tensor(key: str, adapter: str, expected: bool) -> None:
    assert is_unit_tensor(key, adapter) is expected


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("q.lora_A.x.weight", ("q", "lora_A.x.weight")),
        ("q.lora_A.lora_A.x.weight", ("q.lora_A", "lora_A.x.weight")),
        ("e.lora_embedding_B.x", ("e", "lora_embedding_B.x")),
        ("q.lora_A.x1.weight", ("", "q.lora_A.x1.weight")),
        ("lm_head.modules_to_save.x.weight", ("", "lm_head.modules_to_save.x.weight")),
    ],
)
def test_module_of(key: str, expected: tuple[str, str]) -> None:
    assert module_of(key, "x") == expected


def test_a_tensor_that_zero_3_has_partitioned_is_not_compared_by_shape() -> None:
    name = "q.lora_A.default.weight"
    tensors = {name: torch.ones(2, 3)}
    assert check_tensors(tensors, Room({name: torch.empty(0)}, {}, {}, {}, None), "") == tensors
    with pytest.raises(AdapterFileError, match=r"has shape \(2, 3\) in the file, this model needs \(2, 4\)"):
        check_tensors(tensors, Room({name: torch.empty(2, 4)}, {}, {}, {}, None), "")


def test_origin_names_what_to_do() -> None:
    assert "trained on 'org/a', this model is 'org/b': load it on the former" in origin_of("org/a", "org/b")
    assert "both name 'org/a'" in origin_of("org/a", "/models/a/")
    assert origin_of(None, "x") == origin_of("x", "") == origin_of("", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_other_base("org/a", "a")
        warn_of_other_base("org/a", None)


def test_a_folder_without_weights_passes_and_garbage_does_not(tmp_path: Path) -> None:
    check_weights_file(str(tmp_path))
    (tmp_path / WEIGHTS).write_bytes(b"not safetensors at all")
    with pytest.raises(InputError, match="truncated or not a safetensors file"):
        check_weights_file(str(tmp_path))


def test_a_model_that_is_not_transformers_is_checked_too() -> None:
    model: Any = get_peft_model(nn.Sequential(nn.Linear(3, 2)), MonoLoraConfig(target_modules=["0"], r=2))
    good = {
        "base_model.model.0.monolora_A.weight": torch.ones(2, 3),
        "base_model.model.0.monolora_B.weight": torch.ones(2, 2),
    }
    set_peft_model_state_dict(model, good)
    assert torch.equal(model.base_model.model[0].lora_A["default"].weight, torch.ones(2, 3))
    with pytest.raises(AdapterFileError, match="Check that the adapter was trained on this base model"):
        set_peft_model_state_dict(model, {name: tensor[:1] for name, tensor in good.items()})
