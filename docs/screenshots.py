"""Take the pictures of pages that the documentation shows: the top of each, in light and dark.

    python docs/screenshots.py --explorer runs/explain/explorer.html --evaluation runs/eval/report.html

Writes ``docs/figures/NAME-light.png`` and ``NAME-dark.png``. Only the top of a page is in sight, where no text of a
prompt or an answer is; a data set whose texts may be harmful is hidden in the explorer until a click, and none is made.
Needs Chromium or Google Chrome, and playwright (``[dependency-groups] dev``).
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

FIGURES = Path(__file__).parent / "figures"
WIDTH, HEIGHT = 1400, 900
SCHEMES = ("light", "dark")


def take(browser: Browser, page: Path, name: str, folder: Path) -> list[Path]:
    """The top of a page, once in each scheme."""
    taken = []
    for scheme in SCHEMES:
        context = browser.new_context(
            viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme, device_scale_factor=1.5, offline=True
        )
        tab = context.new_page()
        tab.goto(page.resolve().as_uri())
        taken.append(folder / f"{name}-{scheme}.png")
        tab.screenshot(path=taken[-1])
        context.close()
    return taken


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("explorer", "evaluation"):
        parser.add_argument(f"--{name}", type=Path, metavar="HTML", help=f"the page of an {name}")
    parser.add_argument("--out", type=Path, default=FIGURES, help="folder of the pictures (default: %(default)s)")
    arguments = parser.parse_args()
    pages = {name: page for name in ("explorer", "evaluation") if (page := getattr(arguments, name)) is not None}
    for page in pages.values():
        if not page.is_file():
            parser.error(f"{page} is no file.")
    if not pages:
        parser.error("give --explorer or --evaluation, or both.")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        for name, page in pages.items():
            print(*take(browser, page, name, arguments.out), sep="\n")
        browser.close()


if __name__ == "__main__":
    main()
