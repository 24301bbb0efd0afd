"""Contrastive pretraining as it is plainly written: worker processes that augment image by image with PIL."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch.utils.data import DataLoader, Dataset

from monolora.recipes.experiment_steps import autocast
from monolora.recipes.vision.features import Encoder
from monolora.recipes.vision.images import Images
from monolora.recipes.vision.pretraining import ClippedLars, nt_xent

View = tuple[torch.Tensor, torch.Tensor]


class TwoViews(Dataset[View]):
    """Each item: two augmented views of an image, normalised."""

    def __init__(self, images: Images) -> None:
        self.pictures = [Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels in images.pixels_N3SS]
        self.mean, self.std = (torch.tensor(each).view(3, 1, 1) for each in (images.mean, images.std))

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, place: int) -> View:
        return self._view(self.pictures[place]), self._view(self.pictures[place])

    def _view(self, picture: Image.Image) -> torch.Tensor:
        array = np.asarray(augmented(picture), dtype=np.float32).transpose(2, 0, 1) / 255
        return (torch.from_numpy(array) - self.mean) / self.std


def augmented(picture: Image.Image) -> Image.Image:
    """SimCLR's crop, flip, jitter and grey, of one image."""
    picture = _crop(picture)
    if random.random() < 0.5:
        picture = ImageOps.mirror(picture)
    if random.random() < 0.8:
        for change in random.sample((_brightness, _contrast, _saturation, _hue), 4):
            picture = change(picture)
    return picture.convert("L").convert("RGB") if random.random() < 0.2 else picture


def _crop(picture: Image.Image) -> Image.Image:
    width, height = picture.size
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            return picture.resize((width, height), Image.Resampling.BILINEAR, box=(left, top, left + w, top + h))
    return picture


def _brightness(picture: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(picture).enhance(random.uniform(0.2, 1.8))


def _contrast(picture: Image.Image) -> Image.Image:
    return ImageEnhance.Contrast(picture).enhance(random.uniform(0.2, 1.8))


def _saturation(picture: Image.Image) -> Image.Image:
    return ImageEnhance.Color(picture).enhance(random.uniform(0.2, 1.8))


def _hue(picture: Image.Image) -> Image.Image:
    hue, saturation, value = picture.convert("HSV").split()
    shifted = np.asarray(hue, dtype=np.int16) + int(random.uniform(-0.2, 0.2) * 255)
    return Image.merge("HSV", (Image.fromarray((shifted % 256).astype(np.uint8)), saturation, value)).convert("RGB")


def batches(images: Images, batch_size: int, workers: int) -> Iterator[View]:
    """For ever, in random order."""
    loader = DataLoader(
        TwoViews(images),
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )
    while True:
        yield from loader


def step(
    encoder: Encoder, optimizer: ClippedLars, views: View, temperature: float, device: torch.device, dtype: torch.dtype
) -> None:
    """A step on two views, each ``(B, 3, S, S)``."""
    x = torch.cat(views).to(device, non_blocking=True)
    with autocast(device, dtype):
        z = encoder(x)[1].float()
    nt_xent(z.unflatten(0, (2, -1)), temperature).backward()
    optimizer.step()
    optimizer.zero_grad()
