"""Where the networks run, and in which precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from monolora.errors import InputError, RunError


def device_of(name: str) -> torch.device:
    """The device that ``--device`` names; ``auto`` is the GPU where there is one.

    Raises:
        InputError: if there is no such device here.
    """
    if name == "auto":
        return _whole(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        return _whole(torch.device(name))
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name} cannot be used here. Use cpu, or leave the flag out.") from error


def _whole(device: torch.device) -> torch.device:
    """With its number: ``cuda`` and ``cuda:0`` do not compare as equal."""
    return torch.empty(0, device=device).device


def dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """The precision of products that ``--precision`` names; sums, norms and losses stay float32."""
    fast = {"auto": _bfloat16_is_fast(device), "bfloat16": True, "float32": False}[precision]
    return torch.bfloat16 if fast else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Products in ``dtype``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def _bfloat16_is_fast(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@contextmanager
def out_of_memory(mend: str) -> Iterator[None]:
    """Turn a device's lack of memory into one line that says what to change.

    Raises:
        RunError: with ``mend``.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunError(f"The device has not enough memory. {mend}") from error
