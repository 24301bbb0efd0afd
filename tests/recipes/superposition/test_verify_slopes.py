"""How fast J falls, against a scan in floats."""

from __future__ import annotations

import numpy as np
import pytest

from monolora.recipes.superposition import verify
from monolora.recipes.superposition.theory.crossings import CRITERIA, Noise, separability


@pytest.mark.parametrize("noise", ["label", "input"])
@pytest.mark.parametrize("name", CRITERIA)
def test_against_a_scan(name: str, noise: Noise) -> None:
    S, level = np.meshgrid(np.arange(20) / 20, np.arange(1, 10) / 20 if noise == "label" else np.arange(1, 11) / 5)
    noisy = {"eta": level} if noise == "label" else {"epsilon": level}
    mono, poly = (separability(S, h, name) - separability(S, h, name, **noisy) for h in ("mono", "poly"))
    assert (mono > 0).all()
    assert (poly > 0).all()
    less = int((mono < poly).sum())
    cell = verify.slope_cell(name, noise)
    assert cell == ({0: "never", less: f"in {less} of {S.size} cases"} | {S.size: "always"})[less]


def test_a_line_for_each_criterion() -> None:
    lines = list(verify.slope_lines())
    assert [line.split()[0] for line in lines[2:]] == list(CRITERIA)
