"""Check the theory of section 4.3 and appendix B, and print what it implies.

    monolora superposition verify

1. Every closed form against integrals of the joint distribution, in exact rationals on a grid of S and both noises.
2. Every closed form against random samples: closed form, estimate, standard error, z. |z| must stay below 4.
3. For each criterion J: who leads at which label noise and input noise, for which S, and which of theorems 4.1, 4.2 and
   B.9 this confirms.
4. The other half of theorems 4.2 and B.9: J falls as the noise grows, and mono's more slowly than poly's.

Exit status 1 if a closed form fails.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise, product
from typing import Any, NamedTuple

from monolora.cli.flags import FlagParser
from monolora.errors import InputError, RunError, exit_status
from monolora.recipes.superposition.settings import MONO, POLY, Verify
from monolora.recipes.superposition.theory.crossings import (
    CRITERIA,
    OVERTAKES,
    Crossover,
    Noise,
    Verdict,
    best_accuracy,
    crossover,
    separability,
    verdicts,
)
from monolora.recipes.superposition.theory.moments import (
    SAME_LENGTH,
    Moments,
    Noises,
    estimate_moments,
    input_noise,
    joint_moments,
    label_noise,
    noisy_moments,
    sparsity,
    summed_variances,
    weights_of,
)

_NAMES = (MONO, POLY)
_Z_LIMIT = 4  # standard errors
_MIN_SAMPLES = 200  # of two active features
_QUANTITIES = ("mu1", "mu0", "v1", "v0", "spread")
_CHECK_ROW = "  {:>5} {:>5} {:>5}  {:5} {:8} {:>12} {:>12} {:>11} {:>6}"
# The grid of the exact checks: both noises over their whole range.
_S_GRID = tuple(Fraction(n, 20) for n in range(20))
_ETA_GRID = tuple(Fraction(n, 20) for n in range(21))
_EPSILON_GRID = (Fraction(0), Fraction(1, 3), Fraction(1), Fraction(5, 2))

POLYS = {"poly": "h = x1 - x2, as in the paper", SAME_LENGTH: "h = (x1 - x2)/√2, with weights as long as mono's"}
_NOISE_TITLES: Mapping[Noise, str] = {
    "label": "label noise, eta from 0 to 1/2",
    "input": "input noise, epsilon from 0 on",
}
_TABLE_SPARSITIES = (Fraction(0), Fraction(1, 2), Fraction(9, 10))
_TABLE_EPSILONS = (0.0, 0.1, 0.5, 1.0)
_LEADERS = {
    ("poly",): "poly leads",
    ("mono",): "mono leads",
    OVERTAKES: "MONO OVERTAKES",
    ("mono", "poly"): "poly overtakes",
}
_WIDTH = 118
_VERDICT_ROW = "  {:<22}{:14}{:14}{:15}{}"

_SLOPE_LEVELS: Mapping[Noise, Sequence[Fraction]] = {
    "label": [Fraction(n, 20) for n in range(1, 10)],
    "input": [Fraction(n, 5) for n in range(1, 11)],
}
_SLOPE_ROW = "  {:22}{:30}{}"

ByCriterion = Mapping[str, Sequence[Verdict]]


class Check(NamedTuple):
    """A closed form and its estimate from random samples."""

    S: float
    noise: Noises
    representation: str
    quantity: str
    closed: float
    estimate: float
    error: float

    @property
    def z(self) -> float:
        """By how many standard errors the estimate differs."""
        return (self.estimate - self.closed) / self.error

    @property
    def holds(self) -> bool:
        """Whether the difference is small enough; False for NaN."""
        return abs(self.z) < _Z_LIMIT


def main(argv: list[str]) -> int:
    """Run from the command line; returns the exit status."""
    return run(FlagParser("monolora superposition verify", __doc__).parse_into(argv, Verify))


def run(settings: Verify) -> int:
    """Check all closed forms; returns the exit status.

    Raises:
        RunError: if a closed form fails.
    """
    _check(settings)
    equalities, estimates = _in_rationals(), _by_monte_carlo(settings)
    for line in (*verdict_lines(), "", *slope_lines()):
        print(line)
    print(
        f"\nSummary: {equalities.held:,} of {equalities.total:,} equalities hold in exact rationals, and "
        f"{estimates.held:,} of {estimates.total:,} estimates agree with the closed forms."
    )
    if wrong := equalities.failed + estimates.failed:
        raise RunError(f"{wrong:,} checks fail: the lines above marked FAILS. A closed form is wrong, or the check is.")
    return 0


def _check(settings: Verify) -> None:
    if not settings.sparsities:
        raise InputError("--sparsities is empty. Give one at least.")
    for S in settings.sparsities:
        both_active = settings.samples * (1 - sparsity(S)) ** 2
        if both_active < _MIN_SAMPLES:  # the rarest case that the moments depend on: standard errors would be off
            raise InputError(
                f"--samples {settings.samples} are too few at S = {S:g}: {both_active:.0f} of them have two active "
                f"features, and {_MIN_SAMPLES} are needed. Give more samples or a lower S."
            )
    for eta in settings.label_noise:
        label_noise(eta)
    for epsilon in settings.input_noise:
        input_noise(epsilon)


class _Tally(NamedTuple):
    """How many checks there were, and how many of them failed."""

    total: int
    failed: int

    @property
    def held(self) -> int:
        """How many did not."""
        return self.total - self.failed


def _in_rationals() -> _Tally:
    print("Closed forms against integrals of the joint distribution, in exact rationals")
    count, wrong = 0, 0
    for S, eta, epsilon, name in product(_S_GRID, _ETA_GRID, _EPSILON_GRID, _NAMES):
        for quantity, closed, integral in _equalities(S, eta, epsilon, name):
            count += 1
            if closed != integral:
                wrong += 1
                print(f"  FAILS: S={S} eta={eta} epsilon={epsilon} {name} {quantity}: {closed} is not {integral}")
    print(
        f"  {count - wrong:,} of {count:,} equalities hold: {len(_S_GRID)} S in [0, 1), {len(_ETA_GRID)} eta in [0, 1],"
        f" {len(_EPSILON_GRID)} epsilon; means, variances, and the identity on v1 + v0\n"
    )
    return _Tally(count, wrong)


def _equalities(S: Fraction, eta: Fraction, epsilon: Fraction, name: str) -> Iterator[tuple[str, Any, Any]]:
    """``(quantity, closed form, integral)``."""
    a, b = weights_of(name)
    closed, integral = noisy_moments(S, name, eta, epsilon), joint_moments(S, (a, b), eta, epsilon)
    yield from zip(Moments._fields, closed, integral, strict=True)
    if epsilon == 0:
        yield "v1 + v0, identity", summed_variances(S, name, eta), integral.spread


def _by_monte_carlo(settings: Verify) -> _Tally:
    print(f"Closed forms against {settings.samples:,} random samples for each S, seed {settings.seed}")
    print(_CHECK_ROW.format("S", "eta", "eps", "h", "", "closed form", "estimate", "std. error", "z"))
    noises = [Noises(0, 0), *(Noises(eta, 0) for eta in settings.label_noise)]
    noises += [Noises(0, epsilon) for epsilon in settings.input_noise]
    if settings.label_noise and settings.input_noise:
        noises.append(Noises(settings.label_noise[-1], settings.input_noise[0]))
    checks = [check for index, S in enumerate(settings.sparsities) for check in _checks(S, noises, settings, index)]
    for check in checks:
        quantity = {"spread": "v1 + v0"}.get(check.quantity, check.quantity)
        numbers = (f"{check.closed:.6f}", f"{check.estimate:.6f}", f"{check.error:.2e}", f"{check.z:.2f}")
        row = _CHECK_ROW.format(check.S, *check.noise, check.representation, quantity, *numbers)
        print(row if check.holds else f"{row}  FAILS")
    wrong = sum(not check.holds for check in checks)
    largest = max(abs(check.z) for check in checks)
    print(
        f"  {len(checks) - wrong} of {len(checks)} within {_Z_LIMIT} standard errors; "
        f"the largest |z| is {largest:.2f}\n"
    )
    return _Tally(len(checks), wrong)


def _checks(S: float, noises: Sequence[Noises], settings: Verify, index: int) -> Iterator[Check]:
    names = {weights_of(name, S): name for name in _NAMES}
    seed = [settings.seed, index]  # other samples for each S
    for weights, noise, estimates in estimate_moments(S, list(names), noises, settings.samples, seed):
        name = names[weights]
        closed = noisy_moments(S, name, noise.eta, noise.epsilon)
        for quantity in _QUANTITIES:
            yield Check(S, noise, name, quantity, float(getattr(closed, quantity)), *getattr(estimates, quantity))


# Who leads, for which S.


def verdict_lines() -> Iterator[str]:
    """The tables of leaders and accuracies, and which theorems hold."""
    yield "Who leads as the noise grows: J of mono (h = x1) or J of poly? By criterion; v1, v0 are the variances"
    for name, criterion in CRITERIA.items():
        free = "the same for c h as for h, as a linear classifier is" if criterion.scale_free else ""
        yield f"  {name:20} J = {criterion.formula:27}{free}".rstrip()
    all_verdicts = {
        (poly, noise): {name: verdicts(name, noise, poly=poly) for name in CRITERIA}
        for poly in POLYS
        for noise in _NOISE_TITLES
    }
    for (poly, noise), by_criterion in all_verdicts.items():
        yield ""
        yield f"poly: {POLYS[poly]}; {_NOISE_TITLES[noise]}"
        yield from _leader_table(poly, noise, by_criterion)
    yield ""
    yield from _accuracy_table()
    yield ""
    for poly, title in POLYS.items():
        for claim in _claims(all_verdicts[poly, "label"], all_verdicts[poly, "input"]):
            yield from textwrap.wrap(f"With {title}: {claim}", _WIDTH, subsequent_indent="    ", break_on_hyphens=False)


def crossover_cell(crossover: Crossover) -> str:
    """The noise from which mono leads, or until which; ``never``, ``always``."""
    if not crossover.at:
        return {"mono": "always", "poly": "never"}.get(crossover.leaders[0], crossover.leaders[0])
    levels = [f"{float(level):.3g}" for level in crossover.at]
    if crossover.leaders[0] == "mono":
        return ", from ".join([f"until {levels[0]}", *levels[1:]])
    return " to ".join(levels)


def verdict_cell(verdicts: Sequence[Verdict]) -> str:
    """For which S who leads."""
    return "; ".join(
        f"{_range(verdict)}: {_LEADERS.get(verdict.leaders, ', then '.join(verdict.leaders))}" for verdict in verdicts
    )


def _leader_table(poly: str, noise: Noise, by_criterion: ByCriterion) -> Iterator[str]:
    yield _VERDICT_ROW.format("", "mono leads from this noise on", "", "", "").rstrip()
    yield _VERDICT_ROW.format("criterion", *(f"at S = {S}" for S in _TABLE_SPARSITIES), "for which S")
    for name, own_verdicts in by_criterion.items():
        cells = (crossover_cell(crossover(S, name, noise, poly=poly)) for S in _TABLE_SPARSITIES)
        yield _VERDICT_ROW.format(name, *cells, verdict_cell(own_verdicts))


def _accuracy_table() -> Iterator[str]:
    yield "Accuracy of the best threshold on h, %: mono, poly. Label noise below 1/2 leaves the best threshold as it is"
    yield _VERDICT_ROW.format("input noise, epsilon", *(f"at S = {S}" for S in _TABLE_SPARSITIES), "").rstrip()
    for epsilon in _TABLE_EPSILONS:
        pairs = ([100 * best_accuracy(float(S), name, epsilon) for name in ("mono", "poly")] for S in _TABLE_SPARSITIES)
        yield _VERDICT_ROW.format(epsilon, *(f"{mono:.1f}, {poly:.1f}" for mono, poly in pairs), "").rstrip()


def _claims(label: ByCriterion, noisy_input: ByCriterion) -> Iterator[str]:
    """For which criteria and S each of the paper's theorems holds."""
    yield _claim("theorem 4.1 (poly leads without noise)", label, lambda verdict: verdict.leaders[0] == "poly")
    yield _claim(
        "theorem 4.2 (mono overtakes poly under label noise)", label, lambda verdict: verdict.leaders == OVERTAKES
    )
    yield _claim("theorem B.9 (the same under input noise)", noisy_input, lambda verdict: verdict.leaders == OVERTAKES)


def _claim(claim: str, by_criterion: ByCriterion, holds: Callable[[Verdict], bool]) -> str:
    valid = {name: list(filter(holds, own_verdicts)) for name, own_verdicts in by_criterion.items()}
    everywhere = [name for name, own_verdicts in valid.items() if len(own_verdicts) == len(by_criterion[name])]
    somewhere = [
        f"{name} ({', '.join(map(_range, own_verdicts))})"
        for name, own_verdicts in valid.items()
        if own_verdicts and name not in everywhere
    ]
    nowhere = [name for name, own_verdicts in valid.items() if not own_verdicts]
    criteria = {"for every S under": everywhere, "for some S under": somewhere, "for no S under": nowhere}
    scope = "; ".join(f"{extent} {', '.join(names)}" for extent, names in criteria.items() if names)
    return f"{claim} holds {scope}."


def _range(verdict: Verdict) -> str:
    low, high = float(verdict.low), float(verdict.high)
    if low == 0 and high == 1:
        return "every S"
    if low == 0:
        return f"S < {high:.4f}"
    return f"S > {low:.4f}" if high == 1 else f"{low:.4f} < S < {high:.4f}"


# How fast J falls.


def slope_lines() -> Iterator[str]:
    """A table by criterion: in how many cases of a grid mono's J falls by less than poly's."""
    yield "How much J has fallen, against no noise, on a grid of S and noise: is it less for mono?"
    yield _SLOPE_ROW.format("criterion", "label noise", "input noise")
    for name in CRITERIA:
        yield _SLOPE_ROW.format(name, *(slope_cell(name, noise) for noise in _SLOPE_LEVELS))


def slope_cell(criterion: str, noise: Noise) -> str:
    """Whether both J always fall, and in how many cases mono's falls by less."""
    falls, less = [], []
    for S in _S_GRID:
        mono, poly = (_j_values(S, name, criterion, noise) for name in (MONO, POLY))
        falls += [before > after for values in (mono, poly) for before, after in pairwise(values)]
        less += [mono[0] - ours < poly[0] - theirs for ours, theirs in zip(mono[1:], poly[1:], strict=True)]
    if not all(falls):
        return "it does not always fall"
    if all(less):
        return "always"
    return f"in {sum(less)} of {len(less)} cases" if any(less) else "never"


def _j_values(S: Fraction, name: str, criterion: str, noise: Noise) -> list[Fraction]:
    """J without noise, and at each level."""
    return [separability(S, name, criterion, **_noisy(noise, level)) for level in (Fraction(0), *_SLOPE_LEVELS[noise])]


def _noisy(noise: Noise, level: Fraction) -> dict[str, Fraction]:
    return {"eta": level} if noise == "label" else {"epsilon": level}


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
