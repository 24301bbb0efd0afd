"""``monolora superposition verify`` holds, and finds what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from monolora import cli
from monolora.recipes.superposition import verify
from monolora.recipes.superposition.theory.moments import Moments

QUICK = ["--samples", "40000", "--sparsities", "0.5,0.9"]


@pytest.fixture
def _few_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the weights of the same length, whose square roots take time; a coarser grid of S."""
    monkeypatch.setattr(verify, "POLYS", {"poly": verify.POLYS["poly"]})
    monkeypatch.setattr(verify, "_S_GRID", verify._S_GRID[::5])


def run(*flags: str) -> int:
    return cli.main(["superposition", "verify", *flags])


@pytest.mark.slow
def test_at_four_million_samples(capsys: pytest.CaptureFixture[str]) -> None:
    """The default: every closed form, |z| < 4."""
    assert run() == 0
    out = capsys.readouterr().out
    assert "14,280 of 14,280 equalities hold" in out
    assert "4,000,000 random samples" in out
    assert "350 of 350 within 4 standard errors" in out
    assert "FAILS" not in out
    assert out.splitlines()[-1] == (
        "Summary: 14,280 of 14,280 equalities hold in exact rationals, and 350 of 350 estimates agree with the closed "
        "forms."
    )
    assert "as long as mono's: theorem 4.2 (mono overtakes poly under label noise) holds for\n    no S" in out


@pytest.mark.usefixtures("_few_verdicts")
def test_what_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*QUICK) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines() if line.startswith(("    0.5 ", "    0.9 "))]
    assert len(rows) == 2 * 2 * 7 * 5  # S, mono and poly, noises, quantities
    for row in rows:
        closed, estimate, error, z = map(float, row[-4:])
        assert z == pytest.approx((estimate - closed) / error, abs=0.05 + 1e-6 / error)
        assert abs(z) < 4
    crossing = next(line for line in out.splitlines() if line.startswith("  difference  ") and "MONO" in line)
    assert crossing.split()[1:4] == ["0.293", "0.25", "0.196"]


@pytest.mark.usefixtures("_few_verdicts")
@pytest.mark.parametrize(
    "spoil",
    [
        lambda moments: moments._replace(v0=moments.v0 + 0.03),
        lambda moments: moments._replace(mu1=moments.mu1 * 1.05),
        lambda moments: moments._replace(v1=float("nan")),
    ],
)
def test_a_wrong_formula_is_found(
    spoil: Callable[[Moments], Moments], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = verify.noisy_moments

    def wrong(S: Any, representation: Any, eta: Any = 0, epsilon: Any = 0) -> Moments:
        moments = right(S, representation, eta, epsilon)
        return spoil(moments) if representation == "mono" else moments

    monkeypatch.setattr(verify, "noisy_moments", wrong)
    assert run(*QUICK) == 1
    shown = capsys.readouterr()
    failed = [line for line in shown.out.splitlines() if "FAILS" in line]
    assert any(line.startswith("  FAILS: S=") for line in failed)  # in rationals
    assert any(line.endswith("  FAILS") for line in failed)  # by samples
    assert all("mono" in line for line in failed)
    assert f"error: {len(failed):,} checks fail" in shown.err


@pytest.mark.usefixtures("_few_verdicts")
def test_a_wrong_identity_is_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(verify, "summed_variances", lambda *_: 0)
    assert run(*QUICK) == 1
    assert "v1 + v0, identity" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--samples", "10"], "--samples 10 are too few at S = 0"),
        (["--sparsities", "0.5,0.995"], "100 of them have two active features, and 200 are needed"),
        (["--seed", "-1"], "--seed must be at least 0, got -1"),
        (["--sparsities", "1"], "sparsity S must be"),
        (["--sparsities", ""], "--sparsities is empty"),
        (["--label-noise", "1.5"], "label noise must be"),
        (["--input-noise", "-1"], "input noise must be"),
        (["--sample", "5"], "Did you mean --samples"),
    ],
)
def test_bad_input(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*flags) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""
