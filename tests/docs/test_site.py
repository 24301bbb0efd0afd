"""The site builds without a warning; its links lead somewhere; the flags' pages have every flag of the parsers."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from sphinx.util.inventory import InventoryFile

from docs import programs
from monolora.cli import COMMANDS
from monolora.recipes.training.argument_checks import NOT_HERE
from monolora.recipes.training.preference_arguments import NOT_FOR_PREFERENCES
from tests.support.limits import HANG_S

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as ``make docs`` builds it, in a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    flags = ["-b", "html", "--fail-on-warning", "--keep-going", "--nitpicky", "--quiet", "-d", str(folder / "doctrees")]
    command = [sys.executable, "-m", "sphinx", *flags, "docs", str(folder / "html")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    return folder / "html"


class _Page(HTMLParser):
    """The anchors of a page, and the links on it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors, self.links = {""}, set[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.anchors |= {value for name, value in attrs if name == "id" and value}
        self.links |= {value for name, value in attrs if name in ("href", "src") and value}


def broken_links(site: Path) -> Iterator[str]:
    """The links from a page to a file or an anchor of the site that is not there."""
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file() or (target in pages and unquote(parts.fragment) not in pages[target].anchors):
                yield f"{path.relative_to(site)}: {link}"


@pytest.mark.slow
def test_every_internal_link_resolves(site: Path) -> None:
    assert sorted(broken_links(site)) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<p id="here"><a href="b.html#there"></a><a href="#here"></a><a href="#no"></a>')
    (tmp_path / "b.html").write_text('<img src="none.png"><a href="a.html"></a><a href="https://example.org/x"></a>')
    assert sorted(broken_links(tmp_path)) == ["a.html: #no", "a.html: b.html#there", "b.html: none.png"]


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_of_a_command_is_on_its_page(site: Path, name: str) -> None:
    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="").data["std:cmdoption"]
    documented = {option for option, item in inventory.items() if item.uri.startswith(f"reference/flags/{name}.")}
    page = (site / f"reference/flags/{name}.html").read_text(encoding="utf-8")
    for called, parser in programs.command_parsers(name).items():
        for action in programs.flags(parser):
            if name in programs.TRAINING and action.dest in NOT_HERE | NOT_FOR_PREFERENCES:
                assert f"--{action.dest.replace('_', '-')}</span>" in page
            elif action.option_strings:
                assert f"{called.replace(' ', '-')}.{action.option_strings[-1]}" in documented
            else:
                assert str(action.metavar or action.dest).upper() in page


def _slugs(text: str) -> set[str]:
    """GitHub's anchors of the headings."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    headings = (re.sub(r"[`*]|\[|\]\(.*?\)", "", line) for line in re.findall(r"^#+ (.*)$", text, re.M))
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))])
def test_links_between_the_files_resolve_on_github(name: str) -> None:
    path = ROOT / name
    text = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(), flags=re.S)
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        file, _, fragment = link.partition("#")
        target = (path.parent / file) if file else path
        assert target.exists(), link
        assert not fragment or fragment in _slugs(target.read_text()), link
