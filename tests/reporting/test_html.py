"""Parts of pages that come from text."""

from __future__ import annotations

from monolora.reporting.html import inline


def test_links_and_bold_are_markup_and_nothing_else_is() -> None:
    assert inline("a <b> [run](../run.json) **[0.4](x/run.json)** [x](https://x.y)") == (
        'a &lt;b&gt; <a href="../run.json">run</a> <strong><a href="x/run.json">0.4</a></strong> x'
    )
