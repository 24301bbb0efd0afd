"""vLLM serves exact checkpoints with transformers' log-probs: fused layers, uneven units, LoRA on top."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, LlamaForCausalLM

from monolora.errors import InputError
from monolora.merge import export_exact
from tests.support.requirements import NEEDS_VLLM
from tests.support.served import LINEAR, SIZES
from tests.support.vllm_process import Adapter, Engine, RefusedError, largest_difference

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    NEEDS_VLLM,
]

TOLERANCE = 5e-5
PROMPTS = [[5, 9, 30, 22, 7, 50, 61, 3], [40, 4, 17], [8, 8, 33, 12, 60, 21, 11, 44, 19, 28, 56, 6]]
ADAPTERS: dict[str, dict[str, Any]] = {
    # q, k and v of other ranks; v without units in one layer; up without gate; biases of B; thresholds
    "uneven": {
        "target_modules": ["q_proj", "k_proj", "layers.0.self_attn.v_proj", "o_proj", "up_proj", "down_proj"],
        "rank_pattern": {"q_proj": 5, "layers.1.self_attn.k_proj": 2},
        "alpha_pattern": {"k_proj": -3},
        "lora_bias": True,
        "activation": "jumprelu",
    },
    # of each module the largest two units, and not of all three modules of a fused layer together
    "topk": {"target_modules": LINEAR, "activation": "topk:2"},
}


@pytest.fixture(scope="module")
def make_exact(
    make_llama: Callable[..., LlamaForCausalLM],
    adapt: Callable[..., PeftModel],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Path]:
    """The folder of an exact checkpoint of one of the adapters."""

    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*lora_bias")
            export_exact(adapt(make_llama(**SIZES), **ADAPTERS[name]), folder)
        return folder

    return make


# What a reload finds in memory: anything, as after `sleep(level=2)`.
LOSE = (
    "for name, parameter in llm.apply_model(lambda model: list(model.named_parameters()))[0]:\n"
    "    if {!r} in name: parameter.data.fill_(float('nan'))\n"
)
RELOAD = "llm.collective_rpc('reload_weights', kwargs={})\n"
# As a trainer sends new weights, with no word of a reload; on a CPU the base's are packed and cannot be sent.
SEND = LOSE.format("monolora_") + (
    "from safetensors.torch import load_file\n"
    "units = [item for item in load_file({!r}).items() if 'monolora_' in item[0]]\n"
    "llm.apply_model(lambda model, units=units: model.load_weights(units))\n"
)
OTHER_UNITS = "keeps other MonoLoRA units than the checkpoint that this vLLM was started with"


def _scaled(folder: Path, to: Path) -> Path:
    """The same tensors with other scalings."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    for group in config["quantization_config"]["groups"]:
        group["scaling"] *= 2
    (to / "config.json").write_text(json.dumps(config))
    return to


def test_topk(make_exact: Callable[[str], Path], make_llama: Callable[..., LlamaForCausalLM], tmp_path: Path) -> None:
    folder = make_exact("topk")
    make_llama(**SIZES).save_pretrained(tmp_path / "plain")
    model = LlamaForCausalLM.from_pretrained(folder)
    with Engine(folder) as engine:
        answers = engine.generate(PROMPTS)
        assert re.search(
            r"applied=Share\(value=(1\.0|0\.999).* activation=Share\(value=(1\.0|0\.999)", engine.canary(None, PROMPTS)
        )
        for reload in (LOSE.format("") + RELOAD, SEND.replace("{!r}", repr(str(folder / "model.safetensors")))):
            engine.run(reload)
            assert engine.generate(PROMPTS) == answers
        for other in (_scaled(folder, tmp_path / "scaled"), tmp_path / "plain"):
            with pytest.raises(RefusedError, match=f"{other} {OTHER_UNITS}.* Start vLLM anew"):
                engine.run(RELOAD.replace("{}", f"{{'weights_path': {str(other)!r}}}"))
            assert engine.generate(PROMPTS) == answers
        engine.run(RELOAD.replace("{}", f"{{'weights_path': {str(folder)!r}}}"))
        assert engine.generate(PROMPTS) == answers
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.0.mlp.up_proj.monolora_A"] = tensors["model.layers.0.mlp.up_proj.monolora_A"][:1]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(RefusedError, match=r"monolora_A of model.layers.0.mlp.gate_up_proj has shape \(1, 64\)"):
            engine.run(RELOAD)  # one row would fit all of them
    assert largest_difference(answers, model) < TOLERANCE


def test_uneven_units_and_lora_on_top(
    make_exact: Callable[[str], Path], fill: Callable[..., nn.Module], tmp_path: Path
) -> None:
    folder = make_exact("uneven")
    model = LlamaForCausalLM.from_pretrained(folder)
    lora = get_peft_model(
        LlamaForCausalLM.from_pretrained(folder), LoraConfig(r=8, target_modules=[*LINEAR, "lm_head"])
    )
    fill(lora, 5)
    lora.save_pretrained(tmp_path, save_embedding_layers=False)
    adapters = [None] * 3 + [Adapter("lora", 1, str(tmp_path))] * 3
    # So few tokens a batch that prompts come in parts.
    with Engine(
        folder, enable_lora=True, max_loras=1, max_lora_rank=8, max_num_batched_tokens=8, max_num_seqs=6
    ) as engine:
        answers = engine.generate(PROMPTS * 2, adapters)
        scores = engine.score(PROMPTS * 2, adapters)
        for reload in (LOSE.format("") + RELOAD, SEND.replace("{!r}", repr(str(folder / "model.safetensors")))):
            engine.run(reload)
            assert engine.generate(PROMPTS * 2, adapters) == answers
    assert largest_difference(scores[:3], model) < TOLERANCE
    assert largest_difference(scores[3:], lora.eval()) < TOLERANCE
    assert largest_difference(answers[:3], model) < TOLERANCE
    assert largest_difference(answers[3:], lora.eval()) < TOLERANCE
    assert largest_difference(answers[3:], model) > 100 * TOLERANCE


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # vLLM imports what uses it
def test_what_is_compared_before_the_model_is_made(make_exact: Callable[[str], Path]) -> None:
    """As vLLM calls it: config, files and modules must agree (tests/merge/test_quantizer.py has what is refused)."""
    from monolora.vllm.exact import ExactCheckpointConfig

    folder = make_exact("uneven")
    config = AutoConfig.from_pretrained(folder)
    described = ExactCheckpointConfig.from_config(config.quantization_config)
    described.maybe_update_config(str(folder), hf_config=config)
    config.quantization_config["groups"][0]["modules"][0] = "evil"
    with pytest.raises(InputError, match="names 'evil', which this model does not have"):
        described.maybe_update_config(str(folder), hf_config=config)
    config.quantization_config["groups"][0]["scaling"] = float("inf")
    with pytest.raises(InputError, match="scaling of a group is inf"):
        ExactCheckpointConfig.from_config(config.quantization_config)


def test_lacking_a_tensor(make_exact: Callable[[str], Path]) -> None:
    """vLLM does not look whether a quantized checkpoint is whole; the units would be zero."""
    folder = make_exact("topk")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.monolora_B"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RuntimeError, match=r"lacks tensor 'model\..*\.1\.mlp\.up_proj\.monolora_B'"), Engine(folder):
        pass


def test_units_of_the_output_layer(
    make_llama: Callable[..., LlamaForCausalLM], adapt: Callable[..., PeftModel], tmp_path: Path
) -> None:
    export_exact(adapt(make_llama(**SIZES), target_modules=["q_proj", "lm_head"]), tmp_path)
    with pytest.raises(RuntimeError, match=r"lm_head keeps MonoLoRA units .*only linear layers"), Engine(tmp_path):
        pass
