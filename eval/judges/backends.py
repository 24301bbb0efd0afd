"""Which engine computes a judge's logits, and what it alone is told. Only the one that is asked for is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from monolora.eval.judges.base import Judge, JudgeOptions
from monolora.eval.judges.running import Backend

# Options by the engine that reads them; no part of a judge's identity.
_READ_BY = {"server": ("concurrency", "retries", "timeout_s", "api_key_env"), "vllm": ("tensor_parallel_size",)}


def told(judge: Judge, options: JudgeOptions) -> Judge:
    """The judge with those options in its settings that only its engine reads; without them, they are the defaults."""
    return replace(judge, settings=judge.settings | _of_engine(judge.settings.get("engine", ""), options))


def next_token(settings: Mapping[str, Any]) -> Backend:
    """Logits of the tokens ``settings["answers"]`` at the last position of each call, up to a constant."""
    return partial(_module(settings["engine"]).next_token_logits, _whole(settings))


def classification(settings: Mapping[str, Any]) -> Backend:
    """Logits of a sequence classifier, one a label, before any activation."""
    return partial(_module(settings["engine"]).classifier_logits, _whole(settings))


def _whole(settings: Mapping[str, Any]) -> dict[str, Any]:
    return _of_engine(settings["engine"], JudgeOptions()) | dict(settings)


def _of_engine(engine: str, options: JudgeOptions) -> dict[str, Any]:
    return {name: getattr(options, name) for name in _READ_BY.get(engine, ())}


def _module(engine: str) -> Any:
    if engine == "vllm":
        from monolora.eval.judges import vllm_backend

        return vllm_backend
    if engine == "server":
        from monolora.eval.judges import server_backend

        return server_backend
    from monolora.eval.judges import hf_backend

    return hf_backend
