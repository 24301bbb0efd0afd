"""The other half of theorems 4.2 and B.9: J falls as the noise grows, and mono's more slowly than poly's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise

from monolora.recipes.superposition.settings import MONO, POLY
from monolora.recipes.superposition.theory.criteria import CRITERIA, separability
from monolora.recipes.superposition.theory.crossing import Noise

_SPARSITIES = [Fraction(n, 20) for n in range(20)]
_LEVELS: Mapping[Noise, Sequence[Fraction]] = {
    "label": [Fraction(n, 20) for n in range(1, 10)],
    "input": [Fraction(n, 5) for n in range(1, 11)],
}
_ROW = "  {:22}{:30}{}"


def lines() -> Iterator[str]:
    """A table by criterion: of how many cases of a grid mono's J has fallen by less."""
    yield "How much J has fallen, against no noise, on a grid of S and noise: is it less for mono?"
    yield _ROW.format("criterion", "label noise", "input noise")
    for name in CRITERIA:
        yield _ROW.format(name, *(in_words(name, noise) for noise in _LEVELS))


def in_words(criterion: str, noise: Noise) -> str:
    """Whether both fall, and in how many cases mono's J by less."""
    falls, less = [], []
    for S in _SPARSITIES:
        mono, poly = (_values(S, name, criterion, noise) for name in (MONO, POLY))
        falls += [before > after for values in (mono, poly) for before, after in pairwise(values)]
        less += [mono[0] - ours < poly[0] - theirs for ours, theirs in zip(mono[1:], poly[1:], strict=True)]
    if not all(falls):
        return "it does not always fall"
    if all(less):
        return "always"
    return f"in {sum(less)} of {len(less)} cases" if any(less) else "never"


def _values(S: Fraction, name: str, criterion: str, noise: Noise) -> list[Fraction]:
    """J without noise, and at each level."""
    return [separability(S, name, criterion, **_noisy(noise, level)) for level in (Fraction(0), *_LEVELS[noise])]


def _noisy(noise: Noise, level: Fraction) -> dict[str, Fraction]:
    return {"eta": level} if noise == "label" else {"epsilon": level}
