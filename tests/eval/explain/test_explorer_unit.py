"""The explorer's page of one unit in a real browser."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monolora.eval.explain.records import Ablations, Explained
from tests.support.chromium_page import Told
from tests.support.feature_records import KEY, made, written
from tests.support.requirements import NEEDS_BROWSER

pytestmark = NEEDS_BROWSER

READ = """const read = () => {
  const view = doc.getElementById("unit-view");
  const texts = (selector, of = view) => [...of.querySelectorAll(selector)].map((each) => each.textContent);
  const heads = texts("h3");
  const of = (title) => view.querySelectorAll("section")[heads.indexOf(title)];
  return {view, texts, heads, of};
};"""
"""JavaScript: what the tests ask a unit's page."""


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Explained]:
    explained = made(units=60, contexts=5)
    return written(tmp_path_factory.mktemp("page"), explained), explained


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Explained]:
    explained = made(units=20, contexts=12, signed=True, gated=(False,))
    return written(tmp_path_factory.mktemp("signed"), explained), explained


def _address(explained: Explained, unit: int) -> str:
    return f"unit={explained.units[unit]}"


def _shown(text: str) -> str:
    """As the page shows a context's text."""
    return text.replace("\n", "⏎")


def test_a_unit_has_all_that_is_known_of_it(told: Told, usual: Any) -> None:
    page, explained = usual
    script = f"""
    {READ}
    const {{view, texts, heads, of}} = read();
    return {{
      title: doc.title, head: texts("h2")[0], name: texts(".full code")[0], heads, facts: texts(".facts-of > div"),
      contexts: texts(".context"), values: texts(".contexts .value"), tags: texts(".contexts .tag"),
      tokens: texts(".word", of("Tokens that excite it")), next: texts(".word", of("Next tokens")),
      how: texts(".note", of("Next tokens"))[0],
      partners: [...view.querySelectorAll(".partners a")].map((each) => each.hash),
      ablation: [...of("Ablation").querySelectorAll("tbody tr")].map((row) => texts("th, td", row)),
      contrasts: texts("tbody tr", of("Contrasts")),
      bars: view.querySelectorAll(".histogram span").length, command: texts(".command code")[0],
      peaks: texts(".token.peak"), titles: [...view.querySelectorAll(".token.peak")].map((each) => each.title),
    }};
    """
    unit = 4
    dataset, logits = explained.datasets[0], explained.logits[unit]
    end = dataset.ends[0]
    found = told(page, script, _address(explained, unit))
    assert found["title"] == f"L0 q_proj:4 – {explained.title}"
    assert (found["head"], found["name"]) == ("L0 q_proj:4", "model.layers.0.self_attn.q_proj:4")
    assert found["facts"][0] == f"fires on{100 * dataset.firing[unit]:.1f} %of tokens"
    for text, context in zip(found["contexts"], end.contexts[unit], strict=True):
        assert text == _shown("…" + "".join(context.tokens) + ("…" if context.cut_after else ""))
    assert [float(value) for value in found["values"]] == pytest.approx(
        [context.value for context in end.contexts[unit]], rel=0.01
    )
    assert found["titles"] == found["values"]
    assert found["tags"] == [context.label for context in end.contexts[unit]]
    assert {peak.strip() for peak in found["peaks"]} == {end.contexts[unit][0].tokens[12].strip()}
    assert [token.replace("·", " ") for token in found["tokens"]] == [_shown(each.token) for each in end.tokens[unit]]
    assert [token.replace("·", " ") for token in found["next"]] == [
        token for token, _ in logits.raised + logits.lowered
    ]
    assert "unembedding" in found["how"]
    assert found["partners"] == [f"#unit={explained.units[each.unit]}" for each in dataset.partners[unit]]
    changes = explained.ablations.changes[unit]
    accuracy, kl = found["ablation"]
    assert accuracy[:3] == ["notes accuracy pp", "400", "91.2"]
    assert float(accuracy[4]) == pytest.approx(changes[0].q, abs=0.005)
    assert accuracy[5:] == ["−38.3[−42.4, −34.1]", "<0.001"]
    assert [kl[4], kl[6]] == ["–", "–"]
    assert found["contrasts"][0].startswith("notes:weather 390 textsnotes:music 388 texts")
    filled = dataset.histogram_UE[unit].nonzero()[0]
    assert found["bars"] == filled[-1] - filled[0] + 1
    assert found["command"] == f"monolora prune 'runs/notes monolora' --units {explained.units[unit]} OUT"


def test_changes_are_bold_by_their_false_discovery_rate(told: Told, usual: Any) -> None:
    page, explained = usual
    script = f"""
    {READ}
    const {{of}} = read();
    const rows = [...of("Ablation").querySelectorAll("tbody tr")];
    return rows.map((row) => [3, 5].map((place) => row.children[place].className));
    """
    seen = set()
    for unit in range(0, 20, 2):
        q = explained.ablations.changes[unit][0].q
        accuracy, kl = told(page, script, _address(explained, unit))
        assert accuracy == ["clear" if q < 0.05 else "", "clear"]
        assert kl == ["", ""]  # though its interval is above 0
        seen.add(accuracy[0])
    assert seen == {"", "clear"}


def test_not_all_units_were_taken_out_together(told: Told, tmp_path: Path) -> None:
    given = made().ablations
    page = written(tmp_path, made(ablations=Ablations(measures=given.measures, changes=given.changes)))
    script = f"""
    {READ}
    const {{texts, of}} = read();
    return [texts("thead th", of("Ablation")), of("Ablation").querySelectorAll("tbody tr").length];
    """
    heads, rows = told(page, script, "unit=model.layers.0.self_attn.q_proj:4")
    assert heads == ["measure", "prompts", "adapted", "unit taken out", "q"]
    assert rows == 2


@pytest.mark.parametrize("signed", [False, True])
def test_the_last_bin_may_be_open(told: Told, tmp_path: Path, signed: bool) -> None:
    edges, counts_E = np.array([96.0, 128, 192, np.inf]), np.array([5, 0, 3])
    if signed:
        edges, counts_E = np.concatenate([-edges[::-1], edges]), np.concatenate([counts_E[::-1], [0], counts_E])
    explained = made(units=1, gated=(False,), signed=signed)
    dataset = replace(explained.datasets[0], edges=edges, histogram_UE=counts_E[None])
    page = written(tmp_path, replace(explained, datasets=[dataset]))
    script = """
    const bars = [...doc.querySelectorAll(".histogram span")], ticks = [...doc.querySelectorAll(".axis span")];
    return {
      titles: bars.map((each) => each.title.split(":")[0]), ticks: ticks.map((each) => each.textContent),
      heights: bars.map((each) => Math.round(each.firstChild.getBoundingClientRect().height / 6.5 / 16 * 100)),
      low: doc.querySelectorAll(".histogram .low").length,
      label: doc.querySelector(".histogram").getAttribute("aria-label"),
      scales: [...doc.querySelectorAll(".scale")].map((each) => each.textContent),
    };
    """
    found = told(page, script, "unit=model.layers.0.self_attn.q_proj:0")
    above = ["96.0 to 128", "128 to 192", "over 192"]
    below = ["under −192", "−192 to −128", "−128 to −96.0", "−96.0 to 96.0"] if signed else []
    assert found["titles"] == below + above
    assert found["heights"] == pytest.approx(100 * counts_E / 5, abs=2)
    assert found["low"] == (3 if signed else 0)
    assert (found["ticks"][0], found["ticks"][-1]) == ("under −192" if signed else "96.0", "over 192")
    assert found["scales"][0] == "↑ tokens, 5 in the highest bar"
    assert ("both sides of 0" in found["scales"][1]) == signed
    assert f"from {'under −192' if signed else '96.0'} to over 192" in found["label"]


def test_colours_follow_activations(told: Told, signed: Any) -> None:
    page, explained = signed
    script = """
    const sign = ({classList}) => classList.contains("high") - classList.contains("low");
    const heat = ({style}) => parseInt(style.getPropertyValue("--heat") || "0");
    const rows = [...doc.querySelectorAll(".contexts li")];
    return rows.map((row) => [...row.querySelectorAll(".token")].map((token) => [sign(token), heat(token)]));
    """
    ends = explained.datasets[0].ends
    contexts = [context for end in ends for context in end.contexts[2][:8]]
    largest = max(abs(context.value) for end in ends for context in end.contexts[2])
    rows = told(page, script, _address(explained, 2))
    assert len(rows) == 16
    for row, context in zip(rows, contexts, strict=True):
        for (sign, heat), value in zip(row, context.activations, strict=True):
            assert sign == (value > 0) - (value < 0)
            assert heat == pytest.approx(100 * (abs(value) / largest) ** 0.8, abs=1)


def test_both_ends_of_signed_units(told: Told, signed: Any) -> None:
    page, _ = signed
    script = f"""
    {READ}
    const {{view, texts, heads}} = read();
    const rows = view.querySelectorAll(".contexts li").length;
    view.querySelector(".more").click();
    return [heads.slice(0, 2), rows, view.querySelectorAll(".contexts li").length, doc.activeElement.tagName,
            view.querySelectorAll(".histogram .low").length > 2, view.querySelectorAll(".histogram .high").length > 2];
    """
    found = told(page, script, "unit=model.layers.0.self_attn.q_proj:2")
    assert found == [["Highest activations", "Lowest activations"], 16, 20, "LI", True, True]


def test_a_dead_unit_has_nothing_to_show(told: Told, usual: Any) -> None:
    page, explained = usual
    assert explained.datasets[0].firing[7] == 0
    script = f"""{READ} const {{texts, heads}} = read(); return [heads, texts("p"), texts(".facts-of b")];"""
    heads, texts, numbers = told(page, script, _address(explained, 7))
    assert heads == ["Strongest activations", "Activations", "Ablation", "Contrasts", "Take it out"]
    assert "It never fires here: there is no text to show." in texts
    assert "Exactly 0 on all tokens." in texts
    assert "This unit was not taken out by itself." in texts
    assert numbers[:2] == ["0 %", "0.0 %"]
    assert numbers[4] == "– %"


def test_opened_from_the_list_and_back(told: Told, usual: Any) -> None:
    page, _ = usual
    script = """
    const row = doc.querySelectorAll("#rows tr[data-unit]")[3], unit = row.dataset.unit;
    row.children[4].click();
    await until(() => doc.getElementById("unit-title"));
    const open = [doc.getElementById("list-view").hidden, doc.querySelector("h2").textContent];
    win.history.back();
    await until(() => !doc.getElementById("list-view").hidden);
    const back = [doc.getElementById("list-view").hidden, doc.activeElement.closest("tr").dataset.unit === unit];
    return {open, back, address: win.location.hash};
    """
    found = told(page, script, "sort=unit")
    assert found["open"] == [True, "L0 q_proj:3"]
    assert found["back"] == [False, True]
    assert found["address"] == "#sort=unit"


def test_keys_turn_pages(told: Told, usual: Any) -> None:
    page, _ = usual
    script = f"""
    {KEY}
    const seen = [], now = () => doc.activeElement.textContent;
    for (const key of ["j", "ArrowRight", "k", "m"]) {{ press(key); await wait(0); seen.push(now()); }}
    const pressed = doc.querySelector("#unit-view .star").getAttribute("aria-pressed"), address = win.location.hash;
    press("Escape");
    await until(() => !doc.getElementById("list-view").hidden);
    return [seen, pressed, address, doc.getElementById("unit-view").hidden, now()];
    """
    seen, pressed, address, is_list, now = told(page, script, "unit=model.layers.0.self_attn.q_proj:1")
    assert len(set(seen)) == 2  # forth twice, back once, and then the mark
    assert seen[0] == seen[2] == seen[3] == now
    assert pressed == "true"
    assert re.fullmatch(r"#unit=model\.layers\.0\..*:\d+&marked=\d+", address)
    assert is_list


def test_partners_are_links_to_units(told: Told, usual: Any) -> None:
    page, explained = usual
    script = """
    const name = () => doc.querySelector(".full code").textContent, first = name();
    doc.querySelector(".partners a").click();
    await until(() => name() !== first);
    const there = name();
    win.history.back();
    await until(() => name() !== there);
    return [there, name()];
    """
    partner = explained.units[explained.datasets[0].partners[4][0].unit]
    assert told(page, script, _address(explained, 4)) == [str(partner), str(explained.units[4])]


def test_a_pointer_reads_a_token(told: Told, usual: Any) -> None:
    page, explained = usual
    script = """
    const line = doc.querySelector(".context"), value = doc.querySelector(".contexts .value"), peak = value.textContent;
    const token = [...line.querySelectorAll(".token.high")].find((each) => !each.classList.contains("peak"));
    token.dispatchEvent(new win.PointerEvent("pointerover", {bubbles: true}));
    const read = [value.textContent, token.title];
    line.dispatchEvent(new win.PointerEvent("pointerleave"));
    return [read, value.textContent === peak, read[0] === peak];
    """
    (read, title), is_back, is_same = told(page, script, _address(explained, 4))
    assert read == title
    assert is_back
    assert not is_same


def test_an_unknown_unit_leaves_the_list(told: Told, usual: Any) -> None:
    page, _ = usual
    script = "return [doc.getElementById('list-view').hidden, doc.getElementById('found').textContent];"
    assert told(page, script, "unit=model.layers.99.q:0") == [False, "60 units"]


def test_one_unit_without_labels(told: Told, tmp_path: Path) -> None:
    page = written(tmp_path, made(units=1, contexts=2, labels=False, gated=(False,), logits=[None], contrasts=[]))
    script = """
    const heads = [...doc.querySelectorAll("#columns th")].map((each) => each.dataset.column);
    doc.querySelector("#rows a").click();
    await until(() => doc.getElementById("unit-title"));
    const sections = [...doc.querySelectorAll("#unit-view h3")].map((each) => each.textContent);
    const turns = [...doc.querySelectorAll(".turns button")].map((each) => each.disabled);
    return [heads, sections, turns, doc.querySelectorAll(".switch").length];
    """
    heads, sections, turns, switches = told(page, script)
    assert "consistency" not in heads
    assert "label" not in heads
    assert sections == ["Strongest activations", "Activations", "Tokens that excite it", "Ablation", "Take it out"]
    assert turns == [True, True, False]
    assert switches == 0
