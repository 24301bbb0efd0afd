"""Functions are wrapped by name: all of them, or none."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from monolora import patching
from monolora.patching import LIBRARIES, MissingNameError, PrivateName, naming_versions, wrap_all

SOURCE = '''
def double(x, *, plus=0):
    """Twice x."""
    return 2 * x + plus

class Engine:
    class Part:
        def run(self, x):
            return self, x

    def run(self, x):
        return ["engine", x]

    @classmethod
    def make(cls, *args):
        return cls, args

    @staticmethod
    def add(x, y):
        return x + y

class Faster(Engine):
    def run(self, x):
        return ["faster", *super().run(x)]
'''


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A library in which names are wrapped, as a module of its own."""
    (tmp_path / "wrapped_library.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    import wrapped_library  # type: ignore[import-not-found]

    yield wrapped_library
    del sys.modules["wrapped_library"]


def _noting(calls: list[Any]) -> Callable[..., Any]:
    def wrapper(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return original(*args, **kwargs)

    return wrapper


def test_a_wrapper_gets_the_original_and_the_call(library: ModuleType) -> None:
    original = library.double
    calls: list[Any] = []
    given: list[Callable[..., Any]] = []

    def wrapper(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given.append(inner)
        return inner(*args, **kwargs) + 100

    wrap_all({"wrapped_library:double": wrapper})
    assert library.double(3, plus=1) == 107
    assert given == [original]
    assert library.double.__wrapped__ is original
    assert library.double.__name__ == "double"
    assert library.double.__doc__ == "Twice x."
    assert inspect.signature(library.double) == inspect.signature(original)
    wrap_all({"wrapped_library:double": _noting(calls)})  # around the wrapped one
    assert library.double(3, plus=1) == 107
    assert calls == [((3,), {"plus": 1})]


def test_methods(library: ModuleType) -> None:
    """The instance comes first; a class within a class is found; a subclass that calls its parent is served too."""
    calls: list[Any] = []
    wrap_all({"wrapped_library:Engine.run": _noting(calls), "wrapped_library:Engine.Part.run": _noting(calls)})
    engine, faster, part = library.Engine(), library.Faster(), library.Engine.Part()
    assert engine.run(1) == ["engine", 1]
    assert faster.run(2) == ["faster", "engine", 2]
    assert part.run(x=3) == (part, 3)
    assert calls == [((engine, 1), {}), ((faster, 2), {}), ((part,), {"x": 3})]


def test_class_and_static_methods_stay_such(library: ModuleType) -> None:
    calls: list[Any] = []
    wrap_all({"wrapped_library:Engine.make": _noting(calls), "wrapped_library:Engine.add": _noting(calls)})
    assert library.Engine.make(1) == (library.Engine, (1,))
    assert library.Faster().make() == (library.Faster, ())
    assert library.Engine().add(1, y=2) == library.Faster.add(1, 2) == 3
    assert calls == [((library.Engine, 1), {}), ((library.Faster,), {}), ((1,), {"y": 2}), ((1, 2), {})]


def test_what_is_wrapped_in_a_subclass_stays_there(library: ModuleType) -> None:
    calls: list[Any] = []
    wrap_all({"wrapped_library:Faster.run": _noting(calls)})
    library.Engine().run(1)
    assert calls == []


def test_errors_pass_through(library: ModuleType) -> None:
    wrap_all({"wrapped_library:double": _noting([])})
    with pytest.raises(TypeError, match="NoneType"):
        library.double(None)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("wrapped_library:triple", "wrapped_library has no triple"),
        ("wrapped_library:Engine.walk", r"wrapped_library has no Engine\.walk"),
        ("wrapped_library:Motor.run", r"wrapped_library has no Motor\.run"),
        ("wrapped_library:Engine.Wheel.run", r"wrapped_library has no Engine\.Wheel\.run"),
        ("wrapped_library.parts:run", r"wrapped_library\.parts has no run"),
        ("no_such_library:run", "no_such_library has no run"),
    ],
)
@pytest.mark.parametrize("place", range(3))
def test_nothing_is_changed_where_one_is_missing(library: ModuleType, missing: str, message: str, place: int) -> None:
    """Wherever among the names it stands."""
    before = dict(vars(library)), dict(vars(library.Engine))
    names = ["wrapped_library:double", "wrapped_library:Engine.run"]
    names.insert(place, missing)
    with pytest.raises(MissingNameError, match=f"^{message}$"):
        wrap_all(dict.fromkeys(names, _noting([])))
    assert (dict(vars(library)), dict(vars(library.Engine))) == before


@pytest.mark.parametrize(("signature", "lacking"), [("x, plus, minus", "minus"), ("x, plus", None), ("x", None)])
def test_a_known_parameter_must_be_there(
    library: ModuleType, monkeypatch: pytest.MonkeyPatch, signature: str, lacking: str | None
) -> None:
    """Others may have been added."""
    monkeypatch.setitem(patching.private_names(), "wrapped_library:double", PrivateName(signature, ""))
    if lacking is None:
        wrap_all({"wrapped_library:double": _noting([])})
        return
    with pytest.raises(MissingNameError, match=f"^wrapped_library:double has no parameter {lacking}$"):
        wrap_all({"wrapped_library:double": _noting([])})
    assert not hasattr(library.double, "__wrapped__")


@pytest.mark.parametrize("name", ["peft", "transformers"])
def test_what_is_missing_in_a_known_library(name: str) -> None:
    """One line has the name, the version that is installed, those that are supported, and what to run."""
    title, supported, install, _ = LIBRARIES[name]
    versions = f"This is {title} {sys.modules[name].__version__}; supported is {supported}. Run: {install}"
    with pytest.raises(MissingNameError) as refused:
        wrap_all({f"{name}.utils:no_such_function": _noting([])})
    assert str(refused.value) == f"{name}.utils has no no_such_function. {versions}"
    with pytest.raises(MissingNameError) as refused, naming_versions():
        exec(f"from {name}.utils import no_such_function")
    assert str(refused.value).startswith(f"cannot import name 'no_such_function' from '{name}.utils'")
    assert str(refused.value).endswith(f". {versions}")


def test_other_missing_imports_stay_as_they_are() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_library"), naming_versions():
        exec("import no_such_library")
