"""Colours of series can be told apart with every kind of colour vision, and seen on their page."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from monolora.reporting.palette import DARK, LIGHT, SERIES, colour_name, style

FIRST = 5  # with the base's grey: most comparisons have no more
# Linear RGB as people without one kind of cone see it (Machado et al. 2009, severity 1).
VISION = {
    "usual": np.eye(3),
    "deuteranopia": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "protanopia": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    "tritanopia": np.array([[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]),
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = np.array([0.95047, 1.0, 1.08883])


def _linear(colour: str) -> np.ndarray:
    values = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _lab(linear: np.ndarray) -> np.ndarray:
    xyz = TO_XYZ @ np.clip(linear, 0, 1) / WHITE
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_the_first_colours_are_apart(colours: tuple[str, ...], vision: str) -> None:
    seen = [_lab(VISION[vision] @ _linear(colour)) for colour in colours[:FIRST]]
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 11


@pytest.mark.parametrize(("colours", "page"), [(LIGHT, "#ffffff"), (DARK, "#14171b")], ids=["light", "dark"])
def test_marks_are_seen_on_their_page(colours: tuple[str, ...], page: str) -> None:
    """WCAG 2 asks 3 of graphics."""
    back = _linear(page) @ TO_XYZ[1]
    for colour in colours:
        low, high = sorted((back, _linear(colour) @ TO_XYZ[1]))
        assert (high + 0.05) / (low + 0.05) >= 3, colour


def test_every_series_has_a_class() -> None:
    assert [colour_name(index) for index in (None, 0, 1, SERIES - 1, SERIES)] == ["c0", "c1", "c2", f"c{SERIES}", "c1"]
    assert all(f".c{k} {{ --tint: var(--c{k}); }}" in style() for k in range(SERIES + 1))
    assert style().count(LIGHT[1]) == style().count(DARK[1]) == 1
