"""An adapter that `monolora prune` wrote computes what the whole adapter does with those units ablated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaForCausalLM

from monolora.explain.ablation import ablated
from monolora.prune import read_adapter, without_units
from monolora.units import UnitName

RANK = 4
MODULES = [f"model.layers.{layer}.{part}" for layer in (0, 1) for part in ("self_attn.q_proj", "mlp.down_proj")]
UNITS = st.sets(
    st.builds(UnitName, st.sampled_from(MODULES), st.integers(0, RANK - 1)),
    min_size=1,
    max_size=len(MODULES) * RANK - 1,  # with none left there is no adapter
)


@pytest.fixture(scope="module", params=["monolora", "softplus", "lora"])
def whole(request: pytest.FixtureRequest, make_llama: Any, adapt: Any, fill: Any, tmp_path_factory: Any) -> Any:
    """The adapted model, and its folder."""
    if request.param == "lora":
        config = LoraConfig(target_modules=["q_proj", "down_proj"], r=RANK, task_type="CAUSAL_LM")
        model = fill(get_peft_model(make_llama(), config)).eval()
    else:
        model = adapt(make_llama(), r=RANK, activation="relu" if request.param == "monolora" else "softplus")
    folder = tmp_path_factory.mktemp("whole")
    model.save_pretrained(folder)
    return model, folder


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(UNITS)
def test_pruned_is_ablated(
    whole: tuple[PeftModel, Path],
    make_llama: Callable[..., LlamaForCausalLM],
    ids: torch.Tensor,
    tmp_path_factory: pytest.TempPathFactory,
    units: set[UnitName],
) -> None:
    model, folder = whole
    out = tmp_path_factory.mktemp("pruned")
    without_units(read_adapter(str(folder)), units).save(out)
    pruned = PeftModel.from_pretrained(make_llama(), out).eval()
    with torch.no_grad():
        with ablated(model, [units] * len(ids)):
            expected = model(ids).logits
        torch.testing.assert_close(pruned(ids).logits, expected, rtol=1e-5, atol=1e-6)
