"""What the cells of a study take: tokens, counted on the very examples and prompts, and from them memory and hours.

Hours are tokens divided by the speeds that the study's file names for its device. A forward pass alone is taken to be
three times as fast as a training step, which is a forward and twice that backward.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from typing import Any, NamedTuple

from rich.table import Table
from transformers import PreTrainedTokenizerBase

from monolora.data import prompt_sets
from monolora.data.chat_template import prompt_ids, split_at_answer
from monolora.data.custom import Source
from monolora.data.tasks import Example, load_task
from monolora.errors import InputError
from monolora.eval.judges.shieldgemma import POLICIES
from monolora.eval.settings import Settings
from monolora.hub import SMOLLM2, load_tokenizer, resolve_model
from monolora.recipes import judge_data
from monolora.recipes.study.plan import middle_rate, planned
from monolora.recipes.study.settings import Estimates, Study
from monolora.terminal import STDERR, Terminal, say

_ACTIVATIONS = 34  # bytes a token, layer and hidden unit in 16 bits (Korthikanti et al. 2022, eq. 1, flash attention)
_KEPT = 2  # with gradient checkpointing
_FORWARD = 3  # as fast as a training step

Flags = Mapping[str, Any]


class Load(NamedTuple):
    """What a kind of cell takes, all of them together; None where the study's file has no estimates."""

    what: str
    cells: int
    tokens: float
    gigabytes: float | None
    hours: float | None


class Asked(NamedTuple):
    """A set of prompts: tokens of each; how long its answers may be, None for the run's own; whether it is judged."""

    lengths: list[int]
    limit: int | None
    is_judged: bool


def loads(study: Study, tokenizer: PreTrainedTokenizerBase) -> Iterator[Load]:
    """Of everything that the study runs, at most: no answer is taken to end by itself."""
    yield from (_judge(study, name, flags, tokenizer) for name, flags in study.judges.items())
    for dataset in study.datasets:
        steps, training = _training(study, dataset, tokenizer)
        yield training
        trained = len(study.adapters) * len(study.seeds)
        flags = {**study.eval, **study.datasets[dataset].eval, "tasks": [dataset]}
        yield from _evaluation(study, f"{dataset}:", 1, 1, trained, flags, tokenizer)
        if study.curve is not None:
            checkpoints = _checkpoints({**study.sft, **study.datasets[dataset].sft}, steps)
            flags = {**study.eval, **study.curve.eval}
            along = len(study.curve.adapters)
            yield from _evaluation(study, f"{dataset}, along:", along, along, along * checkpoints, flags, tokenizer)


def _judge(study: Study, name: str, flags: Flags, tokenizer: PreTrainedTokenizerBase) -> Load:
    """Its texts are counted by the model's tokenizer, and its speed follows from its size."""
    rows = judge_data.load(flags.get("dataset", judge_data.DATASET), None, judge_data.TEST_SPLIT, 0.15, 42)
    texts = [f"{row.prompt} {row.response}" for row in rows.splits.train]
    tokens = sum(map(len, tokenizer(texts)["input_ids"])) * float(flags.get("epochs", 4))
    size = _size(study.estimates, "classifier")
    speed = None if study.estimates is None or not size else study.estimates.train * study.estimates.parameters / size
    return Load(f"{name}: training", 1, tokens, None if size is None else 16 * size / 1e9, _hours(tokens, speed))


def _training(study: Study, dataset: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, Load]:
    """The steps of one, and all of them."""
    flags = {**study.sft, **study.datasets[dataset].sft}
    train, _ = load_task(dataset, Source()).chosen(flags.get("max_train_samples"))
    most = flags.get("max_length") or 1024
    kept = [min(sum(map(len, split_at_answer(row, tokenizer))), most) for row in train]
    cells = len(study.adapters) * (len(study.learning_rates) + len(study.seeds) - 1)
    epochs, batch = float(flags.get("num_train_epochs", 1)), int(flags.get("per_device_train_batch_size", 16))
    tokens = cells * sum(kept) * epochs
    memory = _gigabytes(study.estimates, batch * max(kept), bool(flags.get("gradient_checkpointing")))
    hours = _hours(tokens, study.estimates and study.estimates.train)
    return ceil(len(kept) / batch * epochs), Load(f"{dataset}: training", cells, tokens, memory, hours)


def _checkpoints(flags: Flags, steps: int) -> int:
    """How many a training leaves."""
    if flags.get("save_strategy") == "epoch":
        return ceil(float(flags.get("num_train_epochs", 1)))
    return ceil(steps / int(flags.get("save_steps", 500)))


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


def _evaluation(
    study: Study, what: str, cells: int, bases: int, tuned: int, flags: Flags, tokenizer: Any
) -> Iterator[Load]:
    """Evaluations of so many models, the bases among them counted once a cell."""
    estimates, models = study.estimates, bases + tuned
    most = int(flags.get("max_new_tokens", 512))
    asked = _asked(flags, tokenizer)
    weights = None if estimates is None else 2 * estimates.parameters / 1e9
    generated = models * sum(len(each.lengths) * (each.limit or most) for each in asked)
    longest = max(max(each.lengths) + (each.limit or most) for each in asked)
    memory = _answering(estimates, int(flags.get("batch_size", Settings.batch_size)) * longest)
    yield Load(f"{what} answers", cells, generated, memory, _hours(generated, estimates and estimates.generate))
    judged = [each.lengths for each in asked if each.is_judged]
    read = 0 if flags.get("skip_sparsity") else tuned * sum(sum(each.lengths) for each in asked)
    if drift := flags.get("drift"):  # base and finetuned, on the base's answers
        read += 2 * tuned * sum(sum(lengths[:drift]) + most * len(lengths[:drift]) for lengths in judged)
    speed = estimates and _FORWARD * estimates.train
    if read:
        yield Load(f"{what} sparsity and drift", cells, read, weights, _hours(read, speed))
    for judge in flags.get("judges", []):
        if judge != "refusal":
            tokens = models * _calls(judge) * sum(sum(lengths) + most * len(lengths) for lengths in judged)
            kind, _, which = judge.partition(":")
            size = _size(estimates, kind)
            memory = None if size is None else 2 * size / 1e9
            name = which if study.own_judge(judge) else kind
            yield Load(f"{what} {name}", cells, tokens, memory, _hours(tokens, estimates and estimates.read))


def _answering(estimates: Estimates | None, batch_tokens: int) -> float | None:
    """Weights, and keys and values of a batch at its end; fewer with grouped queries."""
    if estimates is None:
        return None
    return (2 * estimates.parameters + 4 * estimates.layers * estimates.hidden * batch_tokens) / 1e9


def _size(estimates: Estimates | None, judge: str) -> float | None:
    return None if estimates is None else estimates.judges.get(judge)


def _calls(judge: str) -> int:
    """ShieldGemma is asked once a policy."""
    return len(POLICIES) if judge.startswith("shieldgemma") else 1


def _asked(flags: Flags, tokenizer: PreTrainedTokenizerBase) -> list[Asked]:
    words = flags.get("suite", ["alignment"])
    suite = words if isinstance(words, list) else [words]
    sets = prompt_sets.suite(suite, flags.get("limit"), flags.get("xstest_limit"), bool(flags.get("unsafe_only")))
    sets += [prompt_sets.load(f"task:{name}", flags.get("task_limit")) for name in flags.get("tasks", [])]
    return [
        Asked(
            [len(prompt_ids(Example(each.instruction, "", each.context), tokenizer)) for each in found.prompts],
            found.max_new_tokens,
            found.purpose == "safety",
        )
        for found in sets
    ]


def _hours(tokens: float, speed: float | None) -> float | None:
    return None if speed is None else tokens / speed / 3600


def dry_run(study: Study) -> None:
    """Print the commands and what they take; nothing is run."""
    for cell in planned(study):
        say(cell.command)
    middle = middle_rate(study)
    rates = ", ".join(f"{rate:g}" for rate in study.learning_rates)
    said = f"Seeds after the first take the best of the learning rates {rates}; {middle:g} stands for it here."
    STDERR.print(said, soft_wrap=True)
    Terminal().print(_table(study, list(loads(study, _tokenizer(study)))))


def _tokenizer(study: Study) -> PreTrainedTokenizerBase:
    try:
        return load_tokenizer(resolve_model(study.model))
    except InputError:
        STDERR.print(f"{study.model} cannot be had here: tokens are counted by {SMOLLM2}'s tokenizer.")
        return load_tokenizer(resolve_model(SMOLLM2))


def _table(study: Study, found: Sequence[Load]) -> Table:
    device = "no estimates in the study's file" if study.estimates is None else study.estimates.device
    table = Table(title=f"If no answer ends by itself, {device}", box=None)
    for title in ("", "cells", "million tokens", "GB", "hours"):
        table.add_column(title, justify="right" if title else "left")
    for each in found:
        shown = ("–" if value is None else f"{value:.1f}" for value in (each.tokens / 1e6, each.gigabytes, each.hours))
        table.add_row(each.what, str(each.cells), *shown)
    hours = [each.hours for each in found if each.hours is not None]
    if hours:
        table.add_row("all", "", "", "", f"{sum(hours):.1f}")
    return table
