"""Data and elements that the figures share: records, colours, lines with estimates in %."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from monolora.errors import InputError
from monolora.recipes.vision.images import Images, load_images
from monolora.recipes.vision.paper_comparison import Comparison, compare
from monolora.recipes.vision.results import ORDER, SHORT, ConsistencyRecord, Records, read_records
from monolora.recipes.vision.settings import Settings
from monolora.reporting.palette import LIGHT
from monolora.reporting.plots import Line
from monolora.stats import Estimate, estimate

# Of each representation.
COLOURS: Mapping[str, str] = {"simclr": LIGHT[1], "sae": LIGHT[3], "ncl": LIGHT[2]}
MARKERS: Mapping[str, str] = {"simclr": "o", "sae": "s", "ncl": "^"}


class MissingDataError(Exception):
    """A figure cannot be drawn yet; the message says what is missing and how to get it."""


class FigureData(NamedTuple):
    """The data of all figures of one folder.

    Attributes:
        records: of the steps.
        comparison: the data set, and the half of the paper's Table 1 that is of it.
        images: the validation images that a consistency record indexes; raises MissingDataError.
    """

    records: Records
    comparison: Comparison
    images: Callable[[ConsistencyRecord], Images]


def load_figure_data(settings: Settings) -> FigureData:
    """Read the records; the images are loaded when a figure first needs them.

    Raises:
        InputError: if there are no records, or one is damaged.
    """
    records = read_records(Path(settings.common.out))
    return FigureData(records, compare(records, settings.data), _validation_images(settings))


def _validation_images(settings: Settings) -> Callable[[ConsistencyRecord], Images]:
    @functools.cache
    def load() -> Images:
        return load_images(settings.data, torch.device("cpu")).val

    def images_of(record: ConsistencyRecord) -> Images:
        try:
            images = load()
        except InputError as error:
            raise MissingDataError(f"its images are unavailable: {error}") from error
        if not any(images.fingerprint in fingerprint for fingerprint in record.inputs.values()):
            raise MissingDataError(
                f"consistency was measured on other images than {settings.data.dataset}'s; give the runs' --config"
            )
        return images

    return images_of


def probed_representations(records: Records) -> list[str]:
    """The representations with probes, in order.

    Raises:
        MissingDataError: if there are none.
    """
    names = {record.representation for record in records.probe_records}
    if not names:
        raise MissingDataError("there are no probes; run monolora vision probe")
    return [name for name in ORDER if name in names]


def first_seed_consistency(records: Records) -> Sequence[ConsistencyRecord]:
    """The consistency records of the lowest seed, in the representations' order.

    Raises:
        MissingDataError: if there are none.
    """
    if not records.consistency_records:
        raise MissingDataError("semantic consistency has not been measured; run monolora vision consistency")
    first = min(record.seed for record in records.consistency_records)
    return [record for record in records.consistency_records if record.seed == first]


def percent(share: Estimate | None) -> Estimate | None:
    """An estimate of a share from 0 to 1, in %."""
    return share and share.times(100)


def representation_line(
    name: str, xs: Sequence[float], estimates: Sequence[Estimate | None], label: str | None = None, style: str = "-"
) -> Line:
    """A representation's line, in its colour; labelled with its short name unless another is given."""
    return Line(label or SHORT[name], xs, estimates, COLOURS[name], MARKERS[name], style)


def label_noise_line(records: Records, name: str, loss: str, label: str | None = None, style: str = "-") -> Line:
    """Accuracy of a representation's probes by label noise, both in %."""
    rates = records.rates(loss)
    estimates = [percent(estimate(records.accuracy(name, loss, rate))) for rate in rates]
    return representation_line(name, [100 * rate for rate in rates], estimates, label, style)
