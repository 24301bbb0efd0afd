"""The explorer as a whole in a real browser: hostile texts, content notes, looks, speed."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from monolora.eval.explain.explorer import explorer_page
from monolora.eval.explain.records import Explained, TokenMean, UnitLogits
from monolora.units import UnitName
from tests.support.chromium_page import Told
from tests.support.feature_records import UNITS, made, written
from tests.support.requirements import NEEDS_BROWSER

pytestmark = NEEDS_BROWSER

EVIL = "<script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">"
HOSTILE = (
    EVIL,
    "</script>",
    "<!--<script>",
    "\u202eright to left",
    "\u0000",
    "\ud83d",
    "سلام",
    "👩‍🚀",
    "&lt;b&gt;",
    "\u2028",
    "'\"`${1}",
)
"""Tokens that could break a page; half a surrogate pair among them."""


def _hostile() -> Explained:
    explained = made(units=3, contexts=2, gated=(False,))
    dataset = explained.datasets[0]
    end = dataset.ends[0]
    contexts = [
        [each._replace(tokens=HOSTILE, activations=[0.5] * len(HOSTILE), peak=0, label=EVIL) for each in of_unit]
        for of_unit in end.contexts
    ]
    tokens = [[TokenMean(token, 0.3, 5) for token in HOSTILE] for _ in end.tokens]
    evil_end = end._replace(contexts=contexts, tokens=tokens, label=[EVIL] * 3)
    evil_dataset = replace(dataset, name=f"data {EVIL}", labels={EVIL: 3}, note=f"note {EVIL}", ends=[evil_end])
    contrast = replace(explained.contrasts[0], a=f"a {EVIL}", b=f"b {EVIL}")
    ablations = explained.ablations
    measure = ablations.measures[0]._replace(title=f"measure {EVIL}", unit=f"unit {EVIL}", dataset=f"of {EVIL}")
    return replace(
        explained,
        title=f"title {EVIL}",
        adapter=f"adapter {EVIL}",
        model=f"model {EVIL}",
        units=[UnitName(f"module {EVIL}", k) for k in range(3)],
        datasets=[evil_dataset],
        logits=[UnitLogits("direct", [(token, 0.1) for token in HOSTILE], [(EVIL, -0.1)])] * 3,
        contrasts=[contrast],
        ablations=replace(ablations, measures=[measure, ablations.measures[1]]),
        origin={f"key {EVIL}": f"value {EVIL}"},
    )


@pytest.mark.parametrize("policy", [True, False], ids=["as written", "without its security policy"])
def test_hostile_texts_are_shown_and_not_run(told: Told, tmp_path: Path, policy: bool) -> None:
    page = tmp_path / "explorer.html"
    text = explorer_page(_hostile())
    page.write_text(text if policy else text.replace("Content-Security-Policy", "x"), encoding="utf-8")
    script = """
    const list = doc.getElementById("list-view").textContent;
    doc.querySelector("#rows a").click();
    await until(() => doc.querySelector(".context"));
    await wait(100); // a script or a missing picture would have had its turn
    return {title: doc.title, list, unit: doc.getElementById("unit-view").textContent, images: doc.images.length,
            context: doc.querySelector(".context").textContent};
    """
    shown = told(page, script)
    assert "title <script>" in shown["title"]
    assert shown["images"] == 0
    for name in ("title", "adapter", "model", "data", "note", "key", "value"):
        assert f"{name} {EVIL}" in shown["list"], name
    for name in ("a", "b", "measure", "unit", "of", "module"):
        assert f"{name} {EVIL}" in shown["unit"], name
    pictures = {"\u0000": "␀", "\u202eright to left": "⟨202E⟩right to left", "\u2028": "⟨2028⟩"}
    assert "".join(pictures.get(token, token) for token in HOSTILE) in shown["context"]


def test_nothing_is_asked_of_the_network(told: Told, tmp_path: Path) -> None:
    text = explorer_page(made())
    assert re.search(
        r"Content-Security-Policy\" content=\"default-src 'none'; [^\"]*script-src 'sha256-[\w+/=]{44}'", text
    )
    assert not re.search(r"(src|href)=|@import|url\(|fetch\(|XMLHttpRequest|localStorage", text.partition("<body>")[0])
    page = written(tmp_path, made())
    script = """
    doc.querySelector("#rows a").click();
    await until(() => doc.querySelector("#unit-view .switch button"));
    doc.querySelector("#unit-view .switch button:last-child").click();
    await wait(100);
    """
    told(page, script)  # it lets no page pass that asks for another file, or is refused one


def test_texts_that_may_harm_lie_behind_a_content_note(told: Told, tmp_path: Path) -> None:
    explained = made(units=60, contexts=3, gated=(False, True))
    page = written(tmp_path, explained)
    script = f"""
    const shown = () => doc.getElementById(doc.getElementById("list-view").hidden ? "unit-view" : "box").innerText;
    const found = () => doc.getElementById("found").textContent;
    const isRead = () => !found().includes("reading");
    await until(isRead);
    const closed = [shown(), found(), doc.querySelectorAll("#rows .chip").length];
    win.location.hash = "data=letters&unit=model.layers.0.self_attn.q_proj:4";
    await until(() => doc.querySelector("#unit-view .gate button"));
    const unit = [shown(), doc.querySelectorAll(".token").length];
    doc.querySelector("#unit-view .gate button").click();
    await until(() => doc.querySelector("#unit-view .token"));
    const open = [shown(), doc.querySelectorAll(".token").length, doc.activeElement.id];
    win.location.hash = "data=letters&q=notebook";
    await until(() => !doc.getElementById("list-view").hidden && isRead());
    return {{closed, unit, open, list: [found(), doc.getElementById("list-gate").hidden, {UNITS}.length]}};
    """
    found = told(page, script, "data=letters&q=notebook")
    text, status, chips = found["closed"]
    assert status == "0 of 60 units"  # not even searched
    assert chips == 0
    assert "notebook" not in text
    text, tokens = found["unit"]
    assert "Content note." in text
    assert "Tokens that excite it" not in text
    assert tokens == 0
    text, tokens, focus = found["open"]
    assert tokens == 63
    assert "Tokens that excite it" in text
    assert focus == "unit-title"
    status, is_gate_hidden, units = found["list"]
    assert units > 0
    assert status != "0 of 60 units"
    assert is_gate_hidden
    hidden = told(page, "return doc.querySelector('#rows .tokens').textContent;", "data=letters")
    assert hidden == "hidden"
    assert told(page, "return doc.getElementById('list-gate').hidden;")  # the other data set has none


def test_the_data_set_is_switched(told: Told, tmp_path: Path) -> None:
    explained = made(units=30, gated=(False, False))
    page = written(tmp_path, explained)
    script = f"""
    const before = {UNITS};
    const button = doc.querySelector("#filters .switch button:last-child");
    button.focus();
    button.click();
    return [before, {UNITS}, win.location.hash, doc.activeElement.textContent];
    """
    *orders, address, focus = told(page, script)
    for order, dataset in zip(orders, explained.datasets, strict=True):
        assert order == np.argsort(-dataset.effect, kind="stable").tolist()[: len(order)]
    assert address == "#data=letters"
    assert focus == "letters"


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("width", [360, 820])
def test_the_page_is_never_wider_than_the_screen(told: Told, tmp_path: Path, width: int, signed: bool) -> None:
    hostile = _hostile()
    for explained in (
        made(contexts=8, signed=signed),
        replace(hostile, units=[UnitName("m" * 200, k) for k in range(3)]),
    ):
        page = written(tmp_path, explained)
        script = """
        for (const each of doc.querySelectorAll("details")) each.open = true;
        const list = doc.documentElement.scrollWidth;
        doc.getElementById("box").scrollIntoView({behavior: "instant"});
        await until(() => doc.querySelector("#rows .star"));
        doc.querySelector("#rows .star").click();
        doc.querySelector("#rows a").click();
        await until(() => doc.getElementById("unit-title"));
        return [list, doc.documentElement.scrollWidth, doc.getElementById("unit-view").hidden];
        """
        list_width, unit_width, is_hidden = told(page, script, width=width)
        assert list_width <= width
        assert unit_width <= width
        assert not is_hidden


def test_rows_have_the_height_that_is_reckoned_with(told: Told, tmp_path: Path) -> None:
    page = written(tmp_path, made(units=120))
    script = """
    const height = (node) => node.getBoundingClientRect().height;
    const rows = [...doc.querySelectorAll("#rows tr[data-unit]")], gaps = [...doc.querySelectorAll("#rows .gap")];
    return [[...new Set(rows.map(height))], gaps.map(height).reduce((sum, each) => sum + each), rows.length];
    """
    for width in (390, 1280):
        heights, gaps, rows = told(page, script, width=width)
        assert len(heights) == 1
        assert gaps == pytest.approx((120 - rows) * heights[0], abs=1)


def _luminance(colour: str) -> float:
    """Relative luminance of ``rgb(…)`` or ``color(srgb …)`` (WCAG 2)."""
    numbers = [float(each) for each in re.findall(r"[\d.]+", colour)[:3]]
    linear = [c if colour.startswith("color") else c / 255 for c in numbers]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in linear)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_readable_on_the_strongest_colours(told: Told, tmp_path: Path, dark: bool) -> None:
    page = written(tmp_path, made(signed=True, contexts=3, gated=(False,)))
    script = """
    const tokens = [...doc.querySelectorAll(".token")];
    const hottest = tokens.filter((each) => each.style.getPropertyValue("--heat") === "100%");
    const styles = [doc.body, ...hottest].map((each) => win.getComputedStyle(each));
    return styles.map((each) => [each.backgroundColor, each.color]);
    """
    (page_colour, ink), *tokens = told(page, script, "unit=model.layers.0.self_attn.q_proj:2", dark=dark)
    assert (_luminance(page_colour) < _luminance(ink)) == dark
    assert tokens
    for back, text in tokens:
        low, high = sorted((_luminance(back), _luminance(text)))
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_two_thousand_units(told: Told, tmp_path: Path) -> None:
    """The list shows those that fit, and a unit opens with all tokens of its contexts."""
    page = written(tmp_path, made(units=2000, contexts=20, gated=(False,)))
    script = """
    win.location.hash = "unit=model.layers.9.self_attn.q_proj:5";
    await until(() => doc.querySelector(".token"));
    const count = doc.querySelector("#box table").getAttribute("aria-rowcount");
    return [doc.querySelectorAll(".token").length, doc.querySelectorAll("#rows tr[data-unit]").length, count];
    """
    tokens, rows, count = told(page, script)
    assert count == "2001"
    assert rows > 10
    assert tokens == 420
