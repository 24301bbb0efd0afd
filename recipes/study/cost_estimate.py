"""Estimates of what the cells of a study cost: tokens, counted on the real examples and prompts, memory, and hours.

Hours are tokens divided by the speeds that the study's file states for its device. A forward pass alone is taken to be
three times as fast as a training step, which is a forward and a backward pass that costs twice as much.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from typing import Any, NamedTuple

from rich.table import Table
from transformers import PreTrainedTokenizerBase

from monolora.cli.flags import FlagParser
from monolora.data.chat_template import prompt_ids, render_all
from monolora.data.conversations import AUTO, sequences
from monolora.data.prompt_sets import Purpose
from monolora.data.task import ALL, Source
from monolora.data.tasks import Example, load_task
from monolora.errors import InputError
from monolora.eval import command_line
from monolora.eval.generate import drift_sets
from monolora.eval.judges.shieldgemma import POLICIES
from monolora.eval.run import planned_sets
from monolora.eval.settings import Settings
from monolora.hub import SMOLLM2, load_tokenizer, resolve_model
from monolora.keep import parse_keepers
from monolora.keep.anchors import read_prompts
from monolora.keep.kl import ANCHORS_A_STEP
from monolora.keep.silence import TASK_TOKENS
from monolora.recipes.judge import data as judge_data
from monolora.recipes.settings import JUDGE_DATASET, JUDGE_TEST_SPLIT, Align
from monolora.recipes.study.plan import all_cells, flag_words, middle_rate
from monolora.recipes.study.settings import Estimates, Study
from monolora.recipes.training.keeping import DEFAULT_PROMPTS, KeepArguments
from monolora.refusals import COMPLYING, REFUSING
from monolora.terminal import STDERR, Terminal, say

# Bytes of activations per token, layer and hidden unit in 16 bits: Korthikanti et al. 2022, eq. 1, without the
# attention matrix, which flash attention does not store.
_ACTIVATION_BYTES = 34
_CHECKPOINT_BYTES = 2  # the same with gradient checkpointing, which keeps only the input of each layer
_REFUSAL_TOKENS = 40  # of a refusal of the project's grammar
_FORWARD_SPEEDUP = 3  # of a forward pass over a training step

Flags = Mapping[str, Any]


class CostEstimate(NamedTuple):
    """The cost of all cells of a kind; memory and hours are None if the study's file has no estimates.

    Attributes:
        name: of the kind of cell.
        cells: number of cells.
        tokens: of all cells together.
        gigabytes: of one cell.
        hours: of all cells together.
    """

    name: str
    cells: int
    tokens: float
    gigabytes: float | None
    hours: float | None


class PromptLengths(NamedTuple):
    """A set of prompts, as its cost depends on it.

    Attributes:
        lengths: tokens of each prompt.
        max_new_tokens: of its responses; None is the run's own limit.
        purpose: of the set.
        is_followed: whether drift is measured along the base's responses.
    """

    lengths: list[int]
    max_new_tokens: int | None
    purpose: Purpose
    is_followed: bool


def cost_estimates(study: Study, tokenizer: PreTrainedTokenizerBase) -> Iterator[CostEstimate]:
    """Upper bounds of all kinds of cells: every response is assumed to have the maximum length."""
    yield from (_base_training(study, name, flags, tokenizer) for name, flags in study.bases.items())
    yield from (_judge_training(study, name, flags, tokenizer) for name, flags in study.judges.items())
    for dataset in study.datasets:
        steps, training = _training(study, dataset, tokenizer)
        yield training
        yield from _keeping(study, dataset, tokenizer)
        adapters = len(study.adapters) * len(study.seeds)
        flags = {**study.eval, **study.datasets[dataset].eval, "tasks": [study.task(dataset)]}
        yield from _evaluation(study, f"{dataset}:", 1, 1, adapters, flags, tokenizer)
        if study.curve is not None:
            checkpoints = _checkpoints({**study.sft, **study.datasets[dataset].sft}, steps)
            flags = {**study.eval, **study.curve.eval}
            curves = len(study.curve.adapters)
            yield from _evaluation(study, f"{dataset}, along:", curves, curves, curves * checkpoints, flags, tokenizer)


def _base_training(study: Study, name: str, flags: Flags, tokenizer: PreTrainedTokenizerBase) -> CostEstimate:
    """Rows with refusals, those with own answers, and these answers."""
    settings = FlagParser("monolora align", None).parse_into(list(flag_words(flags, " ")), Align)
    refused, answered = (
        [len(prompt_ids(example, tokenizer)) for example in read_prompts(words, most).examples]
        for words, most in ((settings.refuse, settings.refuse_samples), (settings.answer, settings.answer_samples))
    )
    own_rows = len(refused) * settings.answer_share / (1 - settings.answer_share)
    own_length = sum(answered) / len(answered) + settings.answer_tokens
    trained = settings.epochs * (sum(refused) + len(refused) * _REFUSAL_TOKENS + own_rows * own_length)
    generated = len(answered) * settings.answer_tokens
    speeds, hours = study.estimates, None
    if speeds is not None:
        hours = (trained / speeds.train + generated / speeds.generate) / 3600
    return CostEstimate(f"{name}: alignment", 1, trained + generated, None, hours)


def _trainings(study: Study, dataset: str) -> int:
    """Of each adapter: the sweep has the first seed of every rate; the other seeds have the selected rate only."""
    if study.datasets[dataset].rates_of is not None:
        return len(study.seeds)
    return len(study.learning_rates) + len(study.seeds) - 1


def _judge_training(study: Study, name: str, flags: Flags, tokenizer: PreTrainedTokenizerBase) -> CostEstimate:
    """Tokens are those of the study's tokenizer, as the judge's is unknown; its speed follows from its size."""
    data = judge_data.load(flags.get("dataset", JUDGE_DATASET), None, JUDGE_TEST_SPLIT, 0.15, 42)
    texts = [f"{row.prompt} {row.response}" for row in data.splits.train]
    tokens = sum(map(len, tokenizer(texts)["input_ids"])) * float(flags.get("epochs", 4))
    size = _judge_size(study.estimates, "classifier")
    speed = None if study.estimates is None or not size else study.estimates.train * study.estimates.parameters / size
    # Weights, gradients and two moments of the optimizer in 32 bits: 16 bytes a parameter.
    gigabytes = None if size is None else 16 * size / 1e9
    return CostEstimate(f"{name}: training", 1, tokens, gigabytes, _hours(tokens, speed))


def _training(study: Study, dataset: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, CostEstimate]:
    """The steps of one training, and the cost of all trainings."""
    flags = {**study.sft, **study.datasets[dataset].sft}
    source = Source(train_on=flags.get("train_on", ALL))
    train, _ = load_task(study.task(dataset), source).selected(flags.get("max_train_samples"))
    max_length = flags.get("max_length") or 1024
    made = sequences(train, render_all(train, tokenizer), tokenizer, flags.get("conversations", AUTO))
    lengths = [min(len(ids), max_length) for ids in made.rows["input_ids"]]
    cells = len(study.adapters) * _trainings(study, dataset)
    epochs, batch_size = float(flags.get("num_train_epochs", 1)), int(flags.get("per_device_train_batch_size", 16))
    tokens = cells * sum(lengths) * epochs
    gigabytes = _training_gigabytes(
        study.estimates, batch_size * max(lengths), bool(flags.get("gradient_checkpointing"))
    )
    hours = _hours(tokens, study.estimates and study.estimates.train)
    estimate = CostEstimate(f"{dataset}: training", cells, tokens, gigabytes, hours)
    return ceil(len(lengths) / batch_size * epochs), estimate


def _keeping(study: Study, dataset: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[CostEstimate]:
    """What keepers cost beside the training: rows and losses of their own, and anchors that are answered and read."""
    cells = trained = 0.0
    answered: dict[str, int] = {}  # by the base, once for all trainings
    read: dict[str, int] = {}  # likewise, for each keeper that needs more than the answers
    task = load_task(study.task(dataset), Source())
    for adapter in study.adapters.values():
        flags: dict[str, Any] = {**study.sft, **study.datasets[dataset].sft, **adapter}
        keepers = {keeper.name: keeper for keeper in parse_keepers(_listed(flags.get("keep")))}
        if not keepers:
            continue
        rows = len(task.selected(flags.get("max_train_samples"))[0])
        epochs = float(flags.get("num_train_epochs", 1))
        steps = rows * epochs / int(flags.get("per_device_train_batch_size", 16))
        limit = int(flags.get("keep_answer_tokens", KeepArguments.keep_answer_tokens))
        prompts, most = _listed(flags.get("keep_prompts")), int(flags.get("keep_samples", KeepArguments.keep_samples))
        anchors = read_prompts(prompts or DEFAULT_PROMPTS, most, task.test).examples
        lengths = [len(prompt_ids(anchor, tokenizer)) + limit for anchor in anchors]
        mean, anchor_set = sum(lengths) / len(lengths), f"{prompts} {most} {limit}"
        answered[anchor_set] = len(anchors) * limit
        read |= {f"{anchor_set} {name}": sum(lengths) for name in ("kl", "silence") if name in keepers}
        own = _trainings(study, dataset)
        cells += own
        if replay := keepers.get("replay"):
            trained += own * mean * epochs * rows * replay.weight / (1 - replay.weight)
        if "kl" in keepers:
            trained += own * mean * steps * ANCHORS_A_STEP
        if "silence" in keepers:
            trained += own * TASK_TOKENS
    if not cells:
        return
    all_answered, all_read = sum(answered.values()), sum(read.values())
    hours = None
    if (speeds := study.estimates) is not None:
        seconds = (trained + all_read / _FORWARD_SPEEDUP) / speeds.train + all_answered / speeds.generate
        hours = seconds / 3600
    yield CostEstimate(f"{dataset}: keeping", int(cells), trained + all_read + all_answered, None, hours)


def _listed(value: Any) -> list[str]:
    """One or several words of a flag."""
    return [] if value is None else [str(word) for word in value] if isinstance(value, list) else [str(value)]


def _checkpoints(flags: Flags, steps: int) -> int:
    """The number of checkpoints of a training."""
    if flags.get("save_strategy") == "epoch":
        return ceil(float(flags.get("num_train_epochs", 1)))
    return ceil(steps / int(flags.get("save_steps", 500)))


def _training_gigabytes(estimates: Estimates | None, batch_tokens: int, is_checkpointed: bool) -> float | None:
    """Weights in 16 bits and the activations of a step; the adapter and its optimizer are small beside them."""
    if estimates is None:
        return None
    layer = batch_tokens * estimates.hidden * _ACTIVATION_BYTES
    activations = (
        estimates.layers * batch_tokens * estimates.hidden * _CHECKPOINT_BYTES + layer
        if is_checkpointed
        else estimates.layers * layer
    )
    return (2 * estimates.parameters + activations) / 1e9


def _evaluation(
    study: Study, prefix: str, cells: int, bases: int, finetuned: int, flags: Flags, tokenizer: Any
) -> Iterator[CostEstimate]:
    """The cost of evaluations of ``bases`` base models, one per cell, and ``finetuned`` other models."""
    estimates, models = study.estimates, bases + finetuned
    run_limit = int(flags.get("max_new_tokens", 512))
    sets = _prompt_lengths(flags, tokenizer)
    generated = sum(
        (bases if prompts.purpose == "drift" else models)
        * len(prompts.lengths) * (prompts.max_new_tokens or run_limit)
        for prompts in sets
    )  # fmt: skip
    longest = max(max(prompts.lengths) + (prompts.max_new_tokens or run_limit) for prompts in sets)
    gigabytes = _generation_gigabytes(estimates, int(flags.get("batch_size", Settings.batch_size)) * longest)
    hours = _hours(generated, estimates and estimates.generate)
    yield CostEstimate(f"{prefix} answers", cells, generated, gigabytes, hours)
    judged = [prompts.lengths for prompts in sets if prompts.purpose == "safety"]
    measured = 0 if flags.get("skip_sparsity") else finetuned * sum(
        sum(prompts.lengths) for prompts in sets if prompts.purpose != "drift"
    )  # fmt: skip
    if drift := flags.get("drift"):  # base and finetuned model both read the base's responses
        followed = [prompts.lengths[:drift] for prompts in sets if prompts.is_followed]
        measured += 2 * finetuned * sum(sum(lengths) + run_limit * len(lengths) for lengths in followed)
    if prompts_read := flags.get("refusal_margin"):  # each prompt once, and all openings after it
        read = [s.lengths[:prompts_read] for s in sets if s.purpose in ("safety", "over-refusal")]
        openings = sum(len(tokenizer(text)["input_ids"]) for text in (*REFUSING, *COMPLYING))
        measured += models * sum(sum(lengths) + openings * len(lengths) for lengths in read)
    if answers := flags.get("coherence"):
        measured += models * sum(sum(lengths[:answers]) + run_limit * len(lengths[:answers]) for lengths in judged)
    if measured:
        weights = None if estimates is None else 2 * estimates.parameters / 1e9
        speed = estimates and _FORWARD_SPEEDUP * estimates.train
        yield CostEstimate(f"{prefix} measurements", cells, measured, weights, _hours(measured, speed))
    for judge in flags.get("judges", []):
        if judge != "refusal":
            tokens = models * _calls(judge) * sum(sum(lengths) + run_limit * len(lengths) for lengths in judged)
            kind, _, model = judge.partition(":")
            size = _judge_size(estimates, kind)
            gigabytes = None if size is None else 2 * size / 1e9
            name = model if study.own_judge(judge) else kind
            hours = _hours(tokens, estimates and estimates.read)
            yield CostEstimate(f"{prefix} {name}", cells, tokens, gigabytes, hours)


def _generation_gigabytes(estimates: Estimates | None, batch_tokens: int) -> float | None:
    """Weights, and keys and values of a whole batch in 16 bits; models with grouped queries need less."""
    if estimates is None:
        return None
    return (2 * estimates.parameters + 4 * estimates.layers * estimates.hidden * batch_tokens) / 1e9


def _judge_size(estimates: Estimates | None, judge: str) -> float | None:
    return None if estimates is None else estimates.judges.get(judge)


def _calls(judge: str) -> int:
    """Forward passes per response: ShieldGemma makes one per policy."""
    return len(POLICIES) if judge.startswith("shieldgemma") else 1


def _prompt_lengths(flags: Flags, tokenizer: PreTrainedTokenizerBase) -> list[PromptLengths]:
    words = flag_words({"model": SMOLLM2, "out": "-", **flags}, ",")  # the models do not matter here
    settings = command_line.parse(list(words), "monolora eval run")
    sets = planned_sets(settings)
    safety = next((prompts.name for prompts in sets if prompts.purpose == "safety"), None)
    followed = drift_sets(settings, safety)
    return [
        PromptLengths(
            [len(prompt_ids(Example(prompt.instruction, "", prompt.context), tokenizer)) for prompt in prompts.prompts],
            prompts.max_new_tokens,
            prompts.purpose,
            prompts.name in followed,
        )
        for prompts in sets
    ]


def _hours(tokens: float, speed: float | None) -> float | None:
    return None if speed is None else tokens / speed / 3600


def dry_run(study: Study) -> None:
    """Print all commands and their estimated cost, and run none."""
    for cell in all_cells(study):
        say(cell.command)
    rates = ", ".join(f"{rate:g}" for rate in study.learning_rates)
    STDERR.print(
        f"Seeds after the first use the best of the learning rates {rates}; here {middle_rate(study):g} stands for it.",
        soft_wrap=True,
    )
    Terminal().print(_table(study, list(cost_estimates(study, _tokenizer(study)))))


def _tokenizer(study: Study) -> PreTrainedTokenizerBase:
    try:
        return load_tokenizer(resolve_model(study.model))
    except InputError:
        STDERR.print(f"{study.model} is unavailable here: tokens are counted by {SMOLLM2}'s tokenizer.")
        return load_tokenizer(resolve_model(SMOLLM2))


def _table(study: Study, estimates: Sequence[CostEstimate]) -> Table:
    device = "no estimates in the study's file" if study.estimates is None else study.estimates.device
    table = Table(title=f"If no answer ends by itself, {device}", box=None)
    for title in ("", "cells", "million tokens", "GB", "hours"):
        table.add_column(title, justify="right" if title else "left")
    for estimate in estimates:
        values = (estimate.tokens / 1e6, estimate.gigabytes, estimate.hours)
        cells = ("–" if value is None else f"{value:.1f}" for value in values)
        table.add_row(estimate.name, str(estimate.cells), *cells)
    hours = [estimate.hours for estimate in estimates if estimate.hours is not None]
    if hours:
        table.add_row("all", "", "", "", f"{sum(hours):.1f}")
    return table
