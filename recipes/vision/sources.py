"""Where images come from: a hub data set or a folder of class folders. Nothing is decoded here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np

from monolora.errors import InputError, unknown
from monolora.hub import load_dataset
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
    """Training and validation images, of the classes and in the number that are asked for.

    Raises:
        InputError: if there are none, they have no classes or one only, or the two do not go together.
    """
    root = Path(data.dataset)
    train, val = _of_folder(root) if (root / "train").is_dir() else _of_hub(data)
    if len(train.classes) < 2:
        raise InputError(f"{data.dataset} has one class only, {train.classes[0]!r}: there is nothing to tell apart.")
    if data.classes is not None and not 2 <= data.classes <= len(train.classes):
        raise InputError(f"--classes must be 2 to {len(train.classes)}, which {data.dataset} has; got {data.classes}.")
    classes = train.classes[: data.classes]
    train = _chosen(train, classes, data.per_class)
    val = _chosen(val, classes, None)
    for what, source in (("training", train), ("validation", val)):
        absent = sorted(set(range(len(classes))) - set(source.labels_N.tolist()))
        if absent:
            raise InputError(f"{data.dataset} has no {what} images of class {classes[absent[0]]!r}.")
    return train, val


def open_class_folders(folder: Path, classes: Sequence[str]) -> Source:
    """``folder/CLASS/*.jpg``, labelled by ``classes``; other folders beside them are passed over.

    Raises:
        InputError: if the folder is not there, or has none of these classes.
    """
    found = _folders(folder)
    wanted = [name for name in classes if name in found]
    if not wanted:
        raise InputError(
            f"{folder} has none of the classes: its folders are {', '.join(sorted(found)[:5])} …, the classes "
            f"{', '.join(classes[:5])} …. Name the folders as the training data names its classes."
        )
    files = [(path, classes.index(name)) for name in wanted for path in found[name]]
    return _of_files(folder, files, tuple(classes))


def _of_folder(root: Path) -> tuple[Source, Source]:
    for name in VALIDATION:
        if (root / name).is_dir():
            train = _folders(root / "train")
            classes = tuple(sorted(train))
            extra = sorted(set(_folders(root / name)) - set(classes))
            if extra:
                raise InputError(f"{root / name} has a class that {root / 'train'} has not: {extra[0]!r}.")
            return open_class_folders(root / "train", classes), open_class_folders(root / name, classes)
    raise InputError(f"{root} has train/ and no validation images. Put them into {root / 'val'}/CLASS/.")


def _folders(root: Path) -> dict[str, list[Path]]:
    """Image files by class folder."""
    if not root.is_dir():
        raise InputError(f"There is no folder {root}.")
    found = {
        each.name: sorted(path for path in each.rglob("*") if path.suffix.lower() in SUFFIXES)
        for each in root.iterdir()
        if each.is_dir()
    }
    found = {name: files for name, files in found.items() if files}
    if not found:
        loose = any(path.suffix.lower() in SUFFIXES for path in root.iterdir())
        what = "images without class folders" if loose else "no images"
        raise InputError(f"{root} has {what}. Sort the images into {root}/CLASS/.")
    return found


def _of_files(root: Path, files: Sequence[tuple[Path, int]], classes: tuple[str, ...]) -> Source:
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


def _of_hub(data: Data) -> tuple[Source, Source]:
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
    return _of_split(splits["train"], images[0], label), _of_split(splits[validation], images[0], label)


def _of_split(split: datasets.Dataset, image: str, label: str) -> Source:
    encoded = split.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    labels = [-1 if each is None else each for each in split[label]]  # -1 is the hub's other sign of no label
    if absent := labels.count(-1):
        raise InputError(f"{absent} of {len(split)} images of {split.split} have no label. Leave them out of the data.")

    def read(i: int) -> bytes:
        found: dict[str, Any] | None = encoded[i][image]
        if found is None:
            raise ValueError("a row without an image")
        return found["bytes"] if found["bytes"] is not None else Path(found["path"]).read_bytes()

    return Source(
        names=[f"image {i} of {split.split}" for i in range(len(split))],
        read=read,
        labels_N=np.array(labels, dtype=np.int64),
        classes=tuple(split.features[label].names),
        identity=split._fingerprint,
    )


def _chosen(source: Source, classes: tuple[str, ...], per_class: int | None) -> Source:
    """The first ``per_class`` images of each of the first ``classes``, in their order."""
    keep = np.flatnonzero(source.labels_N < len(classes))
    if per_class is not None:
        labels = source.labels_N[keep]
        keep = np.sort(np.concatenate([keep[labels == each][:per_class] for each in range(len(classes))]))
    places = keep.tolist()
    return Source(
        names=[source.names[i] for i in places],
        read=lambda i: source.read(places[i]),
        labels_N=source.labels_N[keep],
        classes=classes,
        identity=hashlib.sha256(f"{source.identity}:{keep.tobytes().hex()}".encode()).hexdigest(),
    )
