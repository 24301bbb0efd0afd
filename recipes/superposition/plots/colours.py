"""The colour, the marker and the words of an encoder, in all figures."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.colors import LinearSegmentedColormap

from monolora.recipes.superposition.settings import MONO, POLY

# Told apart with any colour vision, by lightness too; dark enough for names on white.
COLOURS: Mapping[str, str] = {MONO: "#d9730d", POLY: "#4c6285"}
MARKERS: Mapping[str, str] = {MONO: "^", POLY: "o"}
WORDS: Mapping[str, str] = {MONO: "without superposition", POLY: "with superposition"}
WHO = "mono: the encoder trained at S = 0, without superposition; poly: the one trained at the data's own S."

# Of differences mono - poly: paler colours of who is ahead, for numbers to be read on them.
AHEAD = LinearSegmentedColormap.from_list("ahead", ["#8aa0c4", "#ffffff", "#f0a35e"])
