"""Faithfulness of activations and effects that are made to go together, or not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr

from monolora.eval.explain.faithfulness import Faithfulness, correlations
from monolora.eval.explain.score_report import score_tables
from monolora.eval.explain.unit_reader import SHARES
from monolora.stats import resampled_means


def test_correlations_are_scipys_on_the_prompts_and_on_resamples() -> None:
    rng = np.random.default_rng(0)
    x, y = 1e3 + rng.lognormal(size=(3, 20)), rng.lognormal(size=(3, 20))
    y[1] += 3 * x[1]
    x[2] = 5.0
    found = correlations(x, y, resamples=50, seed=3)
    assert found.shape == (3, 51)
    assert found[:2, 0] == pytest.approx([pearsonr(*rows).statistic for rows in zip(x[:2], y[:2], strict=True)])
    assert np.isnan(found[2]).all()
    counts = resampled_means(np.eye(20), np.ones(20), 50, 3) * 20
    drawn = np.repeat(np.arange(20), counts[:, 7].round().astype(int))
    assert found[0, 8] == pytest.approx(pearsonr(x[0, drawn], y[0, drawn]).statistic)


def faithfulness(units: int = 6, prompts: int = 60) -> Faithfulness:
    """Units of which the even ones were ablated, with an effect that goes with their own activations."""
    rng = np.random.default_rng(1)
    own = np.repeat(rng.lognormal(size=(1, prompts, units)), len(SHARES), axis=0)
    effect = np.array([6.0, 0, 4, 0, 2, 0])
    kl = (own[0][:, ::2].T * effect[::2, None] + rng.normal(scale=0.3, size=(3, prompts))) ** 2 / 100
    random = rng.lognormal(size=(2, len(SHARES), prompts, units))
    return Faithfulness.of("made", [0, 2, 4], np.concatenate([own[None], random]), effect, kl)


def test_activations_that_predict_the_effects_of_ablations_are_faithful() -> None:
    found = faithfulness()
    scores = {(score.kind, score.share): score for score in found.scores}
    assert len(scores) == 2 * len(SHARES) + 1
    r, explained = scores["correlation", 1.0], scores["explained", 1.0]
    assert (r.units, r.texts, r.of) == (3, 60, "KL of the next token")
    assert r.own.low < r.own.mean < r.own.high
    assert r.own.mean > 0.9
    assert r.random.mean == pytest.approx(0, abs=0.2)
    assert r.difference.p < 0.01
    assert explained.own.mean == pytest.approx(np.nanmean(found.correlation_U**2))
    assert scores["ranking", 1.0].own.mean == 1
    assert scores["ranking", 1.0].random is None
    assert np.isnan(found.correlation_U).tolist() == [False, True] * 3
    assert [len(table.lines) for table in score_tables(found.scores)] == [1, 1, 1]


def test_units_that_are_silent_on_the_prompts_have_no_faithfulness() -> None:
    x = np.zeros((3, len(SHARES), 10, 2))
    found = Faithfulness.of("made", [0, 1], x, np.zeros(2), np.zeros((2, 10)))
    assert [score.own for score in found.scores] == [None] * len(found.scores)
    (first, *_) = score_tables(found.scores)
    assert first.lines[0][1][0].value == "–"
