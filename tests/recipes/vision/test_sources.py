"""Where images come from: hub data sets, class folders, and what is refused."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from monolora.errors import InputError
from monolora.recipes.vision.settings import Data
from monolora.recipes.vision.sources import Source, open_class_folders, open_sources
from tests.support.shapes import CLASSES, picture, save_shapes


def _png(label: int, number: int) -> bytes:
    buffer = io.BytesIO()
    picture(CLASSES[label], number).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def write_hub(tmp_path: Path) -> Callable[..., Path]:
    """``write_hub(train=[0, 1, 2], test=[…])``: a data set in the hub's layout, with the labels of each split."""

    def write(
        label_columns: Sequence[str] = ("label",), with_images: bool = True, **splits: Sequence[int | None]
    ) -> Path:
        folder = tmp_path / "mine"
        (folder / "data").mkdir(parents=True)
        features: dict[str, Any] = {name: datasets.ClassLabel(names=list(CLASSES)) for name in label_columns}
        for split, labels in (splits or {"train": [0, 1, 2, 0, 1], "test": [2, 1, 0]}).items():
            columns: dict[str, list[Any]] = {name: list(labels) for name in label_columns} | {
                "place": [*map(str, labels)]
            }
            if with_images:
                images = [{"bytes": _png(label or 0, number), "path": None} for number, label in enumerate(labels)]
                columns["img"] = images
            kinds = features | {"place": datasets.Value("string")} | ({"img": datasets.Image()} if with_images else {})
            rows = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
            rows.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
        return folder

    return write


def _data(folder: Path, **settings: Any) -> Data:
    return Data(dataset=str(folder), image_size=12, **settings)


def _decoded(source: Source, i: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(source.read(i))))


def test_hub_data_set(write_hub: Callable[..., Path]) -> None:
    train, val = open_sources(_data(write_hub()))
    assert train.classes == val.classes == CLASSES
    assert train.labels_N.tolist() == [0, 1, 2, 0, 1]
    assert val.labels_N.tolist() == [2, 1, 0]
    assert train.labels_N.dtype == np.int64
    for index, label in enumerate(train.labels_N):
        np.testing.assert_array_equal(_decoded(train, index), np.asarray(picture(CLASSES[label], index)))
    assert train.names[3] == "image 3 of train"


@pytest.mark.parametrize("split", ["validation", "val", "test"])
def test_hub_validation_split(write_hub: Callable[..., Path], split: str) -> None:
    _, val = open_sources(_data(write_hub(**{"train": [0, 1, 2], split: [2, 2, 1, 0]})))
    assert val.labels_N.tolist() == [2, 2, 1, 0]


def test_validation_goes_before_test(write_hub: Callable[..., Path]) -> None:
    _, val = open_sources(_data(write_hub(train=[0, 1, 2], test=[0, 1, 2], validation=[2, 1, 0])))
    assert val.labels_N.tolist() == [2, 1, 0]


def test_label_column_is_chosen(write_hub: Callable[..., Path]) -> None:
    folder = write_hub(label_columns=("coarse", "fine"))
    assert open_sources(_data(folder, label_column="fine"))[0].classes == CLASSES
    with pytest.raises(InputError, match=r"several columns of classes. Choose with --label-column: coarse, fine"):
        open_sources(_data(folder))
    with pytest.raises(InputError, match=r"Unknown --label-column 'fin'.*Did you mean fine"):
        open_sources(_data(folder, label_column="fin"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test": [0, 1, 2]}, "no split train; it has test"),
        ({"train": [0, 1, 2]}, "no split of validation images: none of validation, val, test"),
        ({"train": [0, 1, 2], "test": [0, 1]}, "no validation images of class 'red'"),
        ({"train": [0, 2, 0], "test": [0, 1, 2]}, "no training images of class 'green'"),
        ({"label_columns": ()}, "no classes: none of its columns .* is a ClassLabel"),
        ({"with_images": False}, "no images: its columns are label, place"),
        ({"train": [0, 1, 2], "test": [0, None, 2, None]}, "2 of 4 images of test have no label"),
        ({"train": [0, 1, 2, -1], "test": [0, 1, 2]}, "1 of 4 images of train have no label"),
    ],
)
def test_hub_data_sets_that_are_refused(write_hub: Callable[..., Path], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_sources(_data(write_hub(**options)))


def test_folders(shapes: Path) -> None:
    train, val = open_sources(_data(shapes))
    assert train.classes == CLASSES
    assert (len(train.names), len(val.names)) == (48, 18)
    assert train.labels_N.tolist() == [0] * 16 + [1] * 16 + [2] * 16
    np.testing.assert_array_equal(_decoded(train, 17), np.asarray(picture("green", 1)))
    assert Path(train.names[17]) == shapes / "train" / "green" / "001.png"


def test_folders_are_searched_below(tmp_path: Path) -> None:
    root = save_shapes(tmp_path / "images", train=2, val=1)
    (root / "train" / "red" / "deep").mkdir()
    picture("red", 7).save(root / "train" / "red" / "deep" / "more.JPG")
    (root / "train" / "red" / "notes.txt").write_text("no image")
    (root / "train" / "empty").mkdir()
    train, _ = open_sources(_data(root))
    assert train.classes == CLASSES  # an empty folder is no class
    assert train.labels_N.tolist() == [0, 0, 1, 1, 2, 2, 2]


def test_validation_folder_by_other_names(tmp_path: Path) -> None:
    root = save_shapes(tmp_path / "images", train=2, val=1)
    (root / "val").rename(root / "test")
    assert open_sources(_data(root))[1].labels_N.tolist() == [0, 1, 2]


def _without_val(root: Path) -> None:
    (root / "val").rename(root / "elsewhere")


def _extra_val(root: Path) -> None:
    (root / "val" / "yellow").mkdir()
    picture("red", 0).save(root / "val" / "yellow" / "0.png")


def _loose(root: Path) -> None:
    for name in CLASSES:
        for path in (root / "train" / name).iterdir():
            path.rename(root / "train" / f"{name}-{path.name}")
        (root / "train" / name).rmdir()


def _empty(root: Path) -> None:
    for path in (root / "train").rglob("*.png"):
        path.unlink()


def _one_class(root: Path) -> None:
    for split in ("train", "val"):
        for name in ("blue", "green"):
            (root / split / name).rename(root / f"{split}-{name}")


def _class_without_val(root: Path) -> None:
    (root / "val" / "green").rename(root / "green")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_val, "no validation images. Put them into .*val/CLASS/"),
        (_extra_val, "has a class that .*train does not have: 'yellow'"),
        (_loose, "images without class folders. Sort the images into .*train/CLASS/"),
        (_empty, "train has no images. Sort the images into"),
        (_one_class, "one class only, 'red': there is nothing to classify"),
        (_class_without_val, "no validation images of class 'green'"),
    ],
)
def test_folders_that_are_refused(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    root = save_shapes(tmp_path / "images", train=2, val=1)
    spoil(root)
    with pytest.raises(InputError, match=message) as raised:
        open_sources(_data(root))
    assert "\n" not in str(raised.value)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no data set at"):
        open_sources(_data(tmp_path / "nowhere"))


@pytest.mark.parametrize("classes", [1, 4])
def test_number_of_classes_out_of_range(shapes: Path, classes: int) -> None:
    with pytest.raises(InputError, match=f"--classes must be 2 to 3, which .* has; got {classes}"):
        open_sources(_data(shapes, classes=classes))


def test_some_classes_and_images(shapes: Path) -> None:
    train, val = open_sources(_data(shapes, classes=2, per_class=3))
    assert train.classes == val.classes == CLASSES[:2]
    assert [Path(name).name for name in train.names] == ["000.png", "001.png", "002.png"] * 2
    assert train.labels_N.tolist() == [0, 0, 0, 1, 1, 1]
    assert val.labels_N.tolist() == [0] * 6 + [1] * 6  # all of them
    np.testing.assert_array_equal(_decoded(train, 4), np.asarray(picture("green", 1)))


def test_some_images_of_mixed_labels_are_the_first_of_each_class(write_hub: Callable[..., Path]) -> None:
    train, _ = open_sources(_data(write_hub(train=[2, 0, 2, 1, 0, 2, 1, 0], test=[0, 1, 2]), per_class=2))
    assert train.labels_N.tolist() == [2, 0, 2, 1, 0, 1]
    indices = [0, 1, 2, 3, 4, 6]
    for i, index in enumerate(indices):
        np.testing.assert_array_equal(_decoded(train, i), np.asarray(picture(CLASSES[train.labels_N[i]], index)))


def test_more_images_of_a_class_than_there_are_is_all(shapes: Path) -> None:
    assert len(open_sources(_data(shapes, per_class=1000))[0].names) == 48


def test_identity_changes_with_the_images(tmp_path: Path) -> None:
    root = save_shapes(tmp_path / "images", train=3, val=1)
    data = _data(root)

    def identity(data: Data) -> str:
        return open_sources(data)[0].identity

    first = identity(data)
    assert identity(data) == first
    assert identity(replace(data, per_class=2)) != first
    assert identity(replace(data, classes=2)) != first
    picture("red", 99).resize((20, 20)).save(root / "train" / "red" / "000.png")
    assert identity(data) != first


def test_other_validation_folders_take_the_training_classes(tmp_path: Path) -> None:
    root = save_shapes(tmp_path / "images", train=2, val=3)
    (root / "val" / "blue").rename(root / "val" / "sketches")
    source = open_class_folders(root / "val", CLASSES)
    assert source.classes == CLASSES
    assert source.labels_N.tolist() == [1, 1, 1, 2, 2, 2]
    with pytest.raises(InputError, match="none of the classes: its folders are green, red, sketches …"):
        open_class_folders(root / "val", ("yellow", "white"))
    with pytest.raises(InputError, match="There is no folder"):
        open_class_folders(root / "nowhere", CLASSES)
