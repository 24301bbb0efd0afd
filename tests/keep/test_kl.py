"""KL to the base: against the whole vocabulary, and its gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model

from monolora import MonoLoraConfig
from monolora.keep.anchors import Anchor, Anchors
from monolora.keep.keeper import Preparation
from monolora.keep.kl import BaseKl, top_kl
from monolora.units import adapted_layers
from tests.support.keeping import TOKENIZER, tiny_llama


def _distributions(seed: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    p, q = (torch.randn(5, vocabulary, generator=generator).double().log_softmax(-1) for _ in range(2))
    return p, q


@given(st.integers(0, 10_000), st.integers(2, 20))
def test_over_all_but_one_outcome_it_is_the_whole_kl(seed: int, vocabulary: int) -> None:
    """With V − 1 outcomes the rest is the last one, so nothing is left out."""
    p, q = _distributions(seed, vocabulary)
    top = p.topk(vocabulary - 1)
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(top_kl(q, top.values, top.indices), expected, rtol=1e-6, atol=1e-9)


@given(st.integers(0, 10_000), st.integers(1, 18))
def test_fewer_outcomes_are_a_lower_bound(seed: int, kept: int) -> None:
    """Joining outcomes loses divergence, never adds any, and it is never below 0."""
    p, q = _distributions(seed, 20)
    whole = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    top = p.topk(kept)
    joined = top_kl(q, top.values, top.indices)
    assert (joined <= whole + 1e-9).all()
    assert (joined >= -1e-9).all()


def _keeper(first_tokens: int | None = None, **settings: Any) -> tuple[BaseKl, Any, list[Anchor]]:
    ids = torch.randint(3, 64, (6, 12)).tolist()
    anchors = [Anchor(row[: 4 + i % 3], row[4 + i % 3 :]) for i, row in enumerate(ids)]
    model = get_peft_model(
        tiny_llama(), MonoLoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **settings)
    )
    keeper = BaseKl(2.0)
    keeper.prepare(
        Preparation(
            model=model,
            tokenizer=TOKENIZER,
            anchors=Anchors(train=tuple(anchors), held_out=()),
            task_rows=Dataset.from_dict({"input_ids": ids, "labels": ids}),
            seed=0,
            batch_size=4,
            tokens=100,
            first_tokens=first_tokens,
            base="",
        )
    )
    return keeper, model, anchors


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 5))
def test_the_base_itself_has_no_loss_and_no_gradient(step: int) -> None:
    """B = 0: the adapted model is the base."""
    keeper, model, _ = _keeper()
    loss = keeper.loss(model, step)
    assert loss is not None
    assert abs(loss.item()) < 1e-6
    loss.backward()
    assert all(p.grad is None or p.grad.abs().max() < 1e-6 for p in model.parameters())  # type: ignore[attr-defined]


@pytest.mark.parametrize("first_tokens", [None, 3])
def test_the_loss_is_the_mean_over_the_tokens_of_four_answers(first_tokens: int | None) -> None:
    """Against the two models' own logits, read one anchor at a time, in double precision where it counts."""
    keeper, model, anchors = _keeper(first_tokens)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # type: ignore[attr-defined]
            if "lora_B" in name:
                parameter.normal_(std=30)
    values = []
    for anchor in [anchors[index % 6] for index in range(4, 8)]:  # of step 1, of one process
        answer = anchor.answer[:first_tokens]
        ids = torch.tensor([anchor.context + answer])
        at = slice(len(anchor.context) - 1, ids.shape[1] - 1)
        with torch.no_grad():
            q = model(input_ids=ids).logits[0, at].log_softmax(-1)  # type: ignore[operator]
            with model.disable_adapter():  # type: ignore[attr-defined]
                p = model(input_ids=ids).logits[0, at].log_softmax(-1)  # type: ignore[operator]
        values.append((p.exp() * (p - q)).sum(-1))
    loss = keeper.loss(model, 1)
    assert loss is not None
    assert loss.item() == pytest.approx(2 * float(torch.cat(values).mean()), rel=1e-3)  # 63 of 64 tokens and the rest


def test_the_reference_is_the_base_whatever_the_adapter_begins_as() -> None:
    keeper, model, _ = _keeper(init_lora_weights=False)
    with torch.no_grad():
        for layer in adapted_layers(model):
            layer.lora_B["default"].weight.mul_(30)  # large enough to be told from rounding
        assert keeper.loss(model, 0) > 1e-3
        with model.disable_adapter():
            assert abs(keeper.loss(model, 0)) < 1e-6


def test_the_base_is_read_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run takes the distributions from the disk, bit for bit; other answers are other distributions."""
    torch.manual_seed(0)
    first, *_ = _keeper()
    monkeypatch.setattr(BaseKl, "_distributions", lambda keeper: pytest.fail("the base is read again"))
    torch.manual_seed(0)
    again, *_ = _keeper()
    pairs = zip(first._top, again._top, strict=True)
    assert all(torch.equal(x, y) for one, other in pairs for x, y in zip(one, other, strict=True))
    with pytest.raises(pytest.fail.Exception, match="read again"):
        _keeper(first_tokens=2)
    assert len(list((cache / "distributions").iterdir())) == 1
