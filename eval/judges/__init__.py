"""Judges: what decides whether a response is harmful, or a refusal."""

from __future__ import annotations

from monolora.errors import InputError, unknown
from monolora.eval.judges import beaverdam, classifier, refusal, shieldgemma
from monolora.eval.judges.base import Judge, JudgeOptions

__all__ = ["REFUSAL", "Judge", "JudgeOptions", "make"]

_MODEL_JUDGES = {"shieldgemma": shieldgemma.make, "beaverdam": beaverdam.make, "classifier": classifier.make}
REFUSAL = "refusal"


def make(word: str, options: JudgeOptions) -> Judge:
    """The judge that a word of ``--judges`` names. Reads its config and tokenizer, but no weights.

    Args:
        word: ``shieldgemma[:MODEL]``, ``beaverdam[:MODEL]``, ``classifier:MODEL`` or ``refusal``; MODEL is a path or a
            hub id.
        options: how the judge is executed.

    Raises:
        InputError: if there is no such judge, or its model is unavailable or of another kind.
    """
    name, colon, model = word.partition(":")
    if name == REFUSAL:
        if colon:
            raise InputError(f"The judge {REFUSAL} has no model. Write {REFUSAL} alone.")
        return refusal.make()
    if name not in _MODEL_JUDGES:
        raise unknown("judge", name, [*_MODEL_JUDGES, REFUSAL])
    if colon and not model:
        raise InputError(f"Which model? Write {name}:PATH or {name}:HUB_ID.")
    return _MODEL_JUDGES[name](model or None, options)
