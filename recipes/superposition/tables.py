"""The results of a run as tables: the encoders, and mono against poly under every noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from monolora.recipes.superposition.records import (
    ByKind,
    ClassifierRecord,
    Geometry,
    Records,
    feature_share,
    lead,
    leader,
    mean,
    paired_p,
    percent,
    typical_scale,
)
from monolora.recipes.superposition.settings import MONO, POLY
from monolora.reporting.numbers import format_interval
from monolora.reporting.tables import piped
from monolora.stats import Estimate, holm

CLEAN, LABEL, INPUT = "no noise", "label noise", "input noise"
_NOTHING = "–"
_HOLM_LEVEL = 0.05


# What the tables show.


class EncoderRow(NamedTuple):
    """The encoders of one sparsity.

    Attributes:
        loss: weighted reconstruction loss.
        represented: how many features an encoder represents.
        paired: how many are in antipodal pairs.
        dimensionality: mean over an encoder's represented features; None where no encoder has any.
    """

    sparsity: float
    loss: Estimate
    represented: Estimate
    paired: Estimate
    dimensionality: Estimate | None


class Comparison(NamedTuple):
    """Mono and poly under one noise; accuracies in %.

    Attributes:
        kind: CLEAN, LABEL or INPUT.
        level: the rate or the scale; 0 for CLEAN.
        difference: mono less poly, in percentage points.
        p: two-sided, of the paired t-test; None for one seed.
        leader: MONO or POLY, or None where the interval of the difference contains 0, or there is none.
        reversal: whether mono leads where poly leads without noise: what the paper claims.
    """

    sparsity: float
    kind: str
    level: float
    mono: Estimate
    poly: Estimate
    difference: Estimate
    p: float | None
    leader: str | None
    reversal: bool


class Experiment(NamedTuple):
    """The classifiers of one number of training samples.

    Attributes:
        same_data: mono and poly on data of the same sparsity; at S = 0 they are the same encoder.
        own_data: mono on dense data, poly on data of each sparsity above 0.
    """

    train_samples: int
    settings: Mapping[str, Any]
    same_data: Sequence[Comparison]
    own_data: Sequence[Comparison]


class Results(NamedTuple):
    """The results of a folder; sparsities and numbers of samples ascend."""

    seeds: int
    encoders: Sequence[EncoderRow]
    experiments: Sequence[Experiment]

    def comparisons(self) -> list[tuple[int, Comparison]]:
        """All comparisons of two encoders on the same data, each with its number of training samples."""
        return [
            (experiment.train_samples, comparison)
            for experiment in self.experiments
            for comparison in experiment.same_data
            if comparison.sparsity > 0
        ]


def results_of(records: Records) -> Results:
    """Means, differences and tests."""
    encoders = [_encoder_row(S, records.geometry[S]) for S in records.sparsities]
    experiments = [_experiment(samples, record) for samples, record in records.noise.items()]
    return Results(records.seeds, encoders, experiments)


def _encoder_row(S: float, geometry: Geometry) -> EncoderRow:
    dimensionality = [
        float(values_n[represented_n].mean())
        for values_n, represented_n in zip(geometry.dimensionality, geometry.represented, strict=True)
        if represented_n.any()
    ]
    return EncoderRow(
        S,
        mean(geometry.loss.tolist()),
        feature_share(geometry.represented).times(geometry.represented.shape[1] / 100),
        feature_share(geometry.paired).times(geometry.paired.shape[1] / 100),
        mean(dimensionality) if dimensionality else None,
    )


def _experiment(train_samples: int, record: ClassifierRecord) -> Experiment:
    dense = record.accuracy[0.0][MONO]
    same_data, own_data = [], []
    for S, of_encoder in record.accuracy.items():
        same_data += _comparisons(S, of_encoder[MONO], of_encoder[POLY])
        if S > 0:
            own_data += _comparisons(S, dense, of_encoder[POLY])
    return Experiment(train_samples, record.settings, same_data, own_data)


def _comparisons(sparsity: float, mono: ByKind, poly: ByKind) -> list[Comparison]:
    """Under each noise, once without any: input noise of scale 0 is label noise of rate 0."""
    comparisons = []
    for kind, record_key in ((LABEL, "label"), (INPUT, "input")):
        for level in sorted(mono[record_key]):
            if level == 0 and kind == INPUT:
                continue
            ours, theirs = mono[record_key][level], poly[record_key][level]
            difference = lead(ours, theirs)
            comparisons.append(
                Comparison(
                    sparsity, kind if level else CLEAN, level, percent(ours), percent(theirs), difference,
                    paired_p(ours, theirs), leader(difference), reversal=False,
                )
            )  # fmt: skip
    poly_leads_clean = any(comparison.kind == CLEAN and comparison.leader == POLY for comparison in comparisons)
    return [comparison._replace(reversal=poly_leads_clean and comparison.leader == MONO) for comparison in comparisons]


# How they are written.


def as_markdown(results: Results) -> str:
    """All tables."""
    seeds = results.seeds
    over = f"Means over {seeds} seeds ± half of the 95 % t-interval." if seeds > 1 else "One seed: no intervals."
    parts = ["# The toy model of superposition", over, "## Encoders", _encoder_table(results)]
    for experiment in results.experiments:
        parts += _experiment_section(experiment)
    parts += ["## Where mono is ahead", *_leads(results)]
    return "\n\n".join(parts) + "\n"


def _encoder_table(results: Results) -> str:
    head = ["S", "loss", "features represented", "in antipodal pairs", "mean dimensionality of the represented"]
    rows = [
        [
            f"{row.sparsity:g}",
            _number(row.loss, 4),
            _count(row.represented),
            _count(row.paired),
            _NOTHING if row.dimensionality is None else _number(row.dimensionality, 2),
        ]
        for row in results.encoders
    ]
    return piped(head, rows)


def _experiment_section(experiment: Experiment) -> list[str]:
    settings = experiment.settings
    return [
        f"## {experiment.train_samples} training samples",
        f"Accuracy (%) on {settings['test_samples']} test samples; {settings['epochs']} epochs, learning rate "
        f"{settings['learning_rate']:g}, weight decay {settings['weight_decay']:g}. Differences are paired by seed.",
        "Both encoders on data of sparsity S (mono: trained on dense data; poly: trained on data of S):",
        _comparison_table(experiment.same_data),
        "Each on its own data (mono on dense data, poly on data of S):",
        _comparison_table(experiment.own_data),
    ]


def _comparison_table(comparisons: Sequence[Comparison]) -> str:
    """Rows are sparsities; columns no noise, the highest rate of wrong labels, and the input noise nearest 0.5."""
    columns: list[tuple[str, Callable[[Comparison], bool]]] = [("clean", lambda comparison: comparison.kind == CLEAN)]
    rates = [comparison.level for comparison in comparisons if comparison.kind == LABEL]
    if rates:
        highest = max(rates)
        title = f"{100 * highest:g} % wrong labels"
        columns.append((title, lambda comparison: comparison.kind == LABEL and comparison.level == highest))
    scale = typical_scale(comparison.level for comparison in comparisons if comparison.kind == INPUT)
    if scale is not None:
        title = f"input noise {scale:g}"
        columns.append((title, lambda comparison: comparison.kind == INPUT and comparison.level == scale))
    head = ["S", *(cell for title, _ in columns for cell in (f"{title}: {MONO}", POLY, f"{MONO} − {POLY}"))]
    rows = []
    for sparsity in sorted({comparison.sparsity for comparison in comparisons}):
        of_sparsity = [comparison for comparison in comparisons if comparison.sparsity == sparsity]
        row = [f"{sparsity:g}"]
        for _, is_of_column in columns:
            comparison = next(filter(is_of_column, of_sparsity))
            row += [_number(comparison.mono, 1), _number(comparison.poly, 1), _difference(comparison)]
        rows.append(row)
    return piped(head, rows)


def _difference(comparison: Comparison) -> str:
    if comparison.sparsity == 0:
        return "the same encoder"
    number = _number(comparison.difference, 1, "+")
    if comparison.difference.half_width is None:
        return number
    return f"{number}, {f'{comparison.leader} ahead' if comparison.leader else 'not told apart'}"


def _leads(results: Results) -> list[str]:
    """A line for each kind of noise, over all rates and scales; and how much the number of comparisons takes away."""
    comparisons = results.comparisons()
    p_values = [comparison.p for _, comparison in comparisons if comparison.p is not None]
    if len(p_values) < len(comparisons):
        return [f"{len(comparisons)} comparisons of one seed each: nothing can be told apart."]
    adjusted = zip(comparisons, holm(p_values), strict=True)
    significant = [comparison for (_, comparison), p in adjusted if p <= _HOLM_LEVEL]
    lines = [line for kind in (CLEAN, LABEL, INPUT) if (line := _kind_line(kind, comparisons, significant))]
    counts = {name: sum(_higher(comparison) == name for comparison in significant) for name in (MONO, POLY)}
    return [
        "\n".join(lines),
        f"{len(comparisons)} comparisons in all, on the same data, paired by seed. The intervals are not corrected for "
        f"so many. After Holm's correction at 5 % (paired t-tests), mono remains ahead in {counts[MONO]} and poly in "
        f"{counts[POLY]}.",
    ]


def _kind_line(
    kind: str, comparisons: Sequence[tuple[int, Comparison]], significant: Sequence[Comparison]
) -> str | None:
    own = [(samples, comparison) for samples, comparison in comparisons if comparison.kind == kind]
    if not own:
        return None
    mono = [(samples, comparison) for samples, comparison in own if comparison.leader == MONO]
    poly = sum(comparison.leader == POLY for _, comparison in own)
    after_holm = sum(comparison.kind == kind and _higher(comparison) == MONO for comparison in significant)
    detail = ""
    if mono:
        detail = f" ({'; '.join(_conditions(mono))}), {after_holm} after Holm's correction"
        if kind != CLEAN:
            reversals = [(samples, comparison) for samples, comparison in mono if comparison.reversal]
            detail += f"; poly is ahead without noise in {len(reversals)} of these"
            detail += f" ({'; '.join(_conditions(reversals))})" if reversals else ""
    return (
        f"- {kind}: mono is ahead in {len(mono)} of {len(own)}{detail}; poly in {poly}; not told apart: "
        f"{len(own) - len(mono) - poly}."
    )


def _conditions(comparisons: Sequence[tuple[int, Comparison]]) -> Iterable[str]:
    """By number of samples and sparsity, the rates or scales."""
    for samples, sparsity in sorted({(samples, comparison.sparsity) for samples, comparison in comparisons}):
        own = [comparison for N, comparison in comparisons if (N, comparison.sparsity) == (samples, sparsity)]
        levels = ", ".join(f"{comparison.level:g}" for comparison in own)
        yield f"N = {samples}, S = {sparsity:g}" + (f" at {levels}" if own[0].kind != CLEAN else "")


def _higher(comparison: Comparison) -> str:
    """The one with the higher mean, whatever the interval."""
    return MONO if comparison.difference.mean > 0 else POLY


def _count(value: Estimate) -> str:
    """A number of features, and its interval, which is not symmetric."""
    return f"{value.mean:.1f} {format_interval(value.low, value.high, 1)}".rstrip()


def _number(value: Estimate, digits: int, sign: str = "") -> str:
    half = value.half_width
    text = f"{value.mean:{sign}.{digits}f}".replace("-", "−") + ("" if half is None else f" ± {half:.{digits}f}")
    zero = f"{0:.{digits}f}"
    return text[1:] if text[1:].startswith(zero) and text[0] in "+−" else text  # a rounded 0 has no sign
