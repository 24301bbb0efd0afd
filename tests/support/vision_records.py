"""A folder of runs with made-up numbers, in the format that the steps write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monolora.recipes.vision.features import consistency_file, encoder_folder, finetune_file, probe_file

REPRESENTATIONS = ("simclr", "ncl", "sae")
RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SCALES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_START = {"simclr": 0.54, "ncl": 0.53, "sae": 0.535}
_LOSS = {"simclr": 0.20, "ncl": 0.09, "sae": 0.15}  # of accuracy, at 90 % wrong labels


def write_record(path: Path, results: dict[str, Any], settings: dict[str, Any] | None = None, **inputs: str) -> None:
    """Write one record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"settings": settings or {}, "inputs": inputs, "provenance": {}, "results": results}) + "\n"
    )


def make_records(
    out: Path,
    seeds: Sequence[int] = (0,),
    draws: int = 5,
    *,
    classes: Sequence[str] = ("blue", "green", "red"),
    val_images: int = 18,
    val_fingerprint: str = "val",
    data: dict[str, Any] | None = None,
    epochs: int = 200,
    ood: Sequence[str] = ("sketch",),
    shown: int = 8,
) -> None:
    """Write the records of all steps.

    Args:
        out: the folder.
        seeds: of pretraining.
        draws: label seeds of probes; finetuning has two at most.
        classes: names of the classes.
        val_images: the number of validation images; top images are indices of these.
        val_fingerprint: of those images.
        data: settings of the images in the probes' records; none are written without.
        epochs: of pretraining.
        ood: names of images of another kind.
        shown: top images of a dimension.
    """
    for seed in seeds:
        write_record(finetune_file(out, seed), {"runs": _finetune_runs(seed, min(draws, 2))})
        write_record(
            encoder_folder(out, "sae", seed) / "sae.json",
            {"explained_variance": {"train": 0.91, "val": 0.875}, "dead": 0.125, "zeros": 0.9, "loss": [1, 0.5]},
            {"k": 256},
        )
        for name in REPRESENTATIONS:
            numbers = np.random.default_rng([seed, REPRESENTATIONS.index(name)])
            settings = {"epochs": 50} | ({"data": data} if data else {})
            write_record(probe_file(out, name, seed), _probe_results(name, numbers, draws, classes, ood), settings)
            write_record(
                consistency_file(out, name, seed),
                _consistency_results(name, numbers, draws, classes, val_images, shown),
                features=f"weights-train-{val_fingerprint}-float32",
            )
            if name != "sae":
                write_record(
                    encoder_folder(out, name, seed) / "pretrain.json",
                    {"loss": 1.5, "probe_accuracy": 0.5, "images_per_second": 100.0, "epochs": epochs, "seconds": 1.0},
                )


def _probe_results(
    name: str, numbers: np.random.Generator, draws: int, classes: Sequence[str], ood: Sequence[str]
) -> dict[str, Any]:
    encoder = numbers.normal(0, 0.005)

    def accuracies(mean: float) -> list[float]:
        return (mean + encoder + numbers.normal(0, 0.004, draws)).round(4).tolist()

    def by_rate(shift: float) -> dict[str, list[float]]:
        return {str(rate): accuracies(_START[name] - _LOSS[name] * rate**3 + shift * rate) for rate in RATES}

    strength = {"gaussian": 0.4, "uniform": 0.15}
    return {
        "classes": list(classes),
        "scale": 1.0,
        "accuracy": {"ce": by_rate(0.0), "sce": by_rate(0.02)},
        "train_accuracy": {"ce": by_rate(0.1), "sce": by_rate(0.1)},
        "input_noise": {
            kind: {str(scale): accuracies(_START[name] - (share + _LOSS[name] / 4) * scale) for scale in SCALES}
            for kind, share in strength.items()
        },
        "ood": {kind: accuracies(_START[name] / 3) for kind in ood},
        "per_class": {"ce": {str(rate): [[0.5] * len(classes)] * draws for rate in RATES}},
        "seconds": 1.0,
    }


def _finetune_runs(seed: int, draws: int) -> list[dict[str, Any]]:
    numbers = np.random.default_rng([seed, 99])
    conditions = [(0.1, 0.0), (0.2, 0.0), (0.5, 0.0), (1.0, 0.0), (1.0, 0.2), (1.0, 0.4), (1.0, 0.6), (1.0, 0.8)]
    epochs = np.arange(1, 13)
    runs = []
    for objective, gain in (("ce", 0.0), ("nce", 0.03)):
        for fraction, rate in conditions:
            for draw in range(draws):
                rise = 1 - np.exp(-epochs / 3)
                train = (0.98 - gain) * rise + numbers.normal(0, 0.004, len(epochs))
                val = (0.7 + 0.1 * np.log10(fraction) - 0.4 * rate + gain) * rise
                val += numbers.normal(0, 0.006, len(epochs))
                runs.append({
                    "objective": objective, "fraction": fraction, "noise_rate": rate, "draw": draw,
                    "train_accuracy": train.tolist(), "val_accuracy": val.tolist(),
                    "train_loss": (2 - rise).tolist(), "seconds": 1.0,
                })  # fmt: skip
    return runs


def _consistency_results(
    name: str, numbers: np.random.Generator, draws: int, classes: Sequence[str], val_images: int, shown: int
) -> dict[str, Any]:
    mean = {"simclr": 0.12, "sae": 0.31, "ncl": 0.42}[name]

    def dimension() -> dict[str, Any]:
        indices = numbers.choice(val_images, shown, replace=False)
        return {
            "dimension": int(numbers.integers(2048)),
            "consistency": float(mean + numbers.normal(0, 0.03)),
            "images": indices.tolist(),
            "activations": np.linspace(3, 1, shown).tolist(),
        }

    return {
        "consistency": mean, "live": 1900, "dimensions": 2048, "zeros": 0.5, "per_dimension": [mean, None],
        "right": (mean + 0.1 + numbers.normal(0, 0.01, draws)).tolist(),
        "wrong": (mean + numbers.normal(0, 0.01, draws)).tolist(),
        "right_values": [mean + 0.1], "wrong_values": [mean],
        "random_dimensions": [dimension() for _ in range(4)],
        "best_class": {"class": classes[0], "accuracy": 0.9} | dimension(),
        "worst_class": {"class": classes[-1], "accuracy": 0.02} | dimension(),
    }  # fmt: skip
