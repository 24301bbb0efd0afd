"""Draw the paper's Figures 1 to 4 and 6, and Table 1 as a figure, from the records of the other steps.

    monolora vision figures --config recipes/vision/configs/cifar100-small.yaml

Writes OUT/figures/*.png and *.svg. A figure whose numbers are missing is left out, and the reason is printed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from monolora.errors import InputError, exit_status
from monolora.recipes.vision import feature_plots, finetune_plots, probe_plots
from monolora.recipes.vision.figure_data import FigureData, MissingDataError, load_figure_data
from monolora.recipes.vision.settings import Settings, parse
from monolora.reporting import plots
from monolora.reporting.plots import save_figure

FIGURES: Mapping[str, Callable[[FigureData], Figure]] = {
    "fig-table1": probe_plots.fig_table1,
    "fig1a": feature_plots.fig1a,
    "fig1b": probe_plots.fig1b,
    "fig2": probe_plots.fig2,
    "fig3": finetune_plots.fig3,
    "fig3-curves": finetune_plots.fig3_curves,
    "fig4ab": feature_plots.fig4ab,
    "fig4c": feature_plots.fig4c,
    "fig6": probe_plots.fig6,
}


def run(settings: Settings) -> None:
    """Draw every figure that has its data.

    Raises:
        InputError: if none has.
        SaveError: if the disk does not take a figure.
    """
    out = Path(settings.common.out)
    data = load_figure_data(settings)
    drawn = 0
    for name, draw in FIGURES.items():
        with matplotlib.rc_context(plots.SETTINGS):
            try:
                figure = draw(data)
            except MissingDataError as missing:
                print(f"{name}: not drawn: {missing}", flush=True)
                continue
            paths = save_figure(figure, out / "figures", name)
        drawn += 1
        print(f"{name}: {', '.join(map(str, paths))}", flush=True)
    if not drawn:
        raise InputError(f"{out} has nothing to draw yet. Run the steps first: monolora vision all --out {out}.")


def main(argv: list[str]) -> int:
    """Run the program."""
    run(parse(argv, "figures", __doc__))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
