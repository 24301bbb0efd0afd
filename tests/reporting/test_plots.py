"""Labels at the ends of lines: near their lines, in order, and apart."""

from __future__ import annotations

import numpy as np
import pytest

from monolora.reporting.plots import _apart


@pytest.mark.parametrize(
    ("wanted", "positions"),
    [
        ([0.1, 0.5, 0.9], [0.1, 0.5, 0.9]),
        ([0.52, 0.5], [0.56, 0.46]),
        ([0.5, 0.5, 0.5], [0.4, 0.5, 0.6]),
        ([0.30, 0.38, 0.44], [0.273333, 0.373333, 0.473333]),
    ],
)
def test_labels_keep_their_distance_and_order(wanted: list[float], positions: list[float]) -> None:
    assert _apart(np.array(wanted), 0.1) == pytest.approx(positions, abs=1e-6)
