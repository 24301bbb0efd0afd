"""On a real chat model, vLLM and transformers generate the same tokens: fifty prompts, greedily, in float32."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from torch import nn

from monolora import MonoLoraConfig
from monolora.hub import SMOLLM2, load_causal_lm, load_tokenizer, resolve_model
from tests.support.requirements import NEEDS_SMOLLM2, NEEDS_VLLM
from tests.support.vllm_process import Adapter, Engine, largest_difference

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    NEEDS_VLLM,
    NEEDS_SMOLLM2,
]

KINDS = ("a poem", "a short story", "three facts", "a polite letter", "a question and its answer")
TOPICS = ("rain", "a lighthouse", "bread", "the number seven", "trains", "an old map", "bees", "chess", "salt", "Mars")
TOKENS = 12
TOLERANCE = 2e-4  # of log-probs


@torch.no_grad()
def test_same_tokens(fill: Callable[..., nn.Module], tmp_path: Path) -> None:
    folder = resolve_model(SMOLLM2)
    base = load_causal_lm(folder, dtype=torch.float32)
    adapted = get_peft_model(base, MonoLoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in fill(adapted).named_parameters():
        if "lora_" in name:
            parameter.mul_(0.1 if "lora_A" in name else 0.2)  # noise enough to change answers, not to break sentences
    adapted.eval().save_pretrained(tmp_path)
    tokenizer = load_tokenizer(folder)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": f"Write {kind} about {topic}."}], add_generation_prompt=True, return_dict=False
        )
        for kind, topic in product(KINDS, TOPICS)
    ]
    settings = {"enable_lora": True, "max_loras": 1, "max_lora_rank": 8, "max_model_len": 128, "max_num_seqs": 64}
    with Engine(folder, **settings) as engine:
        adapter = Adapter("mono", 1, str(tmp_path))
        answers = engine.generate(prompts + prompts[:6], [adapter] * len(prompts) + [None] * 6, TOKENS)
    through_adapter, through_base = answers[: len(prompts)], answers[len(prompts) :]
    assert len(through_adapter) == 50
    for answer in through_adapter:
        # Each token is transformers' choice after those before it: so both write the same text. Where two are nearer to
        # each other than both engines' errors, rounding chooses, on every machine for itself.
        ids = torch.tensor([answer.prompt + answer.tokens])
        logits = adapted(ids, logits_to_keep=TOKENS + 1).logits[0, :-1]
        chosen = logits.gather(1, torch.tensor(answer.tokens)[:, None])[:, 0]
        assert (logits.amax(-1) - chosen).max() < 2 * TOLERANCE
        log_probs = (chosen - logits.logsumexp(-1)).tolist()
        assert answer.log_probs == pytest.approx(log_probs, abs=TOLERANCE)
    assert sum(a.tokens != b.tokens for a, b in zip(through_adapter[:6], through_base, strict=True)) >= 3
    with adapted.disable_adapter():
        assert largest_difference(through_base, adapted) < TOLERANCE
