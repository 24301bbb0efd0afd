"""Every page of the project in a real browser, by one list of demands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from monolora.data.task import Columns
from monolora.eval.explain.compare import compare
from monolora.eval.explain.compare_report import page as comparison_page
from monolora.eval.report.page import page as evaluation_page
from monolora.recipes import merge_report
from monolora.recipes.data_report import page as data_page
from monolora.recipes.data_statistics import Lengths, Statistics
from monolora.recipes.training.data_checks import Span
from tests.support import feature_records, merge_reports, study_records, synthetic_report
from tests.support.chromium_page import Told
from tests.support.explained_folders import explained_folder
from tests.support.page_checks import check_page
from tests.support.requirements import NEEDS_BROWSER

pytestmark = NEEDS_BROWSER


def _written(folder: Path, text: str) -> Path:
    path = folder / "page.html"
    path.write_text(text, encoding="utf-8")
    return path


def _evaluation(folder: Path) -> Path:
    return _written(folder, evaluation_page(*synthetic_report.make(steps=True)))


def _explorer(folder: Path) -> Path:
    return feature_records.written(folder, feature_records.made(units=60, contexts=4, gated=(False, True)))


def _comparison(folder: Path) -> Path:
    for seed, name in enumerate(("lora", "mono")):
        explained_folder(folder / name, seed, is_signed=name == "lora")
    folders = {name: folder / name for name in ("lora", "mono")}
    return _written(folder, comparison_page(compare(folders, resamples=2000)))


def _merge(folder: Path) -> Path:
    modules = {f"model.layers.{k}.self_attn.q_proj": 0.02 * k for k in range(20)}
    return _written(folder, merge_report.page(merge_reports.report(modules, anchors=(0.5, 0.001), least=1.0)))


def _data(folder: Path) -> Path:
    span = [Span("What is a fish? ", False, 5), Span("</pre><b>A fish swims.</b>", True, 8)]
    made = Statistics(
        name="chats.jsonl",
        columns=Columns("question + answer", ("question", "answer"), ("id", "a_column_with_a_long_name_" * 4)),
        rows=1200,
        examples=1200,
        duplicate_examples=3,
        duplicate_prompts=8,
        empty_answers=0,
        train=1080,
        held_out=120,
        counts={"held_out_questions": 2},
        tokenized=1000,
        sequences=800,
        in_parts=4,
        tokens=Lengths(120, 480, 1100, 1800),
        answer_tokens=Lengths(20, 90, 200, 400),
        max_length=1024,
        truncated=12,
        dropped=3,
        refusal="",
        shown=[span, [Span("word " * 300, False, 300), *span]],
    )
    return _written(folder, data_page([made, made._replace(name="other", columns=None)], None, "a model"))


PAGES: dict[str, Callable[[Path], Path]] = {
    "evaluation": _evaluation,
    "explorer": _explorer,
    "comparison": _comparison,
    "merge": _merge,
    "data": _data,
    "study": study_records.written,
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_can_be_shown_around(told: Told, tmp_path: Path, name: str) -> None:
    check_page(told, PAGES[name](tmp_path))


@pytest.mark.parametrize(
    ("name", "fragment"), [("evaluation", "page=1"), ("explorer", "unit=model.layers.0.self_attn.q_proj:2")]
)
def test_so_can_the_parts_that_a_reader_opens(told: Told, tmp_path: Path, name: str, fragment: str) -> None:
    check_page(told, PAGES[name](tmp_path), fragment, opens_with_message=name == "evaluation")
