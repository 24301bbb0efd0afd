"""The texts that a merge is calibrated on, and others that it is verified on.

By default: the training prompts of the adapter's own run, its held-out rows for the verification, and a slice of Dolly
where it is available, so that behaviour outside of the task counts too. Where the run kept its base's behaviour, its
anchors as well: the linear map is fitted to those that the run learned from, and verified on those that it held out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from monolora import hub
from monolora.data.chat_template import Split, prompt_ids, split_at_answer
from monolora.data.mixture import mixture_task
from monolora.data.mixture_config import from_settings
from monolora.data.preference_tasks import load_preferences
from monolora.data.preferences import Preference
from monolora.data.scoring import FreeText
from monolora.data.task import SampleLimits, Source, dataset_task
from monolora.data.tasks import BUILT_IN, Example, Task, dolly, load_task
from monolora.errors import InputError
from monolora.inference import padded
from monolora.keep.anchors import Anchor, Anchors
from monolora.run_record import fingerprint_rows

Rows = list[list[int]]
ANCHORS = "anchors"  # their name among the texts
LONGEST = 1024  # maximum of tokens that are read of a text


class Texts(NamedTuple):
    """Token ids of texts, by the name of the data set that they are from.

    Attributes:
        calibration: texts that a linear merge is fitted to; may be empty.
        held_out: texts that it is verified on, none of them in ``calibration``.
        anchors: held-out anchors, on which the adapter should be its base; apart, since the share of an effect that is
            kept says nothing there.
    """

    calibration: dict[str, Rows]
    held_out: dict[str, Rows]
    anchors: Rows


@dataclass(frozen=True, kw_only=True)
class RunTask(Task):
    """The task of a run, limited to the rows that it used.

    Attributes:
        tested: all held-out rows, of which none is an anchor.
    """

    tested: list[Example] = field(repr=False)


def run_task(run: Mapping[str, Any]) -> RunTask:
    """The task that a run was trained on, limited to the rows that it used.

    Raises:
        InputError: if its data set can no longer be read.
    """
    config = run["config"]
    needed = (
        "dataset",
        "dataset_config",
        "dataset_train_split",
        "dataset_test_split",
        "max_train_samples",
        "max_eval_samples",
    )
    if missing := [name for name in needed if name not in config]:
        raise InputError(f"The run's run.json has no {missing[0]}. Copy the run's folder again.")
    task = _mixture(config) if config.get("datasets") else _task(config)
    train, test = task.selected(config["max_train_samples"], config["max_eval_samples"])
    if not same_rows(run, "train", train):
        warnings.warn(
            f"The rows of {config['dataset']} that are read now are not those that the run was trained on: it may have "
            "been trained on what is held out here. Give other text with --verify-on.",
            stacklevel=2,
        )
    return RunTask(
        name=task.name,
        train=list(map(_example, train)),
        test=list(map(_example, test)),
        scorer=FreeText() if "method" in config else task.scorer,  # a merge is scored by its answers
        max_new_tokens=task.max_new_tokens,
        tested=list(map(_example, task.test)),
    )


def _example(row: Example | Preference) -> Example:
    """Of a preference, the better answer, or its only one."""
    return row.answers[0] if isinstance(row, Preference) else row


def _task(config: Mapping[str, Any]) -> Task[Any]:
    # Records of earlier versions lack the last two.
    source = Source(
        config["dataset_config"],
        config["dataset_train_split"],
        config["dataset_test_split"],
        tuple(config.get("drop_columns") or ()),
        config.get("allow_empty_answers", False),
    )
    limits = SampleLimits(
        config["max_train_samples"] or Task.train_samples, test=config["max_eval_samples"] or Task.test_samples
    )
    load: Callable[..., Task[Any]] = load_preferences if "method" in config else load_task
    return load(config["dataset"], source, limits)


def _mixture(config: Mapping[str, Any]) -> Task:
    limits = SampleLimits(
        config["max_train_samples"], config.get("validation_samples") or 0, config["max_eval_samples"]
    )
    components = from_settings(config["datasets"], "run.json")
    return mixture_task(components, config["seed"], limits, config["allow_empty_answers"])


def same_rows(run: Mapping[str, Any], part: str, rows: Sequence[Any]) -> bool:
    """Whether these are the rows of the run's part, ``train`` or ``test``, where its record has a fingerprint."""
    return run.get("fingerprints", {}).get(part) in (None, fingerprint_rows(map(str, rows)))


def sources(task: Task | None, named: str | None) -> list[Task]:
    """The data sets to take text from: the named one, or the run's own and Dolly.

    Raises:
        InputError: if there is none, or it cannot be read.
    """
    if named is not None:
        return [BUILT_IN[named]() if named in BUILT_IN else dataset_task(named, Source(), answers=False)]
    tasks = [] if task is None else [task]
    if (task is None or task.name != "dolly") and hub.is_local(dolly.DATASET):
        tasks.append(dolly.load())
    return tasks


def choose(
    calibration: Sequence[Task],
    held_out: Sequence[Task],
    tokenizer: PreTrainedTokenizerBase,
    calibration_tokens: int,
    held_out_tokens: int,
    anchors: Anchors | None = None,
) -> Texts:
    """Texts up to a number of tokens in all, in equal parts from every data set, fewer if it is smaller.

    Anchors are one more data set to calibrate on. Held-out ones come beside the text to verify on, as many tokens as of
    a data set, so that the same text is verified on with and without them.

    Raises:
        InputError: if no text is left to verify on.
    """
    part = calibration_tokens // max(1, len(calibration) + (anchors is not None))
    fitted = {task.name: _take(_rows(task.train, tokenizer), part, set()) for task in calibration}
    if anchors and calibration:
        fitted[ANCHORS] = _take(map(_joined, anchors.train), part, set())
    seen = {tuple(row) for rows in fitted.values() for row in rows}
    part = held_out_tokens // len(held_out)
    unseen = {task.name: _take(_rows(task.test, tokenizer), part, seen) for task in held_out}
    if not any(unseen.values()):
        raise InputError(
            "There is no text to verify the merge on that it was not fitted to. Give one with --verify-on."
        )
    kept = _take(map(_joined, anchors.held_out), part, seen) if anchors else []
    return Texts(fitted, {name: rows for name, rows in unseen.items() if rows}, kept)


def _take(texts: Iterable[list[int]], tokens: int, seen: Collection[tuple[int, ...]]) -> Rows:
    """Texts that are not among ``seen``, up to a number of tokens."""
    rows: Rows = []
    for text in texts:
        if tokens <= 0:
            break
        row = text[:LONGEST]
        if row and tuple(row) not in seen:
            rows.append(row)
            tokens -= len(row)
    return rows


def _rows(examples: Iterable[Example], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Examples as they are trained on; without an answer, the prompt alone."""
    for example in examples:
        yield _joined(split_at_answer(example, tokenizer)) if example.has_answer else prompt_ids(example, tokenizer)


def _joined(text: Anchor | Split) -> list[int]:
    return text.context + text.answer


def batches(rows: Rows, pad_token_id: int, batch_size: int, device: torch.device) -> list[dict[str, torch.Tensor]]:
    """Rows of similar length side by side, as arguments of a model's forward."""
    ordered = sorted(rows, key=len)
    inputs = []
    for start in range(0, len(ordered), batch_size):
        ids, mask = padded(ordered[start : start + batch_size], pad_token_id, left=False)
        inputs.append({"input_ids": ids.to(device), "attention_mask": mask.to(device)})
    return inputs
