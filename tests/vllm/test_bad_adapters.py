"""What cannot be served is refused in one line that names it, and the engine goes on; wrong answers are never given."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import LlamaForCausalLM

from monolora import MonoLoraConfig
from tests.support.damaged_adapters import CONFIG, WEIGHTS, Spoil, change, configure, remove, truncate
from tests.support.served import LARGEST_RANK, LINEAR, SIZES, Served
from tests.support.vllm_process import Adapter, Engine, RefusedError, largest_difference

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

PROMPTS = [[5, 9, 30, 22], [40, 4, 17]]
NUMBERS = itertools.count(1000)


class Bad(NamedTuple):
    """A way to spoil an adapter, and what the refusal says.

    Attributes:
        spoil: a copy of the folder.
        message: a pattern.
        start: the adapter that is copied.
    """

    spoil: Spoil
    message: str
    start: str = "mono"


Q = "base_model.model.model.layers.1.self_attn.q_proj.monolora_"
BAD = {
    "truncated": Bad(truncate(), "adapter_model.safetensors is truncated or not a safetensors file"),
    "half a config": Bad(truncate(CONFIG), "adapter_config.json is damaged"),
    "no weights": Bad(remove(WEIGHTS), "adapter_model.safetensors is missing"),
    "LoRA called MonoLoRA": Bad(
        configure(peft_type="MONOLORA", activation="relu"),
        r"lora_A.* belongs to a plain LoRA adapter, but the config says MONOLORA",
        "lora",
    ),
    "MonoLoRA called LoRA": Bad(
        configure(peft_type="LORA"), r"monolora_A.* belongs to a MonoLoRA adapter, but the config says LORA"
    ),
    "unknown activation": Bad(configure(activation="glu"), "Unknown activation 'glu'; choose one of relu"),
    "no thresholds": Bad(configure(activation="jumprelu"), "lacks tensor '.*monolora_threshold"),
    "thresholds of no activation": Bad(
        change(lambda tensors: tensors.update({f"{Q}threshold.weight": torch.ones(8, 1)})),
        "foreign tensor 'model.layers.1.self_attn.q_proj.monolora_threshold",
    ),
    "saved modules": Bad(configure(modules_to_save=["lm_head"]), r"modules_to_save=\['lm_head'\]"),
    "a bias of B": Bad(configure(lora_bias=True), "lora_bias=True"),
    "biases": Bad(configure(bias="all"), "bias='all'"),
    "trained tokens": Bad(configure(trainable_token_indices=[3]), r"trainable_token_indices=\[3\]"),
    "another rank in the config": Bad(
        configure(r=4), r"down_proj.monolora_A has shape \(8, 96\) in the file, this model needs \(4, 96\)"
    ),
    "a tensor missing": Bad(
        change(lambda tensors: tensors.pop(f"{Q}B.weight")), "lacks tensor model.layers.1.self_attn.q_proj.monolora_B"
    ),
    "a module missing": Bad(
        change(lambda tensors: [tensors.pop(f"{Q}{matrix}.weight") for matrix in "AB"]),
        "lacks tensor model.layers.1.self_attn.q_proj.monolora_A",
    ),
    "NaN": Bad(
        change(lambda tensors: tensors[f"{Q}A.weight"][0].fill_(torch.nan)), "q_proj.monolora_A' has NaN or infinite"
    ),
    "a foreign tensor": Bad(
        change(lambda tensors: tensors.update({"base_model.model.model.norm.weight": torch.ones(64)})), "norm.weight"
    ),
}


@pytest.mark.parametrize("path", ["/nowhere/adapter", "nowhere/adapter", "nowhere"])
def test_nothing_there(engine: Engine, served: Served, path: str) -> None:
    """To vLLM a relative path that is not there is an id of the hub; its engine would end without it."""
    with pytest.raises(RefusedError, match=f"Adapter 'lost': There is no (folder|adapter).* {path}"):
        engine.generate(PROMPTS[:1], [Adapter("lost", 999, path)])
    answers = engine.generate(PROMPTS, [served.adapters["lora"]] * 2)
    assert largest_difference(answers, served.models["lora"]) < 5e-5


@pytest.mark.parametrize("case", BAD)
def test_spoilt(engine: Engine, served: Served, tmp_path: Path, case: str) -> None:
    spoil, message, start = BAD[case]
    folder = tmp_path / "spoilt"
    shutil.copytree(served.adapters[start].path, folder)
    spoil(folder)
    _check_refused(engine, served, folder, message)


def _check_refused(engine: Engine, served: Served, folder: Path, message: str) -> None:
    """In one line; and base and adapter are still answered."""
    number = next(NUMBERS)
    with pytest.raises(RefusedError, match=f"(?=.*{re.escape(str(folder))}).*{message}") as refused:
        engine.generate(PROMPTS[:1], [Adapter(f"bad{number}", number, str(folder))])
    assert "\n" not in str(refused.value)
    for name in (None, "mono"):
        answers = engine.generate(PROMPTS, [served.adapter(name)] * 2)
        assert largest_difference(answers, served.models[name]) < 5e-5


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden_size": 32}, r"down_proj.monolora_B has shape \(32, 8\) in the file, this model needs \(64, 8\)"),
        ({"hidden_size": 128}, r"down_proj.monolora_B has shape \(128, 8\) in the file, this model needs \(64, 8\)"),
        (
            {"intermediate_size": 48},
            r"down_proj.monolora_A has shape \(8, 48\) in the file, this model needs \(8, 96\)",
        ),
        ({"num_key_value_heads": 2}, r"k_proj.monolora_B has shape \(64, 8\) in the file, this model needs \(32, 8\)"),
        ({"num_hidden_layers": 1}, "lacks tensor model.layers.1.self_attn.q_proj.monolora_A"),
        ({"num_hidden_layers": 3}, "has units for model.layers.2.*which vLLM does not adapt"),
    ],
)
def test_of_another_base(
    engine: Engine,
    served: Served,
    make_llama: Callable[..., LlamaForCausalLM],
    fill: Callable[..., nn.Module],
    tmp_path: Path,
    sizes: dict[str, int],
    message: str,
) -> None:
    """Stock vLLM copies a smaller tensor into a larger buffer, and passes over layers that are not there."""
    _save(make_llama(**SIZES | sizes), fill, tmp_path / "foreign", r=8, target_modules=LINEAR)
    _check_refused(engine, served, tmp_path / "foreign", message)


def _save(model: nn.Module, fill: Callable[..., nn.Module], folder: Path, **config: Any) -> None:
    adapted = get_peft_model(model, MonoLoraConfig(**config))
    fill(adapted)
    adapted.save_pretrained(folder, save_embedding_layers=False)


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        (LARGEST_RANK + 1, "has rank 9, and this vLLM was started for 8 at most. Start it with --max-lora-rank 16 "),
        (600, "has rank 600, and vLLM's LoRA goes up to 512.*--method exact"),
    ],
)
def test_rank_too_high(
    engine: Engine,
    served: Served,
    make_llama: Callable[..., LlamaForCausalLM],
    fill: Callable[..., nn.Module],
    tmp_path: Path,
    rank: int,
    message: str,
) -> None:
    _save(make_llama(**SIZES), fill, tmp_path / "wide", r=2, rank_pattern={"q_proj": rank}, target_modules=["q_proj"])
    _check_refused(engine, served, tmp_path / "wide", message)


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_not_a_linear_layer(
    engine: Engine,
    served: Served,
    make_llama: Callable[..., LlamaForCausalLM],
    fill: Callable[..., nn.Module],
    tmp_path: Path,
    module: str,
) -> None:
    """Plain LoRA on these is served (see the offline tests); their path has no place for an activation."""
    _save(make_llama(**SIZES), fill, tmp_path / "vocabulary", r=4, target_modules=["q_proj", module])
    _check_refused(engine, served, tmp_path / "vocabulary", f"{module}.*only linear layers")


def test_spoilt_after_it_was_loaded(engine: Engine, served: Served, tmp_path: Path) -> None:
    """Requests for it are refused from then on; in a batch, a worker that reads it again would end the engine."""
    folder = tmp_path / "spoilt-later"
    shutil.copytree(served.adapters["mono"].path, folder)
    adapter = Adapter("later", 501, str(folder))
    assert largest_difference(engine.generate(PROMPTS, [adapter] * 2), served.models["mono"]) < 5e-5
    whole = (folder / WEIGHTS).read_bytes()
    truncate()(folder)
    with pytest.raises(RefusedError, match=r"Adapter 'later': .*truncated"):
        engine.generate(PROMPTS, [adapter] * 2)
    shutil.rmtree(folder)
    with pytest.raises(RefusedError, match=r"Adapter 'later': .*does not hold the files that were loaded from there"):
        engine.generate(PROMPTS, [adapter] * 2)
    shutil.copytree(served.adapters["mono"].path, folder)
    (folder / WEIGHTS).write_bytes(whole)
    assert largest_difference(engine.generate(PROMPTS, [adapter] * 2), served.models["mono"]) < 5e-5


def test_other_weights_in_the_same_place(engine: Engine, served: Served, tmp_path: Path) -> None:
    """vLLM would answer partly from prefixes that it has computed with the earlier ones."""
    folder = tmp_path / "retrained"
    shutil.copytree(served.adapters["mono"].path, folder)
    engine.generate(PROMPTS, [Adapter("retrained", 502, str(folder))] * 2)
    change(lambda tensors: tensors[f"{Q}B.weight"].mul_(2))(folder)
    for load_inplace in (False, True):
        with pytest.raises(RefusedError, match=r"does not hold the files that were loaded.*from another folder"):
            engine.generate(PROMPTS, [Adapter("retrained", 502, str(folder), load_inplace)] * 2)
