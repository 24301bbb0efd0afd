"""The explorer's finding follows from the records, and claims nothing that may be chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from monolora.eval.explain.finding import finding
from monolora.eval.explain.records import Explained
from tests.support.feature_records import made

NAMES = [f"L0 q:{k}" for k in range(8)]


def _made(information_q: list[float], contrast_q: list[float], labels: bool = True) -> Explained:
    explained = made(units=8, gated=(False,), labels=labels)
    information = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.0])
    dataset = replace(explained.datasets[0], information_q=np.array(information_q), information=information)
    auc = np.array([0.5, 0.9, 0.05, 0.5, 0.5, 0.5, 0.5, 0.5])
    contrasts = [replace(explained.contrasts[0], q=np.array(contrast_q), auc=auc)]
    return replace(explained, datasets=[dataset], contrasts=contrasts)


CHANCE = [0.2] * 8
SOME = [0.01, 0.04, *CHANCE[:6]]


@pytest.mark.parametrize(
    ("information_q", "contrast_q", "labels", "said"),
    [
        (SOME, SOME, True,
         "2 of 8 units carry information on the labels of notes; L0 q:1 carries the most (0.20 bits)."),
        ([0.05, 0.01, *CHANCE[:6]], CHANCE, True,
         "One of 8 units, L0 q:1, carries information on the labels of notes (0.20 bits)."),
        (CHANCE, SOME, True, "2 of 8 units tell notes:weather from notes:music, L0 q:1 most clearly (AUC 0.90)."),
        (CHANCE, [0.2, 0.2, 0.01, *CHANCE[:5]], True,
         "One of 8 units tells notes:weather from notes:music, L0 q:2 most clearly (AUC 0.05)."),
        (CHANCE, CHANCE, True, "None of the 8 units is known to carry information on the labels of notes."),
    ],
)  # fmt: skip
def test_the_finding(information_q: list[float], contrast_q: list[float], labels: bool, said: str) -> None:
    assert finding(_made(information_q, contrast_q, labels), NAMES) == said


def test_without_labels_it_is_how_often_units_fire() -> None:
    explained = _made([np.nan] * 8, CHANCE, labels=False)
    dataset = replace(explained.datasets[0], firing=np.array([0.5] * 6 + [0.0] * 2))
    explained = replace(explained, datasets=[dataset], contrasts=[])
    assert finding(explained, NAMES) == "The units are silent on 62.5 % of the tokens of notes; 2 of 8 never fire."
