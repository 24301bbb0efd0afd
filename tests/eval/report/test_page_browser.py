"""The page in a real browser: hostile texts are shown and not run, the list works, a phone is wide enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from monolora.eval.report import PAGE, write
from tests.support.chromium_page import Told
from tests.support.requirements import NEEDS_BROWSER
from tests.support.synthetic_report import EVIL, evil_judge, make, poisoned

pytestmark = NEEDS_BROWSER

NUMBERS = """[...doc.querySelectorAll(".entry header")].map((head) => Number(head.textContent.match(/#(\\d+)/)[1]))"""
"""JavaScript: the numbers of the prompts that are shown, from 1."""

POISONED = (
    "title",
    "lora",
    "cooking",
    "path",
    "note",
    "key",
    "value",
    "reason",
    "server",
    "prompt",
    "text",
    "label",
    "nan",
)
"""What stands before the hostile text in each place that :func:`poisoned` puts it in."""


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("page")
    results, entries = make(prompts=200, steps=True)
    write(folder, results, entries)
    return folder / PAGE, entries


def _is_changed(entry: dict[str, Any], judges: tuple[str, ...]) -> bool:
    """Whether some model's flag is not the base's; an invalid judgement is no verdict."""
    flags = [[entry["judgements"][model][judge]["flagged"] for model in ("base", "lora", "mono")] for judge in judges]
    return any(None not in (base, other) and base != other for base, *others in flags for other in others)


@pytest.mark.parametrize("policy", [True, False], ids=["as written", "without its security policy"])
def test_hostile_texts_are_shown_and_not_run(told: Told, tmp_path: Path, policy: bool) -> None:
    write(tmp_path, *poisoned())
    page = tmp_path / PAGE
    if not policy:  # then only the escaping is between the texts and the browser
        page.write_text(page.read_text().replace("Content-Security-Policy", "x"))
    script = """
    for (const each of doc.querySelectorAll("button.more")) each.click();
    await wait(100); // a script or a missing picture would have had its turn
    return {title: doc.title, text: doc.body.textContent, images: doc.images.length};
    """
    shown = told(page, script, "page=1")
    assert shown["title"].startswith("title <script>")
    assert shown["images"] == 0
    for name in POISONED:
        assert f"{name} {EVIL}" in shown["text"], name
    assert evil_judge(EVIL) in shown["text"]


def test_texts_lie_behind_the_content_note(told: Told, usual: Any) -> None:
    page, entries = usual
    for fragment in ("", "browse"):
        shown = told(page, f"return [{NUMBERS}, doc.getElementById('gate').hidden, doc.body.innerText];", fragment)
        assert shown[:2] == [[], False]
        assert "Content note" in shown[2]
        assert entries[0]["prompt"] not in shown[2]


def test_the_button_opens_the_list_and_the_pages_turn(told: Told, usual: Any) -> None:
    page, _ = usual
    script = f"""
    const turn = (by) => doc.querySelector(`[data-turn="${{by}}"]`);
    doc.getElementById("open").click();
    const first = {NUMBERS}, back = turn(-1).disabled;
    turn(1).click();
    const second = {NUMBERS}, address = win.location.hash;
    for (let page = 3; page <= 8; page++) turn(1).click();
    return {{first, back, second, address, last: {NUMBERS}, end: turn(1).disabled}};
    """
    shown = told(page, script)
    assert shown["first"] == list(range(1, 26))
    assert shown["back"]
    assert shown["second"] == list(range(26, 51))
    assert "page=2" in shown["address"]
    assert shown["last"] == list(range(176, 201))
    assert shown["end"]


@pytest.mark.parametrize(
    ("fragment", "start", "wanted"),
    [
        ("set=xstest", 0, lambda entry: entry["set"] == "xstest"),
        ("category=weather%2Cseasons&page=2", 25, lambda entry: entry["categories"] == ["weather,seasons"]),
        ("changed=1", 0, lambda entry: _is_changed(entry, ("shieldgemma", "beaverdam", "refusal"))),
        (
            "set=beavertails&changed=beaverdam&page=2",
            25,
            lambda entry: entry["set"] == "beavertails" and _is_changed(entry, ("beaverdam",)),
        ),
        (
            "q=KETTLE+sings",
            0,
            lambda entry: any(
                "kettle sings" in text
                for text in (entry["prompt"], *(each["text"] for each in entry["answers"].values()))
            ),
        ),
        ("q=nowhere+to+be+found", 0, lambda entry: False),
    ],
)
def test_the_address_filters_the_list(told: Told, usual: Any, fragment: str, start: int, wanted: Any) -> None:
    page, entries = usual
    expected = [place for place, entry in enumerate(entries, start=1) if wanted(entry)]
    found, said = told(page, f"return [{NUMBERS}, doc.getElementById('found').textContent];", fragment)
    assert found == expected[start : start + 25]
    if expected:
        assert said == f"{start + 1}–{start + len(found)} of {len(expected)}"
    else:
        assert said == "No prompt matches these filters."


def test_the_form_filters_and_is_kept_in_the_address(told: Told, usual: Any) -> None:
    page, entries = usual
    script = f"""
    doc.getElementById("open").click();
    const form = doc.getElementById("filters");
    form.elements.set.value = "xstest";
    form.elements.q.value = "kettle";
    form.elements.q.dispatchEvent(new win.Event("input", {{bubbles: true}}));
    await until(() => win.location.hash.includes("q="));
    const typed = {NUMBERS}, address = win.location.hash;
    win.location.hash = "set=beavertails&page=1";
    await until(() => !form.elements.q.value);
    return {{typed, address, followed: {NUMBERS}, q: form.elements.q.value}};
    """
    shown = told(page, script)
    has_kettle = [
        place
        for place, entry in enumerate(entries, start=1)
        if entry["set"] == "xstest"
        and any("kettle" in text for text in (entry["prompt"], *(each["text"] for each in entry["answers"].values())))
    ]
    assert shown["typed"] == has_kettle[:25]
    assert shown["address"] == "#set=xstest&q=kettle&page=1"
    assert (
        shown["followed"]
        == [place for place, entry in enumerate(entries, start=1) if entry["set"] == "beavertails"][:25]
    )
    assert shown["q"] == ""


def test_an_entry_has_all_answers_verdicts_and_remarks(told: Told, usual: Any) -> None:
    page, entries = usual
    texts = told(page, "return [...doc.querySelectorAll('.entry')].map((each) => each.textContent);", "page=1")
    for number, (text, entry) in enumerate(zip(texts[:12], entries, strict=False), start=1):
        assert text.startswith(f"#{number}{entry['set']}")
        for model, answer in entry["answers"].items():
            assert f"{model}{answer['tokens']} tokens" in text
            for judge, judgement in entry["judgements"][model].items():
                if judgement["status"] != "ok":
                    assert f"{judge}: invalid: {judgement['reason']}" in text
                elif judge == "refusal":
                    assert f"refusal: {'yes' if judgement['flagged'] else 'no'}" in text
                else:
                    word = "flagged" if judgement["flagged"] else "not flagged"
                    assert f"{judge}: {word} {max(judgement['scores'].values()):.2f}" in text
        assert text.count("changed") == sum(
            None not in (flag := entry["judgements"][model][judge]["flagged"], base := each["flagged"]) and flag != base
            for judge, each in entry["judgements"]["base"].items()
            for model in ("lora", "mono")
        )
    assert "prompt cut" in texts[5]
    assert "in the set 2 times" in texts[7]


def test_long_responses_are_opened_by_a_click(told: Told, usual: Any) -> None:
    page, entries = usual
    place = next(k for k, entry in enumerate(entries[:25]) if len(entry["answers"]["base"]["text"]) > 300)
    script = f"""
    const answer = doc.querySelectorAll(".entry")[{place}].querySelector(".answer");
    const text = answer.querySelector(".text"), button = answer.querySelector("button.more");
    const short = [text.textContent, button.getAttribute("aria-expanded")];
    button.click();
    const long = [text.textContent, button.getAttribute("aria-expanded")];
    button.click();
    return [short, long, text.textContent];
    """
    (short, closed), (long, opened), again = told(page, script, "page=1")
    text = entries[place]["answers"]["base"]["text"]
    assert (short, closed) == (text[:200] + " …", "false")
    assert (long, opened) == (text, "true")
    assert again == short


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_is_never_wider_than_the_screen(told: Told, tmp_path: Path, width: int) -> None:
    """Not with long words either: of usual texts tests/reporting/test_pages.py knows."""
    write(tmp_path, *poisoned())
    script = (
        "for (const each of doc.querySelectorAll('details')) each.open = true;return doc.documentElement.scrollWidth;"
    )
    assert told(tmp_path / PAGE, script, "page=1", width) <= width
