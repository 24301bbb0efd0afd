"""The built-in tasks, and one that is added by a file of its own."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

import monolora
from monolora.data.task import Source
from monolora.data.tasks import BUILT_IN, Example, demo, load_task
from monolora.errors import InputError
from tests.support import forks


def test_demo_is_large_balanced_and_distinct() -> None:
    task = demo.load()
    sentences = [example.context for example in task.train + task.test]
    assert len(task.train) >= 2000
    assert len(set(sentences)) == len(sentences) == 5760
    for rows in (task.train, task.test):
        share = sum(example.response == "positive" for example in rows) / len(rows)
        assert share == pytest.approx(0.5, abs=0.03)
        assert {example.response for example in rows} == set(task.scorer.labels)


def _template(sentence: str) -> str:
    for words, mark in ((demo.THINGS, "THING"), (demo.GOOD + demo.BAD, "JUDGEMENT")):
        sentence = re.sub(rf"\b({'|'.join(words)})\b", mark, sentence)
    return sentence


def test_demo_shares_no_template_between_train_and_test() -> None:
    task = demo.load()
    train, test = ({_template(example.context) for example in rows} for rows in (task.train, task.test))
    assert len(train) == len(demo.TRAIN_TEMPLATES)
    assert len(test) == len(demo.TEST_TEMPLATES)
    assert not train & test


def test_demo_labels_follow_the_last_judgement() -> None:
    """One word is not enough: many sentences hold judgements of both signs, and the last one counts."""
    both = 0
    for example in demo.load().train + demo.load().test:
        found = re.findall(rf"\b({'|'.join(demo.GOOD + demo.BAD)})\b", example.context)
        assert (found[-1] in demo.GOOD) == (example.response == "positive")
        both += len(found) == 2
    assert both > 1500


def test_demo_is_seeded() -> None:
    assert demo.load() == demo.load()
    assert demo.load().train[0] == demo.load().train[0]
    assert demo.sentences(demo.TRAIN_TEMPLATES, seed=5) != demo.sentences(demo.TRAIN_TEMPLATES, seed=6)


def test_chosen_rows_are_the_first_of_a_fixed_order() -> None:
    task = demo.load()
    train, test = task.selected()
    assert (len(train), len(test)) == (256, 200)
    assert task.selected(5, 3) == (train[:5], test[:3])


def test_sst2(mirror: Path) -> None:
    task = load_task("sst2", Source())
    assert (len(task.train), len(task.test)) == (67349, 872)
    assert len(task.selected()[1]) == 872
    assert task.scorer.labels == ("negative", "positive")
    assert sum(example.response == "positive" for example in task.test) == 444
    assert task.test[0] == Example(
        "Analyze the sentiment of the input, and respond only positive or negative",
        "positive",
        context="it 's a charming and often affecting journey .",
    )


def test_dolly(mirror: Path) -> None:
    task = load_task("dolly", Source())
    assert (len(task.train), len(task.test)) == (14011, 1000)
    assert task.scorer.labels == ()
    assert all(example.instruction and example.response for example in task.train[:100])
    assert any(example.context for example in task.train[:100])


def test_built_in_tasks_have_their_own_splits() -> None:
    with pytest.raises(InputError, match="--dataset demo has its own splits"):
        load_task("demo", Source(config="x"))
    assert set(BUILT_IN) == {"demo", "sst2", "dolly"}


# All that there is of it: a task whose answers are numbers, with a scorer of its own.
NEW_TASK = """
from dataclasses import dataclass

from monolora.data.example import Example
from monolora.data.scoring import RowMetric, Scorer
from monolora.data.task import Task


def _closeness(answer, reference):
    return 1 / (1 + abs(len(answer) - len(reference)))


@dataclass(frozen=True)
class Lengths(Scorer):
    most: int = 5

    @property
    def metrics(self):
        mean = lambda values: sum(values) / len(values)
        return (
            RowMetric(name="closeness", title="closeness", description="how close in length", is_percentage=True,
                      value=_closeness, summary=mean, is_headline=True),
        )


def load():
    rows = [Example(f"Write {k} letters", "a" * k) for k in range(1, 41)]
    return Task(name="letters", train=rows[:32], test=rows[32:], scorer=Lengths(most=9), max_new_tokens=3)
"""

PROGRAM = """
import json, sys
from pathlib import Path
from monolora.data import prompt_sets
from monolora.eval import plan
from monolora.eval.measures.records import RunRecords
from monolora.eval.measures.results import build
from monolora.eval.measures.table import Model
from monolora.eval.store import Response
from monolora.recipes import sft
from monolora.recipes.training.arguments import AdapterArguments

model, out = sys.argv[1:]
flags = f"--dataset letters --model {model} --output-dir {out}/run --max-steps 1 --report-to none".split()
record = sft.run(sft.parse([*flags, "--per-device-train-batch-size", "4"]))

asked = prompt_sets.load("task:letters")
plan.write(Path(out), plan.Plan([asked], [], {"task:letters": {}}, {}, {}, None))
(asked,) = plan.read(Path(out)).sets
answers = {
    prompt.key: Response(prompt.key, prompt.key, "", prompt.reference + "bbb", 1, "stop") for prompt in asked.prompts
}
records = RunRecords(
    models=[Model("base", "base", "")], sets=[asked], judges=[], responses={"task:letters": {"base": answers}},
    judgements={}, sparsity={}, drift={}, silent={},
)
results = build({}, records)
print(json.dumps({
    "help": AdapterArguments.__dataclass_fields__["dataset"].metadata["help"],
    "before": record["results"]["before"],
    "card": Path(out, "run", "README.md").read_text(),
    "columns": results["columns"],
    "cells": results["cells"]["base"],
}))
"""


def test_a_task_is_one_file(tmp_path: Path, chat_model: Path) -> None:
    """It gets the flags and scores of training, the columns of an evaluation, and its scorer's way through the plan."""
    package = Path(monolora.__file__).parent
    copy = tmp_path / "code" / "monolora"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "data" / "tasks" / "letters.py").write_text(NEW_TASK)
    out = forks.run(PROGRAM, chat_model, tmp_path, cwd=tmp_path / "code")
    assert out.returncode == 0, out.stderr
    found = json.loads(out.stdout.splitlines()[-1])
    assert "letters" in found["help"].split(", ")
    assert found["before"].keys() == {"n", "closeness"}
    assert found["before"]["n"] == 8
    assert re.search(r"\| closeness \| [\d.]+% \| [\d.]+% \|", found["card"])
    (column,) = found["columns"]
    assert (column["id"], column["unit"], column["test"]) == ("task:letters/closeness", "%", "bootstrap")
    assert found["cells"]["task:letters/closeness"]["value"] == pytest.approx(100 / 4)
