"""Train the toy model's encoders, and linear classifiers on them under label and input noise (section 4.2).

    monolora superposition run --out runs/superposition
    monolora superposition run --seeds 5 --train-samples 1000 --out runs/quick

Encoders of all sparsities and seeds are trained together, and so are all classifiers of a sparsity. Results in OUT that
have the same settings are not computed again. Writes OUT/encoders.{safetensors,json}, OUT/noise-N.json for each number
of training samples, and OUT/results.md, which is printed too.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from monolora.cli.flags import FlagParser
from monolora.errors import InputError, exit_status
from monolora.files import saving, write_tensors, write_text
from monolora.locks import locked, no_empty_folder
from monolora.recipes import experiment_steps
from monolora.recipes.experiment_steps import device_of, out_of_memory
from monolora.recipes.superposition.classifiers import noise_results
from monolora.recipes.superposition.records import (
    ENCODERS,
    WEIGHTS,
    fingerprint,
    noise_file,
    read_records,
    read_weights,
    setting_differences,
    shared_settings,
)
from monolora.recipes.superposition.settings import Run
from monolora.recipes.superposition.tables import as_markdown, results_of
from monolora.recipes.superposition.toy_model import Encoders, dimensionality, in_antipodal_pair, train_encoders
from monolora.runs import check_own
from monolora.terminal import suggest

RESULTS = "results.md"
_AGAIN = "Give the same command again."
_RETRY = "Free space, then give the same command again."
# The settings that decide what encoders and classifiers become: where these are the same, results are not recomputed.
_ENCODER_SETTINGS = (
    "features", "dimensions", "sparsities", "seeds", "importance_decay", "encoder_steps", "encoder_batch",
    "encoder_learning_rate",
)  # fmt: skip
_NOISE_SETTINGS = (
    "sparsities", "seeds", "test_samples", "noise_rates", "noise_scales", "epochs", "batch_size", "learning_rate",
    "weight_decay",
)  # fmt: skip


def run(settings: Run) -> int:
    """Compute what is missing, and print all results in the folder; returns the exit status.

    Raises:
        InputError: if a file in the folder is damaged, or there is no such device.
        RunError: if training diverges, or the device's memory is too small; SaveError if the disk is full.
    """
    out, device = Path(settings.out), device_of(settings.device)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file. Name a folder.")
    with saving(out, "Name another folder with --out."):
        out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out, "--out"), no_empty_folder(out):
        _run(settings, out, device)
    return 0


def _run(settings: Run, out: Path, device: torch.device) -> None:
    _refuse_foreign_files(out)
    out.mkdir(exist_ok=True)
    _train_encoders(settings, out, device)
    W_Ssmn = torch.from_numpy(read_weights(out / WEIGHTS, _AGAIN))
    inputs = {"encoders": fingerprint(out / WEIGHTS)}
    _check_other_classifiers(settings, out)
    for count in settings.train_samples:
        _train_classifiers(settings, out, count, W_Ssmn, inputs, device)
    text = as_markdown(results_of(read_records(out)))
    with saving(out, _RETRY):
        write_text(out / RESULTS, text)
    print(f"\n{text}\nresults: {out / RESULTS}", flush=True)
    suggest("monolora", "superposition", "figures", "--out", str(out))


def _refuse_foreign_files(out: Path) -> None:
    """Check that no file is overwritten that another program wrote.

    Raises:
        InputError: naming the file.
    """
    records = [path for path in (out / ENCODERS, *sorted(out.glob(noise_file("*")))) if path.is_file()]
    for path in records:
        experiment_steps.read(path, _AGAIN)
    check_own((out / WEIGHTS, out / RESULTS), bool(records) or _is_weights(out / WEIGHTS), "run of this program")


def _is_weights(path: Path) -> bool:
    """Whether a file is what a killed run left: encoders without a record."""
    try:
        read_weights(path, _AGAIN)
    except InputError:
        return False
    return True


def _train_encoders(settings: Run, out: Path, device: torch.device) -> None:
    """Train and save the encoders, unless the folder has them."""
    start, own = time.perf_counter(), _subset(settings, _ENCODER_SETTINGS)
    count = len(settings.sparsities) * settings.seeds
    title = (
        f"encoders: {count}, {len(settings.sparsities)} sparsities x {settings.seeds} seeds, {settings.features} "
        f"features in {settings.dimensions} dimensions"
    )
    results = experiment_steps.results_if_same(out / ENCODERS, own, {})
    if results is not None and (out / WEIGHTS).is_file() and results.get("weights") == fingerprint(out / WEIGHTS):
        print(f"{title}: done before", flush=True)
        return
    print(f"{title}: training, {settings.encoder_steps} steps …", flush=True)
    with out_of_memory("Lower --seeds or --encoder-batch, or give fewer --sparsities."):
        encoders = train_encoders(settings, device)
    with saving(out, _RETRY):
        # The records go first: killed between the two, the folder never has a record of other weights.
        for path in (out / ENCODERS, *out.glob(noise_file("*"))):
            path.unlink(missing_ok=True)
        write_tensors(out / WEIGHTS, {"W": encoders.W_Kmn, "b": encoders.b_Kn})
    seconds = time.perf_counter() - start
    about = {"weights": fingerprint(out / WEIGHTS), "seconds": seconds}
    experiment_steps.write(out / ENCODERS, own, {}, _geometry(encoders, settings.sparsities) | about)
    print(f"encoders: {seconds:.0f} s", flush=True)


def _geometry(encoders: Encoders, sparsities: Sequence[float]) -> dict[str, Any]:
    """The record's arrays: by sparsity and seed; all but the loss by feature too."""
    W_Ssmn = encoders.W_Kmn
    measures = {
        "loss": encoders.loss_K,
        "norms": W_Ssmn.norm(dim=-2),
        "dimensionality": dimensionality(W_Ssmn),
        "paired": in_antipodal_pair(W_Ssmn),
    }
    return {name: dict(zip(map(str, sparsities), values.tolist(), strict=True)) for name, values in measures.items()}


def _check_other_classifiers(settings: Run, out: Path) -> None:
    """Check the records that stay: they are shown together with the new ones, so their settings must be the same.

    Raises:
        InputError: if they differ.
    """
    own = json.loads(json.dumps(_subset(settings, _NOISE_SETTINGS)))  # tuples are lists in a record
    own_files = {noise_file(count) for count in settings.train_samples}
    for path in sorted(out.glob(noise_file("*"))):
        theirs = shared_settings(experiment_steps.read(path, _AGAIN)["settings"])
        if path.name not in own_files and theirs != own:
            raise InputError(
                f"{path} is of other settings ({setting_differences(own, theirs)}), and would be shown together with "
                "the new results. Give another --out, or delete it."
            )


def _train_classifiers(
    settings: Run, out: Path, count: int, W_Ssmn: torch.Tensor, inputs: dict[str, str], device: torch.device
) -> None:
    """Train and measure the classifiers of one number of training samples, unless the folder has them."""
    start, file = time.perf_counter(), out / noise_file(count)
    own = _subset(settings, _NOISE_SETTINGS) | {"train_samples": count}
    pairs = 2 * len(settings.sparsities) - 1  # at S = 0, mono is poly
    classifiers = pairs * settings.seeds * len(settings.noise_rates)
    title = f"noise: {classifiers} classifiers, {count} training samples each"
    if experiment_steps.results_if_same(file, own, inputs) is not None:
        print(f"{title}: done before", flush=True)
        return
    print(f"{title}: training, {settings.epochs} epochs …", flush=True)
    with out_of_memory("Lower --seeds, --train-samples or --test-samples."):
        results = noise_results(W_Ssmn, settings, count, device)
    seconds = time.perf_counter() - start
    experiment_steps.write(file, own, inputs, results | {"seconds": seconds})
    print(f"noise: {seconds:.0f} s", flush=True)


def _subset(settings: Run, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in names}


def main(argv: list[str]) -> int:
    """Run from the command line; returns the exit status."""
    return run(FlagParser("monolora superposition run", __doc__).parse_into(argv, Run))


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
