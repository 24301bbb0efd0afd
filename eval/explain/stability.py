"""Stability of units over training runs: how well those of two adapters can be matched by what they fire on.

``monolora explain --score`` keeps activations on some tokens of each labelled data set; a comparison matches the units
of each module of two adapters on the same tokens. Shapes: T tokens, U units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from monolora.eval.explain.records import Floats, Score
from monolora.eval.explain.unit_reader import SHARES, Sample
from monolora.explain.matching import matched, resampled_correlations
from monolora.explain.random_units import own_thresholds, shrunk
from monolora.stats import resampled_estimate

ACTIVATIONS = "activations.safetensors"
STABILITY = "stability"
_PARTS, _SIGNED = ("ids", "text", "own", "random"), "signed"


def save_samples(path: Path, samples: Mapping[str, Sample], signed: bool) -> None:
    """Write activations on sampled tokens, in float16, each unit's in shares of its largest.

    Raises:
        OSError: if the disk does not take it.
    """
    tensors: dict[str, torch.Tensor] = {}
    for number, sample in enumerate(samples.values()):
        own_TU, random_TU = sample.own_TU, sample.random_as_units(signed)[0]
        parts = (sample.ids_T, sample.text_T, _scaled(own_TU), _scaled(random_TU))
        tensors |= {f"{number}.{name}": part.contiguous() for name, part in zip(_PARTS, parts, strict=True)}
    names = {str(number): name for number, name in enumerate(samples)}
    save_file(tensors, path, metadata=names | {_SIGNED: str(signed)})


def _scaled(h_TU: torch.Tensor) -> torch.Tensor:
    return (h_TU / h_TU.abs().amax(0).clamp(min=torch.finfo(torch.float32).tiny)).half()


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Activations of an adapter's units on sampled tokens of a data set, as :func:`save_samples` writes them.

    Attributes:
        ids_T: ids of the tokens.
        text_T: index of each token's text.
        own_TU: of its units.
        random_TU: of random units that fire as often.
        signed: whether they may be negative.
    """

    ids_T: NDArray[np.int64]
    text_T: NDArray[np.int64]
    own_TU: torch.Tensor
    random_TU: torch.Tensor
    signed: bool

    def at(self, share: float, module_units: NDArray[np.int64], random: bool = False) -> Floats:
        """Those of some units, cut to a share of the tokens."""
        h_TU = (self.random_TU if random else self.own_TU)[:, module_units]
        return np.asarray(shrunk(h_TU, own_thresholds(h_TU, share), self.signed).double())


def load_samples(path: Path) -> dict[str, Activations]:
    """By data set; empty without a file.

    Raises:
        OSError, SafetensorError: if it cannot be read.
    """
    if not path.is_file():
        return {}
    with safe_open(path, "pt") as file:
        about = file.metadata()
    tensors = load_file(path)
    found = {}
    for number, name in about.items():
        if number != _SIGNED:
            ids_T, text_T, own_TU, random_TU = (tensors[f"{number}.{part}"] for part in _PARTS)
            found[name] = Activations(
                ids_T=ids_T.numpy(),
                text_T=text_T.numpy(),
                own_TU=own_TU.float(),
                random_TU=random_TU.float(),
                signed=about[_SIGNED] == str(True),
            )
    return found


class Match(NamedTuple):
    """Two units that were matched, and the size of their correlation."""

    first: str
    second: str
    correlation: float


class Stability(NamedTuple):
    """How well the units of two adapters match on a data set.

    Attributes:
        scores: mean size of the correlation of matched units, at each sparsity.
        matches: of the units as trained, the most correlated first.
    """

    scores: list[Score]
    matches: list[Match]


def stability(
    dataset: str,
    names: tuple[str, str],
    units: tuple[pd.DataFrame, pd.DataFrame],
    pair: tuple[Activations, Activations],
) -> Stability | None:
    """Match the units of two adapters, module by module.

    Args:
        dataset: name of it.
        names: of the adapters.
        units: the rows of their units, with ``module`` and ``index``.
        pair: their activations.

    Returns:
        None if these are not on the same tokens, or the adapters have no module in common.
    """
    first, second = pair
    is_same = np.array_equal(first.ids_T, second.ids_T) and np.array_equal(first.text_T, second.text_T)
    modules = [name for name in units[0]["module"].unique() if name in set(units[1]["module"])]
    if not is_same or not modules:
        return None
    rows = [[np.flatnonzero(frame["module"] == module) for frame in units] for module in modules]
    scores, matches = [], []
    for share in SHARES:
        own, random = _Matched([], [], []), _Matched([], [], [])
        for of_first, of_second in rows:
            h_TU = first.at(share, of_first)
            own.add(h_TU, second.at(share, of_second), of_first, of_second)
            random.add(h_TU, second.at(share, of_second, random=True), of_first, of_second)
        own_R, random_R = own.mean(first.text_T), random.mean(first.text_T)
        estimates = map(resampled_estimate, (own_R, random_R, own_R - random_R))
        texts = len(np.unique(first.text_T))
        scores.append(Score(STABILITY, dataset, f"{names[0]} and {names[1]}", None, share, texts, *estimates))
        if share == 1:
            matches = own.matches(units)
    return Stability(scores, matches)


class _Matched(NamedTuple):
    """Matched units of all modules: their activations, their rows, and their correlations."""

    activations: list[tuple[Floats, Floats]]
    rows: list[tuple[NDArray[np.int64], NDArray[np.int64]]]
    correlations: list[Floats]

    def add(self, first_TU: Floats, second_TV: Floats, row_U: NDArray[np.int64], row_V: NDArray[np.int64]) -> None:
        pairs = matched(first_TU, second_TV)
        self.activations.append((first_TU[:, pairs.first_K], second_TV[:, pairs.second_K]))
        self.rows.append((row_U[pairs.first_K], row_V[pairs.second_K]))
        self.correlations.append(pairs.correlation_K)

    def mean(self, text_T: NDArray[np.int64]) -> Floats:
        """Over pairs; first on the tokens, then on resampled texts."""
        correlation_K = np.concatenate(self.correlations)
        if not len(correlation_K):
            return np.full(1, np.nan)
        first_TK, second_TK = (np.concatenate(side, axis=1) for side in zip(*self.activations, strict=True))
        resampled_KR = resampled_correlations(first_TK, second_TK, text_T)
        return np.append(correlation_K.mean(), np.nansum(resampled_KR, axis=0) / len(correlation_K))

    def matches(self, units: Sequence[pd.DataFrame]) -> list[Match]:
        rows = [np.concatenate(side) for side in zip(*self.rows, strict=True)]
        names = [
            [f"{module}:{index}" for module, index in frame[["module", "index"]].iloc[side].itertuples(index=False)]
            for frame, side in zip(units, rows, strict=True)
        ]
        found = map(Match, *names, np.concatenate(self.correlations).tolist())
        return sorted(found, key=lambda match: -match.correlation)
