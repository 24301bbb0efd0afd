"""Representations of all images, computed once by a frozen network and kept as files.

The files know what they are of: after another pretraining they are made anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from monolora.errors import SaveError
from monolora.locks import locked
from monolora.runs import write_aside, write_json

FOLDER = "features"


class Features(NamedTuple):
    """Representations of both splits.

    Attributes:
        train_ND, val_ND: ``float32``, on the CPU, memory-mapped.
        fingerprint: of the weights, the precision and the images they are of.
    """

    train_ND: torch.Tensor
    val_ND: torch.Tensor
    fingerprint: str


def cached_features(folder: Path, key: Mapping[str, str], compute: Callable[[str], torch.Tensor]) -> Features:
    """The representations kept in ``folder/features``; computed now, if those there are of something else.

    Args:
        folder: of the weights.
        key: all that the representations depend on.
        compute: the representations of one split, ``train`` or ``val``: ``(N, D)``.

    Raises:
        SaveError: if the disk does not take them.
    """
    cache = folder / FOLDER
    about = cache / "features.json"
    if not _is_of(about, key):
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with locked(cache, waits=True):  # of several steps at once one computes, and the others wait
                if not _is_of(about, key):
                    about.unlink(missing_ok=True)
                    for split in ("train", "val"):
                        _save(cache / f"{split}.npy", compute(split))
                    write_json(about, key)
        except OSError as error:
            raise SaveError.of(cache, error, "Free space, then give the same command again.") from error
    # copy-on-write: torch wants memory that it could write to
    train, val = (torch.from_numpy(np.load(cache / f"{split}.npy", mmap_mode="c")) for split in ("train", "val"))
    return Features(train, val, "-".join(key.values()))


def _save(file: Path, features_ND: torch.Tensor) -> None:
    """Into a new file: an old one may still be mapped."""
    write_aside(file, lambda path: np.save(path, features_ND.numpy()))


def _is_of(about: Path, key: Mapping[str, str]) -> bool:
    try:
        return bool(json.loads(about.read_text()) == dict(key))
    except (OSError, ValueError):
        return False
