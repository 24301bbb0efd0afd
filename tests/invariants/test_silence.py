"""Law 9: on a sequence on which all units are zero, the adapted model's logits equal the base's, bit for bit.

In transformers and in vLLM, whose LoRA path then adds exact zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from transformers import LlamaForCausalLM

from monolora import MonoLoraConfig
from tests.support.keeping import silent_on, tiny_llama
from tests.support.requirements import NEEDS_VLLM
from tests.support.vllm_process import Adapter, Engine


@pytest.mark.parametrize("activation", ["relu", "topk:2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear"])
def test_law_9_silent_units_are_the_base(activation: str, dtype: torch.dtype, targets: Any) -> None:
    """On a sequence on which all units are zero the logits equal the base's bit for bit; on another one they do not."""
    base = tiny_llama().to(dtype).eval()
    config = MonoLoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", activation=activation)
    silent, other = torch.randint(64, (1, 8)), torch.randint(64, (1, 8))
    with torch.no_grad():
        expected, unequal = base(input_ids=silent).logits, base(input_ids=other).logits
        model = get_peft_model(base, config).eval()
        silent_on(model, silent)
        assert torch.equal(model(input_ids=silent).logits, expected)
        assert not torch.equal(model(input_ids=other).logits, unequal)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_law_9_holds_for_the_cache_too(seed: int) -> None:
    """Read in two parts, the second with the keys and values of the first."""
    torch.manual_seed(seed)
    base = tiny_llama().eval()
    ids = torch.randint(64, (1, 9))
    with torch.no_grad():
        model = get_peft_model(base, MonoLoraConfig(r=3, target_modules=["k_proj", "v_proj"], task_type="CAUSAL_LM"))
        model.eval()
        silent_on(model, ids)
        results = []
        for context in (model.disable_adapter(), torch.no_grad()):
            with context:
                first = model(input_ids=ids[:, :6], use_cache=True)
                second = model(input_ids=ids[:, 6:], past_key_values=first.past_key_values)
                results.append((first.logits, second.logits))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@NEEDS_VLLM
@pytest.mark.vllm
@pytest.mark.slow
def test_law_9_in_vllm(make_llama: Callable[..., LlamaForCausalLM], tmp_path: Path) -> None:
    """Prompt and greedy answer: tokens and log-probs, of a request alone and beside one that the adapter changes."""
    make_llama(hidden_size=64, num_attention_heads=2).save_pretrained(tmp_path / "base")
    prompt, other = [5, 9, 30, 22, 7, 50], [40, 4, 17]
    model = LlamaForCausalLM.from_pretrained(tmp_path / "base").eval()
    with torch.no_grad():
        whole = torch.tensor([prompt])
        for _ in range(8):  # the engine does not stop at an end token either
            whole = torch.cat([whole, model(input_ids=whole).logits[:, -1:].argmax(-1)], 1)
        config = MonoLoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
        adapted = get_peft_model(model, config).eval()
        silent_on(adapted, whole)
    adapted.save_pretrained(tmp_path / "adapter")
    adapter = Adapter("silent", 1, str(tmp_path / "adapter"))
    with Engine(tmp_path / "base", enable_lora=True, max_loras=1, max_lora_rank=8) as engine:
        base = engine.generate([prompt, other], tokens=8)
        both = engine.generate([prompt, other], [adapter, adapter], tokens=8)
        scored = [engine.score([whole[0].tolist()], [who]) for who in (None, adapter)]
    assert base[0].tokens == whole[0, 6:].tolist()
    assert both[0] == base[0]
    assert both[1] != base[1]
    assert scored[0] == scored[1]
