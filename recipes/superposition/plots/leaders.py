"""Who leads at which sparsity and which noise, for each criterion."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from monolora.recipes.experiments.plots.style import titled
from monolora.recipes.superposition.plots.colours import COLOURS
from monolora.recipes.superposition.settings import MONO, POLY
from monolora.recipes.superposition.theory.arithmetic import SAME_LENGTH
from monolora.recipes.superposition.theory.criteria import CRITERIA, separability
from monolora.recipes.superposition.theory.crossing import Noise

_CELLS = 160
_COLUMNS: Mapping[tuple[Noise, str], str] = {
    ("label", "poly"): "label noise\npoly is x₁ − x₂",
    ("input", "poly"): "input noise\npoly is x₁ − x₂",
    ("label", SAME_LENGTH): "label noise\npoly is (x₁ − x₂)/√2",
    ("input", SAME_LENGTH): "input noise\npoly is (x₁ − x₂)/√2",
}
_ENDS: Mapping[Noise, float] = {"label": 0.5, "input": 1.0}


def draw() -> Figure:
    """A row for each criterion, a column for each noise and each length of poly's weights."""
    figure = titled(
        "Which representation is more separable? It depends on the criterion",
        "The sign of J(mono) − J(poly) at each sparsity S (upwards) and noise (to the right), from the closed forms. "
        "Mono overtakes poly where blue turns to orange on the way to the right. In the columns on the right poly's "
        "weights are as long as mono's; to a linear classifier it is the same representation. Criteria with * do not "
        "change with the scale of h.",
        9.0,
        10.6,
    )
    grid = figure.subplots(len(CRITERIA), len(_COLUMNS), sharex="col", sharey=True)
    for row, (panels, name) in enumerate(zip(grid, CRITERIA, strict=True)):
        for axes, ((noise, poly), title) in zip(panels, _COLUMNS.items(), strict=True):
            _panel(axes, name, noise, poly)
            if row == 0:
                axes.set_title(title, fontsize=8.5)
        star = "*" if CRITERIA[name].scale_free else ""
        panels[0].set_ylabel(f"{name}{star}\n\nS", fontsize=8)
    for axes, (noise, _) in zip(grid[-1], _COLUMNS, strict=True):
        axes.set_xlabel("η" if noise == "label" else "ε")
    swatches = [Patch(color=COLOURS[name], label=f"{name} leads") for name in (MONO, POLY)]
    figure.legend(handles=swatches, loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    return figure


def _panel(axes: Axes, name: str, noise: Noise, poly: str) -> None:
    end = _ENDS[noise]
    # middles of cells: at eta = 1/2 itself both gaps are zero
    xs, sparsities = ((np.arange(_CELLS) + 0.5) / _CELLS * high for high in (end, 1.0))
    S_SX, x_SX = np.meshgrid(sparsities, xs, indexing="ij")
    both = {"eta": x_SX} if noise == "label" else {"epsilon": x_SX}
    lead_SX = separability(S_SX, MONO, name, **both) - separability(S_SX, poly, name, **both)
    axes.imshow(
        lead_SX > 0, origin="lower", extent=(0, end, 0, 1), aspect="auto", interpolation="nearest",
        cmap=ListedColormap([COLOURS[POLY], COLOURS[MONO]]), vmin=0, vmax=1,
    )  # fmt: skip
    axes.grid(False)
