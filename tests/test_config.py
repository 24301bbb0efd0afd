"""MonoLoraConfig: what it refuses by name, what it takes, and how it travels."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import numpy
import pytest
from peft import (
    ArrowConfig,
    BdLoraConfig,
    EvaConfig,
    KasaConfig,
    LoraConfig,
    MontecloraConfig,
    PeftConfig,
    PeftType,
    VeloraConfig,
)

from monolora import MonoLoraConfig
from monolora.checkpoint import AdapterFileError
from monolora.config import _REFUSED, _REFUSED_INITS

REFUSED: dict[str, Any] = {
    "use_dora": True,
    "alora_invocation_tokens": [1, 2],
    "arrow_config": ArrowConfig(),
    "use_bdlora": BdLoraConfig(target_modules_bd_a=["q_proj"], nblocks=2),
    "velora_config": VeloraConfig(),
    "monteclora_config": MontecloraConfig(),
    "kasa_config": KasaConfig(),
    "use_qalora": True,
    "target_parameters": ["experts.gate_up_proj"],
    "megatron_config": {"hidden_size": 8},
    "layer_replication": [(0, 2), (1, 3)],
}


def test_every_refused_option_is_tested_and_exists_in_peft() -> None:
    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    assert REFUSED.keys() == _REFUSED.keys() <= fields


@pytest.mark.parametrize("name", REFUSED)
def test_an_option_that_cannot_work_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"does not support {name}: "):
        MonoLoraConfig(**{name: REFUSED[name]})


@pytest.mark.parametrize("init", [*_REFUSED_INITS, "pissa_niter_4", "PiSSA", "OLoRA"])
def test_an_init_that_presupposes_a_linear_product_is_refused_by_name(init: str) -> None:
    with pytest.raises(ValueError, match=f"does not support init_lora_weights='{init}'"):
        MonoLoraConfig(init_lora_weights=init)  # type: ignore[arg-type]


@pytest.mark.parametrize("init", [True, False, "gaussian"])
def test_other_inits_are_taken(init: Any) -> None:
    assert MonoLoraConfig(init_lora_weights=init).init_lora_weights == init


def test_eva_is_taken() -> None:
    assert MonoLoraConfig(init_lora_weights="eva", eva_config=EvaConfig()).init_lora_weights == "eva"


@pytest.mark.parametrize("rank", [0, -1, 1.5, "8", True, None])
def test_a_rank_that_is_no_positive_integer_is_refused(rank: Any) -> None:
    with pytest.raises(ValueError, match=r"^r must be a positive integer"):
        MonoLoraConfig(r=rank)


@pytest.mark.parametrize("rank", [0, -2, 2.0])
def test_so_is_one_in_rank_pattern(rank: Any) -> None:
    with pytest.raises(ValueError, match=r"^rank_pattern\['q_proj'\] must be a positive integer"):
        MonoLoraConfig(rank_pattern={"v_proj": 4, "q_proj": rank})


def test_an_unknown_activation_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="Did you mean 'softplus'"):
        MonoLoraConfig(activation="sofplus")


def test_relu_is_the_default_and_the_rest_is_loras() -> None:
    ours, theirs = MonoLoraConfig().to_dict(), LoraConfig().to_dict()
    assert ours.pop("activation") == "relu"
    assert ours.pop("peft_type") == "MONOLORA"
    assert theirs.pop("peft_type") == "LORA"
    assert ours == theirs


def test_the_type_is_a_true_member_of_the_enum() -> None:
    member = MonoLoraConfig().peft_type
    assert member is PeftType("MONOLORA") is PeftType["MONOLORA"] is list(PeftType)[-1]
    assert isinstance(member, PeftType)
    assert (member.name, member.value, member) == ("MONOLORA", "MONOLORA", "MONOLORA")
    assert json.dumps({"peft_type": member}) == '{"peft_type": "MONOLORA"}'
    assert pickle.loads(pickle.dumps(member)) is member
    assert copy.deepcopy(member) is copy.copy(member) is member


def test_the_config_survives_pickle_and_deepcopy() -> None:
    config = MonoLoraConfig(r=3, activation="topk:2", rank_pattern={"q_proj": 2}, target_modules=["q_proj"])
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config


def test_json_round_trip_by_pefts_dispatch(tmp_path: Path) -> None:
    config = MonoLoraConfig(r=3, activation="topk:2", target_modules=["q_proj"], alpha_pattern={"q_proj": 7})
    config.save_pretrained(str(tmp_path))
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (written["peft_type"], written["activation"], written["r"]) == ("MONOLORA", "topk:2", 3)
    for cls in (PeftConfig, MonoLoraConfig):
        assert cls.from_pretrained(str(tmp_path)) == config


def test_a_file_whose_activation_is_unknown_is_refused(tmp_path: Path) -> None:
    MonoLoraConfig().save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace('"relu"', '"elu"'))
    with pytest.raises(ValueError, match="Unknown activation 'elu'"):
        PeftConfig.from_pretrained(str(tmp_path))


def test_a_folder_with_a_pickle_is_refused_already_here(tmp_path: Path) -> None:
    MonoLoraConfig().save_pretrained(str(tmp_path / "sub"))
    (tmp_path / "sub" / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(AdapterFileError, match=r"sub/adapter_model\.bin is a pickle"):
        MonoLoraConfig.from_pretrained(str(tmp_path), subfolder="sub")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lora_alpha": float("nan")}, "lora_alpha must be a finite number, got nan"),
        ({"lora_alpha": -float("inf")}, "lora_alpha must be a finite number, got -inf"),
        ({"lora_alpha": 1e39}, r"lora_alpha must be a finite number, got 1e\+39"),
        ({"lora_alpha": True}, "lora_alpha must be a finite number, got True"),
        ({"lora_alpha": "8"}, "lora_alpha must be a finite number, got '8'"),
        ({"lora_alpha": None}, "lora_alpha must be a finite number, got None"),
        ({"alpha_pattern": {"q_proj": float("inf")}}, r"alpha_pattern\['q_proj'\] must be a finite number, got inf"),
        ({"rank_pattern": {"q_proj": float("nan")}}, r"rank_pattern\['q_proj'\] must be a positive integer, got nan"),
        ({"rank_pattern": {"q_proj": True}}, r"rank_pattern\['q_proj'\] must be a positive integer, got True"),
        ({"lora_dropout": float("nan")}, "lora_dropout must be a number from 0 to 1, got nan"),
        ({"lora_dropout": -0.1}, "lora_dropout must be a number from 0 to 1, got -0.1"),
        ({"lora_dropout": "0.1"}, "lora_dropout must be a number from 0 to 1, got '0.1'"),
    ],
)
def test_numbers_that_are_none_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        MonoLoraConfig(**settings)


def test_numbers_of_numpy_are_numbers() -> None:
    config = MonoLoraConfig(lora_alpha=numpy.float32(8), lora_dropout=numpy.float64(0.1))
    assert (config.lora_alpha, config.lora_dropout) == (8, 0.1)
