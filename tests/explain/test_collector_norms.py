"""Norms of base outputs: over which texts, and against the norms of all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from transformers import LlamaForCausalLM

from monolora.errors import InputError
from monolora.explain import Layout, Text, collect
from monolora.explain.collector import TOKENS, OutputNorms

Make = Callable[..., LlamaForCausalLM]

LONG, SHORT = 5, 9  # the tokens of long and of short texts


@pytest.fixture(scope="module")
def model(make_llama: Make, adapt: Any) -> PeftModel:
    """Its first ``q_proj`` is 0 on the tokens of long texts, but not on those of short ones."""
    adapted = adapt(make_llama(), activation="softplus")
    base: Any = adapted.get_base_model().model
    long, short = base.embed_tokens.weight.data[[LONG, SHORT]]
    base.layers[0].self_attn.q_proj.base_layer.weight.data[:] = short - long * (short @ long) / (long @ long)
    return adapted


def test_short_texts_have_their_part(model: PeftModel) -> None:
    """Of a window of 32 batches, the longest texts alone would be enough tokens."""
    texts = [Text(number, [LONG] * 60) for number in range(80)] + [Text(number, [SHORT] * 12) for number in range(48)]
    assert TOKENS < 80 * 60
    share = 48 * 12 / (80 * 60 + 48 * 12)
    found = collect(model, texts, pad_token_id=0, batch_size=4)
    base: Any = model.get_base_model().model
    q_proj, embedding_H = base.layers[0].self_attn.q_proj, base.embed_tokens.weight[SHORT]
    x_H = embedding_H / embedding_H.square().mean().sqrt()
    mean_norm = share * float((q_proj.base_layer.weight @ x_H).norm())
    columns = (q_proj.lora_B["default"].weight * q_proj.scaling["default"]).norm(dim=0).detach().numpy()
    assert found.effect[:4] == pytest.approx(columns * found.mean[:4] / mean_norm, rel=0.25)


@given(st.lists(st.integers(1, 4000), min_size=1, max_size=32), st.integers(0, 2 * TOKENS))
def test_batches_at_even_distances(tokens: list[int], before: int) -> None:
    norms = OutputNorms(Layout({}, {}, "default", False))
    norms.tokens = before
    places = sorted(norms.batches(tokens))
    if before >= TOKENS:
        assert places == []
        return
    batches, share = len(tokens), min(1, (TOKENS - before) / sum(tokens))
    assert len(places) == max(math.ceil(batches * share), min(8, batches))
    around = [-1 - places[0], *places, 2 * batches - 1 - places[-1]]  # as if they went on beyond both ends
    assert np.ptp(np.diff(around)) <= 2
    assert places[0] >= 0
    assert places[-1] < batches


def test_of_a_long_stream_no_more_is_measured_than_it_takes(model: PeftModel, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    measuring = OutputNorms.measuring

    def noted(norms: OutputNorms, counted_BL: torch.Tensor) -> Any:
        measured.append(counted_BL.numel())
        return measuring(norms, counted_BL)

    monkeypatch.setattr(OutputNorms, "measuring", noted)
    collect(model, [Text(number, [5 + number % 40] * 50) for number in range(300)], pad_token_id=0, batch_size=2)
    assert TOKENS <= sum(measured) <= 1.5 * TOKENS


def test_outputs_that_are_not_finite_are_refused(make_llama: Make, adapt: Any) -> None:
    model = adapt(make_llama())
    model.get_base_model().model.layers[1].mlp.down_proj.base_layer.weight.data[0, 0] = torch.inf
    with pytest.raises(InputError, match=r"outputs of model\.layers\.1\.mlp\.down_proj are not finite"):
        collect(model, [Text(0, [5, 6, 7])], pad_token_id=0)
