"""Data inside a page: JSON that no text in it can break out of."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from markupsafe import Markup


def script_json(value: Any) -> Markup:
    """JSON that may stand inside a ``<script>``: without ``<`` no markup can end it, and without raw line separators
    (only ASCII is left) it is the same text to every parser.
    """
    return Markup(json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", r"\u003c"))


def script_lines(values: Iterable[Any]) -> Markup:
    """One line of :func:`script_json` a value, so that a script can read one of many without the others."""
    return Markup("\n").join(map(script_json, values))
