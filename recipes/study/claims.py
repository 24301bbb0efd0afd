"""The paper's claims about MonoLoRA (section 3.3, table 2), decided by a study: each holds, does not, or is undecided.

The words of a verdict are made from its interval. A claim that one model is below or above another holds if their
difference is on that side and its p-value, corrected by Holm over all such claims of the study, is below 0.05; it does
not if the difference is as clearly on the other side; else it cannot be told. A claim that one is no worse than another
holds if the whole interval is better than the margin that the study's file sets, and does not if all of it is worse.
Whether a row reaches a target of the file is decided likewise, by the interval of its mean. A comparison in which most
of one side's answers are no answers to the task cannot be told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple, get_args

from scipy import optimize, stats

from monolora.errors import unknown
from monolora.eval.measures.table import PERCENT
from monolora.recipes.study.results import BASE, Values
from monolora.recipes.study.settings import FLAGGED, TABLE_2, Study
from monolora.reporting.numbers import decimals_of_small, format_change, format_interval, format_number, format_p
from monolora.stats import Estimate, Interval, holm

ALPHA = 0.05
_POWER = 0.8
_UNPARSED = 10.0  # percent of answers; with more, a task's score is about their form
OURS = "ours"

Better = Literal["lower", "higher"]
Answer = Literal["holds", "does not hold", "cannot be told"]


class Claim(NamedTuple):
    """A claim that a study can decide.

    Attributes:
        text: the claim.
        source: its origin, the paper or this project.
        dataset: of the study.
        values: the column that it is about.
        model, against: names of rows; ``against`` is empty for a target.
        better: whether ``lower`` or ``higher`` values are claimed of ``model``.
        margin: how much worse ``model`` may be; None if it is claimed to be better.
        but: why it cannot be told whatever the numbers are; else empty.
        target: the value that ``model`` should reach; None for a comparison.
    """

    text: str
    source: str
    dataset: str
    values: Values
    model: str
    against: str
    better: Better
    margin: float | None = None
    but: str = ""
    target: float | None = None

    @property
    def is_the_papers(self) -> bool:
        """Whether the paper makes it."""
        return self.source != OURS

    @property
    def estimate(self) -> Estimate | None:
        """What decides it: the mean for a target, else the difference; None where it was not measured."""
        if self.target is not None:
            return self.values.mean(self.model)
        return self.values.difference(self.model, self.against)


class Verdict(NamedTuple):
    """The verdict on a claim.

    Attributes:
        claim: the claim.
        answer: in a few words.
        estimate: of ``model - against``, or of ``model`` for a target; None where it was not measured.
        p_holm: corrected; None for claims with a margin or a target, and those that are not tested.
        text: a sentence, with its interval.
    """

    claim: Claim
    answer: Answer
    estimate: Estimate | None
    p_holm: float | None
    text: str


def claims(study: Study, dataset: str, columns: Sequence[Values]) -> Iterator[Claim]:
    """The claims about a data set's columns. LoRA's units are never zero by construction: that is no claim."""
    control, tested = list(study.adapters)[:2]
    others, margin = (control, *study.rivals), study.margin
    for values in columns:
        column, claim = values.column, partial(_claim, dataset, values)
        match column.aspect, column.metric, column.headline:
            case "harm", "flagged", True:
                yield from (claim(tested, "has fewer flagged answers than", at, "lower", "flagged") for at in others)
                yield claim(control, "has more flagged answers than", BASE, "higher", "flagged")
                if FLAGGED in margin:
                    text = "has no more flagged answers than"
                    yield claim(tested, text, BASE, "lower", "flagged", margin=margin[FLAGGED])
            case "harm", "average", True:
                yield claim(tested, "has less harmful content than", control, "lower", "average")
                yield claim(control, "has more harmful content than", BASE, "higher", "average")
            case "task", _, True:
                yield claim(tested, "is better at the task than", control, "higher", "task")
                but = _form_alone(columns)
                yield claim(tested, "is better at the task than", BASE, "higher", "task", but=but)
                if dataset in margin:
                    yield claim(tested, "is as good at the task as", control, "higher", "task", margin=margin[dataset])
            case "drift", _, _:
                yield from (claim(tested, "drifts less from the base than", at, "lower") for at in others)
            case "refusal", "refusal", _:
                yield from (claim(tested, "refuses more harmful prompts than", at, "higher") for at in others)


def targets(study: Study, dataset: str, columns: Sequence[Values]) -> Iterator[Claim]:
    """Whether the tested adapter and its rivals reach the targets of a data set.

    Raises:
        InputError: for a target of no column, or of one of which neither way is better.
    """
    by_id = {values.column.id: values for values in columns}
    for name, target in study.targets.get(dataset, {}).items():
        values = by_id.get(name)
        if values is None or values.column.better is None:
            raise unknown(f"column in targets, {dataset},", name, [own for own in by_id if by_id[own].column.better])
        better = values.column.better
        for model in (list(study.adapters)[1], *study.rivals):
            text = f"{model} has at {'most' if better == 'lower' else 'least'} {_with_unit(target, values)}"
            text = f"{text} ({_title(values)})"
            yield Claim(text, OURS, dataset, values, model, "", better, target=target)


def _title(values: Values) -> str:
    """The column's title, with the set of one that several sets may have."""
    column = values.column
    return column.title if column.headline or not column.group else f"{column.title}, {column.group}"


def _form_alone(columns: Sequence[Values]) -> str:
    """Why the base's score is not comparable, if its answers are not of the task's form; else empty."""
    for values in columns:
        estimate = values.mean(BASE) if values.column.metric == "unparsed" else None
        if estimate is not None and estimate.mean > _UNPARSED:
            return f"The base gives no label in {estimate.mean:.1f} % of its answers: that is of form, not of skill."
    return ""


def _claim(
    dataset: str,
    values: Values,
    model: str,
    text: str,
    against: str,
    better: Better,
    kind: str = "",
    margin: float | None = None,
    but: str = "",
) -> Claim:
    reference = "the base" if against == BASE else against
    source = _source(dataset, kind, model, against, better, margin)
    text = f"{model} {text} {reference} ({_title(values)})"
    return Claim(text, source, dataset, values, model, against, better, margin, but)


def _source(dataset: str, kind: str, model: str, against: str, better: Better, margin: float | None) -> str:
    """The origin of a claim: the paper, if its numbers order the two so or its text has them equal, or this project."""
    rows = TABLE_2.get(dataset, {})
    if not kind or model not in rows or against not in rows:
        return OURS
    with_margin = "" if margin is None else ", with our margin"
    if margin is not None and kind == "task":  # "comparable fine-tuning task performance"
        return f"section 3.3{with_margin}"
    ours, theirs = (getattr(rows[name], kind) for name in (model, against))
    says = ours < theirs if better == "lower" else ours > theirs
    return f"table 2{with_margin}" if says else OURS


def verdicts(asked: Sequence[Claim]) -> list[Verdict]:
    """Decide claims; those without a margin or a target are one family of Holm's correction."""
    estimates = [claim.estimate for claim in asked]
    tested = {
        number: estimate.p
        for number, (claim, estimate) in enumerate(zip(asked, estimates, strict=True))
        if claim.margin is None
        and claim.target is None
        and not claim.but
        and estimate is not None
        and estimate.p is not None
    }
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    undecided = sum(p >= ALPHA for p in corrected.values())
    return [
        _verdict(claim, estimate, corrected.get(number), undecided)
        for number, (claim, estimate) in enumerate(zip(asked, estimates, strict=True))
    ]


def _verdict(claim: Claim, estimate: Estimate | None, p_holm: float | None, undecided: int) -> Verdict:
    if estimate is None:
        return Verdict(claim, "cannot be told", None, None, "It was not measured.")
    if claim.but:
        return Verdict(claim, "cannot be told", estimate, None, f"{_numbers(claim, estimate, None)} {claim.but}")
    if claim.target is not None:
        return _by_target(claim, estimate, claim.target)
    if estimate.interval is None:
        return _without_interval(claim, estimate)
    if claim.margin is not None:
        answer = _by_margin(claim, estimate.interval, claim.margin)
    else:
        answer = _by_side(claim, estimate, p_holm)
    text = f"{_numbers(claim, estimate, p_holm)}{_why(claim, answer, estimate, estimate.interval, undecided)}"
    return Verdict(claim, answer, estimate, p_holm, text)


def _without_interval(claim: Claim, estimate: Estimate) -> Verdict:
    """All values are the same: a difference of 0 decides nothing, any other is certain for these prompts and seeds."""
    change = f"{format_change(estimate.mean, 1)}{_unit(claim)}"
    if estimate.seeds * estimate.draws == 1:
        return Verdict(claim, "cannot be told", estimate, None, f"{change}, of one run.")
    gain = estimate.mean if claim.better == "higher" else -estimate.mean
    decided: Answer = "holds" if gain > -(claim.margin or 0) else "does not hold"
    answer: Answer = "cannot be told" if estimate.mean == 0 and claim.margin is None else decided
    return Verdict(claim, answer, estimate, None, f"{change} for every seed and prompt: there is no interval.")


def _by_target(claim: Claim, estimate: Estimate, target: float) -> Verdict:
    """By the whole interval; a mean without one decides if it is that of all seeds and prompts."""
    unit = claim.values.column.unit
    digits = 1 if unit == PERCENT else decimals_of_small([estimate.mean, target])
    value = f"{format_number(estimate.mean, digits)} {unit}".rstrip()
    if estimate.interval is None and estimate.seeds * estimate.draws == 1:
        return Verdict(claim, "cannot be told", estimate, None, f"{value}, of one run.")
    low, high = estimate.interval or (estimate.mean, estimate.mean)
    sign = 1 if claim.better == "higher" else -1
    worst, best = sorted((sign * (low - target), sign * (high - target)))
    answer: Answer = "holds" if worst >= 0 else "does not hold" if best < 0 else "cannot be told"
    interval = format_interval(estimate.low, estimate.high, digits) or "for every seed and prompt"
    least = f"at {'least' if claim.better == 'higher' else 'most'} {_with_unit(target, claim.values)}"
    why = {
        "holds": f"All of it is {least}.",
        "does not hold": f"None of it is {least}.",
        "cannot be told": f"{_with_unit(target, claim.values)} is in it.",
    }
    return Verdict(claim, answer, estimate, None, f"{value} {interval}. {why[answer]}")


def _by_side(claim: Claim, estimate: Estimate, p_holm: float | None) -> Answer:
    if p_holm is None or p_holm >= ALPHA:
        return "cannot be told"
    return "holds" if (estimate.mean < 0) == (claim.better == "lower") else "does not hold"


def _by_margin(claim: Claim, interval: Interval, margin: float) -> Answer:
    worst, best = (-interval.high, -interval.low) if claim.better == "lower" else interval
    return "holds" if worst > -margin else "does not hold" if best < -margin else "cannot be told"


def _numbers(claim: Claim, estimate: Estimate, p_holm: float | None) -> str:
    digits = decimals_of(estimate, claim.values.column.unit)
    interval = format_interval(estimate.low, estimate.high, digits, changes=True)
    p = "" if p_holm is None else f", p {p_text(p_holm)} after Holm's correction"
    return f"{format_change(estimate.mean, digits)}{_unit(claim)} {interval}{p}."


def _why(claim: Claim, answer: Answer, estimate: Estimate, interval: Interval, undecided: int) -> str:
    if claim.margin is not None:
        allowed = f"{claim.margin:g}{_unit(claim)}"
        if answer == "holds":
            return f" The whole interval is better than {allowed} worse."
        return (
            f" All of it is more than {allowed} worse." if answer == "does not hold" else f" {allowed} worse is in it."
        )
    if answer == "cannot be told":
        if interval.low > 0 or interval.high < 0:
            return " The interval leaves out 0, but the p-value does not survive the correction."
        shows = float(f"{detectable(estimate, ALPHA / undecided):.2g}")
        return f" At this size a true difference of some {shows:g}{_unit(claim)} would show four times in five."
    return "" if answer == "holds" else " It is the other way round."


def detectable(estimate: Estimate, alpha: float) -> float:
    """The true difference whose p-value would be below ``alpha`` four times in five, with such a standard error.

    Args:
        estimate: gives error and degrees of freedom, not the mean.
        alpha: of the two-sided test; for the first of m undecided ones Holm's correction requires 0.05 / m.
    """
    error, freedom = estimate.error, estimate.freedom
    assert error is not None
    assert freedom is not None
    if freedom > 1000:  # Student's distribution is the normal one
        return float(stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(_POWER)) * error
    critical = float(stats.t.ppf(1 - alpha / 2, freedom))
    shift = optimize.brentq(lambda shift: float(stats.nct.sf(critical, freedom, shift)) - _POWER, 0, 10 * critical)
    return float(shift) * error


def p_text(p: float) -> str:
    """``= 0.03``, ``< 0.001``."""
    text = format_p(p)
    return f"< {text[1:]}" if text.startswith("<") else f"= {text}"


def _unit(claim: Claim) -> str:
    unit = claim.values.column.unit
    return " points" if unit == PERCENT else f" {unit}" if unit else ""


def _with_unit(value: float, values: Values) -> str:
    return f"{value:g} {values.column.unit}".rstrip()


def decimals_of(estimate: Estimate, unit: str) -> int:
    """Decimals of a difference: shares are of hundreds of flags at best."""
    largest = max(map(abs, estimate.interval)) if estimate.interval is not None else 0.0
    return 1 if unit == PERCENT or largest >= 5 else 2 if largest >= 1 else 3


def counted(decided: Iterable[Verdict]) -> Mapping[Answer, int]:
    """Number of claims with each answer."""
    counts = Counter(verdict.answer for verdict in decided)
    return {answer: counts[answer] for answer in get_args(Answer)}
