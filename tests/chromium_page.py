"""A page opened in headless Chromium."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DARK = "--blink-settings=preferredColorScheme=0"
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files")
_SKIPPING_WAITS = "--virtual-time-budget=20000"


def dumped(page: Path, fragment: str = "", flags: Sequence[str] = (_SKIPPING_WAITS,)) -> str:
    """The page's document after its scripts have run; ``fragment`` is what comes after ``#``."""
    assert BROWSER is not None
    profile = f"--user-data-dir={page.parent / 'profile'}"
    address = page.as_uri() + (f"#{fragment}" if fragment else "")
    return subprocess.run(
        [BROWSER, *_FLAGS, profile, *flags, "--dump-dom", address],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=True,
    ).stdout


def told(
    page: Path, script: str, fragment: str = "", width: int = 1000, flags: Sequence[str] = (), real_time: bool = False
) -> Any:
    """What an async function's body returns about the page, as JSON; it sees the page as ``doc`` and ``win``.

    The page is in a frame of ``width`` pixels: a window of Chromium's own is never as narrow as a phone. In
    ``real_time`` the clock is right, and the function must not wait for anything; otherwise waits are skipped.
    """
    driver = page.parent / "driver.html"
    address = page.name + (f"#{fragment}" if fragment else "")
    driver.write_text(
        f"""<!doctype html><meta charset="utf-8">
<iframe width="{width}" height="800" src="{address}"></iframe><pre></pre>
<script>
const frame = document.querySelector("iframe");
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
frame.addEventListener("load", async () => {{
  const win = frame.contentWindow, doc = frame.contentDocument;
  const told = await (async () => {{ {script} }})();
  document.querySelector("pre").dataset.told = encodeURIComponent(JSON.stringify(told));
}});
</script>""",
        encoding="utf-8",
    )
    flags = (*flags, *(() if real_time else (_SKIPPING_WAITS,)))
    return json.loads(unquote(dumped(driver, flags=flags).partition('data-told="')[2].partition('"')[0]))
