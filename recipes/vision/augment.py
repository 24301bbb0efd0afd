"""Batched random crops, flips, colours and blur, on the device that the images are on.

SimCLR's augmentation (Chen et al., 2020). A batch's random numbers are drawn together on the CPU, from the caller's
generator: they are the same on every device, and nothing here waits for the device. An image that an operation skips
gets the operation's neutral parameters. Only the order of the colour operations is the same for a whole batch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

_RATIOS = (math.log(3 / 4), math.log(4 / 3))  # of a crop's width to its height
_ATTEMPTS = 10  # at a crop that fits into the image; if none does, the whole image is used
_GREY = (0.299, 0.587, 0.114)  # luminance of red, green and blue (ITU-R BT.601), as in PIL
_BLUR = (0.1, 2.0)  # standard deviations, in pixels, for images of every size
_BLUR_REACH = 8  # pixels on either side: four of the largest deviation


class Augment(NamedTuple):
    """The distribution of the augmentations.

    Attributes:
        size: pixels a side of the results.
        crop_min: smallest share of the area that a crop takes; 1 for no crops.
        flip_probability: of a horizontal flip.
        jitter: strength of brightness, contrast and saturation; a quarter of it of hue.
        jitter_probability, grey_probability, blur_probability: of an image.
    """

    size: int
    crop_min: float
    flip_probability: float = 0.5
    jitter: float = 0.0
    jitter_probability: float = 0.0
    grey_probability: float = 0.0
    blur_probability: float = 0.0

    def __call__(self, pixels_B3SS: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Augment a batch.

        Args:
            pixels_B3SS: ``uint8``, on any device.
            generator: on the CPU.

        Returns:
            ``float32`` from 0 to 1, shape ``(B, 3, size, size)``.
        """
        batch, device = len(pixels_B3SS), pixels_B3SS.device

        def on_device(values: torch.Tensor) -> torch.Tensor:
            return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values

        theta = on_device(_crops(batch, self.crop_min, self.flip_probability, generator))
        grid = F.affine_grid(theta, [batch, 3, self.size, self.size], align_corners=False)
        x = F.grid_sample(pixels_B3SS.float().div_(255), grid, padding_mode="border", align_corners=False)
        if self.jitter > 0 and self.jitter_probability > 0:
            factors_4B = on_device(_jitters(batch, self.jitter, self.jitter_probability, generator))
            for index in torch.randperm(4, generator=generator).tolist():
                x = _COLOUR_OPERATIONS[index](x, factors_4B[index].view(-1, 1, 1, 1))
        if self.grey_probability > 0:
            grey = on_device(torch.rand(batch, generator=generator) < self.grey_probability)
            x = torch.where(grey.view(-1, 1, 1, 1), _grey(x), x)
        if self.blur_probability > 0:
            x = _blurred(x, on_device(_blur_kernels(batch, self.size, self.blur_probability, generator)))
        return x


def _crops(batch: int, crop_min: float, flip_probability: float, generator: torch.Generator) -> torch.Tensor:
    """Affine maps from results to images, ``(B, 2, 3)``: for each image, the first of some boxes that fits into it."""
    area, ratio = torch.rand(2, batch, _ATTEMPTS, generator=generator)
    area = crop_min + (1 - crop_min) * area
    ratio = torch.exp(_RATIOS[0] + (_RATIOS[1] - _RATIOS[0]) * ratio)
    sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()])  # width and height, of 1
    fits = (sides <= 1).all(0)
    first = fits.int().argmax(-1, keepdim=True).expand(2, batch, 1)
    sides = torch.where(fits.any(-1), sides.gather(-1, first).squeeze(-1), 1.0)
    middles = (1 - sides) * (2 * torch.rand(2, batch, generator=generator) - 1)
    flips = torch.where(torch.rand(batch, generator=generator) < flip_probability, -1.0, 1.0)
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = sides[0] * flips, sides[1]
    theta[:, :, 2] = middles.T
    return theta


def _jitters(batch: int, strength: float, probability: float, generator: torch.Generator) -> torch.Tensor:
    """Factors of brightness, contrast and saturation, and shifts of hue (as shares of the circle), ``(4, B)``."""
    uniform = 2 * torch.rand(4, batch, generator=generator) - 1
    least = max(0.0, 1 - strength)  # a factor is never negative
    factors = least + (1 + strength - least) * (uniform[:3] + 1) / 2
    hues = uniform[3:] * min(strength / 4, 0.5)
    neutral = torch.rand(batch, generator=generator) >= probability
    return torch.cat([factors.masked_fill(neutral, 1.0), hues.masked_fill(neutral, 0.0)])


def _grey(x: torch.Tensor) -> torch.Tensor:
    """Luminance, shape ``(B, 1, S, S)``."""
    red, green, blue = x.unbind(1)
    return (red * _GREY[0]).add_(green, alpha=_GREY[1]).add_(blue, alpha=_GREY[2]).unsqueeze(1)


def _brightness(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return (x * factor).clamp_(0, 1)


def _contrast(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return torch.lerp(_grey(x).mean((2, 3), keepdim=True), x, factor).clamp_(0, 1)


def _saturation(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return torch.lerp(_grey(x), x, factor).clamp_(0, 1)


def _hue(x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Shift the hue in HSV space; hue in sixths of the circle."""
    red, green, blue = x.unbind(1)
    value, least = x.amax(1), x.amin(1)
    chroma = value - least
    over = chroma.clamp(min=1e-8).reciprocal_()
    hue = torch.where(
        value == red,
        (green - blue) * over,
        torch.where(value == green, (blue - red) * over + 2, (red - green) * over + 4),
    )
    hue = hue.unsqueeze(1) + 6 * shift
    steps = torch.arange(5, 0, -2, device=x.device).view(
        1, 3, 1, 1
    )  # 5, 3, 1; created on the device, as a copy would wait
    k = (hue + steps).remainder_(6)
    share = torch.minimum(k, 4 - k).clamp_(0, 1)
    return value.unsqueeze(1) - chroma.unsqueeze(1) * share


_COLOUR_OPERATIONS = (_brightness, _contrast, _saturation, _hue)


def _blur_kernels(batch: int, size: int, probability: float, generator: torch.Generator) -> torch.Tensor:
    """Gaussian kernels, ``(B, 2 reach + 1)``; for images that are not blurred, 1 in the middle."""
    reach = min(_BLUR_REACH, size - 1)
    uniform = torch.rand(2, batch, 1, generator=generator)
    deviation = _BLUR[0] + (_BLUR[1] - _BLUR[0]) * uniform[0]
    offsets = torch.arange(-reach, reach + 1.0)
    weights = torch.exp(-0.5 * (offsets / deviation).square())
    weights = torch.where(uniform[1] < probability, weights, (offsets == 0).float())
    return weights / weights.sum(1, keepdim=True)


def _blurred(x: torch.Tensor, kernels_BK: torch.Tensor) -> torch.Tensor:
    """Filter each image along both axes by its kernel; beyond the edges, the pixels at them are repeated, as in PIL."""
    # A grouped convolution gives each image and channel its own kernel.
    batch, channels, height, width = x.shape
    weights = kernels_BK.repeat_interleave(channels, 0)
    reach = weights.shape[1] // 2
    x = x.reshape(1, batch * channels, height, width)
    for shape, padding in (
        ((-1, 1, 1, 2 * reach + 1), (reach, reach, 0, 0)),
        ((-1, 1, 2 * reach + 1, 1), (0, 0, reach, reach)),
    ):
        x = F.conv2d(F.pad(x, padding, mode="replicate"), weights.view(shape), groups=batch * channels)
    return x.view(batch, channels, height, width)
