"""Check the theory of section 4.3 and appendix B, and say what it implies.

    monolora superposition verify

1. Every closed form against integrals of the joint distribution, in exact rationals on a grid of S and both noises.
2. Every closed form against random samples: closed form, estimate, standard error, z. |z| must stay below 4.
3. For each criterion J: who leads at which label noise and input noise, for which S, and so what theorems 4.1, 4.2 and
   B.9 come to.

Exit status 1 if a closed form fails.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Any, NamedTuple

from monolora.errors import InputError, RunError, exit_status
from monolora.flags import FlagParser, numbers, setting
from monolora.recipes.superposition import slope_table, verdict_table
from monolora.recipes.superposition.settings import MONO, POLY
from monolora.recipes.superposition.theory.arithmetic import input_noise, label_noise, sparsity, weights_of
from monolora.recipes.superposition.theory.joint import joint_moments
from monolora.recipes.superposition.theory.moments import Moments, noisy_moments, summed_variances
from monolora.recipes.superposition.theory.monte_carlo import Noises, estimate_moments

PAPERS = (MONO, POLY)
Z_LIMIT = 4
_LEAST = 200
_ROW = "  {:>5} {:>5} {:>5}  {:5} {:8} {:>12} {:>12} {:>11} {:>6}"
QUANTITIES = ("mu1", "mu0", "v1", "v0", "spread")

_S_GRID = tuple(Fraction(n, 20) for n in range(20))
_ETA_GRID = tuple(Fraction(n, 20) for n in range(21))
_EPSILON_GRID = (Fraction(0), Fraction(1, 3), Fraction(1), Fraction(5, 2))


@dataclass(frozen=True, kw_only=True)
class Verify:
    """The settings; each field is a flag."""

    samples: int = setting(4_000_000, "of Monte Carlo, for each S", type=int)
    seed: int = setting(0, "of Monte Carlo", type=int)
    sparsities: tuple[float, ...] = setting((0.0, 0.25, 0.5, 0.75, 0.95), "S of Monte Carlo", type=numbers)
    label_noise: tuple[float, ...] = setting((0.1, 0.25, 0.4), "shares of wrong labels, of Monte Carlo", type=numbers)
    input_noise: tuple[float, ...] = setting((0.5, 1.0), "standard deviations, of Monte Carlo", type=numbers)


class Check(NamedTuple):
    """A closed form beside its estimate."""

    S: float
    noise: Noises
    representation: str
    quantity: str
    closed: float
    estimate: float
    error: float

    @property
    def z(self) -> float:
        """How many standard errors the estimate is off."""
        return (self.estimate - self.closed) / self.error

    @property
    def holds(self) -> bool:
        """Whether that is little enough; False where it is no number."""
        return abs(self.z) < Z_LIMIT


def main(argv: list[str]) -> int:
    """Run the program.

    Raises:
        RunError: if a closed form fails.
    """
    settings = FlagParser("monolora superposition verify", __doc__).parse_into(argv, Verify)
    _check(settings)
    wrong = _in_rationals() + _by_monte_carlo(settings)
    for line in (*verdict_table.lines(), "", *slope_table.lines()):
        print(line)
    if wrong:
        raise RunError(f"{wrong:,} checks fail: the lines above marked FAILS. A closed form is wrong, or the check is.")
    return 0


def _check(settings: Verify) -> None:
    if settings.seed < 0:
        raise InputError(f"--seed must be 0 or more, got {settings.seed}.")
    if not settings.sparsities:
        raise InputError("--sparsities is empty. Give one at least.")
    for S in settings.sparsities:
        both_active = settings.samples * (1 - sparsity(S)) ** 2
        if both_active < _LEAST:  # the rarest of what the moments are made of: no standard errors from less
            raise InputError(
                f"--samples {settings.samples} are too few at S = {S:g}: {both_active:.0f} of them have two active "
                f"features, and {_LEAST} are needed. Give more samples or a lower S."
            )
    for eta in settings.label_noise:
        label_noise(eta)
    for epsilon in settings.input_noise:
        input_noise(epsilon)


def _in_rationals() -> int:
    """How many equalities fail."""
    print("Closed forms against integrals of the joint distribution, in exact rationals")
    count, wrong = 0, 0
    for S, eta, epsilon, name in product(_S_GRID, _ETA_GRID, _EPSILON_GRID, PAPERS):
        for quantity, closed, integral in _equalities(S, eta, epsilon, name):
            count += 1
            if closed != integral:
                wrong += 1
                print(f"  FAILS: S={S} eta={eta} epsilon={epsilon} {name} {quantity}: {closed} is not {integral}")
    print(
        f"  {count - wrong:,} of {count:,} equalities hold: {len(_S_GRID)} S in [0, 1), {len(_ETA_GRID)} eta in [0, 1],"
        f" {len(_EPSILON_GRID)} epsilon; means, variances, and the identity on v1 + v0\n"
    )
    return wrong


def _equalities(S: Fraction, eta: Fraction, epsilon: Fraction, name: str) -> Iterator[tuple[str, Any, Any]]:
    """``(quantity, closed form, integral)``."""
    a, b = weights_of(name)
    closed, integral = noisy_moments(S, name, eta, epsilon), joint_moments(S, (a, b), eta, epsilon)
    yield from zip(Moments._fields, closed, integral, strict=True)
    if epsilon == 0:
        yield "v1 + v0, identity", summed_variances(S, name, eta), integral.spread


def _by_monte_carlo(settings: Verify) -> int:
    """How many estimates are too far off."""
    print(f"Closed forms against {settings.samples:,} random samples for each S, seed {settings.seed}")
    print(_ROW.format("S", "eta", "eps", "h", "", "closed form", "estimate", "std. error", "z"))
    noises = [Noises(0, 0), *(Noises(eta, 0) for eta in settings.label_noise)]
    noises += [Noises(0, epsilon) for epsilon in settings.input_noise]
    if settings.label_noise and settings.input_noise:
        noises.append(Noises(settings.label_noise[-1], settings.input_noise[0]))
    checks = [check for place, S in enumerate(settings.sparsities) for check in _checks(S, noises, settings, place)]
    for each in checks:
        quantity = {"spread": "v1 + v0"}.get(each.quantity, each.quantity)
        shown = (f"{each.closed:.6f}", f"{each.estimate:.6f}", f"{each.error:.2e}", f"{each.z:.2f}")
        row = _ROW.format(each.S, *each.noise, each.representation, quantity, *shown)
        print(row if each.holds else f"{row}  FAILS")
    wrong = sum(not each.holds for each in checks)
    largest = max(abs(each.z) for each in checks)
    print(
        f"  {len(checks) - wrong} of {len(checks)} within {Z_LIMIT} standard errors; the largest |z| is {largest:.2f}\n"
    )
    return wrong


def _checks(S: float, noises: Sequence[Noises], settings: Verify, place: int) -> Iterator[Check]:
    names = {weights_of(name, S): name for name in PAPERS}
    seed = [settings.seed, place]
    for weights, noise, found in estimate_moments(S, list(names), noises, settings.samples, seed):
        name = names[weights]
        closed = noisy_moments(S, name, noise.eta, noise.epsilon)
        for quantity in QUANTITIES:
            yield Check(S, noise, name, quantity, float(getattr(closed, quantity)), *getattr(found, quantity))


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
