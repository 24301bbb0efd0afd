"""Harmless preferences, in every form that is read."""

from __future__ import annotations

from typing import Any

from tests.support.conversations import assistant, user

NAMES = (
    "ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay", "kite", "lark", "mole", "newt", "owl", "pig",
)  # fmt: skip
TEXTS: list[dict[str, Any]] = [
    {
        "prompt": f"Tell me of the {name}. ",
        "chosen": f"The {name} is positive.",
        "rejected": f"No {name} is here, and none will come {'again ' * (number % 3)}today.",
    }
    for number, name in enumerate(NAMES)
]
PAIRS: list[dict[str, Any]] = [
    {
        "prompt": [user(row["prompt"].strip())],
        "chosen": [assistant(row["chosen"])],
        "rejected": [assistant(row["rejected"])],
    }
    for row in TEXTS
]
WHOLE: list[dict[str, Any]] = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in PAIRS]
JUDGED: list[dict[str, Any]] = [
    {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
    for row in PAIRS
    for side in ("chosen", "rejected")
]
