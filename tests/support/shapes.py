"""Images for the tests: a folder of small pictures whose classes a network can separate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("blue", "green", "red")


def picture(name: str, number: int, size: int = 12) -> Image.Image:
    """Noise with a bright square of the class's colour, at a position that depends on the number."""
    noise = np.random.default_rng([CLASSES.index(name), number])
    pixels = noise.integers(0, 90, (size, size, 3), dtype=np.uint8)
    top, left = noise.integers(0, size // 2, 2)
    pixels[top : top + size // 2, left : left + size // 2, 2 - CLASSES.index(name)] = 230
    return Image.fromarray(pixels)


def save_shapes(root: Path, train: int = 16, val: int = 6, size: int = 12) -> Path:
    """``root/train/CLASS/*.png`` and ``root/val/CLASS/*.png``."""
    for split, count, offset in (("train", train, 0), ("val", val, 1000)):
        for name in CLASSES:
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                picture(name, offset + number, size).save(folder / f"{number:03}.png")
    return root
