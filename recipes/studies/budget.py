"""``--dry-run``: every command of a study, and about how many tokens, how much memory and how many hours it takes.

Tokens are counted on the very examples and prompts, by the model's tokenizer where it can be had. Seconds are tokens
divided by the speeds that the study's file names for its device; they are assumptions, not measurements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from monolora.errors import InputError
from monolora.eval import prompts
from monolora.eval.judges.shieldgemma import POLICIES
from monolora.eval.progress import NOTES
from monolora.hub import SMOLLM2, load_tokenizer, resolve_model
from monolora.recipes.prompts import prompt_ids, split_at_answer
from monolora.recipes.studies.cells import planned
from monolora.recipes.studies.settings import Estimates, Study
from monolora.recipes.tasks import Example, load_task
from monolora.recipes.tasks.custom import Source

_ACTIVATIONS = 34  # bytes a token, layer and hidden unit in 16 bits (Korthikanti et al. 2022, eq. 1, flash attention)
_KEPT = 2  # with gradient checkpointing


class Load(NamedTuple):
    """What a kind of cell takes, all of them together."""

    what: str
    cells: int
    tokens: float
    gigabytes: float | None
    hours: float | None


def dry_run(study: Study) -> None:
    """Print the commands and what they take; nothing is run."""
    for cell in planned(study):
        print(cell.command)
    rates = ", ".join(f"{rate:g}" for rate in study.learning_rates)
    said = f"Seeds after the first take the best of the learning rates {rates}; the middle one stands for it here."
    NOTES.print(said, markup=False, highlight=False, soft_wrap=True)
    Console().print(_table(study, loads(study)))


def loads(study: Study) -> list[Load]:
    """Training, generation and judging of each data set, at most: no answer is taken to end by itself."""
    tokenizer = _tokenizer(study)
    found = []
    for dataset in study.datasets:
        found += [_training(study, dataset, tokenizer), *_evaluation(study, dataset, tokenizer)]
    return found


def _tokenizer(study: Study) -> PreTrainedTokenizerBase:
    try:
        return load_tokenizer(resolve_model(study.model))
    except InputError:
        NOTES.print(f"{study.model} cannot be had here: tokens are counted by {SMOLLM2}'s tokenizer.", markup=False)
        return load_tokenizer(resolve_model(SMOLLM2))


def _training(study: Study, dataset: str, tokenizer: PreTrainedTokenizerBase) -> Load:
    flags = {**study.sft, **study.datasets[dataset].sft}
    train, _ = load_task(dataset, Source()).chosen(flags.get("max_train_samples"))
    lengths = [sum(map(len, split_at_answer(row, tokenizer))) for row in train]
    most = flags.get("max_length") or 1024
    kept = [min(length, most) for length in lengths]
    cells = len(study.adapters) * (len(study.learning_rates) + len(study.seeds) - 1)
    tokens = cells * sum(kept) * float(flags.get("num_train_epochs", 1))
    batch = int(flags.get("per_device_train_batch_size", 16)) * max(kept)
    return Load(
        f"{dataset}: training",
        cells,
        tokens,
        _gigabytes(study.estimates, batch, bool(flags.get("gradient_checkpointing"))),
        _hours(tokens, study.estimates and study.estimates.train),
    )


def _gigabytes(estimates: Estimates | None, batch_tokens: int, is_checkpointed: bool) -> float | None:
    """Weights in 16 bits and what a step keeps; the adapter and its optimizer are small beside them."""
    if estimates is None:
        return None
    layer = batch_tokens * estimates.hidden * _ACTIVATIONS
    kept = (
        estimates.layers * batch_tokens * estimates.hidden * _KEPT + layer
        if is_checkpointed
        else estimates.layers * layer
    )
    return (2 * estimates.parameters + kept) / 1e9


def _evaluation(study: Study, dataset: str, tokenizer: PreTrainedTokenizerBase) -> list[Load]:
    flags: dict[str, Any] = {**study.eval, **study.datasets[dataset].eval}
    models = 1 + len(study.adapters) * len(study.seeds)
    most = int(flags.get("max_new_tokens", 512))
    asked = _prompt_lengths(flags, dataset, tokenizer)
    generated = models * sum(len(lengths) * (limit or most) for lengths, limit, _ in asked)
    judged = [lengths for lengths, _, is_judged in asked if is_judged]
    read = {
        judge: models * sum(sum(lengths) + most * len(lengths) for lengths in judged) * _calls(judge)
        for judge in flags.get("judges", [])
        if judge != "refusal"
    }
    estimates = study.estimates
    found = [
        Load(
            f"{dataset}: answers",
            1,
            generated,
            None if estimates is None else 2 * estimates.parameters / 1e9,
            _hours(generated, estimates and estimates.generate),
        )
    ]
    for judge, tokens in read.items():
        size = None if estimates is None else estimates.judges.get(judge.partition(":")[0])
        gigabytes = None if size is None else 2 * size / 1e9
        found.append(Load(f"{dataset}: {judge}", 1, tokens, gigabytes, _hours(tokens, estimates and estimates.read)))
    return found


def _calls(judge: str) -> int:
    """ShieldGemma is asked once a policy."""
    return len(POLICIES) if judge.startswith("shieldgemma") else 1


def _prompt_lengths(
    flags: Mapping[str, Any], dataset: str, tokenizer: PreTrainedTokenizerBase
) -> list[tuple[list[int], int | None, bool]]:
    """Of each set: tokens of its prompts; how long its answers may be, None for the run's own; whether it is judged."""
    words = flags.get("suite", ["alignment"])
    suite = words if isinstance(words, list) else [words]
    sets = prompts.suite(suite, flags.get("limit"), flags.get("xstest_limit"), bool(flags.get("unsafe_only")))
    sets.append(prompts.load(f"task:{dataset}", flags.get("task_limit")))
    return [
        (
            [len(prompt_ids(Example(each.instruction, "", each.context), tokenizer)) for each in found.prompts],
            found.max_new_tokens,
            found.purpose == "safety",
        )
        for found in sets
    ]


def _hours(tokens: float, speed: float | None) -> float | None:
    return None if speed is None else tokens / speed / 3600


def _table(study: Study, found: Sequence[Load]) -> Table:
    device = "no estimates in the study's file" if study.estimates is None else study.estimates.device
    table = Table(title=f"At most, {device}", box=None)
    for title in ("", "cells", "million tokens", "GB", "hours"):
        table.add_column(title, justify="right" if title else "left")
    for each in found:
        shown = ("–" if value is None else f"{value:.1f}" for value in (each.tokens / 1e6, each.gigabytes, each.hours))
        table.add_row(each.what, str(each.cells), *shown)
    hours = [each.hours for each in found if each.hours is not None]
    if hours:
        table.add_row("all", "", "", "", f"{sum(hours):.1f}")
    return table
