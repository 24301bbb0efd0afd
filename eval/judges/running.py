"""From the job of a model judge to its judgements, whatever it reads and whoever computes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from monolora.eval.judges.base import invalid, judged
from monolora.eval.judges.reading import Readable, Reader, Unreadable

Logits = Sequence[Sequence[float]]
Backend = Callable[[Sequence[Readable], set[str]], Iterator[tuple[str, Logits | str]]]
"""Takes all rows and the keys of those that are done; gives the key and the logits of each call of every row that is
not, or the reason why there are none, in any order, as they are made."""


def judgements_of(job: Mapping[str, Any], reader: Reader, backend: Backend) -> Iterator[dict[str, Any]]:
    """Judge what is not done yet.

    Args:
        job: ``items``, each with ``key``, ``prompt`` and ``response``; ``done``, keys.
        reader: the judge's format.
        backend: computes logits.
    """
    done = set(job["done"])
    rows = reader.read(job["items"])
    yield from (invalid(row.key, row.reason) for row in rows if isinstance(row, Unreadable) and row.key not in done)
    readable = [row for row in rows if isinstance(row, Readable)]
    cut = {row.key: row.cut for row in readable}
    if cut.keys() <= done:
        return  # no model is loaded for nothing
    for key, logits in backend(readable, done):
        if isinstance(logits, str):
            yield invalid(key, logits, cut[key])
        elif all(math.isfinite(logit) for call in logits for logit in call):
            yield judged(key, reader.scores(logits), cut[key])
        else:
            yield invalid(key, "nan", cut[key])
