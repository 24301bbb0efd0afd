"""Where images come from: a hub data set or a folder of class folders. Nothing is decoded here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np

from monolora.data.datasets import load_dataset
from monolora.errors import InputError, unknown
from monolora.recipes.vision.settings import Data

VALIDATION = ("validation", "val", "test")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"})


class Source(NamedTuple):
    """Encoded images and their labels.

    Attributes:
        names: of the images, for messages.
        read: the bytes of image ``i``.
        labels_N: ``int64``, positions in ``classes``.
        classes: names.
        identity: changes when the images do.
    """

    names: Sequence[str]
    read: Callable[[int], bytes]
    labels_N: np.ndarray
    classes: tuple[str, ...]
    identity: str


def open_sources(data: Data) -> tuple[Source, Source]:
    """The training and validation images that the settings select.

    Raises:
        InputError: if there are none, they have fewer than two classes, or the two splits do not fit each other.
    """
    root = Path(data.dataset)
    train, val = _folder_sources(root) if (root / "train").is_dir() else _hub_sources(data)
    if len(train.classes) < 2:
        raise InputError(f"{data.dataset} has one class only, {train.classes[0]!r}: there is nothing to classify.")
    if data.classes is not None and not 2 <= data.classes <= len(train.classes):
        raise InputError(f"--classes must be 2 to {len(train.classes)}, which {data.dataset} has; got {data.classes}.")
    classes = train.classes[: data.classes]
    train = _select(train, classes, data.per_class)
    val = _select(val, classes, None)
    for title, source in (("training", train), ("validation", val)):
        empty = sorted(set(range(len(classes))) - set(source.labels_N.tolist()))
        if empty:
            raise InputError(f"{data.dataset} has no {title} images of class {classes[empty[0]]!r}.")
    return train, val


def open_class_folders(folder: Path, classes: Sequence[str]) -> Source:
    """The images in ``folder/CLASS/*.jpg``, labelled by ``classes``; folders of other names are skipped.

    Raises:
        InputError: if there is no such folder, or it has none of these classes.
    """
    by_class = _class_folders(folder)
    names = [name for name in classes if name in by_class]
    if not names:
        raise InputError(
            f"{folder} has none of the classes: its folders are {', '.join(sorted(by_class)[:5])} …, the classes "
            f"{', '.join(classes[:5])} …. Name the folders as the training data names its classes."
        )
    files = [(path, classes.index(name)) for name in names for path in by_class[name]]
    return _file_source(folder, files, tuple(classes))


def _folder_sources(root: Path) -> tuple[Source, Source]:
    for name in VALIDATION:
        if (root / name).is_dir():
            train = _class_folders(root / "train")
            classes = tuple(sorted(train))
            extra = sorted(set(_class_folders(root / name)) - set(classes))
            if extra:
                raise InputError(f"{root / name} has a class that {root / 'train'} does not have: {extra[0]!r}.")
            return open_class_folders(root / "train", classes), open_class_folders(root / name, classes)
    raise InputError(f"{root} has train/ but no validation images. Put them into {root / 'val'}/CLASS/.")


def _class_folders(root: Path) -> dict[str, list[Path]]:
    """Image files by class folder."""
    if not root.is_dir():
        raise InputError(f"There is no folder {root}.")
    by_class = {
        folder.name: sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        for folder in root.iterdir()
        if folder.is_dir()
    }
    by_class = {name: files for name, files in by_class.items() if files}
    if not by_class:
        loose = any(path.suffix.lower() in SUFFIXES for path in root.iterdir())
        problem = "images without class folders" if loose else "no images"
        raise InputError(f"{root} has {problem}. Sort the images into {root}/CLASS/.")
    return by_class


def _file_source(root: Path, files: Sequence[tuple[Path, int]], classes: tuple[str, ...]) -> Source:
    paths = [path for path, _ in files]
    digest = hashlib.sha256()
    for path, label in files:
        state = path.stat()
        digest.update(f"{path.relative_to(root)}:{label}:{state.st_size}:{state.st_mtime_ns}\n".encode())
    return Source(
        names=[str(path) for path in paths],
        read=lambda i: paths[i].read_bytes(),
        labels_N=np.array([label for _, label in files], dtype=np.int64),
        classes=classes,
        identity=digest.hexdigest(),
    )


def _hub_sources(data: Data) -> tuple[Source, Source]:
    splits = load_dataset(data.dataset)
    if "train" not in splits:
        raise InputError(f"{data.dataset} has no split train; it has {', '.join(splits)}.")
    validation = next((name for name in VALIDATION if name in splits), None)
    if validation is None:
        raise InputError(f"{data.dataset} has no split of validation images: none of {', '.join(VALIDATION)}.")
    features = splits["train"].features
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if not images:
        raise InputError(f"{data.dataset} has no images: its columns are {', '.join(features)}.")
    if not labels:
        raise InputError(f"{data.dataset} has no classes: none of its columns ({', '.join(features)}) is a ClassLabel.")
    label = data.label_column or labels[0]
    if label not in labels:
        raise unknown("--label-column", label, labels)
    if len(labels) > 1 and data.label_column is None:
        raise InputError(
            f"{data.dataset} has several columns of classes. Choose with --label-column: {', '.join(labels)}."
        )
    return _split_source(splits["train"], images[0], label), _split_source(splits[validation], images[0], label)


def _split_source(split: datasets.Dataset, image: str, label: str) -> Source:
    encoded = split.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    labels = [-1 if value is None else value for value in split[label]]  # the hub marks a missing label by either
    if missing := labels.count(-1):
        raise InputError(
            f"{missing} of {len(split)} images of {split.split} have no label. Leave them out of the data."
        )

    def read(i: int) -> bytes:
        value: dict[str, Any] | None = encoded[i][image]
        if value is None:
            raise ValueError("a row without an image")
        return value["bytes"] if value["bytes"] is not None else Path(value["path"]).read_bytes()

    return Source(
        names=[f"image {i} of {split.split}" for i in range(len(split))],
        read=read,
        labels_N=np.array(labels, dtype=np.int64),
        classes=tuple(split.features[label].names),
        identity=split._fingerprint,
    )


def _select(source: Source, classes: tuple[str, ...], per_class: int | None) -> Source:
    """The first ``per_class`` images of each of the first ``classes``, in their order."""
    keep = np.flatnonzero(source.labels_N < len(classes))
    if per_class is not None:
        labels = source.labels_N[keep]
        keep = np.sort(np.concatenate([keep[labels == label][:per_class] for label in range(len(classes))]))
    indices = keep.tolist()
    return Source(
        names=[source.names[i] for i in indices],
        read=lambda i: source.read(indices[i]),
        labels_N=source.labels_N[keep],
        classes=classes,
        identity=hashlib.sha256(f"{source.identity}:{keep.tobytes().hex()}".encode()).hexdigest(),
    )
