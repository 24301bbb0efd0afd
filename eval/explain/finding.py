"""The explorer's finding: what most of all can be said of an adapter's units, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monolora.eval.explain.records import Contrast, DatasetFeatures, Explained

RATE = 0.05  # of false discoveries


def finding(explained: Explained, names: Sequence[str]) -> str:
    """How many units know a label; else how many tell two groups of texts apart; else how often they fire.

    Args:
        explained: the records.
        names: of the units, short.
    """
    labelled = [dataset for dataset in explained.datasets if dataset.labels]
    knowing = [(np.flatnonzero(dataset.information_q < RATE), dataset) for dataset in labelled]
    most = max(knowing, key=lambda pair: len(pair[0]), default=None)
    if most is not None and len(most[0]):
        return _knows(*most, names)
    telling = [(np.flatnonzero(contrast.q < RATE), contrast) for contrast in explained.contrasts]
    clearest = max(telling, key=lambda pair: len(pair[0]), default=None)
    if clearest is not None and len(clearest[0]):
        return _tells_apart(*clearest, names)
    if labelled:
        return f"None of the {len(names):,} units is known to carry information on the labels of {labelled[0].name}."
    return _fires(explained.datasets[0])


def _knows(units: np.ndarray, dataset: DatasetFeatures, names: Sequence[str]) -> str:
    best = int(units[np.argmax(dataset.information[units])])
    bits = f"{dataset.information[best]:.2f} bits"
    return (
        f"{_of(units, names)} on the labels of {dataset.name}"
        f"{'' if len(units) == 1 else f'; {names[best]} carries the most'} ({bits})."
    )


def _of(units: np.ndarray, names: Sequence[str]) -> str:
    if len(units) == 1:
        return f"One of {len(names):,} units, {names[int(units[0])]}, carries information"
    return f"{len(units):,} of {len(names):,} units carry information"


def _tells_apart(units: np.ndarray, contrast: Contrast, names: Sequence[str]) -> str:
    best = int(units[np.argmax(np.abs(contrast.auc[units] - 0.5))])
    count = "One" if len(units) == 1 else f"{len(units):,}"
    return (
        f"{count} of {len(names):,} units {'tells' if len(units) == 1 else 'tell'} {contrast.a} from {contrast.b}, "
        f"{names[best]} most clearly (AUC {contrast.auc[best]:.2f})."
    )


def _fires(dataset: DatasetFeatures) -> str:
    dead, units = int((dataset.firing == 0).sum()), len(dataset.firing)
    silent = 100 * (1 - float(dataset.firing.mean()))
    end = f"; {dead:,} of {units:,} never fire" if dead else ""
    return f"The units are silent on {silent:.1f} % of the tokens of {dataset.name}{end}."
