"""What the table knows of a model."""

from __future__ import annotations

from typing import NamedTuple


class Model(NamedTuple):
    """A row of the table.

    Attributes:
        name: as people call it; distinct within a run.
        kind: ``base``, ``adapter`` (on the base) or ``model`` (whole, finetuned elsewhere).
        path: as the user gave it.
        step: of training, for checkpoints along one run, else None.
        notes: what a reader of its row must know.
    """

    name: str
    kind: str
    path: str | None = None
    step: int | None = None
    notes: tuple[str, ...] = ()
