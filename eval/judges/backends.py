"""Which engine computes a judge's logits. Only the one that is asked for is imported."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from monolora.eval.judges.base import Backend


def next_token(settings: Mapping[str, Any]) -> Backend:
    """Logits of the tokens ``settings["answers"]`` at the last position of each call, up to a constant."""
    return partial(_module(settings["engine"]).next_token_logits, settings)


def classification(settings: Mapping[str, Any]) -> Backend:
    """Logits of a sequence classifier, one a label, before any activation."""
    return partial(_module(settings["engine"]).classifier_logits, settings)


def _module(engine: str) -> Any:
    if engine == "vllm":
        from monolora.eval.judges import vllm_backend

        return vllm_backend
    if engine == "server":
        from monolora.eval.judges import server_backend

        return server_backend
    from monolora.eval.judges import hf_backend

    return hf_backend
