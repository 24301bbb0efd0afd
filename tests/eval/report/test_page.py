"""The page as HTML: complete, escaped, and without any reference to elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from monolora.eval.report.lookups import View
from monolora.eval.report.page import page
from tests.support.synthetic_report import EVIL, LABELS, evil_judge, make, poisoned


class _Parsed(HTMLParser):
    """Tags with their attributes, the text outside of scripts and styles, and the scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.cells: list[str] = []
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data
            if self.cells:
                self.cells[-1] += data

    @property
    def data(self) -> dict[str, Any]:
        """What the page's script reads."""
        return dict(json.loads(self.scripts[0]))


@pytest.fixture(scope="module")
def usual() -> tuple[dict[str, Any], list[dict[str, Any]], _Parsed]:
    results, entries = make(prompts=90, steps=True)
    return results, entries, _Parsed(page(results, entries))


def test_all_scores_with_intervals_are_there(usual: Any) -> None:
    results, _, parsed = usual
    view = View(results)
    for model in view.models:
        for column in view.columns:
            assert view.value(model, column.id) in parsed.text
            assert view.interval(model, column.id) in parsed.text


def test_all_differences_are_there(usual: Any) -> None:
    results, _, parsed = usual
    text = " ".join(parsed.text.split())
    for pair in ("lora − base", "mono − base", "mono − lora"):
        assert pair in text
    view = View(results)
    for each in results["differences"]:
        assert view.change(each) in parsed.text
        assert view.change_interval(each) in parsed.text
    assert sum(cell.startswith("7 / 3") for cell in parsed.cells) == 12  # four columns of flags, three pairs


def test_every_part_is_there(usual: Any) -> None:
    results, _, parsed = usual
    ids = {attributes.get("id") for _, attributes in parsed.tags}
    parts = {"refusals", "harm", "task", "drift", "sparsity", "training", "scores", "differences"}
    parts |= {"categories", "labels", "counts", "browse", "made"}
    assert parts <= ids
    anchors = {attributes["href"] for tag, attributes in parsed.tags if tag == "a"}
    assert anchors == {f"#{name}" for name in parts}
    for words in ("Content note", "prompt too long", "Cohen’s kappa", *LABELS, results["sets"][0]["sha256"], "2.13.0"):
        assert words in parsed.text


def test_parts_without_data_are_left_out() -> None:
    results, entries = make(("base",))
    for key in ("categories", "labels", "steps", "agreement", "invalid", "differences"):
        results[key] = []
    parsed = _Parsed(page(results, entries))
    ids = {attributes.get("id") for _, attributes in parsed.tags}
    assert not ids & {"differences", "categories", "labels", "training"}
    assert "No judgement is invalid" in parsed.text
    assert "differs from base (p" not in parsed.text
    for tag, attributes in parsed.tags:
        assert tag != "a" or (attributes["href"] or "")[1:] in ids


def test_the_scripts_data_is_the_entries(usual: Any) -> None:
    results, entries, parsed = usual
    data = parsed.data
    assert data["models"] == ["base", "lora", "mono"]
    assert [judge["name"] for judge in data["judges"]] == ["shieldgemma", "beaverdam", "refusal"]
    assert len(data["rows"]) == len(entries)
    for row, entry in zip(data["rows"], entries, strict=True):
        assert (row["s"], row["p"], row["c"], row["l"], row["w"]) == tuple(
            entry[key] for key in ("set", "prompt", "categories", "label", "weight")
        )
        for place, model in enumerate(data["models"]):
            assert row["a"][place]["t"] == entry["answers"][model]["text"]
            for number, judge in enumerate(results["judges"]):
                found, expected = row["j"][place][number], entry["judgements"][model][judge["name"]]
                if expected["status"] == "ok":
                    assert found["f"] == expected["flagged"]
                    assert found["v"] == pytest.approx([expected["scores"][name] for name in judge["scores"]], abs=1e-4)
                else:
                    assert found == {"x": expected["reason"]}


def test_answers_and_judgements_that_are_not_there() -> None:
    results, entries = make(prompts=4)
    del entries[0]["answers"]["lora"], entries[0]["judgements"]["lora"], entries[0]["judgements"]["mono"]["refusal"]
    entries[1]["answers"]["lora"] |= {"status": "invalid", "reason": "server: gone", "text": ""}
    first, second = _Parsed(page(results, entries)).data["rows"][:2]
    assert first["a"][1] is None
    assert first["j"][1] == [None] * 3
    assert first["j"][2][2] is None
    assert second["a"][1]["x"] == "server: gone"


@pytest.mark.parametrize("is_poisoned", [False, True])
def test_nothing_of_the_page_is_elsewhere(is_poisoned: bool) -> None:
    text = page(*(poisoned() if is_poisoned else make(steps=True)))
    parsed = _Parsed(text)
    for tag, attributes in parsed.tags:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base", "image"}
        assert not {"src", "srcset", "data", "action", "xlink:href"} & attributes.keys()
        assert (attributes.get("href") or "#").startswith("#")
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_hostile_texts_make_no_tag_and_no_handler_and_are_whole() -> None:
    parsed, harmless = _Parsed(page(*poisoned())), _Parsed(page(*poisoned("harmless")))
    assert [(tag, sorted(attributes)) for tag, attributes in parsed.tags] == [
        (tag, sorted(attributes)) for tag, attributes in harmless.tags
    ]
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    for name in ("title", "lora", "cooking", "path", "note", "key", "value", "reason", "server"):
        assert f"{name} {EVIL}" in parsed.text
    assert evil_judge(EVIL) in parsed.text
    row = parsed.data["rows"][0]
    assert row["p"] == f"prompt {EVIL}"
    assert row["a"][0]["t"] == f"text {EVIL}"
    assert row["j"][0][1]["x"] == f"nan {EVIL}"


def test_the_data_has_no_markup_and_no_raw_line_separator() -> None:
    text = page(*poisoned())
    block = text.partition('<script type="application/json" id="data">')[2].partition("</script>")[0]
    assert "<" not in block
    assert block.isascii()
    json.loads(block)


def test_only_the_pages_own_script_may_run() -> None:
    text = page(*poisoned())
    parsed = _Parsed(text)
    policy = next(
        a["content"] for tag, a in parsed.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    (allowed,) = re.findall(r"script-src ([^;]*)", policy)
    digest = base64.b64encode(hashlib.sha256(parsed.scripts[1].encode()).digest()).decode()
    assert allowed == f"'sha256-{digest}'"
    assert policy.startswith("default-src 'none'")


def test_half_a_surrogate_pair_is_no_obstacle() -> None:
    results, entries = make(prompts=2)
    entries[0]["answers"]["base"]["text"] = "half \ud83d of a pair"
    results["invalid"][0]["reason"] = "half \ud83d"
    assert "half" in page(results, entries)
