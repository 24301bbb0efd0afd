"""What ``monolora superposition run`` has measured, as its tables show it: encoders, and mono beside poly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from monolora.recipes.superposition.records import (
    ByKind,
    Classified,
    Geometry,
    Recorded,
    ahead,
    lead,
    mean,
    paired_p,
    percent,
    shown_scale,
)
from monolora.recipes.superposition.settings import MONO, POLY
from monolora.reporting.tables import piped
from monolora.stats import Estimate, holm

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
    return Results(recorded.seeds, encoders, [_summary(N, each) for N, each in recorded.noise.items()])


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


def _summary(train_samples: int, of: Classified) -> Experiment:
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


_NOTHING = "–"
_LEVEL = 0.05  # of Holm's correction


def as_markdown(results: Results) -> str:
    """All tables."""
    seeds = results.seeds
    over = f"Means over {seeds} seeds ± half of the 95 % t-interval." if seeds > 1 else "One seed: no intervals."
    parts = ["# The toy model of superposition", over, "## Encoders", _encoders(results)]
    for run in results.experiments:
        parts += _experiment(run)
    parts += ["## Where mono is ahead", *_everywhere(results)]
    return "\n\n".join(parts) + "\n"


def _encoders(results: Results) -> str:
    head = ["S", "loss", "features represented", "in antipodal pairs", "mean dimensionality of the represented"]
    return piped(head, [_encoder_row(each) for each in results.encoders])


def _encoder_row(each: Encoded) -> list[str]:
    return [
        f"{each.sparsity:g}",
        _number(each.loss, 4),
        _number(each.represented, 1),
        _number(each.paired, 1),
        _NOTHING if each.dimensionality is None else _number(each.dimensionality, 2),
    ]


def _experiment(run: Experiment) -> list[str]:
    settings = run.settings
    return [
        f"## {run.train_samples} training samples",
        f"Accuracy (%) on {settings['test_samples']} test samples; {settings['epochs']} epochs, learning rate "
        f"{settings['learning_rate']:g}, weight decay {settings['weight_decay']:g}. Differences are paired by seed.",
        "Both encoders on data of sparsity S (mono: trained on dense data; poly: trained on data of S):",
        _comparison_table(run.same_data),
        "Each on its own data (mono on dense data, poly on data of S):",
        _comparison_table(run.own_data),
    ]


def _comparison_table(compared: Sequence[Compared]) -> str:
    """Rows are sparsities; columns no noise, the most wrong labels, and the input noise nearest 0.5."""
    shown: list[tuple[str, Callable[[Compared], bool]]] = [("clean", lambda each: each.kind == CLEAN)]
    rates = [each.level for each in compared if each.kind == LABEL]
    if rates:
        most = max(rates)
        shown.append((f"{100 * most:g} % wrong labels", lambda each: each.kind == LABEL and each.level == most))
    scale = shown_scale(each.level for each in compared if each.kind == INPUT)
    if scale is not None:
        shown.append((f"input noise {scale:g}", lambda each: each.kind == INPUT and each.level == scale))
    head = ["S", *(word for title, _ in shown for word in (f"{title}: {MONO}", POLY, f"{MONO} − {POLY}"))]
    rows = []
    for sparsity in sorted({each.sparsity for each in compared}):
        row = [f"{sparsity:g}"]
        for _, chosen in shown:
            each = next(each for each in compared if each.sparsity == sparsity and chosen(each))
            row += [_number(each.mono, 1), _number(each.poly, 1), _difference(each)]
        rows.append(row)
    return piped(head, rows)


def _difference(each: Compared) -> str:
    if each.sparsity == 0:
        return "the same encoder"
    shown = _number(each.difference, 1, "+")
    if each.difference.half_width is None:
        return shown
    return f"{shown}, {f'{each.ahead} ahead' if each.ahead else 'not told apart'}"


def _everywhere(results: Results) -> list[str]:
    """A line for each kind of noise, over all rates and scales; and what they may be taken for."""
    found = results.comparisons()
    p_values = [each.p for _, each in found if each.p is not None]
    if len(p_values) < len(found):
        return [f"{len(found)} comparisons of one seed each: nothing can be told apart."]
    remaining = [place for place, p in zip(found, holm(p_values), strict=True) if p <= _LEVEL]
    lines = [line for kind in (CLEAN, LABEL, INPUT) if (line := _kind(kind, found, remaining))]
    remain = {name: sum(_leader(each) == name for _, each in remaining) for name in (MONO, POLY)}
    return [
        "\n".join(lines),
        f"{len(found)} comparisons in all, on the same data, paired by seed. The intervals are not corrected for so "
        f"many. After Holm's correction at 5 % (paired t-tests), mono remains ahead in {remain[MONO]} and poly in "
        f"{remain[POLY]}.",
    ]


def _kind(kind: str, found: Sequence[tuple[int, Compared]], remaining: Sequence[tuple[int, Compared]]) -> str | None:
    own = [(count, each) for count, each in found if each.kind == kind]
    if not own:
        return None
    mono = [(count, each) for count, each in own if each.ahead == MONO]
    poly = sum(each.ahead == POLY for _, each in own)
    kept = sum(each.kind == kind and _leader(each) == MONO for _, each in remaining)
    told = ""
    if mono:
        told = f" ({'; '.join(_places(mono))}), {kept} after Holm's correction"
        if kind != CLEAN:
            turned = [(count, each) for count, each in mono if each.reversal]
            told += f"; poly is ahead without noise in {len(turned)} of these"
            told += f" ({'; '.join(_places(turned))})" if turned else ""
    return (
        f"- {kind}: mono is ahead in {len(mono)} of {len(own)}{told}; poly in {poly}; not told apart: "
        f"{len(own) - len(mono) - poly}."
    )


def _places(ahead: Sequence[tuple[int, Compared]]) -> Iterable[str]:
    """By number of samples and sparsity, the rates or scales."""
    for count, sparsity in sorted({(count, each.sparsity) for count, each in ahead}):
        levels = [each for found, each in ahead if (found, each.sparsity) == (count, sparsity)]
        shown = ", ".join(f"{each.level:g}" for each in levels)
        yield f"N = {count}, S = {sparsity:g}" + (f" at {shown}" if levels[0].kind != CLEAN else "")


def _leader(each: Compared) -> str:
    return MONO if each.difference.mean > 0 else POLY


def _number(found: Estimate, digits: int, sign: str = "") -> str:
    half = found.half_width
    shown = f"{found.mean:{sign}.{digits}f}".replace("-", "−") + ("" if half is None else f" ± {half:.{digits}f}")
    zero = f"{0:.{digits}f}"
    return shown[1:] if shown[1:].startswith(zero) and shown[0] in "+−" else shown
