"""The records of a run of the toy model: read, checked, and averaged over seeds.

Tables and figures take their numbers from here. Accuracies are means over seeds in %, leads are those of mono over poly
in percentage points. Intervals are 95 % t-intervals over seeds, each of which has its own encoder, data and noise.
Leads are paired by seed: both encoders of a seed see the same data.
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
from monolora.random_effects import of_share
from monolora.recipes import experiment_steps
from monolora.recipes.superposition.settings import MONO, POLY
from monolora.recipes.superposition.toy_model import REPRESENTED
from monolora.stats import Estimate, difference, estimate

ENCODERS, WEIGHTS = "encoders.json", "encoders.safetensors"
ByNoise = Mapping[float, Sequence[float]]  # by rate or scale, the accuracy of each seed, in [0, 1]
ByKind = Mapping[str, ByNoise]  # "label", "input"

# Where a figure has room for one sparsity only: 0.9, else the largest below 0.95.
_TYPICAL_SPARSITY, _TOO_SPARSE = 0.9, 0.95
_TYPICAL_SCALE = 0.5  # of input noise


class Geometry(NamedTuple):
    """The encoders of one S; arrays of shape ``(seeds, n)`` except for the first.

    Attributes:
        loss: weighted reconstruction loss, shape ``(seeds,)``.
        norms: of W's columns, one for each feature.
        dimensionality: ||W_i||^2 / sum_j (W_i . W_j / ||W_i||)^2.
        paired: whether a feature is in an antipodal pair.
    """

    loss: np.ndarray
    norms: np.ndarray
    dimensionality: np.ndarray
    paired: np.ndarray

    @property
    def represented(self) -> np.ndarray:
        """Whether a feature is represented, shape ``(seeds, n)``."""
        return self.norms > REPRESENTED


class ClassifierRecord(NamedTuple):
    """The classifiers of one number of training samples.

    Attributes:
        settings: of the record.
        accuracy: by S; MONO or POLY; kind of noise; and rate or scale.
    """

    settings: Mapping[str, Any]
    accuracy: Mapping[float, Mapping[str, ByKind]]


class Records(NamedTuple):
    """All records of one folder.

    Attributes:
        seeds: how many encoders there are of each sparsity.
        sparsities: ascending, 0 first.
        W_Ssmn: the encoders, shape ``(S, seeds, m, n)``, in the order of ``sparsities``.
        geometry: by S.
        noise: by number of training samples, ascending.
    """

    seeds: int
    sparsities: tuple[float, ...]
    W_Ssmn: np.ndarray
    geometry: Mapping[float, Geometry]
    noise: Mapping[int, ClassifierRecord]

    @property
    def most_samples(self) -> int:
        """The size of the largest training set."""
        return max(self.noise)

    @property
    def sparse(self) -> tuple[float, ...]:
        """The sparsities above 0, where mono and poly are not the same encoder."""
        return self.sparsities[1:]

    @property
    def typical_sparsity(self) -> float:
        """The S to show where there is room for one: 0.9, or the nearest below; else the lowest above 0."""
        if _TYPICAL_SPARSITY in self.sparse:
            return _TYPICAL_SPARSITY
        return max([S for S in self.sparse if S < _TOO_SPARSE], default=min(self.sparse))

    def noise_levels(self, samples: int, kind: str) -> list[float]:
        """The rates or scales of the classifiers, ascending."""
        return sorted(self.noise[samples].accuracy[self.sparse[0]][POLY][kind])

    def accuracy(self, samples: int, S: float, representation: str, kind: str, level: float) -> Estimate:
        """The mean over seeds, in %."""
        return percent(self.noise[samples].accuracy[S][representation][kind][level])

    def lead(self, samples: int, S: float, kind: str, level: float) -> Estimate:
        """By how many percentage points mono is ahead of poly; paired by seed."""
        mono, poly = (self.noise[samples].accuracy[S][name][kind][level] for name in (MONO, POLY))
        return lead(mono, poly)

    def interval_caption(self) -> str:
        """A caption that says over what the intervals are."""
        if self.seeds == 1:
            return "One seed: no intervals."
        return f"Means and 95 % t-intervals over {self.seeds} seeds; encoder, data and noise are new in each."


def read_records(out: Path) -> Records:
    """Read the records of a folder.

    Args:
        out: the folder of ``monolora superposition run``.

    Raises:
        InputError: if a record is missing, damaged, or of other encoders than those in the folder.
    """
    fix = f"Run: monolora superposition run --out {out}"
    record = experiment_steps.read(out / ENCODERS, fix)
    W_Ssmn = read_weights(out / WEIGHTS, fix)
    weights = fingerprint(out / WEIGHTS)
    try:
        file_order = [float(S) for S in record["results"]["norms"]]  # that of --sparsities, as W is
        if record["results"]["weights"] != weights:
            raise ValueError(f"it is of other weights than those in {WEIGHTS}.")
        geometry = {S: _geometry(record["results"], S, W_Ssmn.shape) for S in file_order}
        if len(file_order) != len(W_Ssmn) or min(file_order) != 0:
            raise ValueError("its sparsities are not those of the encoders.")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(out / ENCODERS, error, fix) from error
    if len(file_order) < 2:
        raise InputError(f"{out} has no sparsity above 0: nothing to compare. {fix} --sparsities 0,0.9")
    ascending = np.argsort(file_order)
    sparsities = tuple(file_order[index] for index in ascending)
    noise = _classifier_records(out, sparsities, W_Ssmn.shape[1], weights, fix)
    return Records(W_Ssmn.shape[1], sparsities, W_Ssmn[ascending], {S: geometry[S] for S in sparsities}, noise)


def read_weights(path: Path, fix: str) -> np.ndarray:
    """The encoders' W, shape ``(S, seeds, m, n)``, in the order of ``--sparsities``.

    Raises:
        InputError: if the file is missing or damaged.
    """
    if not path.is_file():
        raise InputError(f"There is no {path}. {fix}")
    try:
        W_Ssmn = load_file(path)["W"]
        if W_Ssmn.ndim != 4 or not np.isfinite(W_Ssmn).all():
            raise ValueError(f"W has shape {W_Ssmn.shape}, or is not finite.")
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise _damaged(path, error, fix) from error
    return W_Ssmn


def noise_file(train_samples: int | str) -> str:
    """The name of the record of classifiers."""
    return f"noise-{train_samples}.json"


def fingerprint(path: Path) -> str:
    """A file's sha256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shared_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that classifiers in one figure must share: all but the number of samples."""
    return {name: value for name, value in settings.items() if name != "train_samples"}


def setting_differences(settings: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    """The names of the settings that differ, for a message."""
    names = settings.keys() | others.keys()
    return ", ".join(sorted(name for name in names if settings.get(name) != others.get(name)))


def _geometry(results: Mapping[str, Any], S: float, shape: tuple[int, ...]) -> Geometry:
    dtypes = {"loss": float, "norms": float, "dimensionality": float, "paired": bool}
    geometry = Geometry(*(np.array(results[key][str(S)], dtype) for key, dtype in dtypes.items()))
    of_features = geometry[1:]
    if geometry.loss.shape != shape[1:2] or any(array.shape != (shape[1], shape[3]) for array in of_features):
        raise ValueError(f"its values of S = {S:g} are not of {shape[1]} seeds and {shape[3]} features.")
    return geometry


def _classifier_records(
    out: Path, sparsities: Sequence[float], n_seeds: int, weights: str, fix: str
) -> dict[int, ClassifierRecord]:
    """By number of training samples, ascending."""
    records = {}
    for path in out.glob(noise_file("*")):
        record = experiment_steps.read(path, fix)
        if record["inputs"].get("encoders") != weights:
            raise InputError(f"{path} is of other encoders than those in {out}. Delete it. {fix}")
        try:
            samples = int(path.stem.removeprefix("noise-"))
            accuracy = record["results"]["accuracy"]
            by_S = {S: _by_representation(accuracy[str(S)], n_seeds) for S in sparsities}
            records[samples] = ClassifierRecord(record["settings"], by_S)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _damaged(path, error, fix) from error
    if not records:
        raise InputError(f"There is no {out / noise_file('*')}. {fix}")
    settings = {samples: shared_settings(record.settings) for samples, record in records.items()}
    first, *others = sorted(records)
    for other in others:
        if settings[other] != settings[first]:
            raise InputError(
                f"{out} has classifiers of different settings: {noise_file(first)} and {noise_file(other)} differ in "
                f"{setting_differences(settings[first], settings[other])}. Delete one of them."
            )
    return dict(sorted(records.items()))


def _by_representation(accuracy: Mapping[str, Any], n_seeds: int) -> dict[str, dict[str, dict[float, list[float]]]]:
    return {
        name: {
            kind: {float(level): _of_seeds(values, n_seeds) for level, values in accuracy[name][kind].items()}
            for kind in ("label", "input")
        }
        for name in (MONO, POLY)
    }


def _of_seeds(values: Sequence[Any], n_seeds: int) -> list[float]:
    if len(values) != n_seeds:
        raise ValueError(f"it has {len(values)} seeds; the encoders have {n_seeds}.")
    return [float(value) for value in values]


def _damaged(path: Path, error: Exception, fix: str) -> InputError:
    problem = f"it has no {error}." if isinstance(error, KeyError) else in_one_line(error)
    return InputError(f"{path} is damaged: {problem} Delete it. {fix}")


# Estimates over seeds.


def feature_share(flags_sn: np.ndarray) -> Estimate:
    """How many of the features have a flag, in %, over seeds. Its interval is that of a share: it ends at 0 and 100."""
    over_seeds = mean((100 * flags_sn.mean(1)).tolist())
    return over_seeds if over_seeds.error is None else of_share(over_seeds._replace(draws=flags_sn.shape[1]))


def mean(values: Sequence[float]) -> Estimate:
    """The mean of one value for each seed."""
    over_seeds = estimate(_by_seed(values))
    assert over_seeds is not None  # there is at least one seed
    return over_seeds


def percent(shares: Sequence[float]) -> Estimate:
    """The mean of shares from 0 to 1, in %."""
    return mean(shares).times(100)


def lead(mono: Sequence[float], poly: Sequence[float]) -> Estimate:
    """By how many percentage points mono is ahead of poly; shares from 0 to 1, in the order of seeds."""
    paired = difference(_by_seed(mono), _by_seed(poly))
    assert paired is not None
    return paired.times(100)


def leader(lead: Estimate) -> str | None:
    """MONO or POLY, whichever is ahead; None where the interval of the lead contains 0, or there is no interval."""
    if lead.low is None or lead.high is None or lead.low <= 0 <= lead.high:
        return None
    return MONO if lead.low > 0 else POLY


def paired_p(mono: Sequence[float], poly: Sequence[float]) -> float | None:
    """The two-sided p of the paired t-test; None for one seed. Leads without any spread decide it by their sign."""
    leads = [ours - theirs for ours, theirs in zip(mono, poly, strict=True)]
    if len(leads) < 2:
        return None
    spread, middle = stdev(leads), fmean(leads)
    if spread == 0:
        return float(middle == 0)
    return float(2 * stats.t.sf(abs(middle) / spread * math.sqrt(len(leads)), len(leads) - 1))


def typical_scale(scales: Iterable[float]) -> float | None:
    """The scale of input noise to show where there is room for one: that nearest to 0.5, but not 0."""
    noisy = (scale for scale in scales if scale > 0)
    return min(noisy, key=lambda scale: (abs(scale - _TYPICAL_SCALE), scale), default=None)


def _by_seed(values: Sequence[float]) -> dict[int, list[float]]:
    return {seed: [float(value)] for seed, value in enumerate(values)}
