"""Tensors that were computed from the base, kept on the disk for later runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from monolora.files import write_file
from monolora.hub import cache_root

NEWEST = 4  # entries of a kind that stay


class Tensors(NamedTuple):
    """Tensors by name, and what else belongs to them, as JSON."""

    tensors: dict[str, torch.Tensor]
    metadata: Any


def cached(kind: str, key: object, device: torch.device | str, make: Callable[[], Tensors]) -> Tensors:
    """Tensors from ``$MONOLORA_CACHE/KIND``, or made and written there, where the disk takes them.

    The newest :data:`NEWEST` entries stay, so that the runs of a study share one and the disk is not filled.

    Args:
        kind: of the tensors, a folder's name.
        key: what they depend on, as JSON.
        device: where those that are read are put.
        make: makes them.
    """
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    path = cache_root() / kind / f"{name}.safetensors"
    try:
        with safe_open(path, "pt", str(device)) as file:
            metadata = json.loads(file.metadata()["metadata"])
            path.touch()  # newest again
            # Cloned, since products of tensors that are aligned as in the file are rounded in another way.
            return Tensors({name: file.get_tensor(name).clone() for name in file.keys()}, metadata)  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):  # none, or damaged
        pass
    made = make()
    if PartialState().is_main_process:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            older = sorted(path.parent.glob("*.safetensors"), key=lambda other: other.stat().st_mtime)
            for other in older[: max(0, len(older) - NEWEST + 1)]:
                other.unlink()
            metadata = {"metadata": json.dumps(made.metadata)}
            write_file(path, lambda aside: save_file(made.tensors, aside, metadata))
    return made
