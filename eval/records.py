"""What the suite keeps: prompts, and one record for every response and every judgement.

Keys are hashes of contents: of the prompt's token ids, the model's weights, the settings, the judge. A record is found
again if and only if all of these are the same, whatever anything is called.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple

OK, INVALID = "ok", "invalid"


class Prompt(NamedTuple):
    """One distinct prompt of a set.

    Attributes:
        key: hash of its contents.
        instruction: what is asked.
        context: material that it speaks of; may be empty.
        categories: for the bars of the report; may be empty.
        label: ``safe`` or ``unsafe`` where the set says so (XSTest), else None.
        reference: the right answer where there is one (tasks), else None.
        weight: how many rows of the set have this very prompt; it is answered once and counts so often.
    """

    key: str
    instruction: str
    context: str = ""
    categories: tuple[str, ...] = ()
    label: str | None = None
    reference: str | None = None
    weight: int = 1


class Response(NamedTuple):
    """What a model answered to a prompt.

    Attributes:
        key: hash of prompt token ids, model and generation settings.
        prompt: key of the prompt.
        model: identity of the model (a hash, not its name).
        text: the answer, special tokens left out; empty where there is none.
        tokens: how many were generated.
        finish: ``stop`` (the end token) or ``length``.
        cut: whether the prompt had to be cut from the left to fit the context.
        status: ``ok``, or ``invalid`` where no answer could be had.
        reason: why it is invalid, else None.
    """

    key: str
    prompt: str
    model: str
    text: str = ""
    tokens: int = 0
    finish: str = ""
    cut: bool = False
    status: str = OK
    reason: str | None = None


class Judgement(NamedTuple):
    """What a judge said of a response.

    Attributes:
        key: hash of response and judge.
        response: key of the response.
        judge: identity of the judge (a hash, not its name).
        scores: by name, each from 0 to 1; empty where invalid.
        cut: whether the end of the response had to be left out to fit the judge's context.
        status: ``ok``, or ``invalid``: then it is no verdict, and is left out of every mean.
        reason: why it is invalid, else None.
    """

    key: str
    response: str
    judge: str
    scores: dict[str, float] = {}  # noqa: RUF012 (never changed)
    cut: bool = False
    status: str = OK
    reason: str | None = None


class Measurement(NamedTuple):
    """What was measured on a model as a whole.

    Attributes:
        key: hash of model, prompts and kind.
        kind: ``sparsity`` on a set's prompts, or ``canary``.
        model: identity of the model.
        values: of :class:`monolora.sparsity.Sparsity`, or of :class:`monolora.serving.Canary`.
    """

    key: str
    kind: str
    model: str
    values: dict[str, Any]


def own_seed(seed: int, token_ids: Any) -> int:
    """A seed for sampling after this prompt: another for every prompt, and the same for every model."""
    return int(content_key("seed", seed, token_ids)[:7], 16)


def content_key(*parts: Any) -> str:
    """24 hex digits of the sha256 of JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]
