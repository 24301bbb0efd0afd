"""Sets of prompts, by name: what the models of a run are asked.

beavertails        the first 1,000 rows of BeaverTails' 30k_test (946 distinct prompts)
beavertails-eval   the 700 prompts of BeaverTails-Evaluation, 50 in each of 14 categories
xstest             450 prompts of XSTest: 250 that only sound unsafe, 200 that are
task:NAME          the held-out rows of a task of the recipes, by name or any data set that they read
PATH               a .jsonl, .json, .csv or .parquet file with the column ``prompt`` and, if wanted, ``category``
                   (a name) or ``categories`` (a list of names), and ``label`` (``safe`` or ``unsafe``)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monolora.errors import InputError, unknown
from monolora.eval.prompt_sources import FILE_TYPES, PUBLISHED, Purpose, file_rows, published_rows, task_rows
from monolora.eval.records import Prompt

SUITES = {"alignment": ("beavertails", "xstest")}
_TASK = "task:"


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """Prompts, and what exactly they are.

    Attributes:
        name: of its columns in the table.
        purpose: what its answers tell.
        spec: where the prompts come from and what they are, as JSON: ``source``, ``split``, ``filter``, ``limit``,
            ``rows``, ``distinct``, ``sha256`` (see :func:`fingerprint`).
        prompts: the distinct ones, in the set's order; their weights say how many rows each stands for.
        max_new_tokens: how long answers may be where the set says so; None leaves it to the run.
        labels: the possible answers of a classification task.
    """

    name: str
    purpose: Purpose
    spec: dict[str, Any]
    prompts: tuple[Prompt, ...] = field(repr=False)
    max_new_tokens: int | None = None
    labels: tuple[str, ...] = ()


def names(words: Iterable[str]) -> tuple[str, ...]:
    """What :func:`load` takes, from suites, sets and lists of them with commas; each once, in their order.

    Raises:
        InputError: for a word that is neither (with the nearest that is), or two sets that would have one name.
    """
    chosen: dict[str, str] = {}
    for word in (part.strip() for words_with_commas in words for part in words_with_commas.split(",")):
        for one in SUITES.get(word, (word,)):
            if one not in PUBLISHED and not one.startswith(_TASK) and not _is_path(one):
                raise unknown("set of prompts", one, [*SUITES, *PUBLISHED, "task:NAME", "a path to a .jsonl file"])
            other = chosen.setdefault(set_name(one), one)
            if other != one:
                raise InputError(f"{other} and {one} would both be named {set_name(one)!r}. Rename a file.")
    return tuple(chosen.values())


def set_name(word: str) -> str:
    """How the set that :func:`load` makes of ``word`` is called: a file without folder and type."""
    if word.startswith(_TASK):
        return _TASK + _short(word.removeprefix(_TASK))
    return word if word in PUBLISHED else _short(word)


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
        limit: how many rows. The first ones, but as many of each category as of the others for ``beavertails-eval``
            and ``xstest``. By default 1,000 of BeaverTails, what a task says of a task, and all of any other set.
        unsafe_only: of ``beavertails``, whose rows are prompts with a response, count only the rows whose response was
            found unsafe: the first 1,000 of these. Says nothing to other sets.

    Raises:
        InputError: if there is no such set, it cannot be read, it is empty, a prompt is empty, or the limit is below 1.
    """
    if limit is not None and limit < 1:
        raise InputError(f"The limit of prompts is {limit}; it must be 1 or more.")
    if name.startswith(_TASK):
        return _load_task(name, limit)
    if name in PUBLISHED:
        source = PUBLISHED[name]
        rows = published_rows(source, limit, unsafe_only)
        only = f"{source.verdict} is false" if unsafe_only and source.verdict else None
        return _prompt_set(name, source.purpose, rows, limit, source.dataset, source.split, only)
    if not _is_path(name):
        raise unknown("set of prompts", name, [*PUBLISHED, "task:NAME", "a path to a .jsonl file"])
    return _prompt_set(set_name(name), "safety", file_rows(Path(name), limit), limit, Path(name).name)


def _load_task(name: str, limit: int | None) -> PromptSet:
    task, rows = task_rows(name.removeprefix(_TASK), limit)
    return _prompt_set(
        set_name(name), "task", rows, limit, name, max_new_tokens=task.max_new_tokens, labels=task.labels
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
            raise InputError(f"{where} has a prompt twice, with the labels {seen.label} and {row.label}. Mend a row.")
        categories = tuple(dict.fromkeys(seen.categories + row.categories))
        distinct[row.key] = seen._replace(categories=categories, weight=seen.weight + row.weight)
    return tuple(distinct.values())


def fingerprint(prompts: Iterable[Prompt]) -> str:
    """The sha256 (64 hex digits) of all that the prompts say, with their order and weights."""
    lines = (json.dumps(prompt._asdict(), sort_keys=True) + "\n" for prompt in prompts)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _is_path(word: str) -> bool:
    return Path(word).suffix in FILE_TYPES or Path(word).is_file()


def _short(word: str) -> str:
    return Path(word).stem if _is_path(word) else Path(word).name
