"""Decoded images: right to the pixel, decoded once, and images that cannot be read named and counted."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from monolora.errors import InputError, SaveError
from monolora.recipes.vision import images
from monolora.recipes.vision.images import ImageData, load_images
from monolora.recipes.vision.settings import Data
from tests.support.shapes import CLASSES, picture, save_shapes

CPU = torch.device("cpu")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two training images and one validation image of each class, to be spoilt."""
    return save_shapes(tmp_path / "images", train=2, val=1)


@pytest.fixture
def load(root: Path) -> Callable[..., ImageData]:
    """``load(image_size=12, …)``: the images in ``root``."""
    return lambda **settings: load_images(Data(**{"dataset": str(root), "image_size": 12} | settings), CPU)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was decoded since the start of the test."""
    seen: list[bytes] = []
    original = Image.open

    def spy(file: io.BytesIO) -> Image.Image:
        seen.append(file.getvalue())
        return original(file)

    monkeypatch.setattr(Image, "open", spy)
    return seen


def test_pngs_of_the_right_size_are_kept_to_the_bit(load: Callable[..., ImageData]) -> None:
    split = load().train
    assert split.pixels_N3SS.shape == (6, 3, 12, 12)
    assert split.pixels_N3SS.dtype == torch.uint8
    assert split.labels_N.tolist() == [0, 0, 1, 1, 2, 2]
    assert split.labels_N.dtype == torch.int64
    assert split.classes == CLASSES
    for index, pixels_3SS in enumerate(split.pixels_N3SS):
        expected = np.asarray(picture(CLASSES[index // 2], index % 2))
        np.testing.assert_array_equal(pixels_3SS.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (7, 9), (12, 40), (25, 25), (13, 12)], ids=str)
def test_others_are_resized_and_their_middle_is_kept(
    root: Path, load: Callable[..., ImageData], shape: tuple[int, int]
) -> None:
    width, height = shape
    random = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(random)
    image.save(root / "train" / "blue" / "000.png")
    if width < height:
        resized = image.resize((12, round(12 * height / width)), Image.Resampling.BILINEAR)
    else:
        resized = image.resize((round(12 * width / height), 12), Image.Resampling.BILINEAR)
    left, top = (resized.width - 12) // 2, (resized.height - 12) // 2
    expected = np.asarray(resized)[top : top + 12, left : left + 12]
    np.testing.assert_array_equal(load().train.pixels_N3SS[0].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(
    ("mode", "grey"), [("L", 100), ("RGBA", 100), ("P", 100), ("CMYK", 100), ("I;16", 100 * 256 + 7), ("1", 255)]
)
def test_every_mode_is_read_as_colours(root: Path, load: Callable[..., ImageData], mode: str, grey: int) -> None:
    pixels = np.full((12, 12), grey, np.uint16 if mode == "I;16" else np.uint8)
    image = Image.fromarray(pixels)
    (image if mode == "I;16" else image.convert(mode)).save(root / "train" / "blue" / "000.tiff")
    (root / "train" / "blue" / "000.png").unlink()
    assert load().train.pixels_N3SS[0].unique().tolist() == [255 if mode == "1" else 100]


def test_jpegs_larger_than_needed(root: Path, load: Callable[..., ImageData]) -> None:
    """Decoded at a smaller scale, which is not the same to the bit."""
    y, x = np.mgrid[:96, :96]
    smooth = np.stack([x * 2, y * 2, x + y], -1).astype(np.uint8)
    Image.fromarray(smooth).save(root / "train" / "blue" / "000.jpg", quality=95)
    (root / "train" / "blue" / "000.png").unlink()
    expected = np.asarray(Image.fromarray(smooth).resize((12, 12), Image.Resampling.BILINEAR)).astype(int)
    difference = load().train.pixels_N3SS[0].permute(1, 2, 0).numpy().astype(int) - expected
    assert np.abs(difference).max() <= 6


def test_mean_and_deviation(load: Callable[..., ImageData]) -> None:
    data = load()
    scaled = data.train.pixels_N3SS.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(data.train.mean, scaled.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(data.train.std, scaled.std((0, 2, 3)), rtol=1e-9)
    assert (data.val.mean, data.val.std) == (data.train.mean, data.train.std)  # the network knows one pair


def test_a_channel_that_never_changes_can_be_normalised(root: Path, load: Callable[..., ImageData]) -> None:
    for path in (root / "train").rglob("*.png"):
        pixels = np.array(Image.open(path))
        pixels[..., 0] = 77
        Image.fromarray(pixels).save(path)
    split = load().train
    scaled = (split.pixels_N3SS / 255 - torch.tensor(split.mean).view(3, 1, 1)) / torch.tensor(split.std).view(3, 1, 1)
    assert scaled.abs().max() < 20
    assert scaled[:, 0].abs().max() < 1e-3


def test_the_second_time_nothing_is_decoded(load: Callable[..., ImageData], opened: list[bytes]) -> None:
    first = load()
    assert len(opened) == 9
    second = load()
    assert len(opened) == 9
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.pixels_N3SS, b.pixels_N3SS)
        assert (a.labels_N.tolist(), *a[2:]) == (b.labels_N.tolist(), *b[2:])


@pytest.mark.parametrize(
    ("settings", "decoded"),
    [({"image_size": 8}, 9), ({"cache_size": 16}, 9), ({"per_class": 1}, 3), ({"classes": 2}, 6)],
)
def test_what_is_decoded_anew(
    load: Callable[..., ImageData], opened: list[bytes], settings: dict[str, Any], decoded: int
) -> None:
    first = load()
    opened.clear()
    other = load(**settings)
    assert len(opened) == decoded
    assert other.train.fingerprint != first.train.fingerprint
    load()
    assert len(opened) == decoded  # the first are still there


def test_changed_images_are_decoded_anew(root: Path, load: Callable[..., ImageData], opened: list[bytes]) -> None:
    first = load()
    opened.clear()
    Image.new("RGB", (12, 12), "white").save(root / "train" / "red" / "001.png")
    second = load()
    assert len(opened) == 6  # the training images, not those of validation
    assert (second.train.pixels_N3SS[5] == 255).all()
    assert second.train.fingerprint != first.train.fingerprint
    assert second.val.fingerprint == first.val.fingerprint


def test_cache_size_is_the_size_of_the_decoded(load: Callable[..., ImageData]) -> None:
    assert load(cache_size=16).train.pixels_N3SS.shape == (6, 3, 16, 16)


_HEAD = 60  # bytes of a PNG that is cut off


def _spoil(path: Path, how: str) -> None:
    content = {"zero bytes": b"", "cut off": path.read_bytes()[:_HEAD], "text": b"no image at all"}[how]
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["zero bytes", "cut off", "text"])
def test_images_that_cannot_be_read_are_named_and_counted(root: Path, load: Callable[..., ImageData], how: str) -> None:
    bad = [root / "train" / "blue" / "001.png", root / "train" / "red" / "000.png"]
    for path in bad:
        _spoil(path, how)
    with pytest.raises(InputError, match=r"2 of 6 images cannot be read: .*Fix them, or use --skip-bad") as raised:
        load()
    assert all(str(path) in str(raised.value) for path in bad)
    assert "\n" not in str(raised.value)


def test_bad_images_are_left_out(
    root: Path, load: Callable[..., ImageData], capsys: pytest.CaptureFixture[str], opened: list[bytes]
) -> None:
    bad = root / "train" / "blue" / "000.png"
    _spoil(bad, "zero bytes")
    split = load(skip_bad=True).train
    assert f"1 of 6 images cannot be read and are left out: {bad}" in capsys.readouterr().out
    assert split.labels_N.tolist() == [0, 1, 1, 2, 2]
    expected = np.asarray(picture("blue", 1))
    np.testing.assert_array_equal(split.pixels_N3SS[0].permute(1, 2, 0).numpy(), expected)
    opened.clear()
    load(skip_bad=True)
    assert not opened
    with pytest.raises(InputError, match="1 of 6 images cannot be read"):  # the cache is no way around the refusal
        load()


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (["blue/000.png", "blue/001.png"], "Without the images that cannot be read, a class has none"),
        ([f"{name}/00{i}.png" for name in CLASSES for i in (0, 1)], "6 of 6 images cannot be read"),
    ],
)
def test_too_many_bad_images(root: Path, load: Callable[..., ImageData], spoilt: Sequence[str], message: str) -> None:
    for name in spoilt:
        _spoil(root / "train" / name, "zero bytes")
    with pytest.raises(InputError, match=message):
        load(skip_bad=True)


def test_nothing_is_left_of_a_refused_load(
    root: Path, load: Callable[..., ImageData], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MONOLORA_CACHE", str(tmp_path / "cache"))
    _spoil(root / "train" / "blue" / "000.png", "text")
    with pytest.raises(InputError):
        load()
    assert {path.suffix for path in (tmp_path / "cache" / "vision").iterdir()} <= {".lock"}


def test_hub_images_that_are_missing(tmp_path: Path) -> None:
    """A row without an image is one that cannot be read."""
    folder = tmp_path / "mine" / "data"
    folder.mkdir(parents=True)
    kinds = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    buffer = io.BytesIO()
    picture("red", 0).save(buffer, "PNG")
    image = {"bytes": buffer.getvalue(), "path": None}
    for split, rows in (("train", [image, image, None, image]), ("test", [image] * 4)):
        split_rows = datasets.Dataset.from_dict({"img": rows, "label": [0, 1, 2, 2]}, features=kinds)
        split_rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    data = Data(dataset=str(folder.parent), image_size=12)
    with pytest.raises(InputError, match="1 of 4 images cannot be read: image 2 of train"):
        load_images(data, CPU)


def test_a_cache_that_cannot_be_written(
    load: Callable[..., ImageData], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MONOLORA_CACHE", str(tmp_path / "file"))
    with pytest.raises(SaveError, match="set MONOLORA_CACHE to another folder"):
        load()


def test_many_images_are_decoded_in_their_order(
    root: Path, load: Callable[..., ImageData], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_CHUNK", 2)
    for value in range(30):
        Image.new("RGB", (12, 12), (value, value, value)).save(root / "train" / "blue" / f"1{value:02}.png")
    split = load().train
    assert split.pixels_N3SS[2:32, 0, 0, 0].tolist() == list(range(30))


@pytest.mark.parametrize("stays", [True, False])
def test_batches(data: ImageData, stays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those in memory, and those that a thread fetches, here from a CPU to one by another name."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)  # there may be no GPU to pin it for
    split = data.train if stays else data.train._replace(device=torch.device("cpu:0"))
    assert (split.pixels_N3SS.device == split.device) is stays
    parts = torch.randperm(48, generator=torch.Generator().manual_seed(0)).split(7)
    batches = list(split.batches(parts))
    assert len(batches) == 7
    for (places_B, pixels_B3SS), part in zip(batches, parts, strict=True):
        assert torch.equal(places_B, part)
        np.testing.assert_array_equal(pixels_B3SS.numpy(), data.train.pixels_N3SS.numpy()[part.numpy()])


def test_batches_are_fetched_ahead_and_not_all_at_once(data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    asked: list[int] = []

    def parts() -> Iterator[torch.Tensor]:
        for index in range(48):
            asked.append(index)
            yield torch.tensor([index])

    batches = data.train._replace(device=torch.device("cpu:0")).batches(parts())
    next(batches)
    assert asked == [0, 1, 2]
    next(batches)
    assert asked == [0, 1, 2, 3]
