"""Finds the undocumented names of other libraries that this project's sources use, by reading the sources.

Public is what a library's top-level package exports under a name without a leading underscore; everything else counts
as private, documented or not. Found are

- imports of other names, and attributes reached through an imported module or a private class (``hotswap.x``);
- strings that name a function, ``"module:Class.name"``, as the tables of wrappers do;
- methods of ours that override a method of a library's class, where the class is private or the method's name begins
  with an underscore;
- attributes that begin with an underscore (``x._name``, ``"_name" in vars(x)``), of whatever object, unless the same
  file defines them: these by their last part alone, since a reader of sources does not know the type of ``x``.

Not found are attributes of library objects without an underscore (``layer.scaling``, vLLM's
``manager.packed_modules``), names put together at run time (``peft.tuners.lora.{backend}`` in :mod:`monolora.layer`),
keyword arguments, and what a function does.

As a program it writes ``monolora/private_names.json`` as the sources and the installed versions call for.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from monolora.patching import LIBRARIES, PRIVATE_NAMES_FILE, PrivateName
from monolora.patching import private_names as listed_names

ROOT = Path(__file__).parents[2]
# Attributes with an underscore that belong to none of the libraries.
OTHERS = {
    "torch": "_parameters _modules _forward_hooks _forward_pre_hooks _backward_hooks _backward_pre_hooks "
    "_is_avx512_bf16_supported _is_mkldnn_bf16_supported _foreach_norm _orig_mod _fsdp_wrapped_module _last_lr",
    "enum": "_name_ _value_ _member_names_ _member_map_ _value2member_map_",
    "namedtuple": "_asdict _field_defaults _fields _replace",
    "argparse": "_actions _option_string_actions",
    "os": "_exit",
}
_NOT_OURS = {name for names in OTHERS.values() for name in names.split()}


def uses(libraries: Iterable[str]) -> dict[str, set[str]]:
    """The private names of some libraries to the modules that use them; ``*:name`` for one of an unknown library."""
    found: dict[str, set[str]] = defaultdict(set)
    sources = {name: ast.parse(path.read_text()) for name, path in _sources()}
    imports = {name: dict(_imports(tree, libraries)) for name, tree in sources.items()}
    for name, tree in sources.items():
        for path in {*_references(tree, imports[name]), *_strings(tree), *_overridden(name, sources, imports)}:
            found[path].add(name)
    for name, tree in sources.items():
        listed = {path.rpartition(".")[2].rpartition(":")[2] for path, users in found.items() if name in users}
        for attribute in _underscored(tree, any(map(_is_library, imports[name].values()))) - listed:
            found[_of_unknown(attribute)].add(name)
    return {path: users for path, users in found.items() if library_of(path) in {*libraries, "*"}}


def _sources() -> Iterator[tuple[str, Path]]:
    for root in ("monolora", "recipes", "eval"):
        for path in sorted((ROOT / root).rglob("*.py")):
            folder = path.relative_to(ROOT).parts[:2]
            if folder not in (("monolora", "recipes"), ("monolora", "eval")):
                name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
                yield (name if root == "monolora" else f"monolora.{name}"), path


def library_of(path: str) -> str:
    """The top-level package of a name or module."""
    return re.split(r"[.:]", path)[0]


def _is_library(path: str) -> bool:
    return library_of(path) in LIBRARIES


def _imports(tree: ast.AST, libraries: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Local names to what they were imported as, ``module`` or ``module:name``: from the libraries and from here."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = library_of(alias.name)
                if top in libraries:
                    yield alias.asname or top, alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module and library_of(node.module) in {*libraries, "monolora"}:
            for alias in node.names:
                yield alias.asname or alias.name, _member(node.module, alias.name)


@functools.cache
def _member(module: str, name: str) -> str:
    """``module.name``, if that is a module, else ``module:name``."""
    member = _lookup(f"{module}:{name}") if _is_library(module) else None
    return member.__name__ if inspect.ismodule(member) else f"{module}:{name}"


def _references(tree: ast.AST, imports: dict[str, str]) -> Iterator[str]:
    """Private names that are imported, or reached by attributes from an import."""
    for path in imports.values():
        if _is_library(path) and _is_private(path):
            yield path
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and (path := _resolved(node, imports)):
            owner, _, attribute = path.rpartition(".")
            is_member = ":" in owner
            if is_member and inspect.isclass(_lookup(owner)):
                yield from filter(None, [_defined(owner, attribute)])
            elif not is_member and _is_private(path):
                yield path
        elif isinstance(node, ast.Call):
            path = _resolved(node.func, imports)
            if path and _is_private(path) and inspect.isclass(_lookup(path)):
                yield f"{path}.__init__"


def _resolved(node: ast.expr, imports: dict[str, str]) -> str | None:
    if isinstance(node, ast.Name):
        path = imports.get(node.id)
        return path if path and _is_library(path) else None
    if not isinstance(node, ast.Attribute) or (path := _resolved(node.value, imports)) is None:
        return None
    return f"{path}.{node.attr}" if ":" in path else _member(path, node.attr)


def _is_private(path: str) -> bool:
    module, _, names = path.partition(":")
    if not names:
        return False  # a module: what is taken from it counts
    if any(part.startswith("_") and not part.startswith("__") for part in names.split(".")):
        return True
    return "." in module and not _is_exported(module, names.partition(".")[0])


@functools.cache
def _is_exported(module: str, name: str) -> bool:
    """Whether the top-level package exports the same object under the same name."""
    exported = _lookup(f"{library_of(module)}:{name}")
    return exported is not None and exported is _lookup(f"{module}:{name}")


def _strings(tree: ast.AST) -> Iterator[str]:
    pattern = re.compile(rf"(?:{'|'.join(LIBRARIES)})[\w.]*:[A-Za-z_][\w.]*")
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and pattern.fullmatch(node.value):
            yield node.value


def _classes(tree: ast.AST) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def _overridden(name: str, sources: dict[str, ast.Module], imports: dict[str, dict[str, str]]) -> Iterator[str]:
    """Methods of library classes that the classes of a module override."""

    def lineage(module: str, class_name: str) -> Iterator[tuple[ast.ClassDef | None, str]]:
        """The class and all that it is made of: classes of ours, and the paths of libraries' classes."""
        node = _classes(sources[module]).get(class_name) if module in sources else None
        if node is None:
            return
        yield node, ""
        for base in node.bases:
            path = _resolved(base, imports[module])
            if path:
                yield None, path
            elif isinstance(base, ast.Name):
                there = imports[module].get(base.id, f"{module}:{base.id}")
                yield from lineage(*there.partition(":")[::2])

    for class_name in _classes(sources[name]):
        line = list(lineage(name, class_name))
        methods = {each.name for ours, _ in line if ours for each in ours.body if isinstance(each, ast.FunctionDef)}
        for path in [path for _, path in line if path]:
            yield from filter(None, (_defined(path, method) for method in methods))


@functools.cache
def _defined(path: str, method: str) -> str | None:
    """Where a library's class has a method that may not be relied on; None for a documented one, or none."""
    if method in vars(object) and method != "__init__":
        return None
    for owner in inspect.getmro(_lookup(path) or object):
        if method in vars(owner) and _is_library(owner.__module__):
            is_private = method.startswith("_") and method != "__init__"
            is_public = not is_private and _is_exported(owner.__module__, owner.__qualname__)
            return None if is_public else f"{owner.__module__}:{owner.__qualname__}.{method}"
    return None


def _underscored(tree: ast.AST, strings: bool) -> set[str]:
    """Attributes and keywords that begin with an underscore and that the file does not define; in strings too."""
    defined, used = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            defined.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
        elif isinstance(node, ast.Attribute):
            is_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            (defined if is_own and isinstance(node.ctx, ast.Store) else used).add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and strings:
            if re.fullmatch(r"_[a-z]\w+\.?", node.value):
                used.add(node.value.rstrip("."))
        elif isinstance(node, ast.keyword) and node.arg:
            used.add(node.arg)
    names = {name for name in used - defined if re.fullmatch(r"_[a-z]\w*", name)}
    return names - _NOT_OURS


def _of_unknown(attribute: str) -> str:
    """The entry of the table for an attribute."""
    matches = [path for path in listed_names() if re.split(r"[.:]", path)[-1] == attribute]
    return matches[0] if matches else f"*:{attribute}"


def lookup(path: str) -> Any:
    """The object that a name stands for.

    Raises:
        ImportError, AttributeError: if it is not there.
    """
    module, _, names = path.partition(":")
    return functools.reduce(getattr, names.split("."), importlib.import_module(module))


def _lookup(path: str) -> Any:
    """The object, or None where the name is not there: the table says so then."""
    try:
        return lookup(path)
    except (ImportError, AttributeError):
        return None


def signature(path: str) -> str:
    """What the installed library has under a name: a function's parameters, or what else it is."""
    try:
        here = lookup(path)
    except AttributeError:
        owner = lookup(path.rpartition(".")[0])  # set on instances
        name = path.rpartition(".")[2]
        if inspect.isfunction(owner) and name in inspect.signature(owner).parameters:
            return "a parameter"
        classes = owner.__mro__ if inspect.isclass(owner) else [owner]
        sources = [inspect.getsource(each) for each in classes if _is_library(each.__module__)]
        if not any(re.search(rf"\b(self|module)\.{name}\b[^=]*= ", source) for source in sources):
            raise
        return "an attribute"
    if inspect.isclass(here):
        return "a class"
    if callable(here):
        parameters = inspect.signature(inspect.unwrap(here)).parameters.values()
        return ", ".join(str(each.replace(annotation=each.empty, default=each.empty)) for each in parameters)
    return "a property" if isinstance(here, (property, functools.cached_property)) else "a value"


def table(libraries: Iterable[str] = tuple(LIBRARIES)) -> dict[str, PrivateName]:
    """The entries that the sources and the installed versions call for."""
    entries = {}
    for path, users in sorted(uses(libraries).items()):
        try:
            what = signature(path)
        except (ImportError, AttributeError) as error:
            what = f"missing: {error}"
        entries[path] = PrivateName(what, " ".join(sorted(user.removeprefix("monolora.") for user in users)))
    return entries


def main() -> None:
    """Write the list, unless a name in it is missing; with the name of a library, print its part as JSON."""
    if sys.argv[1:]:
        print(json.dumps(table(sys.argv[1:])))
        return
    entries = table()
    if gaps := [path for path, entry in entries.items() if path[0] == "*" or entry.signature.startswith("missing")]:
        sys.exit("\n".join(f"{path} ({entries[path].users}): {entries[path].signature}" for path in gaps))
    rows = (f"{json.dumps(path)}: {json.dumps(entry._asdict())}" for path, entry in entries.items())
    PRIVATE_NAMES_FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main()
