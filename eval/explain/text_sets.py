"""The texts that units are read on, by name, each with its label where it has one.

sst2, dolly, demo    the held-out rows of the recipes' tasks; labels are the answers of a classification task
beavertails, beavertails-eval, xstest
                     the prompts of the alignment suite; labels are their categories, or safe and unsafe
chat, contrasts, contrast-pairs, refusals
                     the embedded prompts of :mod:`monolora.data.prompt_sets`; labels likewise
beavertails-answers  BeaverTails' questions with their answers, of which the answers count; labels are safe and unsafe
HUB_ID, PATH         any data set that the recipes read, with or without answers; labels from a column

The common beginning and ending of a set's prompts (instruction, chat template) are read, but do not count. Add
``-last`` to a name to count the last token of each prompt instead: there the model decides what to answer.
Add ``-answers`` to the name of a task for its prompts with their right answers, of which the answers count.
A prompt that is too long is cut from the left, as for the alignment suite.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase
from trl.data_utils import common_prefix_length

from monolora.data.chat_template import Split, prompt_ids, split_at_answer
from monolora.data.datasets import load_dataset
from monolora.data.prompt_sets import EMBEDDED, PUBLISHED, collapse, embedded_rows, evenly, published_rows
from monolora.data.task import prompt_rows, read_examples
from monolora.data.tasks import BUILT_IN, Example
from monolora.errors import InputError
from monolora.eval.explain.settings import KEPT
from monolora.explain.contexts import Text
from monolora.keep.anchors import DEFAULT_PROMPTS, read_prompts
from monolora.run_record import of_adapter

ANSWERS, LAST = "-answers", "-last"
Part = Literal["text", "last", "answers"]
LONGEST = 1024  # maximum of tokens that are read of a text
MOST_LABELS = 50
_SHARED_BY = 256  # texts in which the common beginning and ending are searched
_SAFETY = "beavertails"


@dataclass(frozen=True, kw_only=True)
class TextSet:
    """Texts and their labels.

    Attributes:
        name: as given.
        is_safety: whether the texts may be harmful.
        examples: prompts, with their answers if these are read.
        part: the tokens that count.
        labels: names of the labels; empty for none.
        groups: index of each example's label; -1 for none.
        note: why labels are missing.
        task_labels: the possible answers, where the prompts are those of a classification task.
    """

    name: str
    is_safety: bool
    examples: Sequence[Example] = field(repr=False)
    part: Part = "text"
    labels: tuple[str, ...] = ()
    groups: Sequence[int] = field(default=(), repr=False)
    note: str = ""
    task_labels: tuple[str, ...] = ()

    def ids(self, number: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Token ids of a text.

        Raises:
            InputError: if it has none.
        """
        return self._ids_and_answer(number, tokenizer)[0]

    def _ids_and_answer(self, number: int, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], int]:
        """Token ids, and the start of the answer if only that counts."""
        example = self.examples[number]
        context, answer = (
            split_at_answer(example, tokenizer) if self.part == "answers" else Split(prompt_ids(example, tokenizer), [])
        )
        answer = answer[: LONGEST - 1]
        prompt = context[-(LONGEST - len(answer)) :]
        if not (prompt or answer):
            raise InputError(f"{self.name}: text {number + 1} has no tokens. Leave it out.")
        return [*prompt, *answer], len(prompt) if answer else 0

    def texts(self, tokenizer: PreTrainedTokenizerBase, groups: Sequence[int]) -> Iterator[Text]:
        """The texts one by one, with the positions that count.

        Args:
            tokenizer: of the model.
            groups: of each text.
        """
        first = [self.ids(number, tokenizer) for number in range(min(_SHARED_BY, len(self.examples)))]
        beginning = first[0][: min(common_prefix_length(first[0], other) for other in first)] if len(first) > 1 else []
        backwards = [ids[len(beginning) :][::-1] for ids in first]
        ending = backwards[0][: min(common_prefix_length(backwards[0], other) for other in backwards)]
        for number in range(len(self.examples)):
            ids, answer = self._ids_and_answer(number, tokenizer)
            start = min(max(answer, common_prefix_length(ids, beginning)), len(ids) - 1)
            own = common_prefix_length(ids[start:][::-1], ending) if len(first) > 1 else 0
            yield Text(number, ids, *self._counted_span(start, len(ids) - own, len(ids)), groups[number])

    def _counted_span(self, start: int, ending: int, end: int) -> tuple[int, int]:
        """Start and end of the tokens that count, at least one."""
        if self.part == "last":
            return end - 1, end
        return start, end if self.part == "answers" else max(ending, start + 1)

    def fingerprint(self) -> str:
        """Of the texts, their labels and which part counts; 16 hex digits."""
        rows = [[*example.content(), group] for example, group in zip(self.examples, self.groups, strict=True)]
        content = json.dumps([rows, self.labels, self.part], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def spread(texts: int, most: int) -> list[int]:
    """Indices of texts, evenly over all of them: data sets are often sorted."""
    return np.unique(np.linspace(0, texts - 1, min(most, texts)).round().astype(int)).tolist()


def load(name: str, most: int, split: str | None = None, label_column: str = "label") -> TextSet:
    """The first texts of a data set.

    Args:
        name: see the head of this file.
        most: texts at most; as many of each category as of the others for ``beavertails-eval`` and ``xstest``.
        split: of a data set that is neither a task nor one of the alignment suite.
        label_column: of such a data set.

    Raises:
        InputError: if there is no such data set, or it has no texts.
    """
    if name.endswith(LAST) and not Path(name).exists():
        source = name.removesuffix(LAST)
        of_texts = load(source, most, split, label_column)
        if of_texts.part == "answers":
            raise InputError(f"{name}: {LAST} counts where prompts end, and {source} counts answers. Take one of them.")
        return replace(of_texts, name=name, part="last")
    if name == _SAFETY + ANSWERS:
        return _judged_answers(name, most)
    if name in PUBLISHED or name in EMBEDDED:
        return _prompts(name, most)
    task = name.removesuffix(ANSWERS)
    if task in BUILT_IN:
        return _task(name, task, most)
    return _any(name, most, split, label_column)


def load_kept(adapter: str, words: Sequence[str], most: int) -> TextSet | None:
    """Prompts on which the units of an adapter should be silent, named :data:`KEPT`.

    Args:
        adapter: a folder; if no sets are named, its run says on which prompts it kept the base's behaviour.
        words: names of prompt sets, as for ``--keep-prompts`` of training.
        most: texts at most, evenly from all of them.

    Returns:
        None if no sets are named and the adapter has no run that kept anything.

    Raises:
        InputError: if a set or the run's record cannot be read.
    """
    source, samples = "Prompts", most
    if not words:
        run = of_adapter(adapter) if Path(adapter).is_dir() else None
        keepers = [] if run is None else [word for word in run["config"]["keep"] or () if word != "none"]
        if run is None or not keepers:
            return None
        words, samples = run["config"]["keep_prompts"] or DEFAULT_PROMPTS, run["config"]["keep_samples"]
        source = f"Prompts that the adapter was trained to keep ({', '.join(keepers)})"
    prompts = read_prompts(words, samples).examples
    examples = [prompts[number] for number in spread(len(prompts), most)]
    return _labelled(KEPT, examples, [None] * len(examples), f"{source}, of {', '.join(words)}.", is_safety=True)


def _task(name: str, task_name: str, most: int) -> TextSet:
    task = BUILT_IN[task_name]()
    examples = task.test[:most]
    return _labelled(
        name,
        examples,
        [example.response if task.scorer.labels else None for example in examples],
        "" if task.scorer.labels else f"{task_name} has no labels.",
        part="text" if name == task_name else "answers",
        task_labels=task.scorer.labels,
    )


def _prompts(name: str, most: int) -> TextSet:
    if name in EMBEDDED:
        rows = evenly(embedded_rows(name), most)
    else:
        rows = published_rows(PUBLISHED[name], most, unsafe_only=False)[1]
    prompts = collapse(rows, name)
    by_label = len({prompt.label for prompt in prompts} - {None}) > 1
    labels = [
        prompt.label if by_label else prompt.categories[0] if len(prompt.categories) == 1 else None
        for prompt in prompts
    ]
    examples = [Example(prompt.instruction, "", prompt.context) for prompt in prompts]
    note = "Only prompts of a single category are labelled." if None in labels else ""
    return _labelled(name, examples, labels, note, is_safety=True)


def _judged_answers(name: str, most: int) -> TextSet:
    source = PUBLISHED[_SAFETY]
    splits = load_dataset(source.dataset)
    if source.split not in splits or not {"prompt", "response", "is_safe"} <= set(splits[source.split].column_names):
        raise InputError(f"{source.dataset} has no split {source.split} with prompt, response and is_safe.")
    rows = splits[source.split].select(range(min(most, len(splits[source.split]))))
    examples = [Example(row["prompt"], row["response"]) for row in rows]
    labels = ["safe" if is_safe else "unsafe" for is_safe in rows["is_safe"]]
    return _labelled(name, examples, labels, "", is_safety=True, part="answers")


def _any(name: str, most: int, split: str | None, label_column: str) -> TextSet:
    rows = prompt_rows(name, split)
    rows = rows.select(range(min(most, len(rows))))
    examples = read_examples(rows, name, answers=False)
    labels: list[str | None] = [None] * len(examples)
    if label_column not in rows.column_names:
        note = f"{name} has no column {label_column!r} (it has {', '.join(rows.column_names)})."
    elif len(examples) != len(rows):
        note = "A row of it gives several texts, so the labels are not used."
    else:
        labels = [None if value is None else _label_name(rows, label_column, value) for value in rows[label_column]]
        note = ""
    is_safety = name in {source.dataset for source in PUBLISHED.values()}
    return _labelled(name, examples, labels, note, is_safety)


def _label_name(rows: object, column: str, value: object) -> str:
    feature = rows.features[column]  # type: ignore[attr-defined]
    return str(feature.int2str(value) if type(feature).__name__ == "ClassLabel" else value)


def _labelled(
    name: str,
    examples: Sequence[Example],
    labels: Sequence[str | None],
    note: str,
    is_safety: bool = False,
    part: Part = "text",
    task_labels: tuple[str, ...] = (),
) -> TextSet:
    if not examples:
        raise InputError(f"{name} has no texts.")
    names = sorted({label for label in labels if label is not None})
    if len(names) > MOST_LABELS or len(names) < 2:
        if names:
            note = f"The label has {len(names)} values; label statistics need 2 to {MOST_LABELS}."
        names = []
    label_index = {label: number for number, label in enumerate(names)}
    return TextSet(
        name=name,
        is_safety=is_safety,
        examples=examples,
        part=part,
        labels=tuple(names),
        groups=[-1 if label is None else label_index.get(label, -1) for label in labels],
        note=note if names or not note else f"{note} Label statistics are left out.",
        task_labels=task_labels,
    )
