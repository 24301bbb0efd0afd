"""Adapters are checked when a request names them, in front of the engine: one that fails there takes the engine along.

What is checked here is refused for that request alone.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from monolora.checkpoint import AdapterFileError
from monolora.errors import InputError
from monolora.fingerprints import fingerprint_files
from monolora.serving.folders import files_state, served_config
from monolora.serving.ranks import check_rank

_LOG = logging.getLogger("vllm.monolora")


def validate_lora(original: Callable[..., None], processor: Any, lora_request: Any) -> None:
    """Around ``InputProcessor._validate_lora``, which every request passes, offline and in the server.

    Raises:
        AdapterFileError: if the files of a MonoLoRA adapter are damaged by now, or its rank is too high.
    """
    original(processor, lora_request)
    if lora_request is None or not os.path.isdir(lora_request.lora_path):
        return  # what is on the hub is downloaded, and checked, by the workers
    config = served_config(lora_request.lora_path)
    if config is not None:
        check_rank(config, lora_request.lora_path, processor.lora_config)


class _Adapter(NamedTuple):
    """An adapter that an engine has been asked for.

    Attributes:
        name: of the request.
        number: the request's ``lora_int_id``.
        folder: an absolute path without links.
        content: a hash of its weights.
        is_monolora: whether it is one of ours.
    """

    name: str
    number: int
    folder: str
    content: str
    is_monolora: bool


_asked_for: WeakKeyDictionary[Any, set[_Adapter]] = WeakKeyDictionary()


def add_request(original: Callable[..., Any], engine: Any, *args: Any, **kwargs: Any) -> Any:
    """Around ``LLMEngine.add_request``, the offline engine's: a new MonoLoRA adapter is loaded before it is used.

    Raises:
        InputError: for one name or number with two contents; vLLM would answer through the first.
        AdapterFileError: if the workers refuse the adapter; the engine goes on.
    """
    lora_request = _signature(original).bind(engine, *args, **kwargs).arguments.get("lora_request")
    if lora_request is not None and os.path.isdir(lora_request.lora_path):
        _introduce(engine, lora_request)
    return original(engine, *args, **kwargs)


_signature = functools.cache(inspect.signature)


def _introduce(engine: Any, lora_request: Any) -> None:
    known = _asked_for.setdefault(engine, set())
    folder = os.path.realpath(lora_request.lora_path)
    adapter = _Adapter(
        lora_request.lora_name,
        lora_request.lora_int_id,
        folder,
        _content(folder, files_state(folder)),
        served_config(folder) is not None,
    )
    if adapter in known:
        return
    if lora_request.load_inplace:
        known -= {other for other in known if other.number == adapter.number}
    for other in known:
        _check_distinct(adapter, other)
    if adapter.is_monolora:
        _load(engine, lora_request)
    known.add(adapter)


def _load(engine: Any, lora_request: Any) -> None:
    """As the server does when an adapter is added: a worker's refusal comes back as an exception, and no more."""
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        engine.engine_core.add_lora(lora_request)
    except (AdapterFileError, EngineDeadError):
        raise
    except Exception as error:  # from another process only the message is left
        raise AdapterFileError(" ".join(str(error).split())) from error


@functools.lru_cache(maxsize=1024)
def _content(folder: str, state: object) -> str:
    """Read once for each state of the files."""
    return fingerprint_files(folder) + fingerprint_files(folder, ".json")


def _check_distinct(adapter: _Adapter, other: _Adapter) -> None:
    """vLLM keeps adapters by number, a batch's requests by name, cached prefixes by name and path.

    Where only plain LoRA adapters are concerned, vLLM's behaviour stays what it is.
    """
    if not (adapter.is_monolora or other.is_monolora):
        return
    same_name, same_number = adapter.name == other.name, adapter.number == other.number
    if (same_name or same_number) and not (same_name and same_number and adapter.content == other.content):
        raise InputError(
            f"LoRARequest({adapter.name!r}, {adapter.number}) for {adapter.folder}: this engine already answers "
            f"LoRARequest({other.name!r}, {other.number}) through {'other weights of ' if same_name else ''}"
            f"{other.folder}. Give every adapter a name and a number of its own."
        )


def add_lora(original: Callable[..., bool], executor: Any, lora_request: Any) -> bool:
    """Around ``Executor.add_lora``: with several ranks, all are heard before the refusal of one is raised.

    vLLM raises what the first rank raised and leaves the answers of the others where the next call will read them.
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
