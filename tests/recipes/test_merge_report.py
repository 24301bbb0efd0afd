"""``merge_report.json`` and the page beside it."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from monolora.errors import InputError
from monolora.recipes import merge_report
from monolora.terminal import Terminal
from tests.support.merge_reports import MERGE, TASK, Q, V, report


@pytest.fixture
def make() -> Callable[..., dict[str, Any]]:
    """See :func:`tests.support.merge_reports.report`."""
    return report


Make = Callable[..., dict[str, Any]]


def test_make(make: Make) -> None:
    report = make()
    assert report["fidelity"]["sst2"]["kept"] == pytest.approx(0.9)
    assert report["fidelity"]["dolly"]["kept"] == pytest.approx(0)
    # Pooled over tokens, not over texts.
    assert report["kept"] == report["fidelity"]["all"]["kept"] == pytest.approx(1 - 0.8 / 3.5)
    assert report["fidelity"]["all"]["tokens"] == 4
    assert report["fidelity"]["sst2"]["kl_merged"] == pytest.approx({"mean": 0.1, "p50": 0.1, "p99": 0.198})
    assert report["fidelity"]["sst2"]["top1_merged"] == pytest.approx(1 / 3)
    assert report["modules"] == pytest.approx({Q: 0.5, V: 0.25})
    assert (report["passed"], report["min_fidelity"]) == (True, 0.5)
    assert report["merge"] == MERGE
    assert json.loads(json.dumps(report)) == report


@pytest.mark.parametrize(("least", "passed"), [(0.5, True), (0.78, False), (1.0, False), (-3.0, True)])
def test_threshold(make: Make, least: float, passed: bool) -> None:
    report = make(least=least)
    assert report["passed"] is passed
    said = merge_report.verdict(report)
    assert ("keeps 77.14% of the adapter's effect." in said) == passed
    assert (f"keeps only 77.14% of the adapter's effect, below --min-fidelity ({least:.0%})" in said) == (not passed)


def test_write_and_read(make: Make, tmp_path: Path) -> None:
    assert merge_report.read(tmp_path) is None
    merge_report.write_unverified(tmp_path, MERGE)
    assert merge_report.read(tmp_path) == {"passed": None, "merge": MERGE}
    merge_report.write(tmp_path, make())
    assert merge_report.read(tmp_path) == make()
    assert {path.name for path in tmp_path.iterdir()} == {"merge_report.json", "merge_report.html"}


@pytest.mark.parametrize("text", ["{", "[]", "3", "{}", '{"merge": {}}', '{"merge": 3}', "\0", "\udcff"])
def test_read_refuses_what_is_no_report(tmp_path: Path, text: str) -> None:
    (tmp_path / "merge_report.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"is no report of a merge: .* Remove it\."):
        merge_report.read(tmp_path)


KINDS: dict[str, dict[str, Any]] = {
    "usual": {},
    "no task": {"task": None},
    "one text": {"texts": 1},
    "free text": {
        "task": TASK | {who: {"n": 3, "bleu": 1.25, "perplexity": 9.0} for who in ("base", "adapter", "merged")}
    },
    "no deltas": {"modules": {}},
    "a LoRA merge": {"method": "PEFT's own, of LORA", "calibration": None},
    "failed": {"least": 1.0},
    "outside of the layers": {"modules": {"model.embed_tokens": 0.0, "lm_head": 0.1, Q: 0.2, "transformer.h.3.c": 0.3}},
    "no errors": {"modules": {Q: 0.0, V: 0.0}},
    "anchors": {"anchors": (0.5, 0.001)},
    "silent anchors": {"anchors": (0.0, 0.0), "method": "exact"},
    "a delta out of nothing": {"modules": {Q: math.inf, V: 0.1}},
}


def test_anchors_stand_apart(make: Make) -> None:
    """They are not pooled, and no share of an effect is told of them."""
    report, without = make(anchors=(0.5, 0.001)), make()
    assert {key: value for key, value in report.items() if key != "anchors"} == without
    assert report["anchors"].keys() == {"tokens", "kl_merged", "kl_base", "top1_merged", "top1_base"}
    assert report["anchors"]["kl_merged"]["mean"] == pytest.approx(0.5)
    assert (report["anchors"]["top1_merged"], report["anchors"]["top1_base"]) == (0, 1)
    page = merge_report.page(report)
    assert '<th scope="row">anchors</th><td>3</td><td>0.0010</td>' in page
    assert merge_report.anchors_sentence(report).replace("'", "&#39;") in page
    assert "anchors" not in merge_report.page(without)


@pytest.mark.parametrize(
    ("kl", "method", "drifts", "says"),
    [
        ((0.5, 0.001), "linear", True, "the linear merge is 0.5 nats a token from the adapter, and that is 0.001 from"),
        ((0.002, 0.001), "linear", False, ": no linear map is silent. Merge with --method exact, or serve the adapter"),
        ((0.5, 0.6), "linear", False, "0.5 nats a token"),
        (
            (0.0, 0.001),
            "exact",
            False,
            "the exact merge is 0 nats a token from the adapter, and that is 0.001 from its",
        ),
        ((1e-7, 0.0), "exact", False, ": the adapter's silence is kept."),
        (
            (0.5, 0.001),
            "exact",
            True,
            "the exact merge is 0.5 nats a token from the adapter, and that is 0.001 from its",
        ),
        (
            (1e-7, 0.1),
            "PEFT's own, of LORA",
            False,
            "the merge is 1e-07 nats a token from the adapter, and that is 0.1",
        ),
    ],
)
def test_what_is_told_of_anchors(make: Make, kl: tuple[float, float], method: str, drifts: bool, says: str) -> None:
    """The distances; that silence is kept only where it is; and the way out for linear merges alone."""
    report = make(anchors=kl, method=method)
    told = merge_report.anchors_sentence(report)
    assert says in told
    assert ("Merge with --method exact" in told) == (method == "linear")
    assert ("silence is kept" in told) == (method == "exact" and not drifts)
    assert merge_report.drifts(report) is drifts
    assert not merge_report.drifts(make(method=method))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_report_has_a_page(make: Make, kind: str, tmp_path: Path) -> None:
    report = make(**KINDS[kind])
    merge_report.write(tmp_path, report)
    page = (tmp_path / "merge_report.html").read_text()
    assert merge_report.verdict(report) in " ".join(html.unescape(re.sub("<[^>]*>", " ", page)).split())
    assert page.count('class="error"') == len(report["modules"])
    assert ("Score on sst2, 3 rows" in page) == (report["task"] is not None)
    assert not re.search("Undefined|None%|nan", page)
    console = Terminal(width=100, record=True, file=StringIO())
    merge_report.show(report, tmp_path, console)
    assert "adapter's effect" in console.export_text()


def test_the_largest_errors_come_first(make: Make) -> None:
    names = [
        f"model.layers.{k}.{m}" for k in range(12) for m in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")
    ]
    page = merge_report.page(make(modules={name: 0.1 + k / 100 for k, name in enumerate([*names, "lm_head"])}))
    assert re.findall(r'class="error"><span>(.*?)</span>', page) == ["lm_head", *reversed(names)]
    widths = [float(width) for width in re.findall(r"width: ([\d.]+)%", page)]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == 100
    shown, others = page.split("The other 25 modules")
    assert (shown.count('class="error"'), others.count('class="error"')) == (12, 25)
    assert "Half of the 37 modules’ deltas are at most 28.0% off. The worst is lm_head, 46.0% off." in page


def test_modules_that_are_silent_on_the_text(make: Make) -> None:
    """Relative to an effect of 0 an error is infinite: such modules are counted, and no number is made of them."""
    page = merge_report.page(make(modules={"a": 0.1, "b": 0.3, "c": 0.2, "d": math.inf}))
    assert "Half of the 3 modules’ deltas are at most 20.0% off. The worst is b, 30.0% off." in page
    assert "On the text 1 of the modules adds nothing in the adapter" in page
    assert "inf" not in re.sub(r"<[^>]*>", "", page.split("deltas are at most")[1].split("</p>")[0])


def test_names_are_escaped(make: Make) -> None:
    evil = "<script>alert(1)</script>"
    report = make(task=TASK | {"name": evil}, modules={evil: 0.5, f"layers.1.{evil}": 0.1}, adapters=[evil], model=evil)
    report["fidelity"][evil] = report["fidelity"].pop("dolly")
    page = merge_report.page(report)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 6


def test_the_page_needs_nothing_else(make: Make) -> None:
    page = merge_report.page(make())
    assert not re.search(r"https?://|<link|<script|src=|@import|url\(", page)
    assert page.startswith("<!doctype html>")
    (policy,) = re.findall('<meta http-equiv="Content-Security-Policy" content="(.*?)">', page)
    assert policy.split("; ")[:2] == ["default-src 'none'", "style-src 'unsafe-inline'"]  # its bars are inline styles
    assert "script-src" not in policy
    assert "ridge" not in page  # the maps of a large model would fill it


def test_what_is_printed(make: Make) -> None:
    console = Terminal(width=100, record=True, file=StringIO())
    merge_report.show(make(), Path("out"), console)
    text = " ".join(console.export_text().split())
    assert "modules’ deltas are at most 37.5% off. The worst is model.layers.0.self_attn.q_proj, 50.0% off." in text
    assert "accuracy │ 66.7% │ 66.7% │ 66.7%" in text
    assert "2 of 3 answers are the adapter's." in text
    assert text.endswith("The merge keeps 77.14% of the adapter's effect. Report: out/merge_report.html")
