"""Records, devices, seeds and wrong labels of the paper's experiments."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from typing_extensions import TypedDict

from monolora.errors import InputError, RunError
from monolora.files import read_json, saving, write_json
from monolora.run_record import provenance


class StepRecord(TypedDict):
    """The part of a record that other steps read."""

    settings: dict[str, Any]
    inputs: dict[str, str]
    results: dict[str, Any]


def write(path: Path, settings: Mapping[str, Any], inputs: Mapping[str, str], results: Mapping[str, Any]) -> None:
    """Write a step's record.

    Args:
        path: its file; the folder is made.
        settings: of the step, as JSON values.
        inputs: fingerprints of its inputs, by name.
        results: as JSON values.

    Raises:
        SaveError: if the disk does not take it.
    """
    record = {"settings": _plain(settings), "inputs": dict(inputs), "provenance": provenance(), "results": results}
    with saving(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record)


def read(path: Path, fix: str) -> StepRecord:
    """A step's record.

    Raises:
        InputError: if there is none, or it is damaged.
    """
    if not path.is_file():
        raise InputError(f"There is no {path}. {fix}")
    try:
        return cast(StepRecord, read_json(path, f"Delete it. {fix}", StepRecord))
    except InputError as error:
        raise InputError(f"{path} is damaged: {str(error).removeprefix(f'{path} is damaged: ')}") from error


def results_if_same(path: Path, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> dict[str, Any] | None:
    """The results in ``path``, if they are of these settings and inputs; else None: the step has to run."""
    if not path.is_file():
        return None
    record = read(path, "The step is done again then.")
    same = record["settings"] == _plain(settings) and record["inputs"] == dict(inputs)
    return record["results"] if same else None


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Values after a round trip through JSON."""
    return cast(dict[str, Any], json.loads(json.dumps(dict(settings))))


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
    """The device with its number: ``cuda`` and ``cuda:0`` are not equal."""
    return torch.empty(0, device=device).device


def dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """The precision of products that ``--precision`` names; sums, norms and losses stay float32."""
    fast = {"auto": _bfloat16_is_fast(device), "bfloat16": True, "float32": False}[precision]
    return torch.bfloat16 if fast else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Autocast of products to ``dtype``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def _bfloat16_is_fast(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@contextmanager
def out_of_memory(fix: str) -> Iterator[None]:
    """Turn a device's lack of memory into a one-line error with a remedy.

    Raises:
        RunError: with ``fix``.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunError(f"The device has not enough memory. {fix}") from error


def generator_of(seed: Sequence[int]) -> torch.Generator:
    """A generator on the CPU seeded with all numbers of ``seed``, in their order."""
    mixed = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0]) >> 1)


def noisy_labels(labels_N: torch.Tensor, classes: int, rate: float, seed: int | Sequence[int]) -> torch.Tensor:
    """Labels of which exactly ``floor(N * rate)`` are wrong.

    Rows are drawn without replacement, each wrong label uniformly from the other classes. With the same seed, a higher
    rate only adds wrong labels to those of a lower one, so that rates are comparable.

    Args:
        labels_N: ``int64``, 0 to ``classes - 1``, on the CPU.
        classes: number of classes.
        rate: 0 to 1.
        seed: one number or several.

    Returns:
        A new tensor like ``labels_N``.

    Raises:
        InputError: for a rate outside 0 to 1, and for one class only.
    """
    if not 0 <= rate <= 1:
        raise InputError(f"A noise rate must be within 0 and 1, got {rate}.")
    if classes < 2:
        raise InputError("Wrong labels need at least two classes.")
    random = np.random.default_rng(seed)
    order_N = random.permutation(len(labels_N))
    shifts_N = random.integers(1, classes, len(labels_N))
    wrong = int(len(labels_N) * Fraction(str(float(rate))))  # as it is written: 0.29 * 100 is 28.999… in binary
    noisy_N = labels_N.clone()
    chosen = torch.from_numpy(order_N[:wrong])
    noisy_N[chosen] = (labels_N[chosen] + torch.from_numpy(shifts_N[:wrong])) % classes
    return noisy_N


_LOG2_E = math.log2(math.e)


def softmax_into(out: torch.Tensor, logits: torch.Tensor, dim: int, divisor: int) -> None:
    """``softmax(logits, dim) / divisor``, by powers of two: on a CPU they are several times faster than those of e.

    Args:
        out: of the shape of ``logits``; overwritten.
        logits: kept.
        dim: that sums to ``1 / divisor`` afterwards.
        divisor: the size of a batch, for gradients of its mean.
    """
    most = logits.amax(dim, keepdim=True)
    torch.add(most.mul_(-_LOG2_E), logits, alpha=_LOG2_E, out=out).exp2_()
    out.div_(out.sum(dim, keepdim=True).mul_(divisor))
