"""Anchors: prompts on which the model must stay as it is, with the base's own greedy answers.

Answers are made once and cached in ``$MONOLORA_CACHE/anchors`` (:func:`monolora.hub.cache_root`), by a fingerprint of
the base, the tokenized prompts and the settings.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from monolora.data import prompt_sets
from monolora.data.chat_template import Split, prompt_ids
from monolora.data.evaluation_prompts import evaluation_prompts
from monolora.data.example import Example
from monolora.data.task import SampleLimits, Source, load_prompts
from monolora.data.tasks import load_task
from monolora.errors import InputError, RunError
from monolora.files import read_json, write_json
from monolora.hub import cache_root
from monolora.inference import Inference, evaluating
from monolora.terminal import tracked
from monolora.workers import worker_rows

HELD_OUT = 10  # every tenth anchor
DEFAULT_PROMPTS = ("chat", "refusals")  # of --keep-prompts
_TASK = "task:"
_QUANTIZATION = ("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant")
VLLM_PROMPTS = 200  # for fewer, the start of vLLM costs more than it saves
_UNANSWERED = 0.5  # share of empty answers from which a base cannot answer


Anchor = Split  # a prompt and the base's answer; its end token is included where it was generated


@dataclass(frozen=True, kw_only=True)
class Anchors:
    """Anchors of a run.

    Attributes:
        train: those that keepers learn from.
        held_out: those that the report measures on.
        evaluated: prompts that were left out because the evaluation or the task's test uses them.
    """

    train: tuple[Anchor, ...]
    held_out: tuple[Anchor, ...]
    evaluated: int = 0


class AnchorPrompts(NamedTuple):
    """Distinct prompts, and how many others were left out because the evaluation or the task's test uses them."""

    examples: list[Example]
    evaluated: int


def read_prompts(
    words: Sequence[str],
    most: int,
    tested: Iterable[Example] = (),
    from_evaluation: bool = False,
    flag: str = "--keep-prompts",
    label: str | None = None,
) -> AnchorPrompts:
    """Prompts of the named sets, in equal parts, in a fixed random order, so that runs of every seed share them.

    Args:
        words: names of prompt sets (:mod:`monolora.data.prompt_sets`), ``task:NAME`` for a task's training prompts, or
            files with a column ``prompt`` or ``messages``.
        most: how many, at most.
        tested: prompts that are left out, such as the held-out examples of the task that is trained.
        from_evaluation: whether prompts of the evaluation are taken too: to measure, not to learn from.
        flag: that names the sets, for errors.
        label: ``safe`` or ``unsafe``, to leave out what a set labels as the other; None for all.

    Raises:
        InputError: for an unknown or unreadable set, or if no prompt is left.
    """
    names = prompt_sets.names(words)
    left_out = {example.normalised_prompt for example in tested}
    if not from_evaluation and any(name not in prompt_sets.EMBEDDED for name in names):  # a test compares those
        left_out |= evaluation_prompts()
    seen: set[str] = set()
    parts: list[list[Example]] = []
    evaluated = 0
    for name in names:
        part = []
        for example in _read(name, label):
            text = example.normalised_prompt
            evaluated += text in left_out
            if text not in left_out and text not in seen:
                seen.add(text)
                part.append(example)
        Random(0).shuffle(part)
        parts.append(part)
    examples = list(_in_turn(parts, Random(0)))[:most]
    if not examples:
        raise InputError(
            f"{flag} {' '.join(words)}: all {evaluated} prompts are used by the evaluation, the task's test or another "
            "flag, so none is left. Give other prompts, such as beavertails-train, refusals or a file."
        )
    return AnchorPrompts(examples, evaluated)


def _in_turn(parts: Sequence[list[Example]], random: Random) -> Iterator[Example]:
    """One of each part in turn, in an order of each turn's own: every tenth, which is held out, is of every part."""
    for index in range(max(map(len, parts))):
        turn = [part[index] for part in parts if index < len(part)]
        random.shuffle(turn)
        yield from turn


def _read(name: str, label: str | None) -> list[Example]:
    if name.startswith(_TASK):
        limits = SampleLimits(test=1)
        examples = load_task(name.removeprefix(_TASK), Source(), limits).train
    elif name in prompt_sets.PUBLISHED or name in prompt_sets.EMBEDDED:
        is_train = name == "beavertails-train"
        prompts = prompt_sets.load(name, limit=10**9, unsafe_only=is_train).prompts
        chosen = [prompt for prompt in prompts if label is None or prompt.label in (None, label)]
        return [Example(prompt.instruction, "", prompt.context) for prompt in chosen]
    else:
        examples = load_prompts(name)
    return [example._replace(response="", answer=None) for example in examples]


def base_key(fingerprint: str, config: Mapping[str, Any]) -> str:
    """The base as caches know it: the fingerprint of its weights and, where they are quantized, how.

    Args:
        fingerprint: of the weights on the disk.
        config: the run's resolved flags.
    """
    if not is_quantized(config):
        return fingerprint
    return " ".join([fingerprint, *(f"{name}={config.get(name)}" for name in _QUANTIZATION)])


def is_quantized(config: Mapping[str, Any]) -> bool:
    """Whether a run with these resolved flags quantizes its base when it loads it."""
    return bool(config.get("load_in_4bit") or config.get("load_in_8bit"))


def answered(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    model: Callable[[], AbstractContextManager[Any]],
    *,
    base: str,
    dtype: torch.dtype,
    max_new_tokens: int,
    batch_size: int,
    folder: str | None = None,
) -> list[Anchor]:
    """Anchors from prompts: the base's own greedy answers, from the cache where they are; empty ones are left out.

    Many prompts are answered by vLLM where it is installed and the run has one process, else by transformers.

    Args:
        examples: of :func:`read_prompts`.
        tokenizer: of the base.
        model: gives the base, or a model whose adapter is the identity still; called if the cache has no answers.
        base: the base's key (:func:`base_key`).
        dtype: of its weights.
        max_new_tokens: limit of an answer.
        batch_size: prompts per batch.
        folder: of the base, for vLLM; None for one that is quantized when it is loaded.

    Raises:
        InputError: if most answers are empty.
    """
    contexts = [prompt_ids(example, tokenizer) for example in examples]
    settings = {"base": base, "dtype": str(dtype), "max_new_tokens": max_new_tokens, "contexts": contexts}
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:24]
    path = cache_root() / "anchors" / f"{key}.json"
    answers = _cached(path, len(contexts))
    if answers is None:
        answers = _by_vllm(folder, dtype, contexts, max_new_tokens, path.parent / "vllm.log")
        if answers is None:
            with model() as loaded, evaluating(loaded):
                inference = Inference(
                    model=loaded, tokenizer=tokenizer, batch_size=batch_size, when="of the base to anchors"
                )
                answers = inference.generate_ids(contexts, max_new_tokens)
        if PartialState().is_main_process:
            with suppress(OSError):  # a full disk costs the cache alone
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, {"answers": answers})
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    empty = sum(not text.strip() for text in texts)
    if empty > _UNANSWERED * len(texts):
        raise InputError(
            f"The base answers {empty} of {len(texts)} prompts with nothing, so there is no behaviour to keep. Take a "
            "chat model, a chat template that it knows, or other prompts."
        )
    return [Anchor(*pair) for *pair, text in zip(contexts, answers, texts, strict=True) if text.strip()]


def _by_vllm(
    folder: str | None, dtype: torch.dtype, prompts: list[list[int]], max_new_tokens: int, log: Path
) -> list[list[int]] | None:
    """The answers in the order of the prompts, or None where transformers is to give them."""
    is_alone = PartialState().num_processes == 1
    if folder is None or len(prompts) < VLLM_PROMPTS or not is_alone or importlib.util.find_spec("vllm") is None:
        return None
    job = {"model": folder, "dtype": str(dtype).removeprefix("torch."), "prompts": prompts}
    answers = []
    try:
        with tracked("Answering anchors with vLLM", len(prompts)) as step:
            for row in worker_rows("monolora.vllm.generation:answers", job | {"max_new_tokens": max_new_tokens}, log):
                answers.append(row["ids"])
                step()
    except (InputError, RunError, OSError) as error:
        warnings.warn(f"vLLM does not answer the anchors, so transformers does: {error}", stacklevel=2)
        return None
    return answers


def divided(anchors: Sequence[Anchor], evaluated: int = 0) -> Anchors:
    """Every tenth anchor held out.

    Raises:
        InputError: for fewer than two anchors.
    """
    if len(anchors) < 2:
        raise InputError(
            "--keep-prompts: one anchor is left, and one more is needed to be held out. Give more prompts."
        )
    train = tuple(anchor for index, anchor in enumerate(anchors) if index % HELD_OUT)
    return Anchors(train=train, held_out=tuple(anchors[::HELD_OUT]), evaluated=evaluated)


def _cached(path: Path, number: int) -> list[list[int]] | None:
    if not path.is_file():
        return None
    try:
        answers = read_json(path, "Remove it.").get("answers")
    except InputError:
        return None
    return answers if isinstance(answers, list) and len(answers) == number else None
