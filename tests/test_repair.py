"""The search, against brute force."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from monolora.attribution import AnswerLoss, BaseDrift, measured, weakened, without
from monolora.data.chat_template import Split
from monolora.inference import Inference
from monolora.repair import (
    Half,
    Point,
    Way,
    by_benefit,
    entries,
    find_units,
    random_units,
    strongest,
    whole_adapter,
)
from monolora.units import Layout, UnitName

KEPT = [Split([5, 30, 17, 42], [26, 9, 3]), Split([5, 30, 11], [8])]
TASK = [Split([5, 44, 2, 7], [29, 6]), Split([9, 8], [31])]


@pytest.fixture
def model(make_llama: Any, adapt: Any) -> PeftModel:
    return adapt(make_llama(vocab_size=512, initializer_range=0.2))


@pytest.fixture
def half(model: PeftModel, chat_tokenizer: PreTrainedTokenizerBase) -> Half:
    inference = Inference(model=model, tokenizer=chat_tokenizer, batch_size=4, shows_progress=False)
    return Half(BaseDrift.from_base(inference, KEPT, model.disable_adapter), AnswerLoss(inference=inference, rows=TASK))


@pytest.fixture
def layout(model: PeftModel) -> Layout:
    return Layout.of(model)


@given(st.integers(0, 16), st.integers(0, 20))
def test_bisection(allowed: int, seed: int) -> None:
    """Where the task's loss rises with the strength, the last strength within the limit, in few steps."""
    strengths = [float(step) for step in range(1, 17)]
    kept = np.sort(np.random.default_rng(seed).random(17))[::-1]

    class Scripted:
        def measured(self, layout: Any, factors: Any) -> Any:
            return self

        def means(self, half: Any, strength: float) -> Point:
            return Point(strength, float(kept[int(strength)]), 1.0 + strength)

    way: Any = Way(strengths=strengths, factors=lambda strength: {})
    half: Any = Scripted()
    found = strongest(way, half, half, Point(0, float(kept[0]), 1.0), 1.0 + allowed)
    assert len(found.points) <= 5
    assert (found.best and found.best.strength) == (allowed or None)


NUMBERS = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=5)


@given(NUMBERS, NUMBERS)
def test_the_order_is_of_benefit_per_cost(kept: list[float], task: list[float]) -> None:
    """Of all orders, at every budget, as a knapsack that may be filled by parts is filled best."""
    count = min(len(kept), len(task))
    kept_U, task_U = np.array(kept[:count]), np.array(task[:count])
    order = by_benefit(kept_U, task_U)
    assert sorted(order) == [index for index in range(count) if kept_U[index] < 0]
    costs = np.maximum(task_U, 0)
    for budget in (0.0, 1.0, 2.5, 6.0):
        best = max((_filled(other, -kept_U, costs, budget) for other in permutations(order)), default=0.0)
        assert _filled(order, -kept_U, costs, budget) == pytest.approx(best)


def _filled(order: Sequence[int], benefits: np.ndarray, costs: np.ndarray, budget: float) -> float:
    total = 0.0
    for index in order:
        part = 1.0 if costs[index] <= budget else budget / costs[index]
        total += part * benefits[index]
        budget -= part * costs[index]
        if part < 1:
            break
    return total


def test_units_are_found_within_the_limit(layout: Layout, half: Half) -> None:
    before = half.measured(layout, {}).means(half)
    for rounds in (1, 3):
        found = find_units(layout, half, before, 0.05, rounds, 16)
        after = half.measured(layout, without(layout, found.units)).means(half)
        assert len(set(found.units)) == len(found.units) > 0
        assert after.kept < before.kept
        assert after.task <= before.task + 0.05
        assert Point(len(found.units), after.kept, after.task) in [
            Point(point.strength, pytest.approx(point.kept), pytest.approx(point.task)) for point in found.points
        ]
    assert find_units(layout, half, before, -1.0, 1, 16).units == []


def test_a_generous_limit_leaves_a_unit(layout: Layout, half: Half) -> None:
    """Without any there is no adapter."""
    before = half.measured(layout, {}).means(half)
    for rounds in (1, 4):
        assert 0 < len(find_units(layout, half, before, 1e9, rounds, 16).units) < len(layout.units)
    assert random_units(layout, 16, 0).strengths[-1] == len(layout.units) - 1


def test_random_orders(layout: Layout) -> None:
    gone = [random_units(layout, 16, seed).factors(5.0) for seed in (0, 0, 1)]
    names = [
        {UnitName(name, int(unit)) for name, factor in each.items() for unit in (factor[0] == 0).nonzero()}
        for each in gone
    ]
    assert [len(each) for each in names] == [5, 5, 5]
    assert names[0] == names[1] != names[2]


def test_scaling(layout: Layout, model: PeftModel) -> None:
    """Half of B has half the effect on a module's output; all taken off is the base."""
    ids = torch.tensor([[5, 30, 17, 42]])
    layer: Any = layout.layers["model.layers.0.self_attn.q_proj"]
    x = torch.randn(3, 16)
    with torch.no_grad():
        whole, base = layer(x), layer.base_layer(x)
        with weakened(layout, whole_adapter(layout, 16).factors(0.5)):
            torch.testing.assert_close(layer(x), (whole + base) / 2)
        with weakened(layout, whole_adapter(layout, 16).factors(1.0)):
            as_base = model(ids).logits
        with model.disable_adapter():
            torch.testing.assert_close(as_base, model(ids).logits)


@pytest.mark.parametrize("share", [1 / 16, 0.5, 1.0])
def test_entries(layout: Layout, share: float) -> None:
    way = entries(layout, 16)
    assert way.strengths[0] == 1 / 16
    sizes = {name: B.detach().abs() * A.detach().norm(dim=1) for name, (A, B) in layout.matrices().items()}
    total = sum(size.numel() for size in sizes.values())
    kept = {name: factor.bool() for name, factor in way.factors(share).items()}
    assert sum(int((~mask).sum()) for mask in kept.values()) == round(share * total)
    zeroed = torch.cat([sizes[name][~mask] for name, mask in kept.items()])
    left = torch.cat([sizes[name][mask] for name, mask in kept.items()])
    assert share == 1 or zeroed.max() < left.min()


def test_nothing_stays_changed(layout: Layout, half: Half) -> None:
    before = {name: B.detach().clone() for name, (_, B) in layout.matrices().items()}
    values = measured(half.kept)
    find_units(layout, half, half.measured(layout, {}).means(half), 0.1, 2, 16)
    assert all(torch.equal(B, before[name]) for name, (_, B) in layout.matrices().items())
    np.testing.assert_array_equal(measured(half.kept), values)


def test_errors_leave_the_adapter_as_it_was(layout: Layout) -> None:
    before = {name: B.detach().clone() for name, (_, B) in layout.matrices().items()}
    with pytest.raises(RuntimeError), weakened(layout, without(layout, layout.units)):
        raise RuntimeError
    assert all(torch.equal(B, before[name]) for name, (_, B) in layout.matrices().items())
