"""Adapters are checked before the engine sees them: a worker that fails to read one in a batch ends all requests.

A failure here concerns one request or one loading only.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from monolora.checkpoint import AdapterFileError
from monolora.errors import InputError, in_one_line
from monolora.vllm.adapter_folders import Identity, check_rank, served_config

# Local adapters (plain LoRA too): those each engine, by its input processor, has answered through, by name and path as
# vLLM keeps prefixes; and those an offline engine was asked for.
_loaded: WeakKeyDictionary[Any, dict[tuple[str, str], Identity]] = WeakKeyDictionary()
_asked_for: WeakKeyDictionary[Any, set[Identity]] = WeakKeyDictionary()


def validate_lora(original: Callable[..., None], processor: Any, lora_request: Any) -> None:
    """Around ``InputProcessor._validate_lora``, which every request passes, offline and in the server.

    Raises:
        AdapterFileError: if the files of a MonoLoRA adapter are damaged by now, or not those that were loaded (a worker
            may have to read them again, when there is a slot for it); or if its rank is too high.
    """
    original(processor, lora_request)
    if lora_request is not None:
        with _as_client_error(), named(lora_request):
            _remember(processor, lora_request, _check(processor, lora_request))


def _check(processor: Any, lora_request: Any) -> Identity | None:
    """The adapter, if in a local folder; the workers download and check those on the hub."""
    key = (lora_request.lora_name, lora_request.lora_path)
    before = _loaded.get(processor, {}).get(key)
    if before is None and not os.path.isdir(lora_request.lora_path):
        return None
    now = Identity.of(lora_request)
    if before is not None:  # by the unresolved path, as vLLM keeps prefixes
        path = lora_request.lora_path
        now._replace(folder=path).check_unchanged(before._replace(folder=path))
    config = served_config(now.folder)
    if config is not None:
        check_rank(config, lora_request.lora_path, processor.lora_config)
    return now


def _remember(processor: Any, lora_request: Any, adapter: Identity | None) -> None:
    if adapter is not None:
        _loaded.setdefault(processor, {})[lora_request.lora_name, lora_request.lora_path] = adapter


@contextmanager
def named(lora_request: Any) -> Iterator[None]:
    """Prefix errors with the adapter's name: the server hides paths from its users."""
    start = f"Adapter {lora_request.lora_name!r}: "
    try:
        yield
    except InputError as error:
        if str(error).startswith(start):
            raise
        raise AdapterFileError(f"{start}{error}") from error


@contextmanager
def _as_client_error() -> Iterator[None]:
    """Make it an error of vLLM's too: the server hides messages of others."""
    try:
        yield
    except AdapterFileError as error:
        raise _client_error()(str(error)) from error


@functools.cache
def _client_error() -> type[AdapterFileError]:
    from vllm.exceptions import VLLMClientError

    return type("RefusedRequestError", (AdapterFileError, VLLMClientError), {"__module__": __name__})


async def add_to_server(original: Callable[..., Any], engine: Any, lora_request: Any) -> Any:
    """Around ``AsyncLLM.add_lora``, with which the server loads an adapter.

    Raises:
        AdapterFileError: before a worker sees it, as :func:`validate_lora` does.
    """
    with named(lora_request):
        _fetched(lora_request.lora_path)
        adapter = _check(engine.input_processor, lora_request)
    added = await original(engine, lora_request)
    _remember(engine.input_processor, lora_request, adapter)
    return added


def add_request(original: Callable[..., Any], engine: Any, *args: Any, **kwargs: Any) -> Any:
    """Around ``LLMEngine.add_request``, the offline engine's: a new MonoLoRA adapter is loaded before it is used.

    Raises:
        AdapterFileError: if the workers refuse the adapter, or for one name or number with two contents. The engine
            continues.
    """
    lora_request = _signature(original).bind(engine, *args, **kwargs).arguments.get("lora_request")
    if lora_request is not None:
        with named(lora_request):
            _check_present(engine, lora_request)
            if os.path.isdir(lora_request.lora_path) and Identity.of(lora_request) not in _known(engine):
                adapter = _check_new(engine, lora_request)
                if adapter is not None and adapter.is_monolora:
                    _load(engine.engine_core.add_lora, lora_request)
                _introduce(engine, lora_request, adapter)
    return original(engine, *args, **kwargs)


def add_to_engine(original: Callable[..., Any], engine: Any, lora_request: Any) -> Any:
    """Around ``LLMEngine.add_lora``.

    Raises:
        AdapterFileError: as :func:`add_request`.
    """
    with named(lora_request):
        _check_present(engine, lora_request)
        adapter = _check_new(engine, lora_request)
        add = functools.partial(original, engine)
        added = _load(add, lora_request) if adapter is not None and adapter.is_monolora else add(lora_request)
        _introduce(engine, lora_request, adapter)
        return added


def remove_from_engine(original: Callable[..., Any], engine: Any, lora_id: int) -> Any:
    """Around ``LLMEngine.remove_lora``: name and number are free again."""
    removed = original(engine, lora_id)
    known = _known(engine)
    known -= {adapter for adapter in known if adapter.number == lora_id}
    return removed


def _check_present(engine: Any, lora_request: Any) -> None:
    folder = _fetched(lora_request.lora_path)
    if not os.path.isfile(os.path.join(folder, "adapter_config.json")) and not _is_loaded(engine, lora_request):
        raise AdapterFileError(f"There is no adapter at {lora_request.lora_path}: no adapter_config.json.")


def _is_loaded(engine: Any, lora_request: Any) -> bool:
    return (lora_request.lora_name, lora_request.lora_path) in _loaded.get(engine.input_processor, {})


@functools.lru_cache(maxsize=1024)
def _fetched(path: str) -> str:
    """The adapter's local folder, as vLLM resolves it; a hub id is downloaded once.

    Raises:
        AdapterFileError: if that fails.
    """
    from vllm.lora.utils import get_adapter_absolute_path

    try:
        return get_adapter_absolute_path(path)
    except Exception as error:
        raise AdapterFileError(
            f"There is no folder {path}, and it is unavailable from the hub: {in_one_line(error)}"
        ) from error


_signature = functools.cache(inspect.signature)


def _known(engine: Any) -> set[Identity]:
    return _asked_for.setdefault(engine, set())


def _check_new(engine: Any, lora_request: Any) -> Identity | None:
    """As :func:`_check`, and against all adapters of this engine."""
    adapter = _check(engine.input_processor, lora_request)
    if adapter is not None:
        for other in _known(engine):
            if not (lora_request.load_inplace and other.number == adapter.number):
                adapter.check_distinct(other)
    return adapter


def _introduce(engine: Any, lora_request: Any, adapter: Identity | None) -> None:
    """Record a loaded adapter: in place, it replaces the one with its number."""
    if adapter is not None:
        known = _known(engine)
        if lora_request.load_inplace:
            known -= {other for other in known if other.number == adapter.number}
        known.add(adapter)
        _remember(engine.input_processor, lora_request, adapter)


def _load(add_lora: Callable[[Any], Any], lora_request: Any) -> Any:
    """Load an adapter as the server does: a worker's refusal becomes an exception, and the engine continues."""
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        return add_lora(lora_request)
    except (AdapterFileError, EngineDeadError):
        raise
    except Exception as error:  # from another process only the message is left
        raise AdapterFileError(" ".join(str(error).split())) from error
