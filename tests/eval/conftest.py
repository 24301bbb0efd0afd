"""Tests of the suite run on one thread; those of pages share a browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from chromium_page import Told, browser_open


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """The models are so small that threads cost more than they give."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def told() -> Iterator[Told]:
    """Asks pages about themselves; for one file of tests at a time, as others have event loops of their own."""
    with browser_open() as opened:
        yield opened
