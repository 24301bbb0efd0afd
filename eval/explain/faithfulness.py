"""Faithfulness: how well a unit's activations on a prompt predict what taking it out does there.

Shapes: U units, S shares of tokens on which units fire at most, D adapters: own units, then draws of random ones; K
ablated units, P prompts, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from monolora.eval.explain.records import Floats, Score
from monolora.eval.explain.unit_reader import SHARES
from monolora.stats import RESAMPLES, SEED, resampled_estimate, resampled_means

CORRELATION, EXPLAINED, RANKING = "correlation", "explained", "ranking"  # kinds of scores
_KL = "KL of the next token"


@dataclass(frozen=True, kw_only=True)
class Faithfulness:
    """How well activations predict the effects of ablations on a data set.

    The measured effect is the square root of the KL of the next token: KL grows with the square of a small change.

    Attributes:
        name: of the data set.
        scores: of all ablated units together.
        correlation_U: of each unit, over prompts; NaN where it was not ablated, or one of both is constant.
    """

    name: str
    scores: list[Score]
    correlation_U: Floats

    @classmethod
    def of(cls, name: str, indices: Sequence[int], x_DSPU: Floats, effect_U: Floats, kl_KP: Floats) -> Faithfulness:
        """Compare activations with effects.

        Args:
            name: of the data set.
            indices: of the units that were ablated.
            x_DSPU: mean sizes of the activations of own and random units, by prompt.
            effect_U: of own units, relative to their modules' outputs.
            kl_KP: measured, in nats.
        """
        y_KP = np.sqrt(np.clip(kl_KP, 0, None))
        texts, units = y_KP.shape[1], len(indices)
        own_SKR, *random_SKR = ([correlations(x_PU[:, indices].T, y_KP) for x_PU in x_SPU] for x_SPU in x_DSPU)
        rows = []
        for kind, power in ((CORRELATION, 1), (EXPLAINED, 2)):
            for s, share in enumerate(SHARES):
                own_R = _mean_over_units(own_SKR[s] ** power)
                random_R = np.mean([_mean_over_units(r_SKR[s] ** power) for r_SKR in random_SKR], axis=0)
                estimates = map(resampled_estimate, (own_R, random_R, own_R - random_R))
                rows.append(Score(kind, name, _KL, units, share, texts, *estimates))
        of_ranks = resampled_estimate(_rank_correlation(effect_U[indices], y_KP))
        rows.append(Score(RANKING, name, _KL, units, 1.0, texts, of_ranks, None, None))
        correlation_U = np.full(len(effect_U), np.nan)
        correlation_U[indices] = own_SKR[0][:, 0]
        return cls(name=name, scores=rows, correlation_U=correlation_U)


def correlations(x_KP: Floats, y_KP: Floats, resamples: int = RESAMPLES, seed: int = SEED) -> Floats:
    """Pearson's correlation of each row, first on the prompts and then on resamples of them, ``(K, 1 + R)``.

    NaN where one of both is constant, up to rounding.
    """
    x_KP, y_KP = _in_deviations(x_KP), _in_deviations(y_KP)
    moments = np.concatenate([x_KP, y_KP, x_KP**2, y_KP**2, x_KP * y_KP])
    means = np.column_stack([moments.mean(1), resampled_means(moments, np.ones(x_KP.shape[1]), resamples, seed)])
    x_KR, y_KR, xx_KR, yy_KR, xy_KR = np.split(means, 5)
    spread_KR = (xx_KR - x_KR**2) * (yy_KR - y_KR**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        r_KR = np.where(spread_KR > 1e-12, (xy_KR - x_KR * y_KR) / np.sqrt(spread_KR), np.nan)
    return np.clip(r_KR, -1, 1)


def _in_deviations(value_KP: Floats) -> Floats:
    """Rows in standard deviations from their means; NaN for constant ones."""
    centred_KP, std_K1 = value_KP - value_KP.mean(1, keepdims=True), value_KP.std(1, keepdims=True)
    is_constant_K1 = std_K1 <= 1e-9 * np.abs(value_KP).max(1, keepdims=True)
    return np.where(is_constant_K1, np.nan, centred_KP / np.where(is_constant_K1, 1.0, std_K1))


def _mean_over_units(value_KR: Floats) -> Floats:
    """Of the units that have a value on the prompts; NaN without any."""
    value_KR = value_KR[~np.isnan(value_KR[:, 0])]
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nansum(value_KR, axis=0) / (~np.isnan(value_KR)).sum(0))


def _rank_correlation(x_K: Floats, y_KP: Floats) -> Floats:
    """Spearman's correlation of units' predicted effects with their mean measured ones, first on the prompts, then on
    resamples of them, ``(1 + R,)``.
    """
    mean_KR = np.column_stack([y_KP.mean(1), resampled_means(y_KP, np.ones(y_KP.shape[1]))])
    x_K1, y_KR = rankdata(x_K)[:, None], rankdata(mean_KR, axis=0)
    x_K1, y_KR = x_K1 - x_K1.mean(), y_KR - y_KR.mean(0)
    with np.errstate(invalid="ignore"):
        return np.asarray((x_K1 * y_KR).sum(0) / np.sqrt((x_K1**2).sum() * (y_KR**2).sum(0)))
