"""The cells of a study: commands of ``monolora`` that fill one folder each, and the learning rates that they select."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monolora.cli.flags import FlagParser, spelled
from monolora.errors import InputError
from monolora.eval import command_line
from monolora.recipes.settings import Align, Judge
from monolora.recipes.study.settings import Study
from monolora.recipes.training import arguments
from monolora.run_record import read


class Cell(NamedTuple):
    """A command of a study.

    Attributes:
        name: for people; unique within the study.
        folder: the command's output folder.
        words: the command line after ``monolora``.
        inputs: folders of models that other cells produce.
    """

    name: str
    folder: Path
    words: tuple[str, ...]
    inputs: tuple[Path, ...] = ()

    @property
    def command(self) -> str:
        """The command line, for a shell."""
        return shlex.join(["monolora", *self.words])


def judges(study: Study) -> Iterator[Cell]:
    """The trainings of the judges that the study trains."""
    for name, flags in study.judges.items():
        folder = study.folder / name
        yield Cell(name, folder, ("judge", *flag_words({**flags, "output_dir": folder}, ",")))


def bases(study: Study) -> Iterator[Cell]:
    """The trainings of the bases that the study makes."""
    for name, flags in study.bases.items():
        folder = study.folder / name
        flags = {**flags, "model": study.model, "output_dir": folder}
        yield Cell(name, folder, ("align", *flag_words(flags, " ")))


def _inputs(study: Study, dataset: str) -> tuple[Path, ...]:
    """The folder of a data set's base, if the study makes it."""
    return () if study.datasets[dataset].base is None else (Path(study.base(dataset)),)


def training(study: Study, dataset: str, adapter: str, rate: float, seed: int) -> Cell:
    """The training of an adapter at a learning rate with a seed."""
    folder = study.folder / dataset / adapter / f"lr-{rate:g}" / f"seed-{seed}"
    flags = {
        **study.sft,
        **study.datasets[dataset].sft,
        **study.adapters[adapter],
        "model": study.base(dataset),
        "dataset": study.task(dataset),
        "learning_rate": f"{rate:g}",
        "seed": seed,
        "skip_eval": True,
        "output_dir": folder,
    }
    name = f"{dataset}, {adapter}, lr {rate:g}, seed {seed}"
    return Cell(name, folder, ("sft", *flag_words(flags, " ")), _inputs(study, dataset))


def sweep(study: Study, dataset: str) -> Iterator[Cell]:
    """The trainings of all adapters at all learning rates, with the first seed; none with another entry's rates."""
    if study.datasets[dataset].rates_of is not None:
        return
    for adapter in study.adapters:
        for rate in study.learning_rates:
            yield training(study, dataset, adapter, rate, study.seeds[0])


def repetitions(study: Study, dataset: str, rates: Mapping[str, float]) -> Iterator[Cell]:
    """The trainings of all adapters at the selected rates, with the seeds that the sweep has not."""
    seeds = study.seeds[1:] if study.datasets[dataset].rates_of is None else study.seeds
    for adapter, rate in rates.items():
        for seed in seeds:
            yield training(study, dataset, adapter, rate, seed)


def row_name(adapter: str, seed: int) -> str:
    """The name of an adapter of one seed in an evaluation, and so of its row in the table."""
    return f"{adapter}-seed{seed}"


def evaluation(study: Study, dataset: str, rates: Mapping[str, float]) -> Cell:
    """The evaluation of the base and all adapters of a data set, at the selected learning rates."""
    adapter_folders = {
        row_name(adapter, seed): training(study, dataset, adapter, rate, seed).folder
        for adapter, rate in rates.items()
        for seed in study.seeds
    }
    folder = study.folder / dataset / "eval"
    eval_flags, inputs = _eval_flags(study, dataset, study.datasets[dataset].eval)
    flags = {**eval_flags, "tasks": [study.task(dataset)], "out": folder}
    adapters = [word for name, path in adapter_folders.items() for word in ("--adapter", f"{name}={path}")]
    words = ("eval", "run", *flag_words(flags, ","), *adapters)
    return Cell(f"{dataset}, evaluation", folder, words, (*adapter_folders.values(), *inputs))


def curves(study: Study, dataset: str, rates: Mapping[str, float]) -> Iterator[Cell]:
    """The evaluations of the checkpoints of the first seed's training, one per adapter."""
    if study.curve is None:
        return
    for adapter in study.curve.adapters:
        run = training(study, dataset, adapter, rates[adapter], study.seeds[0]).folder
        folder = study.folder / dataset / "curves" / adapter
        eval_flags, inputs = _eval_flags(study, dataset, study.curve.eval)
        words = ("eval", "run", *flag_words({**eval_flags, "out": folder}, ","), "--checkpoints", f"{run}/checkpoint-*")
        yield Cell(f"{dataset}, {adapter}, along the training", folder, words, (run, *inputs))


def evaluations(study: Study, dataset: str, rates: Mapping[str, float]) -> Iterator[Cell]:
    """All evaluations of a data set's adapters."""
    yield evaluation(study, dataset, rates)
    yield from curves(study, dataset, rates)


def _eval_flags(study: Study, dataset: str, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], list[Path]]:
    """The flags of an evaluation, and the folders of its base and its judges where the study makes them."""
    flags = {**study.eval, **overrides, "model": study.base(dataset)}
    folders = {str(word): study.own_judge(str(word)) for word in flags.get("judges", [])}
    flags["judges"] = [f"classifier:{folder}" if folder else word for word, folder in folders.items()]
    return flags, [*(folder for folder in folders.values() if folder), *_inputs(study, dataset)]


def flag_words(flags: Mapping[str, Any], separator: str) -> Iterator[str]:
    """The words of a command line. A list becomes several words if the separator is a space, otherwise one word."""
    for name, value in flags.items():
        flag = spelled(name)
        if value is True:
            yield flag
        elif isinstance(value, (list, tuple)):
            yield from (flag, *map(str, value)) if separator == " " else (flag, separator.join(map(str, value)))
        elif value is not None and value is not False:
            yield from (flag, str(value))


def middle_rate(study: Study) -> float:
    """The middle one of the study's learning rates."""
    return sorted(study.learning_rates)[len(study.learning_rates) // 2]


def all_cells(study: Study) -> Sequence[Cell]:
    """All cells in their order. The middle learning rate stands for the one that the sweep would select."""
    rates = dict.fromkeys(study.adapters, middle_rate(study))
    return [
        *bases(study),
        *(cell for dataset in study.datasets for cell in sweep(study, dataset)),
        *judges(study),
        *(cell for dataset in study.datasets for cell in repetitions(study, dataset, rates)),
        *(cell for dataset in study.datasets for cell in evaluations(study, dataset, rates)),
    ]


_PARSERS: dict[str, Callable[[list[str]], object]] = {
    "judge": lambda words: FlagParser("monolora judge", None).parse_into(words, Judge),
    "align": lambda words: FlagParser("monolora align", None).parse_into(words, Align),
    "sft": arguments.parse,
    "eval": lambda words: command_line.parse(words[1:], "monolora eval run"),
}


def check_commands(study: Study) -> None:
    """Check the flags of all cells, one command per kind: cells that differ only in rate and seed have the same flags.

    Raises:
        InputError: naming the cell and the flag.
    """
    checked = set()
    for cell in all_cells(study):
        kind = cell.name.partition(", lr ")[0]
        if kind not in checked:
            checked.add(kind)
            _check(cell)


def _check(cell: Cell) -> None:
    program, *words = cell.words
    if "--checkpoints" in words:  # they do not exist yet, and the parser looks for them
        words = words[: words.index("--checkpoints")]
    try:
        _PARSERS[program](words)
    except InputError as error:
        raise InputError(f"{cell.name}: {error}") from error


class SelectedRate(NamedTuple):
    """The learning rate selected for an adapter.

    Attributes:
        rate: with the lowest loss; among equal ones, the smallest.
        losses: by rate, in nats per token, on examples that are used neither for training nor for testing; infinite if
            the training diverged.
        is_edge: whether it is the smallest or largest rate of the sweep, so that a rate beyond it may be better.
    """

    rate: float
    losses: Mapping[float, float]
    is_edge: bool


def select_rate(study: Study, dataset: str, adapter: str) -> SelectedRate:
    """The rate with the lowest validation loss of an adapter on a data set, from the trainings of the sweep.

    Raises:
        InputError: if a training did not measure the loss, or all of them diverged.
    """
    dataset = study.datasets[dataset].rates_of or dataset
    losses = {}
    for rate in sorted(study.learning_rates):
        folder = training(study, dataset, adapter, rate, study.seeds[0]).folder
        record: Mapping[str, Any] = read(folder) or {}
        if record.get("status") == "running":  # all cells of the sweep are done, so this training diverged
            losses[rate] = math.inf
            continue
        validation = record.get("results", {}).get("validation")
        if validation is None:
            raise InputError(f"{folder} has no validation loss. Set validation_samples below sft in the study's file.")
        losses[rate] = float(validation["loss"])
    best = min(losses, key=lambda rate: (losses[rate], rate))
    if losses[best] == math.inf:
        raise InputError(f"{adapter} diverged on {dataset} at every learning rate. Add lower ones to the study's file.")
    return SelectedRate(best, losses, len(losses) > 1 and best in (min(losses), max(losses)))


def selected_rates(study: Study, dataset: str) -> dict[str, float]:
    """The rates of all adapters on a data set."""
    return {adapter: select_rate(study, dataset, adapter).rate for adapter in study.adapters}
