"""What a run takes of each GPU, against what torch counts and measures, and the command that launches it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from peft import get_peft_model
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from monolora import MonoLoraConfig
from monolora.recipes.plan import GPUS_A_MACHINE, launch
from monolora.recipes.training.arguments import parse
from monolora.recipes.training.memory import LAYOUTS, saved_bytes
from tests.support import forks

SIZES = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config.json without weights."""
    LlamaConfig(vocab_size=1000, **SIZES).save_pretrained(tmp_path / "model")
    return tmp_path / "model" / "config.json"


def test_saved_bytes_are_those_of_a_measured_forward_pass() -> None:
    """What the CPU's allocator holds after a forward pass, beside the meta device's count; its attention keeps both."""
    with torch.device("meta"):
        counted = LlamaForCausalLM._from_config(
            LlamaConfig(vocab_size=1000, **SIZES), attn_implementation="keeps_inputs_and_output"
        )
        adapter = MonoLoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        kept = saved_bytes(get_peft_model(counted, adapter), rows=2, tokens=64)
    model: Any = get_peft_model(LlamaForCausalLM(LlamaConfig(vocab_size=1000, **SIZES)), adapter).train()
    ids = torch.zeros(2, 64, dtype=torch.long)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        output = model.get_base_model().model(input_ids=ids, use_cache=False).last_hidden_state
    held = sum(event.self_cpu_memory_usage for event in measured.events())
    assert output.requires_grad
    assert kept == pytest.approx(held, rel=0.1)


def test_numbers(run_cli: Callable[..., Any], config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of full finetuning in float32, by hand."""
    words = ["--adapter", "none", "--dtype", "float32", "--no-bf16", "--optim", "adamw_torch", "--json"]
    ended = run_cli("plan", "--model", config, "--gpus", "4x10", *words)
    assert (ended.status, ended.err) == (0, [])
    planned = json.loads(ended.out)
    whole = 4 * sum(p.numel() for p in LlamaForCausalLM(LlamaConfig(vocab_size=1000, **SIZES)).parameters())
    ddp, zero_2, fsdp2 = (planned["bytes"][layout] for layout in LAYOUTS)
    assert [ddp[part] for part in ("parameters", "gradients", "optimizer")] == [whole, 2 * whole, 2 * whole]
    assert [zero_2[part] for part in ("parameters", "gradients", "optimizer")] == [whole, whole / 4, whole / 2]
    assert [fsdp2[part] for part in ("parameters", "gradients", "optimizer")] == [whole / 4, whole / 4, whole / 2]
    block = sum(p.numel() for p in LlamaForCausalLM(LlamaConfig(vocab_size=1000, **SIZES)).model.layers[0].parameters())
    assert fsdp2["gathered"] == 4 * (2 * block + 2 * 1000 * 128)
    assert all(row["total"] == sum(value for name, value in row.items() if name != "total") for row in (ddp, fsdp2))
    assert planned["fits"] == list(LAYOUTS)


def test_more_memory_for_more(run_cli: Callable[..., Any], config: Path) -> None:
    def of(*words: str) -> dict[str, float]:
        planned = json.loads(run_cli("plan", "--model", config, "--gpus", "1x10", "--json", *words).out)
        return planned["bytes"]["DDP"]

    plain = of()
    assert of("--per-device-train-batch-size", "32")["activations"] == pytest.approx(2 * plain["activations"], rel=0.01)
    assert of("--gradient-checkpointing")["activations"] < plain["activations"]
    assert of("--load-in-4bit")["parameters"] < plain["parameters"]
    assert of("--keep", "silence", "kl")["keepers"] > of("--keep", "silence")["keepers"] > plain["keepers"] == 0
    assert of("--lora-r", "16")["optimizer"] == 2 * plain["optimizer"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gpus", [4, 2 * GPUS_A_MACHINE])
def test_command_parses(layout: str, gpus: int, config: Path) -> None:
    words = ["--model", str(config.parent), "--lora-r", "4"]
    accelerate, verb, *flags = shlex.split(launch(layout, gpus, words))
    assert (accelerate, verb) == ("accelerate", "launch")
    parsed = launch_command_parser().parse_args(flags)
    assert (forks.REPOSITORY / parsed.config_file).is_file()
    assert (forks.REPOSITORY / parsed.training_script).is_file()
    assert parsed.num_processes == gpus
    assert parse(parsed.training_script_args).model.lora_r == 4


def test_table_and_command(run_cli: Callable[..., Any], config: Path) -> None:
    ended = run_cli("plan", "--model", config, "--gpus", "8x1")
    assert ended.status == 0
    assert "DDP fits: accelerate launch --config_file recipes/accelerate/ddp.yaml --num_processes 8" in ended.out
    ended = run_cli("plan", "--model", config, "--gpus", "8x0.001")
    assert (ended.status, ended.err) == (0, [])
    assert "None of them fits. Take more GPUs, --gradient-checkpointing" in ended.out
    assert not list(config.parent.parent.glob("runs"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "--gpus"),
        (("--gpus", "8by80"), "--gpus 8by80 is not NUMBERxGB. Write, for example, 8x80"),
        (("--gpus", "0x80"), "--gpus 0x80 is not"),
        (("--gpus", "12x80"), "--gpus 12x80: several machines have 8 GPUs each"),
        (("--gpus", "8x80", "--lora-r", "0"), "--lora-r must be at least 1"),
        (("--gpus", "8x80", "--lora-target-modules", "nothing"), "--lora-target-modules nothing matches no module"),
        (("--gpus", "8x80", "--keep", "nothing"), "nothing"),
        (("--gpus", "8x80", "--model", "/no/such/model"), "There is no model at /no/such/model"),
    ],
)
def test_bad_input(run_cli: Callable[..., Any], config: Path, words: tuple[str, ...], says: str) -> None:
    ended = run_cli("plan", *(() if "--model" in words else ("--model", config)), *words)
    assert ended.status == 2
    assert len(ended.err) == 1
    assert says in ended.err[0]
