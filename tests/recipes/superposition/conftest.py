"""What the tests of the toy model's figures share: made-up records, and the figures' style."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from monolora.recipes.superposition.records import Records, read_records
from monolora.reporting import plots
from tests.support.toy_records import make_records


@pytest.fixture
def style() -> Iterator[None]:
    """The figures' style, as the program sets it."""
    with matplotlib.rc_context(dict(plots.SETTINGS)):
        yield


@pytest.fixture
def write_records(style: None, tmp_path: Path) -> Callable[..., Records]:
    """``write_records(seeds=3)``: made-up records in ``tmp_path``, read back."""

    def write(**options: Any) -> Records:
        make_records(tmp_path, **options)
        return read_records(tmp_path)

    return write
