"""With several ranks, an adapter that one of them refuses is refused by all, and leaves nothing behind."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from monolora.checkpoint import AdapterFileError

_LOG = logging.getLogger("vllm.monolora")


def add_lora(original: Callable[..., bool], executor: Any, lora_request: Any) -> bool:
    """Around ``Executor.add_lora``: every rank is heard before the refusal of one is raised.

    vLLM raises at the first refusal and leaves what the other ranks say in their queues, where it is taken for the
    answer to the next call: the adapter that is loaded next, a good one, would be refused.

    Raises:
        AdapterFileError: with the message of the first rank that could not load the adapter.
    """
    if executor.parallel_config.world_size == 1:
        return original(executor, lora_request)
    answers = executor.collective_rpc(_add_lora_here, args=(lora_request,))
    for answer in answers:
        if isinstance(answer, str):
            raise AdapterFileError(answer)
    return all(answers)


def _add_lora_here(worker: Any, lora_request: Any) -> bool | str:
    """On one rank: vLLM's own; what it raises becomes the answer."""
    try:
        return bool(worker.add_lora(lora_request))
    except AdapterFileError as error:
        return str(error)
    except Exception as error:
        _LOG.exception("This rank cannot load %s", lora_request.lora_path)
        return " ".join(str(error).split()) or type(error).__name__
