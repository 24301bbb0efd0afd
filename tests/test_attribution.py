"""Attributions against finite differences, and losses against other ways to measure them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from monolora.attribution import (
    AnswerLoss,
    BaseDrift,
    Loss,
    RefusalShortfall,
    attribute,
    measured,
    weakened,
    without,
)
from monolora.data.chat_template import Split
from monolora.drift import answer_drifts
from monolora.explain.ablation import ablated
from monolora.inference import Inference
from monolora.refusals import margin, opening_ids
from monolora.units import Layout, UnitName

ROWS = [Split([5, 30, 17, 42], [26, 9, 3]), Split([5, 30, 11], [8]), Split([5, 30, 17, 9, 44, 50], [29, 6])]
LOSSES = ["answers", "drift", "shortfall"]


@pytest.fixture(params=["monolora", "softplus", "lora"])
def model(request: pytest.FixtureRequest, make_llama: Any, adapt: Any, fill: Any) -> PeftModel:
    """In float64, in which finite differences are exact enough."""
    llama = make_llama(vocab_size=512, initializer_range=0.2).double()
    if request.param == "lora":
        config = LoraConfig(target_modules=["q_proj", "down_proj"], r=4, task_type="CAUSAL_LM")
        return fill(get_peft_model(llama, config)).double().eval()
    # Of this seed, no unit is so near to 0 on any token that a small change switches it.
    return adapt(llama, seed=2, activation="relu" if request.param == "monolora" else "softplus").double()


@pytest.fixture
def make_loss(chat_tokenizer: PreTrainedTokenizerBase) -> Callable[[PeftModel, str], Loss]:
    def make(model: PeftModel, name: str) -> Loss:
        inference = Inference(model=model, tokenizer=chat_tokenizer, batch_size=2, shows_progress=False)
        if name == "answers":
            return AnswerLoss(inference=inference, rows=ROWS)
        kind = BaseDrift if name == "drift" else RefusalShortfall
        return kind.from_base(inference, ROWS, model.disable_adapter)

    return make


@pytest.fixture
def layout(model: PeftModel) -> Layout:
    return Layout.of(model)


@pytest.mark.parametrize("name", LOSSES)
def test_finite_differences(
    model: PeftModel, layout: Layout, make_loss: Callable[[PeftModel, str], Loss], name: str
) -> None:
    """Every unit scaled a little up and down; log-probabilities are float32, so a little is not very little."""
    loss, step = make_loss(model, name), 0.003
    if isinstance(loss, RefusalShortfall):
        loss = replace(loss, base_N=loss.base_N + 10)  # so that every prompt falls short
    required = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    changes_U = attribute(loss, layout)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == required
    wanted_U = []
    for unit in layout.units:
        gone = without(layout, [unit])
        means = []
        for sign in (1, -1):
            with weakened(layout, {module: 1 + sign * step * (factor - 1) for module, factor in gone.items()}):
                means.append(loss.mean(measured(loss)))
        wanted_U.append((means[0] - means[1]) / (2 * step))
    assert np.abs(wanted_U).max() > 0.01
    np.testing.assert_allclose(changes_U, wanted_U, atol=2e-3 * np.abs(wanted_U).max(), rtol=5e-3)


@pytest.mark.parametrize("name", LOSSES)
def test_the_base_has_no_drift(
    model: PeftModel, layout: Layout, make_loss: Callable[[PeftModel, str], Loss], name: str
) -> None:
    loss = make_loss(model, name)
    assert (measured(loss) > 0).any() or name == "shortfall"
    with weakened(layout, without(layout, layout.units)):
        as_base = measured(loss)
    if name == "answers":
        with model.disable_adapter():
            np.testing.assert_allclose(as_base, measured(loss), rtol=1e-6)
    else:
        np.testing.assert_allclose(as_base, 0, atol=1e-6)


def test_without_is_ablated(model: PeftModel, layout: Layout) -> None:
    ids = torch.tensor([[5, 30, 17, 42]])
    gone = [UnitName("model.layers.0.self_attn.q_proj", 1), UnitName("model.layers.1.mlp.down_proj", 0)]
    before = {name: B.detach().clone() for name, (_, B) in layout.matrices().items()}
    with torch.no_grad():
        with ablated(model, [gone]):
            wanted = model(ids).logits
        with weakened(layout, without(layout, gone)):
            torch.testing.assert_close(model(ids).logits, wanted)
    assert all(torch.equal(B, before[name]) for name, (_, B) in layout.matrices().items())


def test_answers_as_inference_measures_them(model: PeftModel, make_loss: Callable[[PeftModel, str], Loss]) -> None:
    loss = make_loss(model, "answers")
    totals = loss.inference.answer_log_probs(ROWS, "answers")
    tokens = sum(len(row.answer) for row in ROWS)
    assert loss.mean(measured(loss)) == pytest.approx(-sum(totals) / tokens, rel=1e-5)


def test_drift_as_the_report_measures_it(model: PeftModel, make_loss: Callable[[PeftModel, str], Loss]) -> None:
    loss = make_loss(model, "drift")
    drifts = sorted(answer_drifts(loss.inference, loss.inference, model.disable_adapter, ROWS))
    np.testing.assert_allclose(measured(loss), [drift.kl for drift in drifts], rtol=1e-4)


def test_shortfall_as_the_evaluation_measures_margins(
    model: PeftModel, make_loss: Callable[[PeftModel, str], Loss], chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    loss = make_loss(model, "shortfall")
    prompts, openings = [row.context for row in ROWS], opening_ids(chat_tokenizer)
    tuned = loss.inference.continuation_log_probs(prompts, openings, "openings")
    with model.disable_adapter():
        base = loss.inference.continuation_log_probs(prompts, openings, "openings")
    wanted = [max(0.0, margin(b) - margin(t)) for b, t in zip(base, tuned, strict=True)]
    np.testing.assert_allclose(measured(loss), wanted, rtol=1e-3, atol=1e-5)


def test_in_half_precision(make_llama: Callable[..., LlamaForCausalLM], adapt: Any, make_loss: Any) -> None:
    """A bfloat16 base with a float32 adapter, as it is loaded: the gradients of the float32 model, roughly."""
    whole, half = (
        adapt(make_llama(vocab_size=512, dtype=dtype, initializer_range=0.2))
        for dtype in (torch.float32, torch.bfloat16)
    )
    of_whole, of_half = (attribute(make_loss(model, "answers"), Layout.of(model)) for model in (whole, half))
    assert np.corrcoef(of_whole, of_half)[0, 1] > 0.99
