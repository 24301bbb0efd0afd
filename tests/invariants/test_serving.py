"""Law 6: stock vLLM refuses MonoLoRA adapters and exact checkpoints; ours gives the logits that transformers gives.

That stock PEFT and transformers refuse them too is tested where PEFT is taught the method (test_register.py,
merge/test_exact.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from peft import PeftModel
from transformers import LlamaForCausalLM

from monolora.merge import export_exact
from tests.support.requirements import NEEDS_VLLM
from tests.support.vllm_process import Adapter, Engine, RefusedError, largest_difference

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    NEEDS_VLLM,
]

PROMPTS = [[5, 9, 30, 22, 7, 50, 61, 3], [40, 4, 17]]
LORA: dict[str, Any] = {"enable_lora": True, "max_loras": 1, "max_lora_rank": 8}


class Folders(NamedTuple):
    """A base model, an adapter of it, and both in one."""

    base: Path
    adapter: Path
    exact: Path


@pytest.fixture(scope="module")
def folders(
    make_llama: Callable[..., LlamaForCausalLM],
    adapt: Callable[..., PeftModel],
    tmp_path_factory: pytest.TempPathFactory,
) -> Folders:
    root = tmp_path_factory.mktemp("law6")
    folders = Folders(root / "base", root / "adapter", root / "exact")
    make_llama(hidden_size=64, num_attention_heads=2).save_pretrained(folders.base)
    model = adapt(LlamaForCausalLM.from_pretrained(folders.base))
    model.save_pretrained(folders.adapter)
    export_exact(model, folders.exact)
    return folders


def test_stock_vllm_refuses_the_adapter(folders: Folders) -> None:
    """It takes no notice of ``peft_type``; the names of the tensors stop it."""
    with (
        Engine(folders.base, stock=True, **LORA) as engine,
        pytest.raises(RefusedError, match=r"monolora_A\.weight is unsupported LoRA weight"),
    ):
        engine.generate(PROMPTS, [Adapter("mono", 1, str(folders.adapter))] * 2)


def test_stock_vllm_refuses_the_exact_checkpoint(folders: Folders) -> None:
    with pytest.raises(RuntimeError, match=r"(?i)quantization method.*monolora"), Engine(folders.exact, stock=True):
        pass


def test_ours_gives_the_logits_of_transformers(folders: Folders) -> None:
    base = LlamaForCausalLM.from_pretrained(folders.base)
    with Engine(folders.base, **LORA) as engine:
        of_base = engine.generate(PROMPTS)
        of_adapter = engine.generate(PROMPTS, [Adapter("mono", 1, str(folders.adapter))] * 2)
    assert largest_difference(of_base, base) < 5e-5
    assert largest_difference(of_adapter, base) > 0.01
    assert largest_difference(of_adapter, PeftModel.from_pretrained(base, folders.adapter).eval()) < 5e-5
    assert largest_difference(of_adapter, LlamaForCausalLM.from_pretrained(folders.exact)) < 5e-5
