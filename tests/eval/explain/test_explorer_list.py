"""The explorer's list in a real browser: sorting, searching, filtering, marking, keys."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monolora.eval.explain.records import DatasetFeatures, Explained
from tests.support.chromium_page import Told
from tests.support.feature_records import KEY, UNITS, made, written
from tests.support.requirements import NEEDS_BROWSER

pytestmark = NEEDS_BROWSER

STATUS = "doc.getElementById('found').textContent"
READ = f"await until(() => !{STATUS}.includes('reading'));"
"""JavaScript: wait for the search in all texts."""


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Explained]:
    explained = made(units=200, contexts=3)
    return written(tmp_path_factory.mktemp("page"), explained), explained


def _ordered(explained: Explained, values: Any, descending: bool) -> list[int]:
    """Units by value, those without one last, ties as they were."""
    sign = -1 if descending else 1
    return sorted(range(200), key=lambda unit: (math.isnan(values[unit]), sign * float(f"{values[unit]:.4g}")))


COLUMNS: dict[str, Callable[[Explained], Any]] = {
    "firing": lambda explained: explained.datasets[0].firing,
    "max": lambda explained: explained.datasets[0].max,
    "effect": lambda explained: explained.datasets[0].effect,
    "consistency": lambda explained: explained.datasets[0].ends[0].consistency,
    "information": lambda explained: explained.datasets[0].information,
    "ablation-0": lambda explained: [
        explained.ablations.changes[unit][0].value if unit % 2 == 0 else math.nan for unit in range(200)
    ],
    "contrast-1": lambda explained: explained.contrasts[1].auc,
    "unit": lambda explained: range(200),
}


@pytest.mark.parametrize("column", COLUMNS)
def test_a_click_on_a_head_sorts(told: Told, usual: Any, column: str) -> None:
    page, explained = usual
    script = f"""
    const seen = [];
    for (let click = 0; click < 2; click++) {{
      doc.querySelector('#columns [data-column="{column}"] button').click();
      const now = doc.querySelector('#columns [data-column="{column}"]');
      seen.push([now.getAttribute("aria-sort"), {UNITS}, doc.querySelectorAll("[aria-sort]").length]);
    }}
    return seen;
    """
    values = COLUMNS[column](explained)
    seen = told(page, script)
    assert {way for way, _, _ in seen} == {"ascending", "descending"}
    for way, units, sorted_heads in seen:
        assert sorted_heads == 1
        assert 15 < len(units) < 100  # only what is in sight
        assert units == _ordered(explained, values, way == "descending")[: len(units)]


def _label(explained: Explained, unit: int) -> str | None:
    """The label that the list shows: none where that the unit knows it may be chance."""
    dataset = explained.datasets[0]
    return dataset.ends[0].label[unit] if dataset.information_q[unit] < 0.05 else None


def test_a_label_is_shown_where_it_is_clear_of_chance(told: Told, usual: Any) -> None:
    page, explained = usual
    script = """
    const cells = [...doc.querySelectorAll('#rows td[data-column="label"]')];
    const pills = (each) => each.querySelectorAll(".tag").length;
    return cells.map((each) => [Number(each.parentElement.dataset.unit), each.textContent, pills(each)]);
    """
    cells = told(page, script)
    labels = [_label(explained, unit) for unit, _, _ in cells]
    assert [(text, pills) for _, text, pills in cells] == [(each or "–", int(each is not None)) for each in labels]
    assert None in labels
    assert set(labels) > {None}


@pytest.mark.parametrize("signed", [False, True])
def test_no_column_is_cut_off_in_a_wide_window(told: Told, tmp_path: Path, signed: bool) -> None:
    explained = made(units=30, signed=signed, gated=(False,))
    explained = replace(explained, contrasts=explained.contrasts * 3)
    page = written(tmp_path, explained)
    script = """
    const box = doc.getElementById("box"), more = doc.getElementById("more").textContent;
    const heads = () => [...doc.querySelectorAll("#columns th")].map((each) => each.dataset.column);
    const before = heads();
    win.location.hash = "sort=contrast-5";
    await until(() => heads().includes("contrast-5"));
    return [box.scrollWidth - box.clientWidth, before, more, heads(), box.scrollWidth - box.clientWidth];
    """
    over, heads, more, sorted_heads, still_over = told(page, script, width=1400)
    assert over == still_over == 0
    assert "contrast-5" not in heads
    assert (
        more
        == f"{8 - sum('-' in each for each in heads[1:])} more columns in a wider window; a unit’s page has them all"
    )
    assert "contrast-5" in sorted_heads


def test_words_are_sorted_too(told: Told, usual: Any) -> None:
    page, explained = usual
    label = [_label(explained, unit) or "~" for unit in range(200)]
    found = told(page, f"return {UNITS};", "sort=label")
    assert found == sorted(range(200), key=lambda unit: label[unit])[: len(found)]
    first = [each[0].token.strip().lower() if each else "~" for each in explained.datasets[0].ends[0].tokens]
    found = told(page, f"return {UNITS};", "sort=tokens")
    assert found == sorted(range(200), key=lambda unit: first[unit])[: len(found)]


def test_scrolling_brings_the_other_rows(told: Told, usual: Any) -> None:
    page, _ = usual
    script = f"""
    const box = doc.getElementById("box");
    const scrollTo = async (share) => {{
      const before = String({UNITS});
      box.scrollTop = share * box.scrollHeight;
      await until(() => String({UNITS}) !== before);
    }};
    await scrollTo(0.5);
    const middle = {UNITS}, frame = box.getBoundingClientRect();
    const at = doc.elementFromPoint(frame.left + 300, frame.top + frame.height / 2).closest("tr").dataset.unit;
    await scrollTo(1);
    return [middle, at, {UNITS}, doc.querySelector("#rows tr:nth-child(2)").getAttribute("aria-rowindex")];
    """
    middle, at, last, index = told(page, script, "sort=unit")
    assert middle == list(range(middle[0], middle[-1] + 1))
    assert 80 < int(at) < 120
    assert last == list(range(last[0], 200))
    assert int(index) == last[0] + 2


def _words(dataset: DatasetFeatures, unit: int, explained: Explained) -> str:
    logits = explained.logits[unit]
    lines = [token for token, _ in (*logits.raised, *logits.lowered)] if logits else []
    for end in dataset.ends:
        lines += [mean.token for mean in end.tokens[unit]]
        lines += ["".join(context.tokens) for context in end.contexts[unit]]
    return "\n\0".join(lines).lower()


@pytest.mark.parametrize("q", ["the notebook", "VIOLIN", "q_proj:3", "layer 1", "1", "nowhere to be found", "r begin"])
def test_search_finds_names_tokens_and_texts(told: Told, usual: Any, q: str) -> None:
    page, explained = usual
    q_lower = q.lower()
    layer = "layers.1." if q in ("layer 1", "1") else None
    expected = [
        unit
        for unit, name in enumerate(explained.units)
        if (layer in name.module if layer else q_lower in str(name))
        or q_lower in _words(explained.datasets[0], unit, explained)
    ]
    script = f"""
    const field = doc.querySelector("[name=q]");
    field.focus();
    field.value = {q!r};
    field.dispatchEvent(new win.Event("input", {{bubbles: true}}));
    await until(() => win.location.hash.includes("q="));
    {READ}
    return [{UNITS}, {STATUS}, win.location.hash, doc.getElementById("nothing").hidden];
    """
    units, status, address, is_nothing_hidden = told(page, script, "sort=unit")
    assert units == expected[: len(units)]
    assert status == f"{len(expected)} of 200 units"
    assert is_nothing_hidden == bool(expected)
    assert f"q={q_lower.replace(' ', '%20')}&sort=unit" in address
    assert told(page, f"{READ} return {STATUS};", address[1:]) == status


def test_what_was_found_is_shown(told: Told, usual: Any) -> None:
    page, _ = usual
    script = f"{READ} return [...doc.querySelectorAll('#rows .snippet mark')].map((each) => each.textContent);"
    marks = told(page, script, "q=laughed")
    assert marks
    assert set(marks) == {"laughed"}


@pytest.mark.parametrize(
    ("fragment", "wanted"),
    [
        ("kind=v_proj", lambda e, unit: e.units[unit].module.endswith("v_proj")),
        ("layer=1", lambda e, unit: ".layers.1." in e.units[unit].module),
        ("layer=1&kind=q_proj", lambda e, unit: e.units[unit].module == "model.layers.1.self_attn.q_proj"),
        ("label=music", lambda e, unit: _label(e, unit) == "music"),
        ("show=dead", lambda e, unit: e.datasets[0].firing[unit] == 0),
        ("show=on", lambda e, unit: e.datasets[0].firing[unit] == 1),
        ("show=mostly", lambda e, unit: e.datasets[0].firing[unit] > 0.99),
        ("show=sometimes", lambda e, unit: 0 < e.datasets[0].firing[unit] < 1),
        ("show=marked&marked=3,90,4", lambda e, unit: unit in (3, 4, 90)),
    ],
)
def test_filters(told: Told, usual: Any, fragment: str, wanted: Any) -> None:
    page, explained = usual
    expected = [unit for unit in range(200) if wanted(explained, unit)]
    assert expected
    units, status = told(page, f"return [{UNITS}, {STATUS}];", f"{fragment}&sort=unit")
    assert units == expected[: len(units)]
    assert status == f"{len(expected)} of 200 units"


def test_silence_on_kept_prompts_is_a_column_a_fact_and_a_filter(told: Told, tmp_path: Path) -> None:
    notes, letters = made(units=80, contexts=2).datasets
    firing = letters.firing.copy()
    firing[::3] = 0
    kept = replace(letters, name="kept", firing=firing)
    explained = made(units=80, contexts=2, datasets=[notes, kept])
    page = written(tmp_path, explained)
    script = f"""
    const cells = () => [...doc.querySelectorAll('#rows td[data-column="kept"]')].map((each) => each.textContent);
    const head = () => doc.querySelector('#columns [data-column="kept"]').textContent.trim();
    const here = [head(), {UNITS}, cells()];
    doc.querySelector('#filters .switch button:last-child').click();
    return [here, head(), cells()[0]];
    """
    (head, units, cells), other_head, other_cell = told(page, script, "sort=kept")
    assert head == "on kept prompts %"
    assert units == sorted(range(80), key=lambda unit: (float(f"{min(firing[unit], 0.9999):.4g}"), unit))[: len(units)]
    assert cells[0] == "on kept prompts 0 %"
    assert other_head == "notes %"
    assert other_cell.startswith("notes ")
    for show, wanted in (
        ("silent", (notes.firing > 0) & (firing == 0)),
        ("heard", firing > 0),
    ):
        assert told(page, f"return {STATUS};", f"show={show}") == f"{wanted.sum()} of 80 units"
    unit = int(np.flatnonzero(firing > 0)[0])
    facts = "await until(() => doc.querySelector('.facts-of')); return doc.querySelector('.facts-of').textContent;"
    assert "kept prompts" in told(page, facts, f"unit={explained.units[unit]}")


def test_a_page_without_kept_prompts_does_not_speak_of_them(told: Told, usual: Any) -> None:
    page, _ = usual
    script = """
    const options = [...doc.querySelectorAll("[name=show] option")].map((each) => each.value);
    return [options.includes("silent"), doc.querySelector('#columns [data-column="kept"]') === null];
    """
    assert told(page, script) == [False, True]


def test_adapters_that_cannot_be_pruned_have_no_command(told: Told, tmp_path: Path) -> None:
    page = written(tmp_path, made(is_prunable=False))
    script = """
    const bar = doc.getElementById("marked");
    const list = [bar.querySelector("strong").textContent, bar.querySelectorAll("code").length];
    doc.querySelector("#rows a").click();
    await until(() => doc.getElementById("unit-title"));
    return [list, [...doc.querySelectorAll("#unit-view h3")].map((each) => each.textContent)];
    """
    bar, sections = told(page, script, "marked=2,0")
    assert bar == ["2 marked", 0]
    assert "Contrasts" in sections
    assert "Take it out" not in sections


def test_the_form_filters(told: Told, usual: Any) -> None:
    page, explained = usual
    script = f"""
    const field = doc.querySelector("[name=show]");
    field.value = "dead";
    field.dispatchEvent(new win.Event("input", {{bubbles: true}}));
    await until(() => {STATUS} !== '200 units');
    return [{STATUS}, win.location.hash];
    """
    dead = int((explained.datasets[0].firing == 0).sum())
    assert told(page, script) == [f"{dead} of 200 units", "#show=dead"]


def test_keys_walk_mark_and_open(told: Told, usual: Any) -> None:
    page, _ = usual
    script = f"""
    {KEY}
    const at = () => doc.activeElement.textContent, seen = [];
    for (const key of ["j", "j", "ArrowDown", "k", "m"]) {{ press(key); seen.push(at()); }}
    const bar = doc.querySelector("#marked code").textContent;
    for (let turn = 0; turn < 60; turn++) press("j");
    const far = [at(), doc.activeElement.getBoundingClientRect().bottom <= 800];
    press("/");
    const search = doc.activeElement.name;
    press("Escape");
    const back = at();
    press("?");
    const open = doc.getElementById("keys").open;
    doc.getElementById("keys").close();
    doc.activeElement.click();
    await until(() => doc.activeElement.id === "unit-title");
    return {{seen, bar, far, search, back, open, address: win.location.hash, head: doc.activeElement.textContent}};
    """
    found = told(page, script, "sort=unit")
    assert found["seen"] == ["L0 q_proj:0", "L0 q_proj:1", "L0 q_proj:2", "L0 q_proj:1", "L0 q_proj:1"]
    assert found["bar"] == "monolora prune 'runs/notes monolora' --units model.layers.0.self_attn.q_proj:1 OUT"
    assert found["far"] == ["L0 o_proj:13", True]
    assert found["search"] == "q"
    assert found["back"] == "L0 o_proj:13"
    assert found["open"]
    assert found["address"] == "#unit=model.layers.0.self_attn.o_proj:13&marked=1"
    assert found["head"] == "L0 o_proj:13"


def test_marks_make_one_command_and_stay_in_the_address(told: Told, usual: Any) -> None:
    page, explained = usual
    script = """
    const stars = () => [...doc.querySelectorAll("#rows .star")];
    const pressed = () => stars().filter((each) => each.getAttribute("aria-pressed") === "true").length;
    for (const place of [4, 2, 4, 0]) stars()[place].click();
    const bar = doc.getElementById("marked"), before = pressed(), address = win.location.hash;
    const shown = [bar.querySelector("strong").textContent, bar.querySelector("code").textContent];
    bar.querySelector(".quiet").click();
    return {pressed: before, shown, address, hidden: bar.hidden, after: win.location.hash, left: pressed()};
    """
    found = told(page, script, "sort=unit")
    names = " ".join(str(explained.units[unit]) for unit in (0, 2))
    assert found["pressed"] == 2
    assert found["shown"] == ["2 marked", f"monolora prune 'runs/notes monolora' --units {names} OUT"]
    assert found["address"] == "#sort=unit&marked=2,0"
    assert found["hidden"]
    assert found["after"] == "#sort=unit"
    assert found["left"] == 0
    assert told(page, "return doc.querySelector('#marked strong').textContent;", "marked=2,0,7") == "3 marked"
