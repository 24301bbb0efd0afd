"""Decoded images: read once, kept as one file of bytes, and from there in the device's memory or memory-mapped."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from PIL import Image, UnidentifiedImageError
from typing_extensions import TypedDict

from monolora.errors import InputError, SaveError
from monolora.files import read_json
from monolora.hub import cache_root
from monolora.recipes.vision.settings import Data
from monolora.recipes.vision.sources import Source, open_sources
from monolora.runs import write_json
from monolora.terminal import say

_CHUNK = 1024  # images decoded at a time


class Images(NamedTuple):
    """One split, decoded.

    Attributes:
        pixels_N3SS: ``uint8``, on the device if it is to stay there, else memory-mapped on the CPU.
        labels_N: ``int64``, on the CPU.
        classes: names.
        mean, std: of the three channels, in 0 to 1.
        fingerprint: of the images and how they were resized.
        device: where batches go.
    """

    pixels_N3SS: torch.Tensor
    labels_N: torch.Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    device: torch.device

    def batches(self, parts: Iterable[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """``(places_B, pixels_B3SS)`` of each of ``parts``, the pixels on the device.

        Images that are not in the device's memory are fetched while the ones before them are worked on.
        """
        if self.pixels_N3SS.device == self.device:
            for places_B in parts:
                yield places_B, self.pixels_N3SS[places_B.to(self.device, non_blocking=True)]
            return
        with ThreadPoolExecutor(1) as pool:
            waiting: list[tuple[torch.Tensor, object]] = []
            for places_B in parts:
                waiting.append((places_B, pool.submit(self._pinned, places_B)))
                if len(waiting) > 2:
                    yield self._sent(waiting.pop(0))
            while waiting:
                yield self._sent(waiting.pop(0))

    def _pinned(self, places_B: torch.Tensor) -> torch.Tensor:
        return self.pixels_N3SS[places_B].pin_memory()

    def _sent(self, fetched: tuple[torch.Tensor, object]) -> tuple[torch.Tensor, torch.Tensor]:
        return fetched[0], fetched[1].result().to(self.device, non_blocking=True)  # type: ignore[attr-defined]


class ImageData(NamedTuple):
    """Both splits."""

    train: Images
    val: Images


class _About(TypedDict):
    """What is kept beside decoded pixels."""

    labels: list[int]
    mean: list[float]
    std: list[float]


def load_images(data: Data, device: torch.device) -> ImageData:
    """The images that the settings name, decoded now or before.

    Raises:
        InputError: if there are none, or some cannot be read (unless ``--skip-bad``).
        SaveError: if the disk does not take them.
    """
    train, val = (cached(source, data, device) for source in open_sources(data))
    return ImageData(train, val._replace(mean=train.mean, std=train.std))


def cached(source: Source, data: Data, device: torch.device) -> Images:
    """A source, decoded into ``$MONOLORA_CACHE/vision`` at the first time."""
    size = data.cache_size or data.image_size
    key = hashlib.sha256(f"{source.identity}:{size}:{data.skip_bad}".encode()).hexdigest()[:16]
    folder = cache_root() / "vision"
    pixels, about = folder / f"{key}.uint8", folder / f"{key}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{key}.lock"):  # of several processes one decodes
            if not about.is_file():
                _decode(source, size, data.skip_bad, pixels, about)
    except OSError as error:
        raise SaveError.of(folder, error, "Free space, or set MONOLORA_CACHE to another folder.") from error
    found = read_json(about, "Delete it; it is made again.", _About)
    mapped = np.memmap(pixels, dtype=np.uint8, mode="c", shape=(len(found["labels"]), 3, size, size))
    tensor = torch.from_numpy(mapped)
    if device.type == "cuda" and _stays(data.on_device, mapped.nbytes, device):
        tensor = tensor.to(device)
    return Images(
        tensor, torch.tensor(found["labels"]), source.classes, tuple(found["mean"]), tuple(found["std"]), key, device
    )


def _stays(on_device: str, size: int, device: torch.device) -> bool:
    if on_device == "auto":
        return size < torch.cuda.mem_get_info(device)[0] / 2
    return on_device == "yes"


def _decode(source: Source, size: int, skip_bad: bool, pixels: Path, about: Path) -> None:
    """Write all images that can be read as one file of bytes, and what is known of them as another."""
    bad: list[str] = []
    labels: list[int] = []
    sums = np.zeros((2, 3))

    def decoded(i: int) -> np.ndarray | None:
        try:
            return _image(source.read(i), size)
        except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
            return None

    aside = pixels.with_name(f".{pixels.name}.part")
    try:
        with aside.open("wb") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(source.names), _CHUNK):
                places = range(start, min(start + _CHUNK, len(source.names)))
                for i, image_3SS in zip(places, pool.map(decoded, places), strict=True):
                    if image_3SS is None:
                        bad.append(source.names[i])
                        continue
                    file.write(image_3SS.tobytes())
                    labels.append(int(source.labels_N[i]))
                    scaled = image_3SS.reshape(3, -1) / 255
                    sums += np.stack([scaled.mean(1), (scaled**2).mean(1)])
        _refuse_bad(bad, len(labels), skip_bad)
        if set(labels) != set(source.labels_N.tolist()):
            raise InputError("Without the images that cannot be read, a class has none. Mend or remove the class.")
        mean, square = sums / len(labels)
        std = np.sqrt(np.maximum(square - mean**2, 255**-2))  # of a channel that never changes one step, not 0
        aside.replace(pixels)
        write_json(about, {"labels": labels, "mean": mean.tolist(), "std": std.tolist(), "bad": bad})
    finally:
        aside.unlink(missing_ok=True)


def _refuse_bad(bad: list[str], good: int, skip_bad: bool) -> None:
    if not bad:
        return
    shown = ", ".join(bad[:5]) + (" …" if len(bad) > 5 else "")
    if skip_bad and good:
        say(f"{len(bad)} of {len(bad) + good} images cannot be read and are left out: {shown}")
        return
    raise InputError(f"{len(bad)} of {len(bad) + good} images cannot be read: {shown}. Mend them, or use --skip-bad.")


def _image(encoded: bytes, size: int) -> np.ndarray:
    """An image's shorter side resized to ``size``, and the middle of it: ``uint8``, ``(3, size, size)``."""
    with Image.open(io.BytesIO(encoded)) as opened:
        opened.draft("RGB", (size, size))  # JPEGs are decoded at the next larger of a few sizes
        if opened.mode.startswith("I;16"):  # PIL would not scale them but cut them off at 255
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
