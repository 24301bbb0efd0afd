"""What the paper claims of MonoLoRA (section 3.3, table 2), put to a study: each is said to hold, not to, or unknown.

The words of a verdict are made from its interval. A claim that one model is below or above another holds if their
difference is on that side and its p-value, corrected by Holm over all such claims of the study, is below 0.05; it does
not if the difference is on the other side likewise; else it cannot be told. A claim that one is no worse than another
holds if the whole interval is better than the margin that the study's file sets, and does not if all of it is worse.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from monolora.eval.report.numbers import shown_change, shown_interval, shown_p
from monolora.holm import holm
from monolora.recipes.studies.crossed import Estimate
from monolora.recipes.studies.gathered import BASE, Values
from monolora.recipes.studies.paper_rows import TABLE_2
from monolora.recipes.studies.settings import FLAGGED, Study

ALPHA = 0.05

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
    """

    text: str
    source: str
    dataset: str
    values: Values
    model: str
    against: str
    better: Better
    margin: float | None = None


class Verdict(NamedTuple):
    """A claim, decided.

    Attributes:
        claim: it.
        answer: in two words.
        estimate: of ``model - against``; None where it was not measured.
        p_holm: corrected; NaN for claims with a margin.
        text: a sentence, with its interval.
    """

    claim: Claim
    answer: Answer
    estimate: Estimate | None
    p_holm: float
    text: str


def claims(study: Study, dataset: str, columns: Sequence[Values]) -> Iterator[Claim]:
    """What can be asked of a data set's columns. That LoRA's units are never zero is so by construction: no claim."""
    for each in columns:
        name = each.column.id
        if each.column.headline and name.endswith(("/flagged", "/average")):
            yield from _of_harm(study, dataset, each)
        elif each.column.headline and name.startswith("task:"):
            yield from _of_the_task(study, dataset, each)
        elif name.endswith("/drift"):
            yield from _of_models(study, dataset, each, "drifts less from the base than", "lower", None)
        elif name.endswith("/refusal/flagged"):
            yield from _of_models(study, dataset, each, "refuses more harmful prompts than", "higher", None)


def _of_harm(study: Study, dataset: str, each: Values) -> Iterator[Claim]:
    control, tested = list(study.adapters)[:2]
    is_average = each.column.id.endswith("/average")
    kind, what = ("average", "harmful content") if is_average else ("flagged", "flagged answers")
    yield from _of_models(study, dataset, each, f"has {'less' if is_average else 'fewer'} {what} than", "lower", kind)
    yield _claim(dataset, each, control, f"has more {what} than", BASE, "higher", kind)
    if FLAGGED in study.margin and not is_average:
        yield _claim(dataset, each, tested, f"has no more {what} than", BASE, "lower", kind, study.margin[FLAGGED])


def _of_the_task(study: Study, dataset: str, each: Values) -> Iterator[Claim]:
    control, tested = list(study.adapters)[:2]
    yield from _of_models(study, dataset, each, "is better at the task than", "higher", "task")
    yield _claim(dataset, each, tested, "is better at the task than", BASE, "higher", "task")
    if dataset in study.margin:
        text = "is as good at the task as"
        yield _claim(dataset, each, tested, text, control, "higher", None, study.margin[dataset])


def _of_models(
    study: Study, dataset: str, each: Values, text: str, better: Better, kind: str | None
) -> Iterator[Claim]:
    control, tested = list(study.adapters)[:2]
    yield _claim(dataset, each, tested, text, control, better, kind)


def _claim(
    dataset: str,
    each: Values,
    model: str,
    text: str,
    against: str,
    better: Better,
    kind: str | None,
    margin: float | None = None,
) -> Claim:
    shown = "the base" if against == BASE else against
    says = kind is not None and _paper_says(dataset, kind, model, against, better)
    source = "table 2" if says else "ours"
    return Claim(f"{model} {text} {shown} ({each.column.title})", source, dataset, each, model, against, better, margin)


def _paper_says(dataset: str, kind: str, model: str, against: str, better: Better) -> bool:
    """Whether the paper's own numbers have the one on that side of the other."""
    rows = TABLE_2.get(dataset, {})
    if model not in rows or against not in rows:
        return False
    ours, theirs = (getattr(rows[name], kind) for name in (model, against))
    return bool(ours < theirs if better == "lower" else ours > theirs)


def verdicts(asked: Sequence[Claim]) -> list[Verdict]:
    """Decide claims; those without a margin are one family of Holm's correction."""
    estimates = [claim.values.difference(claim.model, claim.against) for claim in asked]
    tested = [
        number
        for number, (claim, found) in enumerate(zip(asked, estimates, strict=True))
        if claim.margin is None and found is not None and not math.isnan(found.p)
    ]
    corrected = dict(zip(tested, holm([_p(estimates[number]) for number in tested]), strict=True))
    return [
        _verdict(claim, found, corrected.get(number, math.nan))
        for number, (claim, found) in enumerate(zip(asked, estimates, strict=True))
    ]


def _p(found: Estimate | None) -> float:
    assert found is not None
    return found.p


def _verdict(claim: Claim, found: Estimate | None, p_holm: float) -> Verdict:
    if found is None:
        return Verdict(claim, "cannot be told", None, math.nan, "It was not measured.")
    if math.isnan(found.low):
        return _without_interval(claim, found)
    answer = _by_margin(claim, found) if claim.margin is not None else _by_side(claim, found, p_holm)
    return Verdict(claim, answer, found, p_holm, f"{_numbers(claim, found, p_holm)}{_why(claim, answer, found)}")


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
    interval = shown_interval(found.low, found.high, places, changes=True)
    p = "" if math.isnan(p_holm) else f", p = {shown_p(p_holm)} after Holm's correction".replace("= <", "< ")
    return f"{shown_change(found.mean, places)}{_unit(claim)} {interval}{p}."


def _why(claim: Claim, answer: Answer, found: Estimate) -> str:
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
        # with 80 % power: (z of 0.975 + z of 0.8) / z of 0.975 half widths
        shows = float(f"{1.43 * (found.high - found.low) / 2:.2g}")
        return f" At this size a true difference of some {shows:g}{_unit(claim)} would show four times in five."
    return "" if answer == "holds" else " It is the other way round."


def _unit(claim: Claim) -> str:
    unit = claim.values.column.unit
    return " points" if unit == "%" else f" {unit}" if unit else ""


def decimals_of(found: Estimate, unit: str) -> int:
    """With how many a difference is shown: shares are of hundreds of flags at best."""
    return 1 if unit == "%" or max(abs(found.low), abs(found.high)) >= 5 else 3


def counted(decided: Sequence[Verdict]) -> Mapping[Answer, int]:
    """How many claims have each answer."""
    answers: tuple[Answer, ...] = ("holds", "does not hold", "cannot be told")
    return {answer: sum(each.answer == answer for each in decided) for answer in answers}
