"""What every page of the project must be: readable, in both themes, on any screen, by keyboard and on paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from playwright.sync_api import Page

from tests.support.chromium_page import Told, evaluated

MOST_BYTES = 5 * 2**20
WIDE, NARROW = 1400, 380
_TABS = 25  # presses; a page may have thousands of controls
_CONTRAST = 4.5  # WCAG 2, AA

_OPEN = "for (const each of doc.querySelectorAll('details')) each.open = true;"
_CONTROLS = """
const kinds = "a[href], button, input, select, textarea, summary, [tabindex]:not([tabindex='-1'])";
const controls = [...doc.querySelectorAll(kinds)]
  .filter((each) => each.checkVisibility() && !each.disabled);
"""
# Colours may have any notation and layers of transparency: a canvas resolves both.
_LOOK = """
const context = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
const paint = (colour) => { context.fillStyle = colour; context.fillRect(0, 0, 1, 1); };
const luminance = () => {
  const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).map((value) => value / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (node) => {
  const behind = [];
  for (let each = node; each; each = each.parentElement) behind.unshift(win.getComputedStyle(each).backgroundColor);
  context.clearRect(0, 0, 1, 1);
  behind.forEach(paint);
  const back = luminance(), style = win.getComputedStyle(node);
  paint(node instanceof SVGElement ? style.fill : style.color);
  const [low, high] = [back, luminance()].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
};
const hasText = (node) => [...node.childNodes].some((each) => each.nodeType === 3 && each.data.trim());
const texts = [...doc.body.querySelectorAll("*")].filter((each) => hasText(each) && each.checkVisibility() &&
  !each.closest("script, .unseen, [disabled]"));
const size = (node) => parseFloat(win.getComputedStyle(node).fontSize);
const message = doc.getElementById("message");
const pale = texts.slice(0, 600).map((each) => [contrast(each), each]).filter(([value]) => value < LEAST)
  .map(([value, each]) => `${value.toFixed(2)}: ${each.outerHTML.slice(0, 120)}`);
const look = {
  background: win.getComputedStyle(doc.body).backgroundColor, pale, width: doc.documentElement.scrollWidth,
  said: message && message.checkVisibility() ? message.textContent.trim() : "",
  isFirst: doc.querySelector("h1, h2, h3, table, figure") === message,
  isLargest: message && texts.every((each) => each === message || size(each) < size(message)),
  top: message && message.getBoundingClientRect().top,
};
""".replace("LEAST", str(_CONTRAST))


def check_page(told: Told, page: Path, fragment: str = "", opens_with_message: bool = True) -> None:
    """Check a page as a reader opens it.

    Args:
        told: the browser.
        page: an HTML file.
        fragment: what comes after ``#`` in the address.
        opens_with_message: whether this part of the page has the finding.

    Raises:
        AssertionError: for the first thing that is wrong.
    """
    assert page.stat().st_size <= MOST_BYTES
    with told.opened(page, fragment, WIDE) as tab:
        _check_keyboard(tab)
        wide = _look(tab, WIDE)
    with told.opened(page, fragment, NARROW, dark=True) as tab:
        narrow = _look(tab, NARROW)
        _check_paper(tab, wide["background"])
    assert wide["background"] != narrow["background"], "light and dark are the same"
    if opens_with_message:
        for look in (wide, narrow):
            assert look["said"].endswith("."), look["said"]
            assert look["isFirst"], "something stands before the message"
            assert look["isLargest"], "something is as large as the message"
            assert look["top"] < 160, look["top"]


def _look(tab: Page, width: int) -> dict[str, Any]:
    """How the page looks, once all of it is open; no text is pale, and the page is no wider than the screen."""
    look: dict[str, Any] = evaluated(tab, f"const top = scrollY; {_OPEN} scrollTo(0, 0); {_LOOK} return look;")
    assert look["pale"] == [], look["pale"]
    assert look["width"] <= width, look["width"]
    return look


def _check_keyboard(tab: Page) -> None:
    """Each control has a name, and Tab goes from one to the next."""
    script = f"""{_CONTROLS} win.controls = controls;
    const named = (each) => each.getAttribute("aria-label") || each.textContent.trim() || (each.labels || []).length;
    const wrong = controls.filter((each) => each.tabIndex !== 0 || !named(each));
    return [controls.length, wrong.map((each) => each.outerHTML)];
    """
    count, wrong = evaluated(tab, script)
    assert wrong == [], wrong
    evaluated(tab, "doc.body.tabIndex = -1; doc.body.focus();")  # where Tab begins
    reached = []
    for _ in range(min(count, _TABS)):
        tab.keyboard.press("Tab")
        reached.append(tab.evaluate("window.controls.indexOf(document.activeElement)"))
    assert reached == list(range(len(reached))), reached


def _check_paper(tab: Page, white: str) -> None:
    """Paper is white whatever the reader prefers, and nothing on it scrolls."""
    tab.emulate_media(media="print", color_scheme="dark")
    script = """
    const style = (selector) => [...doc.querySelectorAll(selector)].map((each) => win.getComputedStyle(each));
    for (const each of doc.querySelectorAll("main details")) each.open = false;
    const inside = [...doc.querySelectorAll("main details > :not(summary)")];
    const hidden = inside.filter((each) => each.parentElement.checkVisibility() && !each.checkVisibility());
    return [win.getComputedStyle(doc.body).backgroundColor, style(".box").map((each) => each.overflowX), hidden.length];
    """
    background, overflows, hidden = evaluated(tab, script)
    assert background == white, background
    assert hidden == 0, "a part that is closed is not printed"
    assert set(overflows) <= {"visible"}, overflows
