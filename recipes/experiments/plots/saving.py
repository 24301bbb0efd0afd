"""Figures as files."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from monolora.errors import SaveError


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write NAME.png and NAME.svg; the same figure gives the same bytes.

    Raises:
        SaveError: if the disk does not take them.
    """
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(paths[0], dpi=150)
        figure.savefig(paths[1], metadata={"Date": None})
    except OSError as error:
        raise SaveError.of(folder, error, "Free space, then give the same command again.") from error
    return paths
