"""Registration of the PEFT method as soon as PEFT or transformers is imported, and not before.

Importing the two takes several times as long as importing torch, and the command line answers without them. So
``import monolora`` registers at once only where one of them is imported already. Else it waits for their import:
whoever imports ``monolora`` and ``peft``, in whichever order, finds the method registered.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Registering imports modules of these three. They import each other, so a half-imported one cannot be used yet.
_PACKAGES = {"monolora", "peft", "transformers"}
# Once one of these is imported, an adapter or an exact checkpoint can be loaded.
_NEEDED_FOR = ("peft", "transformers.configuration_utils")


def register_when_needed() -> None:
    """Register now, or right after the import that makes it necessary; a second call does nothing."""
    if any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        return
    # PEFT imports bitsandbytes, which logs that an optional kernel of a hub is missing.
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_worth_a_line)
    if _is_needed():
        _register()
    else:
        sys.meta_path.insert(0, _Waiting())


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    return not record.msg.startswith("Failed to load CPU gemm_4bit_forward")


def _is_needed() -> bool:
    return any(name in sys.modules for name in _NEEDED_FOR)


def _register() -> None:
    from monolora.integrations import register

    register()


class _Waiting(MetaPathFinder):
    """A finder that delegates to the others, and registers at the end of the outermost import of :data:`_PACKAGES`.

    ``import monolora.config`` imports PEFT, ``from transformers import Trainer`` does too; at the end of PEFT's import
    the requested module is still half imported, and registering could not import it.
    """

    def __init__(self) -> None:
        self._thread = threading.local()  # how many imports deep each thread is
        self._registering = threading.Lock()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As the finders after this one, for the three packages; None for all other modules."""
        if fullname.partition(".")[0] not in _PACKAGES:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]  # another thread may take this one out
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            loader.exec_module = self._registering_after(loader.exec_module)
        return spec

    def _registering_after(self, exec_module: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
        def exec_and_register(module: ModuleType) -> None:
            depth = vars(self._thread).get("depth", 0)
            self._thread.depth = depth + 1
            try:
                exec_module(module)
            finally:
                self._thread.depth = depth
            if depth == 0 and _is_needed():
                self._register_once()

        return exec_and_register

    def _register_once(self) -> None:
        # Registering imports modules too, and another thread may hold the import lock of one of them: waiting here
        # could deadlock.
        if not self._registering.acquire(blocking=False):
            return
        try:
            if self in sys.meta_path:
                _register()
                sys.meta_path.remove(self)
        finally:
            self._registering.release()
