"""The canary passes where vLLM serves an adapter, and says what is wrong where it was broken on purpose."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from peft import get_peft_model
from transformers import LlamaForCausalLM

from monolora import MonoLoraConfig
from tests.support.requirements import NEEDS_VLLM
from tests.support.served import CONFIGS, LARGEST_RANK, SIZES, Served
from tests.support.vllm_process import Engine, RefusedError

PROMPTS = [[random.Random(row).randrange(3, 64) for _ in range(6)] for row in range(8)]
NEEDS_VLLM = [
    pytest.mark.vllm,
    pytest.mark.slow,
    NEEDS_VLLM,
]


def _marked(function: Callable[..., None]) -> Callable[..., None]:
    for mark in NEEDS_VLLM:
        function = mark(function)
    return function


@_marked
@pytest.mark.parametrize("name", [None, *CONFIGS])
def test_passes(engine: Engine, served: Served, name: str | None) -> None:
    adapter = None if name is None else served.adapters[name].path
    shown = engine.canary(adapter, PROMPTS)
    assert ("applied=Share(value=1.0" in shown or "applied=Share(value=0.999" in shown) == (name is not None)
    assert ("activation=Share(" in shown) == (name in ("mono", "patterns"))


@_marked
def test_untrained_adapter(engine: Engine, make_llama: Callable[..., LlamaForCausalLM], tmp_path: Path) -> None:
    """B = 0: the base's answers are right, and nothing can be told from them."""
    config = MonoLoraConfig(r=4, target_modules=["q_proj"])
    get_peft_model(make_llama(**SIZES), config).save_pretrained(tmp_path)
    with pytest.raises(
        RefusedError, match=r"CanaryUnknownError.*changes too little to be seen.*untrained one changes nothing"
    ):
        engine.canary(str(tmp_path), PROMPTS)


@pytest.fixture(scope="module")
def broken(served: Served) -> Iterator[Engine]:
    """An engine for the tests to break."""
    with Engine(served.base, enable_lora=True, max_loras=1, max_lora_rank=LARGEST_RANK) as started:
        yield started


@_marked
@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ((0, 0), "vLLM ignores the adapter: it shows .* of its effect"),
        ((-np.inf, np.inf), "vLLM ignores the activation: it shows .* of its effect"),
        ((0, 0.5), "vLLM shows .* of the effect of the adapter, and should show all of it"),
    ],
)
def test_broken_activation(broken: Engine, served: Served, bounds: tuple[float, float], message: str) -> None:
    """Units that are all zero, all as in plain LoRA, or cut off above."""
    broken.generate(PROMPTS[:1], [served.adapters["lora"]])  # has the one slot: the other comes into it anew
    low, high = map(float, bounds)
    changed = f"lambda name: (float('{low}'), float('{high}'))"
    broken.run(f"from monolora.vllm import gate, products\ngate.row_bounds = products.row_bounds = {changed}\n")
    with pytest.raises(RefusedError, match=f"CanaryError: {message}"):
        broken.canary(served.adapters["mono"].path, PROMPTS)


@_marked
def test_stock_vllm(served: Served) -> None:
    """Its answers for the base, beside a LoRA adapter, are not the base's; and it has no place for ours."""
    with Engine(served.base, stock=True, enable_lora=True, max_loras=1, max_lora_rank=LARGEST_RANK) as stock:
        with pytest.raises(RefusedError, match="CanaryError: vLLM's base model is not transformers'"):
            stock.canary(served.adapters["lora"].path, PROMPTS)
        with pytest.raises(RefusedError, match="VLLM_PLUGINS must be unset, or name monolora"):
            stock.canary(served.adapters["mono"].path, PROMPTS)
