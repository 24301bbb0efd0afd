"""Tests of pages fail where a page breaks, however early."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.chromium_page import Told
from tests.support.requirements import NEEDS_BROWSER

pytestmark = NEEDS_BROWSER

POLICY = """<meta http-equiv="Content-Security-Policy" content="default-src 'none'">"""


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("<script>throw new Error('while it was read')</script>", "error: while it was read"),
        ("<script>Promise.reject(new Error('nobody waits'))</script>", "error: nobody waits"),
        ("<script>console.error('said so')</script>", "console: said so"),
        (f"{POLICY}<script>document.title = 'run'</script>", "console: .*Content Security Policy"),
        ("<img src=x>", "request: file:.*/x"),
        ("<link rel=stylesheet href=other.css>", "request: file:.*/other.css"),
    ],
)
def test_a_broken_page_is_refused(told: Told, tmp_path: Path, broken: str, said: str) -> None:
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><title>A page</title>{broken}")
    with pytest.raises(AssertionError, match=said):
        told(page, "return doc.title;")


def test_what_breaks_later_counts_too(told: Told, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<!doctype html><title>A page</title><button onclick='nowhere()'>")
    assert told(page, "return doc.title;", "part") == "A page"
    with pytest.raises(AssertionError, match="error: nowhere is not defined"):
        told(page, "doc.querySelector('button').click();")
