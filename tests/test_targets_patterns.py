"""Patterns of a config from elsewhere: they match what PEFT matches, and none of them takes for ever."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.hotswap import hotswap_adapter
from peft.utils.other import get_pattern_key
from transformers import LlamaForCausalLM

from monolora import MonoLoraConfig
from monolora.errors import InputError
from monolora.prune import read_adapter
from monolora.targets import check_bounded, resolve_patterns

Saved = Callable[..., tuple[Path, torch.Tensor]]
NAMES = [
    f"{tower}.layers.{layer}.{part}"
    for tower in ("model", "vision.model")
    for layer in (0, 1, 11)
    for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")
] + ["lm_head"]
# As people write them: by hand, and as other trainers do.
HONEST = [
    r".*q_proj",
    r".*\.1\.mlp\.up_proj",
    r".*(q|v)_proj",
    r"model\.layers\.\d+\.self_attn\.(q_proj|v_proj)",
    r"(?:.*?(?:text|language|model).*?(?:self_attn|mlp).*?(?:q_proj|up_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.x)",
    r".*layers\.(0|11)\..*",
    r"lm_head",
]
SLOW = [r"(([a-z_.0-9]+)+)+!", r"(.*.*.*.*)*(.*.*)*!", r"(?!x)(([a-z_.0-9]+)+)+!", r"((a|b|[a-z.])*)*\1!"]


def _targeted(config: LoraConfig, names: list[str]) -> list[str]:
    return [name for name in names if check_target_module_exists(config, name)]


@pytest.mark.parametrize("exclude", [None, r"vision.*", r"vision\.(.*)", ["v_proj"]])
@pytest.mark.parametrize("pattern", HONEST)
def test_honest_patterns_match_what_peft_matches(pattern: str, exclude: Any) -> None:
    config = LoraConfig(target_modules=pattern, exclude_modules=exclude)
    expected = _targeted(config, NAMES)
    resolve_patterns(config, NAMES, [])
    assert _targeted(config, NAMES) == expected


@given(st.lists(st.sampled_from([*HONEST, "q_proj", "layers.1.mlp.up_proj"]), unique=True))
def test_ranks_and_alphas_are_found_as_peft_finds_them(keys: list[str]) -> None:
    values = {key: number for number, key in enumerate(keys, start=2)}
    config = LoraConfig(target_modules=["q_proj"], rank_pattern=dict(values), alpha_pattern=dict(values))
    resolve_patterns(config, NAMES, [])
    for name in NAMES:
        expected = values.get(get_pattern_key(list(values), name))
        assert config.rank_pattern.get(get_pattern_key(list(config.rank_pattern), name)) == expected
        assert config.alpha_pattern.get(get_pattern_key(list(config.alpha_pattern), name)) == expected


def test_plain_names_and_simple_patterns_stay_as_they_are() -> None:
    config = LoraConfig(
        target_modules=r".*q_proj", rank_pattern={"q_proj": 2, r"^model\.x": 3}, exclude_modules=["a.b"]
    )
    before = config.to_dict()
    resolve_patterns(config, NAMES, [])
    assert config.to_dict() == before
    check_bounded(config)


def test_with_look_around_the_file_tells_what_is_adapted() -> None:
    config = LoraConfig(target_modules=r"^(?!vision).*q_proj$")
    in_file = [name for name in NAMES if name.startswith("model") and name.endswith("q_proj")]
    resolve_patterns(config, NAMES, in_file)
    assert _targeted(config, [name for name in NAMES if not name.startswith("vision")]) == in_file


def test_without_a_file_look_around_is_refused() -> None:
    with pytest.raises(InputError, match=r"target_modules .* cannot be checked safely\. Download"):
        resolve_patterns(LoraConfig(target_modules=r"^(?!vision).*q_proj$"), NAMES, [])


@pytest.mark.parametrize("field", ["modules_to_save", "layers_pattern"])
def test_patterns_where_only_names_make_sense(field: str) -> None:
    config = LoraConfig(target_modules=["q_proj"], layers_to_transform=[0], **{field: SLOW[:1]})
    with pytest.raises(InputError, match=f"{field} names .* which is no module's name"):
        resolve_patterns(config, NAMES, [])


@pytest.mark.parametrize("pattern", SLOW)
def test_no_loader_is_held_up(saved: Saved, base_folder: Path, pattern: str) -> None:
    """Python's ``re`` would be at any of them for longer than anybody waits."""
    adapter, _ = saved()
    path = adapter / "adapter_config.json"
    good = json.loads(path.read_text())
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base_folder), str(adapter))

    def outcome(load: Callable[[], Any]) -> str:
        try:
            load()
            return "loaded"
        except ValueError as error:
            return str(error)

    for field, value in (
        ("target_modules", pattern),
        ("exclude_modules", pattern),
        ("rank_pattern", {pattern: 2}),
        ("alpha_pattern", {pattern: 2}),
    ):
        path.write_text(json.dumps(good | {field: value}))
        for load in (
            lambda: PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base_folder), str(adapter)),
            lambda: LlamaForCausalLM.from_pretrained(base_folder).load_adapter(str(adapter)),
            lambda: hotswap_adapter(model, str(adapter), "default"),
            lambda: read_adapter(str(adapter)),
        ):
            assert outcome(load)
        if field.endswith("_pattern"):
            with pytest.raises(InputError, match=f"{field} has the pattern"):
                check_bounded(MonoLoraConfig.from_pretrained(str(adapter)))
