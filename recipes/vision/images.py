"""Decoded images: each data set is decoded once into one file of bytes, and read from there.

The file is copied into the device's memory where it fits, else it is memory-mapped, and batches are sent as needed.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from typing_extensions import TypedDict

from monolora.errors import InputError
from monolora.files import read_json, saving, write_file, write_json
from monolora.hub import cache_root
from monolora.locks import locked
from monolora.recipes.vision.settings import Data
from monolora.recipes.vision.sources import Source, open_sources
from monolora.terminal import say

_CHUNK = 1024  # images decoded at a time


class Images(NamedTuple):
    """One split, decoded.

    Attributes:
        pixels_N3SS: ``uint8``, in the device's memory, or memory-mapped on the CPU.
        labels_N: ``int64``, on the CPU.
        classes: names.
        mean, std: of the three channels, from 0 to 1.
        fingerprint: of the images and how they were resized.
        device: that batches are sent to.
    """

    pixels_N3SS: torch.Tensor
    labels_N: torch.Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    device: torch.device

    def batches(self, parts: Iterable[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """``(indices_B, pixels_B3SS)`` of each of ``parts``, the pixels on the device.

        Images that are not in the device's memory are read in a thread, two batches ahead of the one in use.
        """
        if self.pixels_N3SS.device == self.device:
            for indices_B in parts:
                yield indices_B, self.pixels_N3SS[indices_B.to(self.device, non_blocking=True)]
            return
        with ThreadPoolExecutor(1) as pool:
            queue: deque[tuple[torch.Tensor, Future[torch.Tensor]]] = deque()
            for indices_B in parts:
                queue.append((indices_B, pool.submit(self._read_pinned, indices_B)))
                if len(queue) > 2:
                    yield self._send(*queue.popleft())
            while queue:
                yield self._send(*queue.popleft())

    def _read_pinned(self, indices_B: torch.Tensor) -> torch.Tensor:
        return self.pixels_N3SS[indices_B].pin_memory()

    def _send(self, indices_B: torch.Tensor, pixels: Future[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return indices_B, pixels.result().to(self.device, non_blocking=True)


class ImageData(NamedTuple):
    """Both splits."""

    train: Images
    val: Images


class _About(TypedDict):
    """The labels and statistics of a file of decoded pixels."""

    labels: list[int]
    mean: list[float]
    std: list[float]


def load_images(data: Data, device: torch.device) -> ImageData:
    """The images that the settings name, decoded now or by an earlier run.

    Raises:
        InputError: if there are none, or some cannot be read (unless ``--skip-bad``).
        SaveError: if the disk does not take them.
    """
    train, val = (cached(source, data, device) for source in open_sources(data))
    return ImageData(train, val._replace(mean=train.mean, std=train.std))  # both are normalised alike


def cached(source: Source, data: Data, device: torch.device) -> Images:
    """A source's images, decoded into ``$MONOLORA_CACHE/vision`` unless they are there."""
    size = data.cache_size or data.image_size
    key = hashlib.sha256(f"{source.identity}:{size}:{data.skip_bad}".encode()).hexdigest()[:16]
    folder = cache_root() / "vision"
    pixels, about = folder / f"{key}.uint8", folder / f"{key}.json"
    if not about.is_file():
        with saving(folder, "Free space, or set MONOLORA_CACHE to another folder."):
            folder.mkdir(parents=True, exist_ok=True)
            with locked(pixels, waits=True):  # one of several processes decodes, the others wait
                if not about.is_file():
                    _decode(source, size, data.skip_bad, pixels, about)
    contents = read_json(about, "Delete it; it is made again.", _About)
    # copy-on-write: torch warns of memory that it could not write to
    mapped = np.memmap(pixels, dtype=np.uint8, mode="c", shape=(len(contents["labels"]), 3, size, size))
    tensor = torch.from_numpy(mapped)
    if device.type == "cuda" and _fits(data.on_device, mapped.nbytes, device):
        tensor = tensor.to(device)
    return Images(
        tensor,
        torch.tensor(contents["labels"]),
        source.classes,
        tuple(contents["mean"]),
        tuple(contents["std"]),
        key,
        device,
    )


def _fits(on_device: str, size: int, device: torch.device) -> bool:
    if on_device == "auto":
        return size < torch.cuda.mem_get_info(device)[0] / 2
    return on_device == "yes"


def _decode(source: Source, size: int, skip_bad: bool, pixels: Path, about: Path) -> None:
    """Write all readable images as one file of bytes, and their labels and statistics as another."""
    bad: list[str] = []
    labels: list[int] = []
    sums = np.zeros((2, 3))

    def decode(i: int) -> np.ndarray | None:
        try:
            return _image(source.read(i), size)
        except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
            return None

    def write(aside: Path) -> None:
        nonlocal sums
        with aside.open("wb") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(source.names), _CHUNK):
                indices = range(start, min(start + _CHUNK, len(source.names)))
                for i, image_3SS in zip(indices, pool.map(decode, indices), strict=True):
                    if image_3SS is None:
                        bad.append(source.names[i])
                        continue
                    file.write(image_3SS.tobytes())
                    labels.append(int(source.labels_N[i]))
                    scaled = image_3SS.reshape(3, -1) / 255
                    sums += np.stack([scaled.mean(1), (scaled**2).mean(1)])
        _refuse_bad(bad, len(labels), skip_bad)
        if set(labels) != set(source.labels_N.tolist()):
            raise InputError("Without the images that cannot be read, a class has none. Fix or remove the class.")

    write_file(pixels, write)
    mean, square = sums / len(labels)
    std = np.sqrt(np.maximum(square - mean**2, 255**-2))  # at least one step of 255: inputs are divided by it
    write_json(about, {"labels": labels, "mean": mean.tolist(), "std": std.tolist(), "bad": bad})


def _refuse_bad(bad: list[str], good: int, skip_bad: bool) -> None:
    if not bad:
        return
    names = ", ".join(bad[:5]) + (" …" if len(bad) > 5 else "")
    if skip_bad and good:
        say(f"{len(bad)} of {len(bad) + good} images cannot be read and are left out: {names}")
        return
    raise InputError(f"{len(bad)} of {len(bad) + good} images cannot be read: {names}. Fix them, or use --skip-bad.")


def _image(encoded: bytes, size: int) -> np.ndarray:
    """Decode, resize the shorter side to ``size``, and crop the centre: ``uint8``, ``(3, size, size)``."""
    with Image.open(io.BytesIO(encoded)) as opened:
        opened.draft("RGB", (size, size))  # decodes a JPEG at a smaller size, but no smaller than this
        if opened.mode.startswith("I;16"):  # 16-bit grey: PIL would clip it at 255
            image = Image.fromarray((np.asarray(opened) >> 8).astype(np.uint8)).convert("RGB")
        else:
            image = opened.convert("RGB")
    width, height = image.size
    if (width, height) != (size, size):
        scale = size / min(width, height)
        image = image.resize(
            (max(size, round(width * scale)), max(size, round(height * scale))), Image.Resampling.BILINEAR
        )
        left, top = (image.width - size) // 2, (image.height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image).transpose(2, 0, 1)
