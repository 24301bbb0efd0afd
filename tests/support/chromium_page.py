"""Pages opened in headless Chromium, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

_HELPERS = """
const win = window, doc = document;
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const until = async (holds) => {
  for (const end = performance.now() + 30000; !holds(); await wait(10)) {
    if (performance.now() > end) throw new Error(`for 30 seconds this has not held: ${holds}`);
  }
};
"""


class Told:
    """Asks pages about themselves, and lets none pass that complains or asks for anything else than itself.

    Args:
        browser: in which each page is opened anew, without a network.
    """

    def __init__(self, browser: Browser) -> None:
        self._browser = browser

    def __call__(self, page: Path, script: str, fragment: str = "", width: int = 1000, dark: bool = False) -> Any:
        """What an async function's body returns about a page, once that is loaded.

        The function sees the page as ``doc`` and ``win``. What the page does later (after a key, a click, a new
        address) is waited for by ``await until(() => …)``: however busy the machine is, it is there then. ``await
        wait(0)`` lets what was begun at once come to its end; other times are for what must not happen.

        Args:
            page: an HTML file.
            script: the function's body.
            fragment: what comes after ``#`` in the address.
            width: of the screen, in pixels.
            dark: whether the reader prefers dark colours.

        Raises:
            AssertionError: if, from its first line on, the page has thrown an error, had one written to the console (as
                a breach of its security policy is), or requested another file.
        """
        with self.opened(page, fragment, width, dark) as tab:
            return evaluated(tab, script)

    @contextmanager
    def opened(self, page: Path, fragment: str = "", width: int = 1000, dark: bool = False) -> Iterator[Page]:
        """A page in a tab of its own; at the end of the ``with`` block it must not have complained, as above."""
        with self._tab(width, dark) as tab:
            complaints = _complaints(tab, page.as_uri())
            tab.goto(page.as_uri() + (f"#{fragment}" if fragment else ""))
            yield tab
            assert not complaints, complaints

    @contextmanager
    def _tab(self, width: int = 1000, dark: bool = False) -> Iterator[Page]:
        context = self._browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme="dark" if dark else "light", offline=True
        )
        try:
            yield context.new_page()
        finally:
            context.close()


def evaluated(tab: Page, script: str) -> Any:
    """What an async function's body returns about the page in a tab."""
    return tab.evaluate(f"(async () => {{ {_HELPERS} {script} }})()")


def _complaints(tab: Page, address: str) -> list[str]:
    """What goes wrong on a page from now on."""
    found: list[str] = []
    tab.on("pageerror", lambda error: found.append(f"error: {error}"))
    tab.on("console", lambda said: said.type == "error" and found.append(f"console: {said.text}"))
    tab.on("request", lambda asked: asked.url.partition("#")[0] != address and found.append(f"request: {asked.url}"))
    return found


@contextmanager
def browser_open() -> Iterator[Told]:
    """A browser for the ``with`` block. Playwright has an event loop running meanwhile; others can't start theirs."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER)
        yield Told(browser)
        browser.close()
