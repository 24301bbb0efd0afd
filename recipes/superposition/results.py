"""What ``monolora superposition run`` has measured, as its tables show it: encoders, and mono beside poly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from monolora.recipes.experiments.intervals import Estimate
from monolora.recipes.superposition.estimates import ahead, lead, mean, paired_p, percent
from monolora.recipes.superposition.recorded import ByKind, Classified, Geometry, Recorded
from monolora.recipes.superposition.settings import MONO, POLY

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
    """Mono and poly under one noise; accuracies in %.

    Attributes:
        kind: CLEAN, LABEL or INPUT.
        level: the rate, or the scale; 0 for CLEAN.
        difference: mono less poly, in points.
        p: of the paired t-test, two-sided; None for one seed.
        ahead: MONO or POLY, or None where the interval of the difference has 0 in it, or there is none.
        reversal: whether mono is ahead where poly is without noise: what the paper claims.
    """

    sparsity: float
    kind: str
    level: float
    mono: Estimate
    poly: Estimate
    difference: Estimate
    p: float | None
    ahead: str | None
    reversal: bool


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

    seeds: int
    encoders: Sequence[Encoded]
    experiments: Sequence[Experiment]

    def comparisons(self) -> list[tuple[int, Compared]]:
        """All of two encoders on the same data, with the number of training samples."""
        return [(run.train_samples, each) for run in self.experiments for each in run.same_data if each.sparsity > 0]


def results_of(recorded: Recorded) -> Results:
    """Means, differences and tests."""
    encoders = [_encoded(S, recorded.geometry[S]) for S in recorded.sparsities]
    return Results(recorded.seeds, encoders, [_experiment(N, each) for N, each in recorded.noise.items()])


def _encoded(S: float, of: Geometry) -> Encoded:
    shares = [
        float(values[there].mean())
        for values, there in zip(of.dimensionality, of.represented, strict=True)
        if there.any()
    ]
    return Encoded(
        S,
        mean(of.loss.tolist()),
        mean(of.represented.sum(1).tolist()),
        mean(of.paired.sum(1).tolist()),
        mean(shares) if shares else None,
    )


def _experiment(train_samples: int, of: Classified) -> Experiment:
    dense = of.accuracy[0.0][MONO]
    same = [_compared(S, found[MONO], found[POLY]) for S, found in of.accuracy.items()]
    own = [_compared(S, dense, found[POLY]) for S, found in of.accuracy.items() if S > 0]
    return Experiment(
        train_samples,
        of.settings,
        [each for of_sparsity in same for each in of_sparsity],
        [each for of_sparsity in own for each in of_sparsity],
    )


def _compared(sparsity: float, mono: ByKind, poly: ByKind) -> list[Compared]:
    """Under each noise. Input noise of scale 0 is what label noise of rate 0 is: no noise."""
    found = []
    for kind, of_record in ((LABEL, "label"), (INPUT, "input")):
        for level in sorted(mono[of_record]):
            if level == 0 and kind == INPUT:
                continue
            ours, theirs = mono[of_record][level], poly[of_record][level]
            less = lead(ours, theirs)
            shown = kind if level else CLEAN
            measured = percent(ours), percent(theirs), less, paired_p(ours, theirs), ahead(less)
            found.append(Compared(sparsity, shown, level, *measured, reversal=False))
    poly_was_ahead = any(each.kind == CLEAN and each.ahead == POLY for each in found)
    return [each._replace(reversal=poly_was_ahead and each.ahead == MONO) for each in found]
