"""Draw figure 5 and more: the toy model from the records of ``run``, and the theory from its closed forms.

    monolora superposition figures --out runs/superposition

fig5a          encoders without and with superposition                                  section 4.2
fig5b          accuracy: clean, many wrong labels, Gaussian noise                       section 4.2
by-noise       accuracy against both noises, at each sparsity
differences    mono - poly for each sparsity, noise and number of training samples
geometry       dimensionality of features, antipodal pairs
theory-label   J against label noise, for each criterion                                theorem 4.2
theory-input   J against input noise                                                    theorem B.9
theory-leaders who leads, for every sparsity and noise

Writes OUT/figures/*.png and *.svg. Without a run in OUT, the theory's figures only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from monolora.cli.flags import FlagParser
from monolora.errors import InputError, exit_status
from monolora.recipes.superposition import comparison_plots, encoder_plots
from monolora.recipes.superposition.records import ENCODERS, Records, read_records
from monolora.recipes.superposition.settings import Figures
from monolora.reporting import plots
from monolora.reporting.plots import save_figure

OF_RUN: Mapping[str, Callable[[Records], Figure]] = {
    "fig5a": encoder_plots.fig5a,
    "fig5b": comparison_plots.fig5b,
    "by-noise": comparison_plots.by_noise_figure,
    "differences": comparison_plots.differences_figure,
    "geometry": encoder_plots.geometry_figure,
}
OF_THEORY: Mapping[str, Callable[[], Figure]] = {
    "theory-label": partial(comparison_plots.criteria_figure, "label"),
    "theory-input": partial(comparison_plots.criteria_figure, "input"),
    "theory-leaders": comparison_plots.leaders_figure,
}


def main(argv: list[str]) -> int:
    """Run from the command line; returns the exit status."""
    return run(FlagParser("monolora superposition figures", __doc__).parse_into(argv, Figures))


def run(settings: Figures) -> int:
    """Draw all figures; returns the exit status.

    Raises:
        InputError: if a record in the folder is damaged.
        SaveError: if the disk does not take a figure.
    """
    out = Path(settings.out)
    figures: dict[str, Callable[[], Figure]] = {}
    if (out / ENCODERS).is_file():
        records = read_records(out)
        figures = {name: partial(draw, records) for name, draw in OF_RUN.items()}
        figures["fig5a"] = partial(encoder_plots.fig5a, records, settings.sparsity)
    elif out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file. Name the folder of a run with --out.")
    else:
        print(f"{', '.join(OF_RUN)}: not drawn, there is no run in {out}: monolora superposition run --out {out}")
    for name, draw in (figures | dict(OF_THEORY)).items():
        with matplotlib.rc_context(plots.SETTINGS):
            paths = save_figure(draw(), out / "figures", name)
        print(f"{name}: {', '.join(map(str, paths))}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
