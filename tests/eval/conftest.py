"""Tests of pages share a browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.chromium_page import Told, browser_open


@pytest.fixture(scope="module")
def told() -> Iterator[Told]:
    """Asks pages about themselves; for one file of tests at a time, as others have event loops of their own."""
    with browser_open() as opened:
        yield opened
