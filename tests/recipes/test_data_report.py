"""``monolora data``: its numbers against a count by hand, and its checks against those of ``monolora sft``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from monolora.data.chat_template import split_at_answer
from monolora.data.task import Source, dataset_task
from tests.support.merge_runs import Ended

Cli = Callable[..., Ended]
Write = Callable[..., str]

# 22 rows: the first twice more, one of which with another answer; two empty answers; one row of a long prompt.
ROWS = [
    {"question": "q0", "answer": "a0", "id": 0},
    {"question": "q0", "answer": "a0", "id": 1},
    {"question": "q0", "answer": "other", "id": 2},
    {"question": "q1", "answer": "", "id": 3},
    {"question": "q2", "answer": " ", "id": 4},
    {"question": "long " * 60, "answer": "a", "id": 5},
    *({"question": f"say {k}", "answer": f"{k}", "id": k} for k in range(6, 22)),
]
# Of 22 rows two are held out; with repeated questions more rows may be left out for that.
pytestmark = pytest.mark.filterwarnings("ignore:.*begin with the question of a held-out row")


@pytest.fixture
def report(run_cli: Cli, chat_model: Path) -> Cli:
    """``report(*words)``: ``monolora data`` with the tiny tokenizer."""
    return lambda *words: run_cli("data", *words, "--model", chat_model)


def test_numbers_against_a_count_by_hand(
    report: Cli, write_rows: Write, chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    path = write_rows(ROWS)
    printed = json.loads(report(path, "--json", "--max-length", "64").out)
    assert printed["mixture"] is None
    found = printed["data_sets"][path]
    assert found["columns"] == {"format": "question + answer", "read": ["question", "answer"], "ignored": ["id"]}
    assert (found["rows"], found["examples"], found["empty_answers"]) == (22, 22, 2)
    assert (found["duplicate_examples"], found["duplicate_prompts"]) == (1, 2)
    task = dataset_task(path, Source(allow_empty_answers=True))
    assert (found["train"], found["held_out"]) == (len(task.train), 2)
    lengths = sorted(sum(map(len, split_at_answer(example, chat_tokenizer))) for example in task.train)
    tokens = found["tokens"]
    assert tokens["longest"] == lengths[-1] > 64
    assert sum(length <= tokens["median"] for length in lengths) >= len(lengths) / 2
    assert sum(length < tokens["median"] for length in lengths) < len(lengths) / 2
    assert (found["dropped"], found["truncated"]) == (1, 0)  # of the long prompt nothing else is left
    assert found["refusal"] == ""


def test_what_is_shown_is_the_preview_of_sft(report: Cli, run_sft: Any, write_rows: Write) -> None:
    path = write_rows([row for row in ROWS if row["answer"].strip()])  # type: ignore[attr-defined]
    shown, preview = report(path), run_sft("--dataset", path, "--max-train-samples", "4", "--preview")
    assert shown.status == 0
    parts = re.findall(r"⟦[^⟧]*⟧", shown.out.replace("⟦ ⟧", ""))
    assert len(parts) == 3
    assert parts == re.findall(r"⟦[^⟧]*⟧", preview.out.replace("⟦ ⟧", ""))
    assert "question + answer" in shown.out
    assert f"monolora sft --dataset {path}" in shown.out.replace("\n", " ")


def test_a_mixture_and_its_page(report: Cli, write_rows: Write, tmp_path: Path) -> None:
    path = write_rows([{"text": f"text {k} </script>"} for k in range(20)])
    out = tmp_path / "page.html"
    words = ("demo:0.75", f"{path}:0.25", "--max-samples", "20", "--out", str(out))
    ended = report(*words)
    assert ended.status == 0, ended.err
    assert ended.out.startswith(f"The mixture of demo and {path} has 72 examples, and all of the 38")
    assert "demo: 54 examples, 75.0%" in ended.out
    assert f"{path} is used up: the mixture has at most 72 examples." in " ".join(ended.out.split())
    printed = json.loads(report(*words[:4], "--json").out)
    assert list(printed["data_sets"]) == ["demo", path]
    mixture = printed["mixture"]
    assert (mixture["examples"], mixture["limited_by"]) == (72, path)
    assert mixture["data_sets"]["demo"].items() >= {"share": 0.75, "examples": 54}.items()
    assert mixture["data_sets"][path] == {"share": 0.25, "examples": 18, "available": 18, "left_out": 0}
    page = out.read_text()
    assert page.count("<pre id=") == 6
    assert "text 1 </script>" not in page
    assert "demo: 54 examples, 75.0%" in page
    again = report(*words)
    assert (again.status, out.read_text()) == (2, page)
    assert "exists. Give another file, or --overwrite" in again.err[-1]
    assert report(*words, "--overwrite").status == 0
    out.write_text("my notes")
    assert "is no page of monolora data, and is not replaced" in report(*words, "--overwrite").err[-1]
    assert out.read_text() == "my notes"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nothing.jsonl"], "There is no data set at nothing.jsonl"),
        (["demo:0.5"], "this is the only data set"),
        (["demo", "demo"], "is named twice"),
        (["demo:1", "ROWS:1", "--drop-columns", "id"], "are not applied to a mixture"),
        (["demo", "--drop-columns", "id"], "has its own splits and columns"),
        (["ROWS", "--drop-columns", "idd"], "Unknown column of --drop-columns 'idd'; choose one of question"),
        (["ROWS", "--split", "test"], "Unknown split of"),
        (["demo", "--out", "nowhere/page.html"], "there is no folder nowhere"),
        (["demo", "--out", "."], "is a folder"),
        (["demo", "--out", "page"], "Give page.html"),
        (["demo", "--max-length", "0"], "--max-length must be at least 1"),
        ([], "The following arguments are required: DATASET"),
    ],
)
def test_bad_input(report: Cli, write_rows: Write, words: list[str], says: str) -> None:
    path = write_rows(ROWS)
    ended = report(*(word.replace("ROWS", path) for word in words))
    assert ended.status == 2
    assert says in ended.err[-1]


def test_a_refusal_of_sft_is_the_finding(report: Cli, run_sft: Any, write_rows: Write) -> None:
    path = write_rows([{"prompt": "long " * 60 + str(k), "completion": " yes"} for k in range(12)])
    ended = report(path, "--max-length", "20")
    assert ended.status == 0
    assert ended.out.startswith(f"{path} would be refused by monolora sft.")
    refused = run_sft("--dataset", path, "--max-length", "20")
    assert refused.status == 2
    assert "lose every trained token" in refused.err[-1]
