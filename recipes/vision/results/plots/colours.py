"""The colour and the marker of a representation, in all figures."""

from __future__ import annotations

from collections.abc import Mapping

# Told apart with any colour vision, by lightness too; dark enough for names on white.
COLOURS: Mapping[str, str] = {"simclr": "#4c6285", "sae": "#1b9e77", "ncl": "#d9730d"}
MARKERS: Mapping[str, str] = {"simclr": "o", "sae": "s", "ncl": "^"}
