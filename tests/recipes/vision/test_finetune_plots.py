"""The figures of the finetuned encoders show what the records say."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def line(axes: Axes, label: str) -> tuple[list[float], list[float]]:
    (match,) = [line for line in axes.lines if line.get_label() == label]
    return list(match.get_xdata()), list(match.get_ydata())


def finetuned(results: dict[str, Any], objective: str, fraction: float, rate: float, kind: str) -> np.ndarray:
    """Draws by epochs, in %."""
    return 100 * np.array(
        [
            run[f"{kind}_accuracy"]
            for run in results["runs"]
            if (run["objective"], run["fraction"], run["noise_rate"]) == (objective, fraction, rate)
        ]
    )


def test_figure_3_has_the_last_epoch(
    figure_of: Callable[..., Figure], results: Callable[[str], dict[str, Any]]
) -> None:
    train, val, noisy = figure_of("fig3", seeds=(0, 1)).axes
    of_seeds = [results(f"finetune/{seed}") for seed in (0, 1)]
    for objective in ("ce", "nce"):

        def last(fraction: float, rate: float, kind: str, objective: str = objective) -> float:
            return fmean(finetuned(own, objective, fraction, rate, kind)[:, -1].mean() for own in of_seeds)

        shares, rates = (0.1, 0.2, 0.5, 1.0), (0.0, 0.2, 0.4, 0.6, 0.8)
        for axes, kind in ((train, "train"), (val, "val")):
            xs, ys = line(axes, objective.upper())
            assert xs == pytest.approx([10, 20, 50, 100])
            assert ys == pytest.approx([last(share, 0.0, kind) for share in shares])
        assert line(noisy, objective.upper())[1] == pytest.approx([last(1.0, rate, "val") for rate in rates])


def test_figure_3_curves_have_every_epoch(
    figure_of: Callable[..., Figure], results: Callable[[str], dict[str, Any]]
) -> None:
    figure = figure_of("fig3-curves")
    conditions = {"10 % of the images": (0.1, 0.0), "80 % wrong labels": (1.0, 0.8)}
    assert len(figure.axes) == 8
    for axes in figure.axes:
        if axes.get_title("left") in conditions:
            condition = conditions.pop(axes.get_title("left"))
            validation, training = (
                finetuned(results("finetune/0"), "nce", *condition, kind).mean(0) for kind in ("val", "train")
            )
            assert line(axes, "NCE") == (list(range(1, 13)), pytest.approx(validation))
            labels = [drawn.get_label() for drawn in axes.lines]
            dashed = axes.lines[labels.index("NCE") + 1]  # training follows validation, without a label
            assert dashed.get_label() not in ("CE", "NCE")
            assert list(dashed.get_ydata()) == pytest.approx(training)
    assert not conditions
