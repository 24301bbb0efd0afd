"""The paper's Figures 1 to 4 and 6, and Table 1 as a figure, from what the steps have left.

    monolora vision figures --config recipes/vision/configs/cifar100-small.yaml

Writes OUT/figures/*.png and *.svg. A figure whose numbers are not there yet is left out, and said.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure

from monolora.errors import InputError, exit_status
from monolora.recipes.vision import feature_plots, robustness_plots
from monolora.recipes.vision.command_line import parse
from monolora.recipes.vision.figure_data import Material, NotThereError
from monolora.recipes.vision.images import Images, load_images
from monolora.recipes.vision.paper_comparison import compared
from monolora.recipes.vision.results import Consistent, gather
from monolora.recipes.vision.settings import Settings
from monolora.reporting import plots
from monolora.reporting.plots import save_figure

FIGURES: Mapping[str, Callable[[Material], Figure]] = {
    "fig-table1": robustness_plots.fig_table1,
    "fig1a": feature_plots.fig1a,
    "fig1b": feature_plots.fig1b,
    "fig2": robustness_plots.fig2,
    "fig3": robustness_plots.fig3,
    "fig3-curves": robustness_plots.fig3_curves,
    "fig4ab": feature_plots.fig4_images,
    "fig4c": feature_plots.fig4c,
    "fig6": robustness_plots.fig6,
}


def run(settings: Settings) -> None:
    """Draw what can be drawn.

    Raises:
        InputError: if nothing can.
        SaveError: if the disk does not take a figure.
    """
    out = Path(settings.common.out)
    runs = gather(out)
    material = Material(runs, compared(runs, settings.data), _pictures(settings))
    drawn = 0
    for name, draw in FIGURES.items():
        with matplotlib.rc_context(plots.SETTINGS):
            try:
                figure = draw(material)
            except NotThereError as missing:
                print(f"{name}: not drawn: {missing}", flush=True)
                continue
            paths = save_figure(figure, out / "figures", name)
        drawn += 1
        print(f"{name}: {', '.join(map(str, paths))}", flush=True)
    if not drawn:
        raise InputError(f"{out} has nothing to draw yet. Run the steps first: monolora vision all --out {out}.")


def _pictures(settings: Settings) -> Callable[[Consistent], Images]:
    """Validation images, loaded when first asked for."""

    @functools.cache
    def load() -> Images:
        return load_images(settings.data, torch.device("cpu")).val

    def pictures(of: Consistent) -> Images:
        try:
            images = load()
        except InputError as error:
            raise NotThereError(f"its images are not there: {error}") from error
        if not any(images.fingerprint in each for each in of.inputs.values()):
            raise NotThereError(
                f"consistency was measured on other images than {settings.data.dataset}'s; give the runs' --config"
            )
        return images

    return pictures


def main(argv: list[str]) -> int:
    """Run the program."""
    run(parse(argv, "figures", __doc__))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
