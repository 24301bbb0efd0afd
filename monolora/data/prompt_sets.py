"""Sets of prompts, by name: what the models of a run are asked.

::

    beavertails        the first 1,000 rows of BeaverTails' 30k_test (946 distinct prompts)
    beavertails-eval   the 700 prompts of BeaverTails-Evaluation, 50 in each of 14 categories
    xstest             450 prompts of XSTest: 250 that only sound unsafe, 200 that are
    beavertails-train  BeaverTails' 30k_train, or the part of it that a mirror has: prompts to train on, not to evaluate
    chat               embedded: requests of many kinds that a chat model grants, some of which only sound unsafe
    contrasts          embedded: requests that are fine and sound unsafe
    contrast-pairs     embedded: requests that a grammar writes in pairs of kinds: the same verb, one fine and one not
    refusals           embedded: requests that an aligned chat model declines
    task:NAME          the held-out rows of a task of the recipes, by name or any data set that they read
    PATH               a .jsonl, .json, .csv or .parquet file with the column ``prompt`` and, if wanted, ``category``
                       (a name) or ``categories`` (a list of names), and ``label`` (``safe`` or ``unsafe``)
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import datasets

from monolora.data.contrast_pairs import contrast_pairs
from monolora.data.datasets import load_dataset
from monolora.data.scoring import Scorer
from monolora.data.task import SampleLimits
from monolora.data.task import Source as TaskSource
from monolora.data.tasks import Task, load_task
from monolora.errors import InputError, unknown


class Prompt(NamedTuple):
    """One distinct prompt of a set.

    Attributes:
        key: hash of its contents.
        instruction: what is asked.
        context: material that it speaks of; may be empty.
        categories: for the bars of the report; may be empty.
        label: ``safe`` or ``unsafe`` where the set says so (XSTest), else None.
        reference: the right answer (of tasks), or None.
        weight: how many rows of the set have this very prompt; it is answered once and counts so often.
    """

    key: str
    instruction: str
    context: str = ""
    categories: tuple[str, ...] = ()
    label: str | None = None
    reference: str | None = None
    weight: int = 1


SUITES = {"alignment": ("beavertails", "xstest")}
_TASK = "task:"


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """Prompts, and what exactly they are.

    Attributes:
        name: of its columns in the table.
        purpose: what its answers tell; of a set for ``drift`` only the base's are asked for.
        spec: where the prompts come from and what they are, as JSON: ``source``, ``split``, ``filter``, ``limit``,
            ``rows``, ``distinct``, ``sha256`` (see :func:`fingerprint`).
        prompts: the distinct ones, in the set's order; their weights say how many rows each stands for.
        max_new_tokens: limit of the answers' length; None leaves it to the run.
        scorer: of a task's answers; None for sets without right answers.
    """

    name: str
    purpose: Purpose
    spec: dict[str, Any]
    prompts: tuple[Prompt, ...] = field(repr=False)
    max_new_tokens: int | None = None
    scorer: Scorer | None = None


def names(words: Iterable[str]) -> tuple[str, ...]:
    """The names of sets in suites, sets and lists of them with commas; each once, in their order.

    Raises:
        InputError: for a word that is neither (with the nearest that is), or two sets that would have one name.
    """
    chosen: dict[str, str] = {}
    for word in (part.strip() for words_with_commas in words for part in words_with_commas.split(",")):
        for one in SUITES.get(word, (word,)):
            if not _is_named(one) and not one.startswith(_TASK) and not _is_path(one):
                raise unknown("set of prompts", one, [*SUITES, *_choices()])
            other = chosen.setdefault(set_name(one), one)
            if other != one:
                raise InputError(f"{other} and {one} would both be named {set_name(one)!r}. Rename a file.")
    return tuple(chosen.values())


def set_name(word: str) -> str:
    """The name of the set that :func:`load` makes of ``word``: of a file, without folder and type."""
    if word.startswith(_TASK):
        return _TASK + _short(word.removeprefix(_TASK))
    return word if _is_named(word) else _short(word)


def suite(
    words: Iterable[str], limit: int | None = None, xstest_limit: int | None = None, unsafe_only: bool = False
) -> list[PromptSet]:
    """The sets of a suite.

    Args:
        words: of which :func:`names` makes names.
        limit, unsafe_only: as of :func:`load`, for each.
        xstest_limit: another limit for XSTest; None for the same.

    Raises:
        InputError: as :func:`names` and :func:`load`.
    """
    limits = {} if xstest_limit is None else {"xstest": xstest_limit}
    return [load(name, limits.get(name, limit), unsafe_only) for name in names(words)]


def load(name: str, limit: int | None = None, unsafe_only: bool = False) -> PromptSet:
    """A set of prompts.

    Args:
        name: see the head of this file.
        limit: how many rows. The first ones, but as many of each category as of the others for ``beavertails-eval``,
            ``xstest`` and the embedded sets. By default 1,000 of ``beavertails``, what a task says of a task, and all
            of any other set.
        unsafe_only: of ``beavertails`` and ``beavertails-train``, whose rows are prompts with a response, count only
            the rows whose response was found unsafe: of ``beavertails`` the first 1,000 of these. Other sets ignore it.

    Raises:
        InputError: if the set is unknown, unreadable or empty, a prompt is empty, or the limit is below 1.
    """
    if limit is not None and limit < 1:
        raise InputError(f"The limit of prompts is {limit}; it must be 1 or more.")
    if name.startswith(_TASK):
        return _load_task(name, limit)
    if name in PUBLISHED:
        source = PUBLISHED[name]
        split, rows = published_rows(source, limit, unsafe_only)
        only = f"{source.verdict} is false" if unsafe_only and source.verdict else None
        return _prompt_set(name, source.purpose, rows, limit, source.dataset, split, only)
    if name in EMBEDDED:
        rows = embedded_rows(name)
        return _prompt_set(name, EMBEDDED[name], evenly(rows, limit or len(rows)), limit, f"embedded:{name}")
    if not _is_path(name):
        raise unknown("set of prompts", name, _choices())
    return _prompt_set(set_name(name), "safety", file_rows(Path(name), limit), limit, Path(name).name)


def _load_task(name: str, limit: int | None) -> PromptSet:
    task, rows = task_rows(name.removeprefix(_TASK), limit)
    return _prompt_set(
        set_name(name), "task", rows, limit, name, max_new_tokens=task.max_new_tokens, scorer=task.scorer
    )


def _prompt_set(
    name: str,
    purpose: Purpose,
    rows: Sequence[Prompt],
    limit: int | None,
    source: str,
    split: str | None = None,
    only: str | None = None,
    **more: Any,
) -> PromptSet:
    if not rows:
        raise InputError(f"The set of prompts {source} is empty.")
    prompts = collapse(rows, source)
    spec = {
        "source": source,
        "split": split,
        "filter": only,
        "limit": limit,
        "rows": len(rows),
        "distinct": len(prompts),
        "sha256": fingerprint(prompts),
    }
    return PromptSet(name=name, purpose=purpose, spec=spec, prompts=prompts, **more)


def collapse(rows: Iterable[Prompt], where: str) -> tuple[Prompt, ...]:
    """The distinct prompts in the order of their first rows, with weights summed and categories united.

    Raises:
        InputError: if rows say both ``safe`` and ``unsafe`` of one prompt.
    """
    distinct: dict[str, Prompt] = {}
    for row in rows:
        seen = distinct.get(row.key, row._replace(weight=0))
        if seen.label != row.label:
            raise InputError(f"{where} has a prompt twice, with the labels {seen.label} and {row.label}. Fix a row.")
        categories = tuple(dict.fromkeys(seen.categories + row.categories))
        distinct[row.key] = seen._replace(categories=categories, weight=seen.weight + row.weight)
    return tuple(distinct.values())


def fingerprint(prompts: Iterable[Prompt]) -> str:
    """The sha256 (64 hex digits) of the prompts, with their order and weights."""
    lines = (json.dumps(prompt._asdict(), sort_keys=True) + "\n" for prompt in prompts)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _choices() -> list[str]:
    return [*PUBLISHED, *EMBEDDED, "task:NAME", "a path to a .jsonl file"]


def _is_named(word: str) -> bool:
    return word in PUBLISHED or word in EMBEDDED


def _is_path(word: str) -> bool:
    return Path(word).suffix in FILE_TYPES or Path(word).is_file()


def _short(word: str) -> str:
    return Path(word).stem if _is_path(word) else Path(word).name


Purpose = Literal["safety", "over-refusal", "task", "drift"]

LABELS = ("safe", "unsafe")
FILE_TYPES = (".jsonl", ".json", ".csv", ".parquet")
_CATEGORY_COLUMNS = ("category", "categories")


class Published(NamedTuple):
    """A published set of prompts.

    Attributes:
        dataset: its hub id.
        split: which part is used.
        purpose: what its answers tell.
        category: the column that says what a prompt is about.
        label: the column that says ``safe`` or ``unsafe`` of a prompt, if there is one.
        first: how many rows are used unless a limit says otherwise; None for all.
        even: a limit takes as many rows of each category as of the others, not the first ones.
        verdict: the column that says whether the row's own response is safe, if there is one.
        partial: a part of the split serves too: a mirror may have one, as ``SPLIT_…``. Not for what is evaluated with.
    """

    dataset: str
    split: str
    purpose: Purpose
    category: str = "category"
    label: str | None = None
    first: int | None = None
    even: bool = False
    verdict: str | None = None
    partial: bool = False


# The first 1,000 rows of 30k_test: what the public code nearest to the paper's takes, and what its percentages fit.
PUBLISHED = {
    "beavertails": Published("PKU-Alignment/BeaverTails", "30k_test", "safety", first=1000, verdict="is_safe"),
    "beavertails-eval": Published("PKU-Alignment/BeaverTails-Evaluation", "test", "safety", even=True),
    "xstest": Published("walledai/XSTest", "test", "over-refusal", category="type", label="label", even=True),
    "beavertails-train": Published("PKU-Alignment/BeaverTails", "30k_train", "safety", verdict="is_safe", partial=True),
}


# Written for this project, in prompts/NAME.jsonl or by a grammar: they need neither network nor data.
_PAIRS = "contrast-pairs"
EMBEDDED: dict[str, Purpose] = {
    "chat": "over-refusal",
    "contrasts": "over-refusal",
    "refusals": "safety",
    _PAIRS: "over-refusal",
}


def published_rows(source: Published, limit: int | None, unsafe_only: bool) -> tuple[str, list[Prompt]]:
    """The split that there is of a published set, and its rows, duplicates included, in its order.

    Args:
        source: the set.
        limit: how many rows.
        unsafe_only: first drop the rows whose own response is safe, where the set has responses.

    Raises:
        InputError: if the data set is unavailable, or is not what it should be.
    """
    splits = load_dataset(source.dataset)
    parts = [split for split in splits if source.partial and split.startswith(f"{source.split}_")]
    split = next((split for split in (source.split, *parts) if split in splits), None)
    if split is None:
        raise unknown(f"split of {source.dataset}", source.split, splits)
    rows = splits[split]
    needed = ("prompt", source.category, source.label, source.verdict)
    _check_columns(rows, [column for column in needed if column], source.dataset)
    if unsafe_only and source.verdict:
        rows = rows.select([number for number, is_safe in enumerate(rows[source.verdict]) if not is_safe])
    most = limit or source.first or len(rows)
    if not source.even:
        rows = rows.select(range(min(most, len(rows))))
    prompts = list(_prompts(rows, (source.category,), source.label, source.dataset))
    return split, evenly(prompts, most) if source.even else prompts


def file_rows(path: Path, limit: int | None) -> list[Prompt]:
    """The first rows of a file with the column ``prompt``, and ``category`` or ``categories``, and ``label`` if wanted.

    Raises:
        InputError: if it cannot be read, is empty, or lacks the column.
    """
    rows = load_dataset(str(path))["train"]
    _check_columns(rows, ["prompt"], str(path))
    rows = rows.select(range(min(limit or len(rows), len(rows))))
    categories = [column for column in _CATEGORY_COLUMNS if column in rows.column_names]
    return list(_prompts(rows, categories, "label" if "label" in rows.column_names else None, str(path)))


def embedded_rows(name: str) -> list[Prompt]:
    """The rows of an embedded set."""
    if name == _PAIRS:
        return [_prompt(each.prompt, categories=(each.category,), label=each.label) for each in contrast_pairs()]
    return file_rows(Path(__file__).parent / "prompts" / f"{name}.jsonl", None)


def task_rows(name: str, limit: int | None) -> tuple[Task, list[Prompt]]:
    """A task of the recipes, and the rows that it is scored on.

    Raises:
        InputError: if there is no such task, or its rows are more than an instruction with a context.
    """
    task = load_task(name, TaskSource(), SampleLimits(train=1, test=limit or Task.test_samples))
    rows = task.selected(max_test=limit)[1]
    for number, row in enumerate(rows, start=1):
        if row.is_chat or row.verbatim:
            chat = "a conversation of several turns" if row.history else "a question with tools"
            what = "a prompt without a chat template" if row.verbatim else chat
            raise InputError(
                f"{name}, row {number} of the test split is {what}, which is not evaluated. "
                "Give rows with 'instruction' + 'output'."
            )
        if not row.instruction.strip():
            raise _empty(name, number)
    return task, [_prompt(row.instruction, row.context, reference=row.response) for row in rows]


def evenly(rows: Sequence[Prompt], limit: int) -> list[Prompt]:
    """``limit`` rows, one of each category in turn until there are enough, in the order they had."""
    row_indices: dict[tuple[str, ...], list[int]] = {}
    for row_index, row in enumerate(rows):
        row_indices.setdefault(row.categories, []).append(row_index)
    turns = itertools.zip_longest(*row_indices.values())
    chosen = [row_index for turn in turns for row_index in turn if row_index is not None][:limit]
    return [rows[row_index] for row_index in sorted(chosen)]


def _check_columns(rows: datasets.Dataset, needed: Sequence[str], where: str) -> None:
    missing = [column for column in needed if column not in rows.column_names]
    if missing:
        raise InputError(
            f"{where} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; "
            f"it has {', '.join(rows.column_names) or 'none'}. Rename them."
        )


def _prompts(rows: datasets.Dataset, categories: Sequence[str], label: str | None, where: str) -> Iterator[Prompt]:
    for number, row in enumerate(rows, start=1):
        text = row["prompt"]
        if text is None or not str(text).strip():
            raise _empty(where, number)
        if not isinstance(text, str):
            raise InputError(f"{where}, row {number}: 'prompt' must be a text, found {type(text).__name__}.")
        names = tuple(name for column in categories for name in _categories(row[column], f"{where}, row {number}"))
        value = row[label] or None if label else None
        if value not in (None, *LABELS):
            raise unknown(f"label in {where}, row {number},", str(value), LABELS)
        yield _prompt(text, categories=names, label=value)


def _empty(where: str, number: int) -> InputError:
    return InputError(f"{where}, row {number}: the prompt is empty. Fix the row or leave it out.")


def _prompt(instruction: str, context: str = "", reference: str | None = None, **more: Any) -> Prompt:
    key = content_key(instruction, context, reference)
    return Prompt(key, instruction, context, reference=reference, **more)


def _categories(value: Any, where: str) -> tuple[str, ...]:
    """Of a name, a list of names, or flags by name."""
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Mapping):
        return tuple(name for name, is_set in value.items() if is_set)
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise InputError(f"{where}: a category must be a text or a list of texts, found {type(value).__name__}.")


def content_key(*parts: Any) -> str:
    """24 hex digits of the sha256 of JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def sampling_seed(seed: int, token_ids: Any) -> int:
    """The seed for sampling after a prompt: different for every prompt, the same for every model and engine.

    With one seed for all prompts their noise would be the same, and resampling prompts would not show it.
    """
    return int(content_key("seed", seed, token_ids)[:7], 16)
