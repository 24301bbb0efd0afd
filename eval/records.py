"""What the suite keeps: one record for every response and every judgement.

Keys are hashes of contents: of the prompt's token ids, the model's weights, the settings, the judge. A record is found
again if and only if all of these are the same, whatever anything is called.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from monolora.data.prompt_sets import content_key

OK, INVALID = "ok", "invalid"


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
        values: of :class:`monolora.sparsity.Sparsity`, or of :class:`monolora.vllm.Canary`.
    """

    key: str
    kind: str
    model: str
    values: dict[str, Any]


def own_seed(seed: int, token_ids: Any) -> int:
    """A seed for sampling after this prompt: another for every prompt, and the same for every model."""
    return int(content_key("seed", seed, token_ids)[:7], 16)
