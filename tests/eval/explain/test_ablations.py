"""From values by prompt to changes with intervals, and what is run together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from monolora.eval.explain.ablations import Effect, batches_of, summarised
from monolora.eval.explain.records import Measure
from monolora.stats import bootstrap


def test_one_prompt_without_a_number() -> None:
    with pytest.warns(UserWarning, match=r"1 of 6 changes of demo.margin"):
        effect = Effect.of(
            "demo", "margin", "margin", "nats", np.array([1.0, 2.0, 6.0]), np.array([[1, np.nan, 3], [0, 5, 1.0]])
        )
    assert effect.measure == Measure("demo.margin", "margin", "nats", "demo", 3, 3.0)
    found = summarised([effect], [11])
    assert found.changes[11][0].value == 2
    assert found.everything[0].value == 2


@settings(deadline=None, max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=12),
    ablations=st.integers(1, 20),
    batch_size=st.integers(1, 30),
    sequences=st.integers(1, 3),
)
def test_batches_are_of_every_prompt_with_every_ablation_once(
    lengths: list[int], ablations: int, batch_size: int, sequences: int
) -> None:
    seen = []
    for batch in batches_of(lengths, ablations, batch_size, sequences):
        of_batch = list(range(ablations))[batch.ablations]
        assert (len(of_batch) + 1) * len(batch.prompts) * sequences <= max(batch_size, 2 * sequences)
        seen += [(prompt, ablation) for prompt in batch.prompts for ablation in of_batch]
    assert sorted(seen) == [(prompt, ablation) for prompt in range(len(lengths)) for ablation in range(ablations)]


def test_summary_is_the_bootstrap_of_each_measure() -> None:
    random = np.random.default_rng(0)
    effects = [
        Effect(measure=Measure(f"d.{i}", "t", "nats", "d", 20, 1.0), changes_KP=random.normal(size=(3, 20)))
        for i in range(2)
    ]
    found = summarised(effects, [8, 2])
    assert found.measures == [effect.measure for effect in effects]
    assert list(found.changes) == [8, 2]
    for k, changes in enumerate([*found.changes.values(), found.everything]):
        for effect, change in zip(effects, changes, strict=True):
            (alone,) = bootstrap(effect.changes_KP[k : k + 1], np.ones(20))
            assert change[:4] == pytest.approx(alone[:4])
            assert change.low < change.value < change.high


def test_false_discoveries_are_counted_measure_by_measure_over_single_units() -> None:
    random = np.random.default_rng(0)
    effects = [
        Effect(
            measure=Measure(f"d.{i}", "t", "nats", "d", 20, 1.0),
            changes_KP=random.normal(size=(9, 20)) + random.choice([0, 0.7], size=(9, 1)),
        )
        for i in range(2)
    ]
    found = summarised(effects, list(range(8)))
    for place in range(2):
        of_measure = [changes[place] for changes in found.changes.values()]
        expected = false_discovery_control([change.p for change in of_measure])
        assert [change.q for change in of_measure] == pytest.approx(expected)
        assert 0 < sum(change.q < 0.05 for change in of_measure) < 8
        together = found.everything[place]
        assert 0 < together.p <= 1
        assert np.isnan(together.q)


def test_what_is_never_below_0_is_not_tested() -> None:
    kl_KP = np.random.default_rng(0).exponential(size=(3, 20))
    effect = Effect.of("d", "kl", "KL", "nats", np.full(20, np.nan), kl_KP, is_tested=False)
    found = summarised([effect], [0, 1])
    for (change,) in (*found.changes.values(), found.everything):
        assert 0 < change.low < change.value < change.high
        assert np.isnan([change.p, change.q]).all()
