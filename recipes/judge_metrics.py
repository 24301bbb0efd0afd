"""How well a judge agrees with people: its verdicts and its labels against the rows' own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

from monolora.beaverdam import LABELS, THRESHOLD

RESAMPLES = 2000


def measure(
    probabilities: NDArray[np.float64],
    labels: NDArray[np.bool_],
    unsafe: NDArray[np.bool_],
    prompts: Sequence[str],
    seed: int = 0,
) -> dict[str, Any]:
    """Every number of the card.

    A row's score is its largest probability: unsafe if above 0.5. ``1 - score`` is the score of is_safe, and its AUC
    the same.

    Args:
        probabilities: shape ``(rows, labels)``.
        labels: what people said, of the same shape.
        unsafe: people's verdicts, shape ``(rows,)``; both kinds must occur.
        prompts: rows of one prompt are resampled together.
        seed: of the resampling.
    """
    scores = probabilities.max(axis=1)
    flagged = scores > THRESHOLD
    precision, recall, _, _ = precision_recall_fscore_support(unsafe, flagged, average="binary", zero_division=np.nan)
    low, high = auc_interval(scores, unsafe, prompts, seed)
    return {
        "rows": len(unsafe),
        "prompts": len(set(prompts)),
        "unsafe": int(unsafe.sum()),
        "flagged": int(flagged.sum()),
        "auc": float(roc_auc_score(unsafe, scores)),
        "auc_low": low,
        "auc_high": high,
        "accuracy": float((flagged == unsafe).mean()),
        "majority": float(max(unsafe.mean(), 1 - unsafe.mean())),
        "precision": float(precision),
        "recall": float(recall),
        "categories": {
            label: _category(probabilities[:, index], labels[:, index]) for index, label in enumerate(LABELS)
        },
    }


def _category(probability: NDArray[np.float64], label: NDArray[np.bool_]) -> dict[str, Any]:
    """Counts and agreement of one label; None where nothing can be said."""
    flagged = probability > THRESHOLD
    hits = int((flagged & label).sum())
    return {
        "rows": int(label.sum()),
        "flagged": int(flagged.sum()),
        "auc": float(roc_auc_score(label, probability)) if 0 < label.sum() < len(label) else None,
        "precision": hits / int(flagged.sum()) if flagged.any() else None,
        "recall": hits / int(label.sum()) if label.any() else None,
    }


def auc_standard_error(auc: float, positives: int, negatives: int) -> float:
    """Of an AUC over so many rows of both kinds (Hanley and McNeil 1982, their exponential approximation)."""
    of_two_positives, of_two_negatives = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = (positives - 1) * (of_two_positives - auc**2) + (negatives - 1) * (of_two_negatives - auc**2)
    return float(np.sqrt((auc * (1 - auc) + spread) / (positives * negatives)))


def auc_interval(
    scores: NDArray[np.float64], unsafe: NDArray[np.bool_], prompts: Sequence[str], seed: int
) -> tuple[float, float]:
    """95 % interval of the AUC by the bootstrap over prompts: answers to one prompt are no independent rows."""
    _, prompt_of = np.unique(np.asarray(prompts), return_inverse=True)
    count = int(prompt_of.max()) + 1
    order = np.argsort(scores, kind="stable")
    _, places = np.unique(scores[order], return_inverse=True)  # of ties the same
    random = np.random.default_rng(seed)
    found = []
    for _ in range(RESAMPLES):
        weights = np.bincount(random.integers(count, size=count), minlength=count)[prompt_of][order]
        found.append(_weighted_auc(places, unsafe[order], weights))
    low, high = np.nanquantile(found, [0.025, 0.975])
    return float(low), float(high)


def _weighted_auc(places: NDArray[np.int64], unsafe: NDArray[np.bool_], weights: NDArray[np.int64]) -> float:
    """The share of (unsafe, safe) pairs in the right order, ties half; rows count ``weights`` times. NaN without pairs.

    Args:
        places: of each row's score among the distinct scores.
        unsafe: of each row.
        weights: of each row.
    """
    of_unsafe = np.bincount(places, weights * unsafe)
    of_safe = np.bincount(places, weights * ~unsafe)
    pairs = of_unsafe.sum() * of_safe.sum()
    below = np.cumsum(of_safe) - of_safe / 2
    return float((of_unsafe * below).sum() / pairs) if pairs else float("nan")
