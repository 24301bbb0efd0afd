"""The colour and the marker of a representation, in all figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from monolora.recipes.vision.images import Images
from monolora.recipes.vision.paper_comparison import Compared
from monolora.recipes.vision.results import ORDER, Consistent, Gathered

# Told apart with any colour vision, by lightness too; dark enough for names on white.
COLOURS: Mapping[str, str] = {"simclr": "#4c6285", "sae": "#1b9e77", "ncl": "#d9730d"}
MARKERS: Mapping[str, str] = {"simclr": "o", "sae": "s", "ncl": "^"}


class NotThereError(Exception):
    """A figure cannot be drawn; the message says what is missing and how to get it."""


class Material(NamedTuple):
    """Of one folder of runs.

    Attributes:
        runs: the steps' records.
        beside: the data set, and its half of the paper's Table 1.
        pictures: the validation images that a record's places are of; raises NotThereError.
    """

    runs: Gathered
    beside: Compared
    pictures: Callable[[Consistent], Images]


def probed(runs: Gathered) -> list[str]:
    """The representations with probes, in order.

    Raises:
        NotThereError: if there are none.
    """
    there = {each.representation for each in runs.probed}
    if not there:
        raise NotThereError("there are no probes; run monolora vision probe")
    return [name for name in ORDER if name in there]


def first_consistent(runs: Gathered) -> Sequence[Consistent]:
    """The first seed's semantic consistency, in the representations' order.

    Raises:
        NotThereError: if there is none.
    """
    if not runs.consistent:
        raise NotThereError("semantic consistency has not been measured; run monolora vision consistency")
    first = min(each.seed for each in runs.consistent)
    return [each for each in runs.consistent if each.seed == first]
