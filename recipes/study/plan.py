"""The cells of a study: each is a command that fills one folder, and can be typed by hand."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monolora.errors import InputError
from monolora.eval import command_line
from monolora.recipes import judge
from monolora.recipes.study.settings import Study
from monolora.recipes.training import arguments


class Cell(NamedTuple):
    """A part of a study that is done or not.

    Attributes:
        name: in words, distinct within the study.
        folder: that it fills.
        words: after ``monolora``.
        inputs: folders of models that it takes from other cells.
    """

    name: str
    folder: Path
    words: tuple[str, ...]
    inputs: tuple[Path, ...] = ()

    @property
    def command(self) -> str:
        """To be typed."""
        return shlex.join(["monolora", *self.words])


def judges(study: Study) -> Iterator[Cell]:
    """The trainings of the study's own judges."""
    for name, flags in study.judges.items():
        folder = study.folder / name
        yield Cell(name, folder, ("judge", *_words({**flags, "output_dir": folder}, ",")))


def training(study: Study, dataset: str, adapter: str, rate: float, seed: int) -> Cell:
    """One adapter, trained at one learning rate with one seed."""
    folder = study.folder / dataset / adapter / f"lr-{rate:g}" / f"seed-{seed}"
    flags = {
        **study.sft,
        **study.datasets[dataset].sft,
        **study.adapters[adapter],
        "model": study.model,
        "dataset": dataset,
        "learning_rate": f"{rate:g}",
        "seed": seed,
        "skip_eval": True,
        "output_dir": folder,
    }
    return Cell(f"{dataset}, {adapter}, lr {rate:g}, seed {seed}", folder, ("sft", *_words(flags, " ")))


def sweep(study: Study, dataset: str) -> Iterator[Cell]:
    """All adapters at all learning rates, with the first seed."""
    for adapter in study.adapters:
        for rate in study.learning_rates:
            yield training(study, dataset, adapter, rate, study.seeds[0])


def repeated(study: Study, dataset: str, rates: Mapping[str, float]) -> Iterator[Cell]:
    """All adapters at the rates that were chosen, with the other seeds."""
    for adapter, rate in rates.items():
        for seed in study.seeds[1:]:
            yield training(study, dataset, adapter, rate, seed)


def row_name(adapter: str, seed: int) -> str:
    """How an adapter of one seed is called in an evaluation."""
    return f"{adapter}-seed{seed}"


def evaluation(study: Study, dataset: str, rates: Mapping[str, float]) -> Cell:
    """Base and all adapters of a data set, at the learning rates that were chosen."""
    trained = {
        row_name(adapter, seed): training(study, dataset, adapter, rate, seed).folder
        for adapter, rate in rates.items()
        for seed in study.seeds
    }
    folder = study.folder / dataset / "eval"
    given, judged_by = _eval_flags(study, study.datasets[dataset].eval)
    flags = {**given, "tasks": [dataset], "out": folder}
    adapters = [word for name, path in trained.items() for word in ("--adapter", f"{name}={path}")]
    words = ("eval", "run", *_words(flags, ","), *adapters)
    return Cell(f"{dataset}, evaluation", folder, words, (*trained.values(), *judged_by))


def curves(study: Study, dataset: str, rates: Mapping[str, float]) -> Iterator[Cell]:
    """The checkpoints of the first seed's training, one evaluation an adapter."""
    if study.curve is None:
        return
    for adapter in study.curve.adapters:
        trained = training(study, dataset, adapter, rates[adapter], study.seeds[0]).folder
        folder = study.folder / dataset / "curves" / adapter
        given, judged_by = _eval_flags(study, study.curve.eval)
        words = ("eval", "run", *_words({**given, "out": folder}, ","), "--checkpoints", f"{trained}/checkpoint-*")
        yield Cell(f"{dataset}, {adapter}, along the training", folder, words, (trained, *judged_by))


def measured(study: Study, dataset: str, rates: Mapping[str, float]) -> Iterator[Cell]:
    """All that is measured of a data set's adapters."""
    yield evaluation(study, dataset, rates)
    yield from curves(study, dataset, rates)


def _eval_flags(study: Study, own: Mapping[str, Any]) -> tuple[dict[str, Any], list[Path]]:
    """The flags of an evaluation, and the folders of the study's own judges among them."""
    flags = {**study.eval, **own, "model": study.model}
    folders = {str(word): study.own_judge(str(word)) for word in flags.get("judges", [])}
    flags["judges"] = [f"classifier:{folder}" if folder else word for word, folder in folders.items()]
    return flags, [folder for folder in folders.values() if folder]


def _words(flags: Mapping[str, Any], between: str) -> Iterator[str]:
    """Flags and values; the items of a list are words of their own, or one word with commas."""
    for name, value in flags.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            yield flag
        elif isinstance(value, (list, tuple)):
            yield from (flag, *map(str, value)) if between == " " else (flag, between.join(map(str, value)))
        elif value is not None and value is not False:
            yield from (flag, str(value))


def middle_rate(study: Study) -> float:
    """Of the study's learning rates."""
    return sorted(study.learning_rates)[len(study.learning_rates) // 2]


def planned(study: Study) -> Sequence[Cell]:
    """All cells in their order; a middle learning rate stands for what the sweep would choose."""
    chosen = dict.fromkeys(study.adapters, middle_rate(study))
    return [
        *(cell for dataset in study.datasets for cell in sweep(study, dataset)),
        *judges(study),
        *(cell for dataset in study.datasets for cell in repeated(study, dataset, chosen)),
        *(cell for dataset in study.datasets for cell in measured(study, dataset, chosen)),
    ]


_LOOKERS: dict[str, Callable[[list[str]], object]] = {
    "judge": judge.parse,
    "sft": arguments.parse,
    "eval": lambda words: command_line.parse(words[1:], "monolora eval run"),
}


def check_commands(study: Study) -> None:
    """Check one command of each kind of cell, as those that differ by rate and seed only are alike.

    Raises:
        InputError: naming the cell and the flag.
    """
    seen = set()
    for cell in planned(study):
        kind = cell.name.partition(", lr ")[0]
        if kind not in seen:
            seen.add(kind)
            _check(cell)


def _check(cell: Cell) -> None:
    program, *words = cell.words
    if "--checkpoints" in words:  # which are not there yet
        words = words[: words.index("--checkpoints")]
    try:
        _LOOKERS[program](words)
    except InputError as error:
        raise InputError(f"{cell.name}: {error}") from error
