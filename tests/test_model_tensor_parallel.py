"""A base that transformers divides over two processes (``tp_plan="auto"``): adapted logits are those of the whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from monolora import MonoLoraConfig
from tests.support import forks

pytestmark = pytest.mark.slow
CPU = ["--config_file", forks.REPOSITORY / "recipes/accelerate/ddp-cpu.yaml"]
LOGITS = """
import sys, torch, torch.distributed
from peft import PeftModel
from torch.distributed.tensor import DTensor
from transformers import LlamaForCausalLM
from transformers.distributed import DistributedConfig
import monolora
torch.distributed.init_process_group("gloo")
ids = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(1))
base, *adapters = sys.argv[1:]
for adapter in adapters:
    logits = []
    for options in ({}, {"distributed_config": DistributedConfig(tp_plan="auto", tp_size=2)}):
        model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base, **options), adapter).eval()
        divided = [name for name, weight in model.named_parameters() if isinstance(weight, DTensor)]
        assert bool(divided) == bool(options)
        with torch.no_grad():
            adapted = model(input_ids=ids).logits
            with model.disable_adapter():
                assert (adapted - model(input_ids=ids).logits).abs().max() > 0.01
        logits.append(adapted)
    assert {"lora_A", "lora_B"} <= {part for name in divided for part in name.split(".")}, divided
    torch.testing.assert_close(*logits, rtol=1e-5, atol=2e-6)
torch.distributed.destroy_process_group()
print("equal")
"""


def test_logits(make_llama: Callable[..., LlamaForCausalLM], tmp_path: Path) -> None:
    """B is divided with q and up, by outputs; A with o and down, by inputs, and its sum gets the ReLU."""
    make_llama().save_pretrained(tmp_path / "base")
    for kind in (MonoLoraConfig, LoraConfig):
        targets = ["q_proj", "o_proj", "up_proj", "down_proj"]
        model = get_peft_model(make_llama(), kind(r=4, target_modules=targets, task_type="CAUSAL_LM"))
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.normal_()
        model.save_pretrained(tmp_path / kind.__name__)
    words = [tmp_path / name for name in ("base", "MonoLoraConfig", "LoraConfig")]
    for ended in forks.launch(CPU, LOGITS, *words):
        assert ended.stdout == "equal\n", ended.stderr[-3000:]
