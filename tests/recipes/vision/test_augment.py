"""Batched augmentation does to each image what PIL and colorsys would do."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter
from scipy import ndimage, stats

from monolora.recipes.vision import augment
from monolora.recipes.vision.augment import Augment

_SIMCLR = Augment(16, 0.08, jitter=0.8, jitter_probability=0.8, grey_probability=0.2, blur_probability=0.5)


def _drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _pixels(batch: int = 8, size: int = 16) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=_drawn(3))


def _as_picture(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def test_nothing_drawn_changes_nothing() -> None:
    views = Augment(16, 1.0, flip_probability=0.0)(_pixels(), _drawn(0))
    # a crop of the whole area is the square one only where its ratio is 1: the whole image is taken
    torch.testing.assert_close(views, _pixels() / 255, atol=2e-5, rtol=0)


def test_flips_alone() -> None:
    views = Augment(16, 1.0)(_pixels(400), _drawn(0))
    plain = _pixels(400) / 255
    flipped = torch.isclose(views, plain.flip(-1), atol=1e-4).all(-1).all(-1).all(-1)
    torch.testing.assert_close(torch.where(flipped.view(-1, 1, 1, 1), plain.flip(-1), plain), views, atol=1e-4, rtol=0)
    assert stats.binomtest(int(flipped.sum()), 400).pvalue > 1e-3


def test_the_same_numbers_give_the_same_images_and_others_do_not() -> None:
    first, again, other = (_SIMCLR(_pixels(), _drawn(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.isclose(first, other).all(-1).all(-1).all(-1).any()


def test_results_are_images() -> None:
    views = _SIMCLR._replace(size=12)(_pixels(64), _drawn(0))
    assert views.shape == (64, 3, 12, 12)
    assert views.min() >= 0
    assert views.max() <= 1 + 1e-6
    assert views.isfinite().all()


def test_an_image_does_not_depend_on_the_others() -> None:
    pixels = _pixels()
    others = pixels.clone()
    others[1:] = 255 - others[1:]
    torch.testing.assert_close(_SIMCLR(pixels, _drawn(5))[0], _SIMCLR(others, _drawn(5))[0])


def test_crops_are_as_the_crop_of_the_image_resized() -> None:
    """A ramp shows where each result was taken."""
    size = 64
    ramp = torch.arange(size, dtype=torch.uint8).expand(3, size, size).contiguous()
    pixels = torch.stack([ramp, ramp.transpose(-1, -2)]).repeat(200, 1, 1, 1)
    theta = augment._crops(400, 0.25, 0.0, _drawn(0))
    crops = Augment(size, 0.25, flip_probability=0.0)(pixels, _drawn(0)) * 255
    for number in range(0, 400, 37):
        width, height = (theta[number, side, side].item() * size for side in (0, 1))
        left, top = ((theta[number, side, 2].item() + 1) * size / 2 - (width, height)[side] / 2 for side in (0, 1))
        box = (left, top, left + width, top + height)
        assert min(box[:2]) >= -1e-3
        assert max(box[2:]) <= size + 1e-3
        expected = _as_picture(pixels[number]).resize((size, size), Image.Resampling.BILINEAR, box=box)
        # PIL smooths where it shrinks, and rounds; a ramp is not changed by smoothing but at the edges
        inner = np.asarray(expected, dtype=float).transpose(2, 0, 1)[:, 2:-2, 2:-2]
        np.testing.assert_allclose(crops[number, :, 2:-2, 2:-2].numpy(), inner, atol=1.01)


def test_areas_and_ratios_of_crops() -> None:
    theta = augment._crops(20_000, 0.08, 0.5, _drawn(0))
    width, height = theta[:, 0, 0].abs(), theta[:, 1, 1]
    area, ratio = width * height, width / height
    assert area.min() >= 0.08 - 1e-6
    assert 3 / 4 - 1e-5 <= ratio.min() <= ratio.max() <= 4 / 3 + 1e-5
    # small boxes of every ratio lie within the image: uniform there
    small = area[area < 0.7].numpy()
    assert stats.kstest(small, stats.uniform(0.08, 0.62).cdf).pvalue > 1e-3


def test_all_of_a_crop_lies_in_the_image() -> None:
    theta = augment._crops(5_000, 0.08, 0.5, _drawn(0))
    reach = torch.stack([theta[:, 0, 0].abs(), theta[:, 1, 1]], 1) + theta[:, :, 2].abs()
    assert reach.max() <= 1 + 1e-5


@pytest.mark.parametrize("factor", [0.2, 1.0, 1.7])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (augment._brightness, ImageEnhance.Brightness),
        (augment._contrast, ImageEnhance.Contrast),
        (augment._saturation, ImageEnhance.Color),
    ],
)
def test_colours_are_pils(ours: object, theirs: type, factor: float) -> None:
    pixels = _pixels(1)
    views = ours(pixels / 255, torch.tensor(factor).view(1, 1, 1, 1))[0] * 255  # type: ignore[operator]
    expected = np.asarray(theirs(_as_picture(pixels[0])).enhance(factor), dtype=float).transpose(2, 0, 1)
    np.testing.assert_allclose(views.numpy(), expected, atol=2)  # PIL rounds the grey values first


@pytest.mark.parametrize("shift", [0.0, 0.13, -0.2, 0.5])
def test_hue_is_colorsys(shift: float) -> None:
    pixels = _pixels(2, 4) / 255
    pixels[0, :, 0, 0] = 0.5  # a grey one, which has no hue
    shifted = augment._hue(pixels, torch.tensor(shift).expand(2, 1, 1, 1))
    for image in range(2):
        for row in range(4):
            for column in range(4):
                hue, saturation, value = colorsys.rgb_to_hsv(*pixels[image, :, row, column].tolist())
                expected = colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)
                torch.testing.assert_close(shifted[image, :, row, column], torch.tensor(expected), atol=1e-5, rtol=0)


def test_jitter_is_drawn_in_its_ranges_for_its_share_of_images() -> None:
    factors = augment._jitters(10_000, 0.8, 0.7, _drawn(0))
    changed = (factors != torch.tensor([1.0, 1.0, 1.0, 0.0]).view(4, 1)).any(0)
    assert stats.binomtest(int(changed.sum()), 10_000, 0.7).pvalue > 1e-3
    for row in factors[:3]:
        assert stats.kstest(row[changed].numpy(), stats.uniform(0.2, 1.6).cdf).pvalue > 1e-3
    assert stats.kstest(factors[3][changed].numpy(), stats.uniform(-0.2, 0.4).cdf).pvalue > 1e-3


def test_grey_images_are_their_share() -> None:
    views = Augment(16, 1.0, grey_probability=0.2)(_pixels(1000), _drawn(0))
    grey = (views.amax(1) - views.amin(1) < 1e-6).all(-1).all(-1)
    assert stats.binomtest(int(grey.sum()), 1000, 0.2).pvalue > 1e-3


@pytest.mark.parametrize("size", [32, 224])
def test_blur_is_a_gaussian_filter(size: int) -> None:
    """Of the same width in pixels at every size, as scipy's and, nearly, PIL's, which approximates it; edges too."""
    smooth = torch.nn.functional.interpolate(
        torch.rand(3, 3, size // 8, size // 8, generator=_drawn(0)), size=(size, size), mode="bicubic"
    )
    pixels = (smooth.clamp(0, 1) * 255).to(torch.uint8)
    drawn = _drawn(1)
    kernels = augment._blur_kernels(3, size, 1.0, drawn)
    blurred = augment._blurred(pixels.float(), kernels).numpy()
    deviations = 0.1 + 1.9 * torch.rand(2, 3, generator=_drawn(1))[0]
    assert deviations.max() > 1.4  # wider than a kernel of three pixels could be
    for image, deviation in enumerate(deviations.tolist()):
        original = pixels[image].numpy().astype(float)
        exact = ndimage.gaussian_filter(original, (0, deviation, deviation), mode="nearest", radius=(0, 8, 8))
        np.testing.assert_allclose(blurred[image], exact, atol=1e-2)
        approximate = _as_picture(pixels[image]).filter(ImageFilter.GaussianBlur(deviation))
        np.testing.assert_allclose(blurred[image], np.asarray(approximate, dtype=float).transpose(2, 0, 1), atol=3)


def test_images_not_blurred_stay_sharp() -> None:
    kernels = augment._blur_kernels(2000, 224, 0.5, _drawn(0))
    sharp = kernels[:, kernels.shape[1] // 2] == 1
    assert stats.binomtest(int(sharp.sum()), 2000).pvalue > 1e-3
    torch.testing.assert_close(kernels.sum(1), torch.ones(2000))
