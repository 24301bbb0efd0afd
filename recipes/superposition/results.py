"""What ``monolora superposition run`` has left in a folder, as means over seeds and differences of mono and poly.

Intervals are 95 % t-intervals over seeds, each of which has its own encoder, data and noise. Differences are paired by
seed: both encoders of a seed see the same data.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from scipy import stats

from monolora.errors import InputError, in_one_line
from monolora.recipes.experiments import records
from monolora.recipes.experiments.intervals import Estimate, difference, estimate
from monolora.recipes.superposition.settings import MONO, POLY
from monolora.recipes.superposition.toy.geometry import REPRESENTED

ENCODERS, WEIGHTS = "encoders.json", "encoders.safetensors"
CLEAN, LABEL, INPUT = "no noise", "label noise", "input noise"


class Encoded(NamedTuple):
    """Encoders of one sparsity.

    Attributes:
        loss: weighted, of reconstruction.
        represented, paired: features of an encoder that are; that are in antipodal pairs.
        dimensionality: mean of an encoder's represented features; None where none has any.
    """

    sparsity: float
    loss: Estimate
    represented: Estimate
    paired: Estimate
    dimensionality: Estimate | None


class Compared(NamedTuple):
    """Mono and poly under one noise; accuracies in 0 to 1.

    Attributes:
        kind: CLEAN, LABEL or INPUT.
        level: the rate, or the scale; 0 for CLEAN.
        difference: mono less poly.
        p: of the paired t-test, two-sided; None for one seed.
    """

    sparsity: float
    kind: str
    level: float
    mono: Estimate
    poly: Estimate
    difference: Estimate
    p: float | None

    @property
    def ahead(self) -> str | None:
        """MONO or POLY, or None where the interval has 0 in it, or there is none."""
        low, high = self.difference.low, self.difference.high
        if low is None or high is None or low <= 0 <= high:
            return None
        return MONO if low > 0 else POLY


class Experiment(NamedTuple):
    """Classifiers of one number of training samples.

    Attributes:
        same_data: mono and poly on data of the same sparsity; at S = 0 they are the same encoder.
        own_data: mono on dense data, beside poly on data of each sparsity above 0.
    """

    train_samples: int
    settings: Mapping[str, Any]
    same_data: Sequence[Compared]
    own_data: Sequence[Compared]


class Results(NamedTuple):
    """All of a folder; sparsities and numbers of samples ascend."""

    settings: Mapping[str, Any]
    encoders: Sequence[Encoded]
    experiments: Sequence[Experiment]

    def comparisons(self) -> list[tuple[int, Compared]]:
        """All of two encoders on the same data, with the number of training samples."""
        return [(run.train_samples, each) for run in self.experiments for each in run.same_data if each.sparsity > 0]


def noise_file(train_samples: int | str) -> str:
    """The name of the record of classifiers."""
    return f"noise-{train_samples}.json"


def holm(p_values: Sequence[float], level: float = 0.05) -> list[bool]:
    """Which of several tests remain when the chance of any false one is to be below ``level`` (Holm, 1979)."""
    found = [False] * len(p_values)
    for tried, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[place] > level / (len(p_values) - tried):
            break
        found[place] = True
    return found


def read_results(out: str | Path) -> Results:
    """Read the records of a folder.

    Raises:
        InputError: if there are none, or one is damaged or of other encoders than the folder's.
    """
    folder = Path(out)
    mend = f"Run it again: monolora superposition run --out {folder}"
    path = folder / ENCODERS
    record = records.read(path, mend)
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"There is no {folder / WEIGHTS}. {mend}")
    try:
        fingerprint = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
        encoders = [_encoded(record["results"], key) for key in sorted(record["results"]["loss"], key=float)]
        experiments = []
        for train_samples, path in sorted(_noise_files(folder)):
            noise = records.read(path, mend)
            if noise["inputs"].get("encoders") != fingerprint:
                raise ValueError("it is of other encoders than the folder's")
            experiments.append(_experiment(noise, train_samples))
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        problem = f"{error} is missing." if isinstance(error, KeyError) else in_one_line(error)
        raise InputError(f"{path} is damaged: {problem} Delete it. {mend}") from error
    return Results(record["settings"], encoders, experiments)


def _noise_files(folder: Path) -> list[tuple[int, Path]]:
    named = [(re.fullmatch(r"noise-(\d+)\.json", path.name), path) for path in folder.iterdir()]
    return [(int(match[1]), path) for match, path in named if match]


def _encoded(results: Mapping[str, Any], key: str) -> Encoded:
    represented = [[norm > REPRESENTED for norm in of_seed] for of_seed in results["norms"][key]]
    shares = [
        fmean(value for value, there in zip(values, chosen, strict=True) if there)
        for values, chosen in zip(results["dimensionality"][key], represented, strict=True)
        if any(chosen)
    ]
    return Encoded(
        float(key),
        _mean(results["loss"][key]),
        _mean(list(map(sum, represented))),
        _mean(list(map(sum, results["paired"][key]))),
        _mean(shares) if shares else None,
    )


def _experiment(record: Mapping[str, Any], train_samples: int) -> Experiment:
    accuracy = record["results"]["accuracy"]
    keys = sorted(accuracy, key=float)
    same = [_compared(float(key), accuracy[key][MONO], accuracy[key][POLY]) for key in keys]
    own = [_compared(float(key), accuracy[keys[0]][MONO], accuracy[key][POLY]) for key in keys if float(key) > 0]
    return Experiment(
        train_samples,
        record["settings"],
        [each for of_sparsity in same for each in of_sparsity],
        [each for of_sparsity in own for each in of_sparsity],
    )


def _compared(sparsity: float, mono: Mapping[str, Any], poly: Mapping[str, Any]) -> list[Compared]:
    """Under each noise. Input noise of scale 0 is what label noise of rate 0 is: no noise."""
    found = []
    for kind, of_record in ((LABEL, "label"), (INPUT, "input")):
        for key in sorted(mono[of_record], key=float):
            ours, theirs, level = mono[of_record][key], poly[of_record][key], float(key)
            if level == 0 and kind == INPUT:
                continue
            by_seed = [dict(enumerate([value] for value in values)) for values in (ours, theirs)]
            less = difference(*by_seed)
            assert less is not None  # there is a seed
            found.append(
                Compared(
                    sparsity, kind if level else CLEAN, level, _mean(ours), _mean(theirs), less, _p_value(ours, theirs)
                )
            )
    return found


def _mean(values: Sequence[float]) -> Estimate:
    found = estimate({seed: [float(value)] for seed, value in enumerate(values)})
    if found is None:
        raise ValueError("it has no seeds")
    return found


def _p_value(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Of the paired t-test; differences that are all the same have no spread to be tested against."""
    less = [one - other for one, other in zip(ours, theirs, strict=True)]
    if len(less) < 2:
        return None
    spread, mean = stdev(less), fmean(less)
    if spread == 0:
        return float(mean == 0)
    return float(2 * stats.t.sf(abs(mean) / spread * math.sqrt(len(less)), len(less) - 1))
