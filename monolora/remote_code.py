"""Python code in model folders (``auto_map`` in their configs), which runs only after ``--trust-remote-code``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

TRUST_HELP = "run the Python code that a model's folder brings (auto_map); read it first"
_IS_TRUSTED = ContextVar("trust_remote_code", default=False)


@contextmanager
def code_trusted(flag: bool) -> Iterator[None]:
    """Within the block, what is loaded may run the code of its folder, if the flag is given.

    Elsewhere such code never runs: a class of transformers' own is taken, and a folder for which there is none is
    refused.
    """
    token = _IS_TRUSTED.set(flag)
    try:
        yield
    finally:
        _IS_TRUSTED.reset(token)


def trusts_code() -> bool:
    """The value of ``trust_remote_code`` for every loader. Left at None, transformers would ask y/N."""
    return _IS_TRUSTED.get()
