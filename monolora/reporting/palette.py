"""The project's colours for series, of pages and figures; grey stands for the base.

The first five are apart with every kind of colour vision (at least 11 in CIELAB under Machado et al. 2009), and all
marks have their names beside them.
"""

from __future__ import annotations

from collections.abc import Sequence

LIGHT = (
    "#5f6873",
    "#1769aa",
    "#d2600f",
    "#0a9b78",
    "#c4699f",
    "#8a6a00",
    "#3b97d6",
    "#7a4fc0",
    "#6d8f1f",
    "#b3262e",
    "#00818f",
)
DARK = (
    "#98a2ad",
    "#5aa5ee",
    "#f08a4b",
    "#35cfa6",
    "#f3a0cf",
    "#dcb13c",
    "#8fdcff",
    "#b79bff",
    "#a9c75a",
    "#ff8080",
    "#55d6e2",
)
SERIES = len(LIGHT) - 1  # without the base's grey


def colour_name(index: int | None) -> str:
    """The class of a series in a page's style sheet, by its index; of the base for None. They repeat after the last."""
    return "c0" if index is None else f"c{index % SERIES + 1}"


def style() -> str:
    """The colours as CSS: ``--c0`` to ``--c10``, and a class for each, which sets ``--tint``."""
    classes = "\n".join(f".c{k} {{ --tint: var(--c{k}); }}" for k in range(len(LIGHT)))
    return (
        f":root {{ {_variables(LIGHT)} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}\n{classes}\n"
    )


def _variables(colours: Sequence[str]) -> str:
    return " ".join(f"--c{k}: {colour};" for k, colour in enumerate(colours))
