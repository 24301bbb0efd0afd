"""What the criteria say of theorems 4.1, 4.2 and B.9, in words."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction

from monolora.recipes.superposition.theory.accuracy import best_accuracy
from monolora.recipes.superposition.theory.arithmetic import SAME_LENGTH
from monolora.recipes.superposition.theory.criteria import CRITERIA
from monolora.recipes.superposition.theory.crossing import OVERTAKES, Crossover, Noise, crossover
from monolora.recipes.superposition.theory.every_sparsity import Verdict, verdicts

SHOWN = (Fraction(0), Fraction(1, 2), Fraction(9, 10))
POLYS = {"poly": "h = x1 - x2, as in the paper", SAME_LENGTH: "h = (x1 - x2)/√2, with weights as long as mono's"}
NOISES: Mapping[Noise, str] = {"label": "label noise, eta from 0 to 1/2", "input": "input noise, epsilon from 0 on"}
EPSILONS = (0.0, 0.1, 0.5, 1.0)
_WORDS = {
    ("poly",): "poly leads",
    ("mono",): "mono leads",
    OVERTAKES: "MONO OVERTAKES",
    ("mono", "poly"): "poly overtakes",
}
_WIDTH = 118
_ROW = "  {:<22}{:14}{:14}{:15}{}"

ByCriterion = Mapping[str, Sequence[Verdict]]


def lines() -> Iterator[str]:
    """The tables, and what they come to."""
    yield "Who leads as the noise grows: J of mono (h = x1) or J of poly? By criterion; v1, v0 are the variances"
    for name, criterion in CRITERIA.items():
        free = "the same for c h as for h, as a linear classifier is" if criterion.scale_free else ""
        yield f"  {name:20} J = {criterion.formula:27}{free}".rstrip()
    found = {
        (poly, noise): {name: verdicts(name, noise, poly=poly) for name in CRITERIA}
        for poly in POLYS
        for noise in NOISES
    }
    for (poly, noise), by_criterion in found.items():
        yield ""
        yield f"poly: {POLYS[poly]}; {NOISES[noise]}"
        yield from _table(poly, noise, by_criterion)
    yield ""
    yield from _accuracies()
    yield ""
    for poly, words in POLYS.items():
        for claim in _claims(found[poly, "label"], found[poly, "input"]):
            yield from textwrap.wrap(f"With {words}: {claim}", _WIDTH, subsequent_indent="    ", break_on_hyphens=False)


def in_short(found: Crossover) -> str:
    """From which noise on mono leads: a number, or until which; ``never``, ``always``."""
    if not found.at:
        return {"mono": "always", "poly": "never"}.get(found.leaders[0], found.leaders[0])
    turns = [f"{float(at):.3g}" for at in found.at]
    if found.leaders[0] == "mono":
        return ", from ".join([f"until {turns[0]}", *turns[1:]])
    return " to ".join(turns)


def in_words(found: Sequence[Verdict]) -> str:
    """For which S who leads."""
    return "; ".join(f"{_range(each)}: {_WORDS.get(each.leaders, ', then '.join(each.leaders))}" for each in found)


def _table(poly: str, noise: Noise, by_criterion: ByCriterion) -> Iterator[str]:
    yield _ROW.format("", "mono leads from this noise on", "", "", "").rstrip()
    yield _ROW.format("criterion", *(f"at S = {S}" for S in SHOWN), "for which S")
    for name, found in by_criterion.items():
        cells = (in_short(crossover(S, name, noise, poly=poly)) for S in SHOWN)
        yield _ROW.format(name, *cells, in_words(found))


def _accuracies() -> Iterator[str]:
    yield "Accuracy of the best threshold on h, %: mono, poly. Label noise below 1/2 leaves the best threshold as it is"
    yield _ROW.format("input noise, epsilon", *(f"at S = {S}" for S in SHOWN), "").rstrip()
    for epsilon in EPSILONS:
        pairs = ([100 * best_accuracy(float(S), name, epsilon) for name in ("mono", "poly")] for S in SHOWN)
        yield _ROW.format(epsilon, *(f"{mono:.1f}, {poly:.1f}" for mono, poly in pairs), "").rstrip()


def _claims(label: ByCriterion, noisy_input: ByCriterion) -> Iterator[str]:
    """Of the paper's theorems, for which criteria and S they hold."""
    yield _claim("theorem 4.1 (poly leads without noise)", label, lambda each: each.leaders[0] == "poly")
    yield _claim("theorem 4.2 (mono overtakes poly under label noise)", label, lambda each: each.leaders == OVERTAKES)
    yield _claim("theorem B.9 (the same under input noise)", noisy_input, lambda each: each.leaders == OVERTAKES)


def _claim(claim: str, found: ByCriterion, holds: Callable[[Verdict], bool]) -> str:
    where = {name: [each for each in ranges if holds(each)] for name, ranges in found.items()}
    everywhere = [name for name, ranges in where.items() if len(ranges) == len(found[name])]
    somewhere = [
        f"{name} ({', '.join(map(_range, ranges))})"
        for name, ranges in where.items()
        if ranges and name not in everywhere
    ]
    nowhere = [name for name, ranges in where.items() if not ranges]
    parts = {"for every S under": everywhere, "for some S under": somewhere, "for no S under": nowhere}
    said = "; ".join(f"{when} {', '.join(names)}" for when, names in parts.items() if names)
    return f"{claim} holds {said}."


def _range(verdict: Verdict) -> str:
    low, high = float(verdict.low), float(verdict.high)
    if low == 0 and high == 1:
        return "every S"
    if low == 0:
        return f"S < {high:.4f}"
    return f"S > {low:.4f}" if high == 1 else f"{low:.4f} < S < {high:.4f}"
