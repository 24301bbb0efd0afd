"""The records of a run: one per response, judgement and measurement. The files have their fields under these names.

Keys are hashes of contents: the prompt's token ids, the model's weights, the settings, the judge. A record is reused if
and only if all of these are the same, whatever the names of models and folders.
"""

from __future__ import annotations

from typing import Any, NamedTuple

OK, INVALID = "ok", "invalid"


class Response(NamedTuple):
    """A model's answer to a prompt.

    Attributes:
        key: hash of prompt token ids, model and generation settings.
        prompt: key of the prompt.
        model: identity of the model (a hash, not its name).
        text: the answer without special tokens; empty if there is none.
        tokens: number of generated tokens.
        finish: ``stop`` (an end token) or ``length``.
        cut: whether the prompt was cut from the left to fit the context.
        status: ``ok``, or ``invalid`` if the engine gave no answer.
        reason: why it is invalid, otherwise None.
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
    """A judge's verdict on a response.

    Attributes:
        key: hash of response and judge.
        response: key of the response.
        judge: identity of the judge (a hash, not its name).
        scores: by name, each in [0, 1]; empty if invalid.
        cut: whether the end of the response was left out to fit the judge's context.
        status: ``ok``, or ``invalid``: no verdict, and in no mean.
        reason: why it is invalid, otherwise None.
    """

    key: str
    response: str
    judge: str
    scores: dict[str, float] = {}  # noqa: RUF012 (never changed)
    cut: bool = False
    status: str = OK
    reason: str | None = None


class Measurement(NamedTuple):
    """A measurement of a model as a whole.

    Attributes:
        key: hash of kind, model and prompts.
        kind: ``sparsity`` on a set's prompts, ``drift`` along the base's answers, or ``canary``.
        model: identity of the model.
        values: fields of :class:`monolora.sparsity.Sparsity`; ``kl`` by the key of the answer; or fields of
            :class:`monolora.vllm.canary.Canary`.
    """

    key: str
    kind: str
    model: str
    values: dict[str, Any]
