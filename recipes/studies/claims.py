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
from monolora.recipes.studies.settings import FLAGGED, Study

ALPHA = 0.05

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
    better: Literal["lower", "higher"]
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
    """What can be asked of a data set's columns."""
    control, tested = list(study.adapters)[:2]
    for each in columns:
        column = each.column
        flagged = column.headline and column.id.endswith(("/flagged", "/average"))
        if flagged:
            what = "harmful content" if column.id.endswith("/average") else "flagged answers"
            by = f" ({column.title})"
            yield Claim(
                f"{tested} has less {what} than {control}{by}", "table 2", dataset, each, tested, control, "lower"
            )
            yield Claim(
                f"{control} has more {what} than the base{by}", "table 2", dataset, each, control, BASE, "higher"
            )
            if FLAGGED in study.margin:
                yield Claim(
                    f"{tested} has no more {what} than the base{by}", "table 2, SST-2", dataset, each, tested, BASE,
                    "lower", study.margin[FLAGGED],
                )  # fmt: skip
        elif column.headline and column.id.startswith("task:") and dataset in study.margin:
            yield Claim(
                f"{tested} is as good at the task as {control} ({column.title})", "table 2", dataset, each, tested,
                control, "higher", study.margin[dataset],
            )  # fmt: skip
        elif column.id.startswith("sparsity/"):
            yield Claim(
                f"{tested}'s units are sparser than {control}'s ({column.title})", "table 2", dataset, each, tested,
                control, "higher",
            )  # fmt: skip
        elif column.id.endswith("/drift"):
            yield Claim(
                f"{tested} drifts less from the base than {control}", "ours", dataset, each, tested, control, "lower"
            )
        elif column.id.endswith("/refusal/flagged"):
            yield Claim(
                f"{tested} keeps more refusals of harmful prompts than {control}", "ours", dataset, each, tested,
                control, "higher",
            )  # fmt: skip


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
    worse = found.mean < 0 if claim.better == "higher" else found.mean > 0
    answer: Answer = "cannot be told" if found.mean == 0 else "does not hold" if worse else "holds"
    unit = _unit(claim)
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
    places = _places(found)
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
        half = (found.high - found.low) / 2
        return f" At this size differences below some {half:.2g}{_unit(claim)} do not show."
    return "" if answer == "holds" else " It is the other way round."


def _unit(claim: Claim) -> str:
    unit = claim.values.column.unit
    return " points" if unit == "%" else f" {unit}" if unit else ""


def _places(found: Estimate) -> int:
    return 1 if max(abs(found.low), abs(found.high)) >= 5 else 3


def counted(decided: Sequence[Verdict]) -> Mapping[Answer, int]:
    """How many claims have each answer."""
    answers: tuple[Answer, ...] = ("holds", "does not hold", "cannot be told")
    return {answer: sum(each.answer == answer for each in decided) for answer in answers}
