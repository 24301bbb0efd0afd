"""The statistics of tables and figures: means over seeds in %, leads of mono in points, and who is ahead.

Intervals are 95 % t-intervals over seeds, each of which has its own encoder, data and noise. Leads are paired by seed:
both encoders of a seed see the same data.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from scipy import stats

from monolora.errors import InputError, in_one_line
from monolora.recipes import experiment_steps
from monolora.recipes.superposition.settings import MONO, POLY
from monolora.recipes.superposition.toy_model import REPRESENTED
from monolora.stats import Estimate, difference, estimate

_TYPICAL_SCALE = 0.5


def mean(values: Sequence[float]) -> Estimate:
    """Over seeds, one value each."""
    found = estimate(_by_seed(values))
    assert found is not None  # there is a seed
    return found


def percent(shares: Sequence[float]) -> Estimate:
    """The mean of shares from 0 to 1, in %."""
    return mean(shares).times(100)


def lead(mono: Sequence[float], poly: Sequence[float]) -> Estimate:
    """By how many percentage points mono is ahead of poly; shares from 0 to 1, in the order of seeds."""
    found = difference(_by_seed(mono), _by_seed(poly))
    assert found is not None
    return found.times(100)


def ahead(of: Estimate) -> str | None:
    """MONO or POLY by a lead, or None where the interval has 0 in it, or there is none."""
    if of.low is None or of.high is None or of.low <= 0 <= of.high:
        return None
    return MONO if of.low > 0 else POLY


def paired_p(mono: Sequence[float], poly: Sequence[float]) -> float | None:
    """Of the paired t-test, two-sided; None for one seed. Leads that are all the same have no spread to test with."""
    leads = [one - other for one, other in zip(mono, poly, strict=True)]
    if len(leads) < 2:
        return None
    spread, middle = stdev(leads), fmean(leads)
    if spread == 0:
        return float(middle == 0)
    return float(2 * stats.t.sf(abs(middle) / spread * math.sqrt(len(leads)), len(leads) - 1))


def shown_scale(scales: Iterable[float]) -> float | None:
    """The scale of input noise above 0 that is shown where there is room for one: the nearest to 0.5."""
    return min((each for each in scales if each > 0), key=lambda each: (abs(each - _TYPICAL_SCALE), each), default=None)


def _by_seed(values: Sequence[float]) -> dict[int, list[float]]:
    return {seed: [float(value)] for seed, value in enumerate(values)}


ByNoise = Mapping[float, Sequence[float]]  # by rate or scale, the accuracy of each seed, in [0, 1]
ByKind = Mapping[str, ByNoise]  # "label", "input"
ENCODERS, WEIGHTS = "encoders.json", "encoders.safetensors"
_MOST_TYPICAL, _TOO_SPARSE = 0.9, 0.95  # of the sparsities that are shown alone


class Geometry(NamedTuple):
    """Of the encoders of one S; arrays of shape ``(seeds, n)`` but for the first.

    Attributes:
        loss: of reconstruction, weighted; shape ``(seeds,)``.
        norms: of W's columns, one a feature.
        dimensionality: ||W_i||^2 / sum_j (W_i . W_j / ||W_i||)^2.
        paired: whether a feature is in an antipodal pair.
    """

    loss: np.ndarray
    norms: np.ndarray
    dimensionality: np.ndarray
    paired: np.ndarray

    @property
    def represented(self) -> np.ndarray:
        """Whether a feature is, shape ``(seeds, n)``."""
        return self.norms > REPRESENTED


class Classified(NamedTuple):
    """Classifiers of one number of training samples.

    Attributes:
        settings: of the record.
        accuracy: by S; MONO or POLY; kind of noise; and rate or scale.
    """

    settings: Mapping[str, Any]
    accuracy: Mapping[float, Mapping[str, ByKind]]


class Recorded(NamedTuple):
    """Of one folder of results.

    Attributes:
        seeds: of each sparsity.
        sparsities: ascending, 0 first.
        W_Ssmn: the encoders, shape ``(S, seeds, m, n)``, in the order of ``sparsities``.
        geometry: by S.
        noise: by training samples, ascending.
    """

    seeds: int
    sparsities: tuple[float, ...]
    W_Ssmn: np.ndarray
    geometry: Mapping[float, Geometry]
    noise: Mapping[int, Classified]

    @property
    def most_samples(self) -> int:
        """The largest training set."""
        return max(self.noise)

    @property
    def sparse(self) -> tuple[float, ...]:
        """The sparsities above 0, where mono and poly are not the same encoder."""
        return self.sparsities[1:]

    @property
    def typical(self) -> float:
        """The S to show where there is room for one: 0.9, or the nearest below; else the lowest above 0."""
        if _MOST_TYPICAL in self.sparse:
            return _MOST_TYPICAL
        return max([S for S in self.sparse if S < _TOO_SPARSE], default=min(self.sparse))

    def noises(self, samples: int, kind: str) -> list[float]:
        """The rates or scales that were tried, ascending."""
        return sorted(self.noise[samples].accuracy[self.sparse[0]][POLY][kind])

    def accuracy(self, samples: int, S: float, representation: str, kind: str, noise: float) -> Estimate:
        """Over seeds, in %."""
        return percent(self.noise[samples].accuracy[S][representation][kind][noise])

    def lead(self, samples: int, S: float, kind: str, noise: float) -> Estimate:
        """By how many percentage points mono is ahead of poly; paired by seed."""
        mono, poly = (self.noise[samples].accuracy[S][name][kind][noise] for name in (MONO, POLY))
        return lead(mono, poly)

    def intervals_in_words(self) -> str:
        """For a caption."""
        if self.seeds == 1:
            return "One seed: no intervals."
        return f"Means and 95 % t-intervals over {self.seeds} seeds; encoder, data and noise are new in each."


def read_recorded(out: Path) -> Recorded:
    """Read the records of a folder.

    Args:
        out: the folder of ``monolora superposition run``.

    Raises:
        InputError: if a record is missing, damaged, or of other encoders than those that are there.
    """
    mend = f"Run: monolora superposition run --out {out}"
    record = experiment_steps.read(out / ENCODERS, mend)
    W_Ssmn = read_weights(out / WEIGHTS, mend)
    weights = fingerprint(out / WEIGHTS)
    try:
        given = [float(S) for S in record["results"]["norms"]]  # in the order of --sparsities, as W is
        if record["results"]["weights"] != weights:
            raise ValueError(f"it is of other weights than those in {WEIGHTS}.")
        geometry = {S: _geometry(record["results"], S, W_Ssmn.shape) for S in given}
        if len(given) != len(W_Ssmn) or min(given) != 0:
            raise ValueError("its sparsities are not those of the encoders.")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(out / ENCODERS, error, mend) from error
    if len(given) < 2:
        raise InputError(f"{out} has no sparsity above 0: nothing to compare. {mend} --sparsities 0,0.9")
    order = np.argsort(given)
    sparsities = tuple(given[place] for place in order)
    noise = _noise(out, sparsities, W_Ssmn.shape[1], weights, mend)
    return Recorded(W_Ssmn.shape[1], sparsities, W_Ssmn[order], {S: geometry[S] for S in sparsities}, noise)


def noise_file(train_samples: int | str) -> str:
    """The name of the record of classifiers."""
    return f"noise-{train_samples}.json"


def fingerprint(path: Path) -> str:
    """A file's sha256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_weights(path: Path, mend: str) -> np.ndarray:
    """The encoders' W, shape ``(S, seeds, m, n)``, in the order of ``--sparsities``.

    Raises:
        InputError: if the file is missing or damaged.
    """
    if not path.is_file():
        raise InputError(f"There is no {path}. {mend}")
    try:
        W_Ssmn = load_file(path)["W"]
        if W_Ssmn.ndim != 4 or not np.isfinite(W_Ssmn).all():
            raise ValueError(f"W has shape {W_Ssmn.shape}, or is not finite.")
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise _damaged(path, error, mend) from error
    return W_Ssmn


def _geometry(results: Mapping[str, Any], S: float, shape: tuple[int, ...]) -> Geometry:
    kinds = {"loss": float, "norms": float, "dimensionality": float, "paired": bool}
    found = Geometry(*(np.array(results[key][str(S)], kind) for key, kind in kinds.items()))
    if found.loss.shape != shape[1:2] or any(each.shape != (shape[1], shape[3]) for each in found[1:]):
        raise ValueError(f"what it says of S = {S:g} is not of {shape[1]} seeds and {shape[3]} features.")
    return found


def _noise(out: Path, sparsities: Sequence[float], n_seeds: int, weights: str, mend: str) -> dict[int, Classified]:
    found = {}
    for path in out.glob(noise_file("*")):
        record = experiment_steps.read(path, mend)
        if record["inputs"].get("encoders") != weights:
            raise InputError(f"{path} is of other encoders than those in {out}. Delete it. {mend}")
        try:
            samples = int(path.stem.removeprefix("noise-"))
            accuracy = record["results"]["accuracy"]
            by_S = {S: _by_representation(accuracy[str(S)], n_seeds) for S in sparsities}
            found[samples] = Classified(record["settings"], by_S)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _damaged(path, error, mend) from error
    if not found:
        raise InputError(f"There is no {out / noise_file('*')}. {mend}")
    settings = {samples: without_samples(each.settings) for samples, each in found.items()}
    first, *others = sorted(found)
    for other in others:
        if settings[other] != settings[first]:
            raise InputError(
                f"{out} has classifiers of different settings: {noise_file(first)} and {noise_file(other)} differ in "
                f"{differing(settings[first], settings[other])}. Delete one of them."
            )
    return {samples: found[samples] for samples in sorted(found)}


def without_samples(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of classifiers: what must be the same where several numbers of training samples are shown together."""
    return {name: value for name, value in settings.items() if name != "train_samples"}


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The names of the settings that are not the same, for a message."""
    return ", ".join(sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name)))


def _by_representation(accuracy: Mapping[str, Any], n_seeds: int) -> dict[str, dict[str, dict[float, list[float]]]]:
    return {
        name: {
            kind: {float(noise): _shares(values, n_seeds) for noise, values in accuracy[name][kind].items()}
            for kind in ("label", "input")
        }
        for name in (MONO, POLY)
    }


def _shares(values: Sequence[Any], n_seeds: int) -> list[float]:
    if len(values) != n_seeds:
        raise ValueError(f"it has {len(values)} seeds; the encoders have {n_seeds}.")
    return [float(each) for each in values]


def _damaged(path: Path, error: Exception, mend: str) -> InputError:
    what = f"it has no {error}." if isinstance(error, KeyError) else in_one_line(error)
    return InputError(f"{path} is damaged: {what} Delete it. {mend}")
