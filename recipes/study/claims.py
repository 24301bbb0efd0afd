"""What the paper claims of MonoLoRA (section 3.3, table 2), put to a study: each is said to hold, not to, or unknown.

The words of a verdict are made from its interval. A claim that one model is below or above another holds if their
difference is on that side and its p-value, corrected by Holm over all such claims of the study, is below 0.05; it does
not if the difference is on the other side likewise; else it cannot be told. A claim that one is no worse than another
holds if the whole interval is better than the margin that the study's file sets, and does not if all of it is worse.
A comparison that is none, since most of one side's answers are no answers to the task, cannot be told.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

from scipy import optimize, stats

from monolora.random_effects import Estimate
from monolora.recipes.study.results import BASE, Values
from monolora.recipes.study.settings import FLAGGED, TABLE_2, Study
from monolora.reporting.numbers import shown_change, shown_interval, shown_p
from monolora.stats import holm

ALPHA = 0.05
_POWER = 0.8
_UNPARSED = 10.0  # percent of answers; with more, a task's score is about their form
OURS = "ours"

Better = Literal["lower", "higher"]
Answer = Literal["holds", "does not hold", "cannot be told"]


class Claim(NamedTuple):
    """Something that a study can decide.

    Attributes:
        text: the claim.
        source: who makes it.
        dataset: of the study.
        values: the column that it is about.
        model, against: names of rows.
        better: whether ``lower`` or ``higher`` values are claimed of ``model``.
        margin: None where it is claimed to be better than ``against``; else how much worse it may be.
        but: why it cannot be told, whatever the numbers are; empty if nothing is in the way.
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

    @property
    def is_the_papers(self) -> bool:
        """Whether the paper makes it."""
        return self.source != OURS


class Verdict(NamedTuple):
    """A claim, decided.

    Attributes:
        claim: it.
        answer: in a few words.
        estimate: of ``model - against``; None where it was not measured.
        p_holm: corrected; NaN for claims with a margin, and those that are not tested.
        text: a sentence, with its interval.
    """

    claim: Claim
    answer: Answer
    estimate: Estimate | None
    p_holm: float
    text: str


def claims(study: Study, dataset: str, columns: Sequence[Values]) -> Iterator[Claim]:
    """What can be asked of a data set's columns. That LoRA's units are never zero is so by construction: no claim."""
    control, tested = list(study.adapters)[:2]
    margin = study.margin
    for each in columns:
        name, is_headline = each.column.id, each.column.headline
        claim = partial(_claim, dataset, each)
        if is_headline and name.endswith("/flagged"):
            yield claim(tested, "has fewer flagged answers than", control, "lower", "flagged")
            yield claim(control, "has more flagged answers than", BASE, "higher", "flagged")
            if FLAGGED in margin:
                text = "has no more flagged answers than"
                yield claim(tested, text, BASE, "lower", "flagged", margin=margin[FLAGGED])
        elif is_headline and name.endswith("/average"):
            yield claim(tested, "has less harmful content than", control, "lower", "average")
            yield claim(control, "has more harmful content than", BASE, "higher", "average")
        elif is_headline and name.startswith("task:"):
            yield claim(tested, "is better at the task than", control, "higher", "task")
            but = _form_alone(columns)
            yield claim(tested, "is better at the task than", BASE, "higher", "task", but=but)
            if dataset in margin:
                yield claim(tested, "is as good at the task as", control, "higher", "task", margin=margin[dataset])
        elif name.endswith("/drift"):
            yield claim(tested, "drifts less from the base than", control, "lower")
        elif name.endswith("/refusal/flagged"):
            yield claim(tested, "refuses more harmful prompts than", control, "higher")


def _form_alone(columns: Sequence[Values]) -> str:
    """Why the base's score is none to compare with, if its answers are not of the task's form."""
    for each in columns:
        found = each.mean(BASE) if each.column.id.endswith("/unparsed") else None
        if found is not None and found.mean > _UNPARSED:
            return f"The base gives no label in {found.mean:.1f} % of its answers: that is of form, not of skill."
    return ""


def _claim(
    dataset: str,
    each: Values,
    model: str,
    text: str,
    against: str,
    better: Better,
    kind: str = "",
    margin: float | None = None,
    but: str = "",
) -> Claim:
    shown = "the base" if against == BASE else against
    source = _source(dataset, kind, model, against, better, margin)
    text = f"{model} {text} {shown} ({each.column.title})"
    return Claim(text, source, dataset, each, model, against, better, margin, but)


def _source(dataset: str, kind: str, model: str, against: str, better: Better, margin: float | None) -> str:
    """Who says so: the paper, where its numbers have the one on that side of the other, or its text has them equal."""
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
    """Decide claims; those without a margin are one family of Holm's correction."""
    estimates = [claim.values.difference(claim.model, claim.against) for claim in asked]
    tested = {
        number: found.p
        for number, (claim, found) in enumerate(zip(asked, estimates, strict=True))
        if claim.margin is None and not claim.but and found is not None and not math.isnan(found.p)
    }
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    undecided = sum(p >= ALPHA for p in corrected.values())
    return [
        _verdict(claim, found, corrected.get(number, math.nan), undecided)
        for number, (claim, found) in enumerate(zip(asked, estimates, strict=True))
    ]


def _verdict(claim: Claim, found: Estimate | None, p_holm: float, undecided: int) -> Verdict:
    if found is None:
        return Verdict(claim, "cannot be told", None, math.nan, "It was not measured.")
    if claim.but:
        return Verdict(claim, "cannot be told", found, math.nan, f"{_numbers(claim, found, math.nan)} {claim.but}")
    if math.isnan(found.low):
        return _without_interval(claim, found)
    answer = _by_margin(claim, found) if claim.margin is not None else _by_side(claim, found, p_holm)
    text = f"{_numbers(claim, found, p_holm)}{_why(claim, answer, found, undecided)}"
    return Verdict(claim, answer, found, p_holm, text)


def _without_interval(claim: Claim, found: Estimate) -> Verdict:
    """All values are the same: a difference of 0 decides nothing, another one is beyond doubt for what was measured."""
    unit = _unit(claim)
    if found.seeds * found.prompts == 1:
        return Verdict(claim, "cannot be told", found, math.nan, f"{shown_change(found.mean, 1)}{unit}, of one run.")
    gain = found.mean if claim.better == "higher" else -found.mean
    decided: Answer = "holds" if gain > -(claim.margin or 0) else "does not hold"
    answer: Answer = "cannot be told" if found.mean == 0 and claim.margin is None else decided
    same = f"{shown_change(found.mean, 1)}{unit} for every seed and prompt: there is no interval."
    return Verdict(claim, answer, found, math.nan, same)


def _by_side(claim: Claim, found: Estimate, p_holm: float) -> Answer:
    if not p_holm < ALPHA:
        return "cannot be told"
    return "holds" if (found.mean < 0) == (claim.better == "lower") else "does not hold"


def _by_margin(claim: Claim, found: Estimate) -> Answer:
    assert claim.margin is not None
    gains = (-found.high, -found.low) if claim.better == "lower" else (found.low, found.high)
    return "holds" if gains[0] > -claim.margin else "does not hold" if gains[1] < -claim.margin else "cannot be told"


def _numbers(claim: Claim, found: Estimate, p_holm: float) -> str:
    places = decimals_of(found, claim.values.column.unit)
    low, high = (None if math.isnan(end) else end for end in (found.low, found.high))
    interval = shown_interval(low, high, places, changes=True)
    p = "" if math.isnan(p_holm) else f", p {said_p(p_holm)} after Holm's correction"
    return f"{shown_change(found.mean, places)}{_unit(claim)} {interval}{p}."


def _why(claim: Claim, answer: Answer, found: Estimate, undecided: int) -> str:
    if claim.margin is not None:
        allowed = f"{claim.margin:g}{_unit(claim)}"
        if answer == "holds":
            return f" The whole interval is better than {allowed} worse."
        return (
            f" All of it is more than {allowed} worse." if answer == "does not hold" else f" {allowed} worse is in it."
        )
    if answer == "cannot be told":
        if found.low > 0 or found.high < 0:
            return " The interval leaves out 0, but the p-value does not survive the correction."
        shows = float(f"{detectable(found, ALPHA / undecided):.2g}")
        return f" At this size a true difference of some {shows:g}{_unit(claim)} would show four times in five."
    return "" if answer == "holds" else " It is the other way round."


def detectable(found: Estimate, alpha: float) -> float:
    """The true difference whose p-value would be below ``alpha`` four times in five, with such a standard error.

    Args:
        found: an estimate; its error and degrees of freedom are taken, not its mean.
        alpha: of the two-sided test; for the first of m undecided ones Holm's correction asks for 0.05 / m.
    """
    if found.freedom > 1000:  # Student's distribution is the normal one
        return float(stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(_POWER)) * found.error
    critical = float(stats.t.ppf(1 - alpha / 2, found.freedom))
    away = optimize.brentq(lambda shift: float(stats.nct.sf(critical, found.freedom, shift)) - _POWER, 0, 10 * critical)
    return float(away) * found.error


def said_p(p: float) -> str:
    """``= 0.03``, ``< 0.001``."""
    shown = shown_p(p)
    return f"< {shown[1:]}" if shown.startswith("<") else f"= {shown}"


def _unit(claim: Claim) -> str:
    unit = claim.values.column.unit
    return " points" if unit == "%" else f" {unit}" if unit else ""


def decimals_of(found: Estimate, unit: str) -> int:
    """With how many a difference is shown: shares are of hundreds of flags at best."""
    largest = max(abs(found.low), abs(found.high))
    return 1 if unit == "%" or largest >= 5 else 2 if largest >= 1 else 3


def counted(decided: Iterable[Verdict]) -> Mapping[Answer, int]:
    """How many claims have each answer."""
    answers: tuple[Answer, ...] = ("holds", "does not hold", "cannot be told")
    found = [each.answer for each in decided]
    return {answer: found.count(answer) for answer in answers}
