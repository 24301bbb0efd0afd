"""Where vLLM is touched: functions of it are wrapped by name, none is copied.

A wrapper is called with the original and then with the caller's arguments. All names are looked up before the first
one is replaced, so that vLLM is never left half changed.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class MissingSeamError(LookupError):
    """A name that is not in this vLLM; the message says which."""


class _Seam(NamedTuple):
    """Where a function is kept.

    Attributes:
        owner: the module or class.
        name: the attribute of the owner.
        original: the function.
    """

    owner: Any
    name: str
    original: Callable[..., Any]


def wrap_all(wrappers: Mapping[str, Callable[..., Any]]) -> None:
    """Put a wrapper around each function, or change nothing.

    Args:
        wrappers: by ``"module:name"`` or ``"module:Class.name"``.

    Raises:
        MissingSeamError: naming the first that is not there.
    """
    seams = {path: _find(path) for path in wrappers}
    for path, (owner, name, original) in seams.items():
        setattr(owner, name, _around(original, wrappers[path]))


def _around(original: Callable[..., Any], wrapper: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    return wrapped


def _find(path: str) -> _Seam:
    module, _, names = path.partition(":")
    *owners, name = names.split(".")
    try:
        owner = functools.reduce(getattr, owners, importlib.import_module(module))
        return _Seam(owner, name, getattr(owner, name))
    except (ImportError, AttributeError) as error:
        raise MissingSeamError(f"{module} has no {names}") from error
