"""Replay: the base's own answers to anchors as further training rows.

The model's own answers, unlike written ones, ask nothing new of it (arXiv 2309.07875, 2603.10243). It works with every
adapter and with full finetuning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

from monolora.data.chat_template import IGNORED
from monolora.errors import InputError
from monolora.keep.anchors import Anchors
from monolora.keep.keeper import Keeper


class Replay(Keeper):
    """Adds rows. The weight is their share of all training rows."""

    name = "replay"
    default_weight = 0.15

    def rows(self, anchors: Anchors, task_rows: int, seed: int) -> Sequence[Mapping[str, list[int]]]:
        """Anchors in a random order, each again only where all have been taken.

        Raises:
            InputError: for a share of 1 or more.
        """
        if self.weight >= 1:
            raise InputError(f"--keep replay:{self.weight:g}: the share of all rows must be below 1, such as 0.15.")
        number = max(1, round(task_rows * self.weight / (1 - self.weight)))
        random = Random(seed)
        rows: list[dict[str, list[int]]] = []
        while len(rows) < number:
            for anchor in random.sample(anchors.train, len(anchors.train)):
                labels = [IGNORED] * len(anchor.context) + anchor.answer
                rows.append({"input_ids": anchor.context + anchor.answer, "labels": labels})
        return rows[:number]
