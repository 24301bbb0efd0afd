"""``monolora eval``: its stages, what they leave, what a second call does again, and what is refused."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from monolora import cli
from monolora.eval import plan, score
from monolora.eval import run as run_module
from monolora.eval.measures.results import build
from monolora.eval.run import KIND
from monolora.eval.store import INVALID
from monolora.locks import locked
from tests.support.evaluated import QUESTIONS, Evaluated
from tests.support.inline import Outcome, results_inline, run_inline

Done = Callable[..., Outcome]


@pytest.fixture
def evaluate(
    evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Done:
    """``evaluate(stage, *more)``: in this process, engines and judges too."""
    run_inline(monkeypatch)
    monkeypatch.delenv("MONOLORA_DATA", raising=False)

    def run(stage: str, *more: object, base: tuple[str, ...] | None = None, name: str = "out") -> Outcome:
        words = (evaluated.run_flags() if stage in ("run", "generate") else []) if base is None else list(base)
        capsys.readouterr()
        status = cli.main(["eval", stage, *words, "--out", str(tmp_path / name), *map(str, more)])
        printed = capsys.readouterr()
        return Outcome(status, printed.out, printed.err, tmp_path / name)

    return run


@pytest.fixture(scope="session")
def ran(evaluated: Evaluated, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that is done; copy it to change it."""
    folder = tmp_path_factory.mktemp("ran") / "out"
    with pytest.MonkeyPatch.context() as patch:
        run_inline(patch)
        assert (
            cli.main(
                ["eval", "run", *evaluated.run_flags(), "--tasks", "demo", "--task-limit", "4", "--out", str(folder)]
            )
            == 0
        )
    return folder


@pytest.fixture
def copied(ran: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ran, tmp_path / "out"))


def test_a_run_in_use(evaluate: Done, copied: Path, tmp_path: Path) -> None:
    """From the first check on: a run of other settings that waited would be mixed into it."""
    before = {path.name: path.read_bytes() for path in copied.iterdir() if path.is_file()}
    for stage in ("run", "generate", "score", "report"):
        with locked(copied):
            ended = evaluate(stage)
        assert ended.status == 2
        assert f"--out {copied} is in use by process {os.getpid()}. Wait for it" in ended.err
    assert {path.name: path.read_bytes() for path in copied.iterdir() if path.is_file()} == before
    assert os.listdir(tmp_path) == ["out"]


def test_what_a_run_leaves(ran: Path) -> None:
    files = [str(path.relative_to(ran)) for path in ran.rglob("*") if path.is_file()]
    assert KIND.foreign(files) == []
    outcome = Outcome(0, "", "", ran)
    distinct = len({row["prompt"] for row in QUESTIONS})
    responses, judgements = outcome.rows("responses.jsonl"), outcome.rows("scores.jsonl")
    assert len(responses) == 3 * (distinct + 4)
    assert len(judgements) == 2 * 3 * distinct  # tasks are scored, not judged
    assert {row["response"] for row in judgements} < {row["key"] for row in responses}
    results, run = outcome.results(), outcome.run()
    assert [model["name"] for model in results["models"]] == ["base", "lora", "mono"]
    assert run["status"] == "score done"
    assert run["sets"]["questions"]["rows"] == len(QUESTIONS) == distinct + 1
    assert run["config"]["max_new_tokens"] == 6
    assert len(run["sets"]["questions"]["sha256"]) == 64
    assert run["versions"]["torch"]
    cells = results["cells"]
    assert cells["lora"]["sparsity/alignment"]["value"] == 0
    assert 0 < cells["mono"]["sparsity/alignment"]["value"] < 100
    assert cells["base"]["sparsity/alignment"] is None
    assert cells["base"]["questions/tiny-judge/flagged"]["n"] == len(QUESTIONS)
    with (ran / "table.csv").open(newline="") as file:
        assert {row["model"] for row in csv.DictReader(file)} == {"base", "lora", "mono"}
    assert "mono" in (ran / "report.html").read_text()
    assert "\\toprule" in (ran / "table.tex").read_text()


def test_sparsity_is_that_of_the_program(ran: Path, evaluated: Evaluated) -> None:
    """``monolora sparsity`` measures the same prompts, by its own way to them."""
    from monolora.adapters import load_adapted
    from monolora.data.scoring import prompt_sparsity
    from monolora.data.tasks import Example
    from monolora.inference import Inference

    model, tokenizer = load_adapted(str(evaluated.mono), str(evaluated.base), dtype="float32")
    rows = [Example(question["prompt"], "") for question in QUESTIONS[:-1]]
    expected = prompt_sparsity(Inference(model=model, tokenizer=tokenizer, batch_size=4), rows)
    cell = Outcome(0, "", "", ran).results()["cells"]["mono"]["sparsity/alignment"]
    assert cell["value"] == pytest.approx(100 * expected.zeros, abs=1e-9)


def test_stages_alone_give_what_a_run_gives(evaluate: Done, ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert evaluate("generate", "--tasks", "demo", "--task-limit", "4").status == 0
    assert evaluate("score").status == 0
    monkeypatch.setattr(score, "worker_rows", None)  # a report asks nobody
    ended = evaluate("report")
    assert ended.status == 0
    for name in ("responses.jsonl", "scores.jsonl", "measurements.jsonl", "table.csv"):
        assert sorted((ended.folder / name).read_text().splitlines()) == sorted((ran / name).read_text().splitlines())
    assert "mono" in ended.out


def test_nothing_is_done_twice(evaluate: Done, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: (copied / name).read_bytes() for name in ("responses.jsonl", "scores.jsonl", "table.csv")}

    def nothing(target: str, *_: object) -> None:
        raise AssertionError(f"{target} was asked")

    for name in ("generate.parallel_rows", "measurements.worker_rows", "score.worker_rows"):
        monkeypatch.setattr(f"monolora.eval.{name}", nothing)
    seconds = Outcome(0, "", "", copied).run()["stages"]["score"]["seconds"]
    again = evaluate("run", "--tasks", "demo", "--task-limit", "4")
    assert again.status == 0
    assert "exist already" in again.err
    assert {name: (copied / name).read_bytes() for name in before} == before
    assert again.run()["stages"]["score"]["seconds"] >= seconds  # of all calls together


def test_nothing_is_done_twice_on_another_day(
    evaluate: Done, evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan keeps the date that the chat template was told; a run of its own begins with its own."""
    base = Path(shutil.copytree(evaluated.base, tmp_path / "base"))
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{{ strftime_now('%d %B %Y') }} {{ messages[0].content }}"
    tokenizer.save_pretrained(base)
    words = ["--model", str(base), "--suite", str(evaluated.prompts), "--max-new-tokens", "2", "--engine", "hf"]

    def asked_on(day: datetime, name: str = "out") -> tuple[str | None, list[str]]:
        monkeypatch.setattr(chat_template_utils, "datetime", SimpleNamespace(now=lambda: day))
        monkeypatch.setattr(
            plan, "date", SimpleNamespace(today=day.date, fromisoformat=date.fromisoformat), raising=False
        )
        ended = evaluate("generate", base=tuple(words), name=name)
        assert ended.status == 0
        written = json.loads((ended.folder / "plan.json").read_text())
        return written.get("today"), [row["key"] for row in ended.rows("responses.jsonl")]

    first = asked_on(datetime(2024, 2, 29, 23))
    assert first[0] == "2024-02-29"
    assert asked_on(datetime(2024, 3, 1)) == first
    other = asked_on(datetime(2024, 3, 1), "other")
    assert other[0] == "2024-03-01"
    assert not set(other[1]) & set(first[1])
    (tmp_path / "other" / "plan.json").unlink()  # given up before there was one
    assert asked_on(datetime(2024, 3, 1, 1), "other") == other


def test_a_judge_is_added_later(evaluate: Done, evaluated: Evaluated) -> None:
    """On another machine, say: only its own judgements are made, and the report has both."""
    assert evaluate("generate", "--judges", "refusal").status == 0
    assert evaluate("score").status == 0
    first = evaluate("report").results()
    assert evaluate("score", "--judges", f"classifier:{evaluated.judge}").status == 0
    both = evaluate("report").results()
    assert [judge["name"] for judge in first["judges"]] == ["refusal"]
    assert [judge["name"] for judge in both["judges"]] == ["refusal", "tiny-judge"]
    (both_folder := evaluate("report").folder / "scores.jsonl").unlink()
    assert evaluate("score").status == 0  # the judges of the last time, now without their flags
    judged = [json.loads(line)["judge"] for line in both_folder.read_text().splitlines()]
    assert sorted(map(judged.count, set(judged))) == [3 * (len(QUESTIONS) - 1)] * 2


def test_another_adapter_under_the_same_name(evaluate: Done, evaluated: Evaluated, copied: Path) -> None:
    """Known by its weights: the old answers are not its answers."""
    before = Outcome(0, "", "", copied)
    old_rows, old = len(before.rows("responses.jsonl")), before.results()["cells"]
    swapped = ("--model", str(evaluated.base), "--adapter", f"lora={evaluated.mono}", *evaluated.run_flags()[6:])
    ended = evaluate("run", "--tasks", "demo", "--task-limit", "4", base=swapped)
    assert ended.status == 0
    assert len(ended.rows("responses.jsonl")) == old_rows  # the mono adapter's answers were there
    assert ended.results()["cells"]["lora"] == old["mono"]


def test_missing_answers(evaluate: Done, copied: Path) -> None:
    """They are no verdict: counted, left out, and asked for again on request."""
    path = copied / "responses.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    broken = next(
        row for row in rows if row["key"] in {j["response"] for j in Outcome(0, "", "", copied).rows("scores.jsonl")}
    )
    whole = dict(broken)
    broken.update(status=INVALID, reason="server: 500", text="")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    judgements = [row for row in Outcome(0, "", "", copied).rows("scores.jsonl") if row["response"] != broken["key"]]
    (copied / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in judgements))
    task = ("--tasks", "demo", "--task-limit", "4")
    ended = evaluate("run", *task)
    counts = [row for row in ended.results()["counts"] if row["set"] == "questions"]
    assert sum(row["invalid"] for row in counts) >= 1
    again = [row for row in ended.rows("scores.jsonl") if row["response"] == broken["key"]]
    assert {(row["status"], row["reason"]) for row in again} == {(INVALID, "no response: server: 500")}
    ended = evaluate("run", *task, "--retry-invalid")
    assert whole in ended.rows("responses.jsonl")
    assert not any(row["status"] == INVALID for row in ended.rows("scores.jsonl"))
    assert ended.run()["config"]["retry_invalid"] is True
    assert evaluate("score").run()["judges"] == ended.run()["judges"]


def test_a_prompt_longer_than_the_context_is_cut_from_the_left(
    evaluate: Done, evaluated: Evaluated, tmp_path: Path
) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"prompt": "word " * 900 + "the end"}) + "\n" + json.dumps({"prompt": "short"}) + "\n")
    ended = evaluate("run", "--suite", path, "--judges", "refusal")
    assert ended.status == 0
    assert (
        sorted((row["cut"], row["status"]) for row in ended.rows("responses.jsonl"))
        == [(False, "ok")] * 3 + [(True, "ok")] * 3
    )
    assert {row["model"]: row["cut"] for row in ended.results()["counts"]} == {"base": 1, "lora": 1, "mono": 1}
    refused = evaluate("run", "--max-new-tokens", "512", name="other")
    assert refused.status == 2
    assert "leave no room for a prompt. Lower --max-new-tokens" in refused.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--suite", "beavertail"], "Did you mean beavertails"),
        (["--judges", "shieldgema"], "Did you mean shieldgemma"),
        (["--unsafe-labels", "foo"], "--unsafe-labels is for classifiers with labels of their own"),
        (["--suite", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--judges", "refusal,refusal"], "Two judges are named 'refusal'"),
        (["--model", "no/such-model"], "Cannot reach the hub for 'no/such-model'"),
        (["--tasks", "sst3"], "sst3"),
    ],
)
def test_bad_input_ends_it_before_anything_is_made(evaluate: Done, flags: list[str], message: str) -> None:
    ended = evaluate("run", *flags)
    assert ended.status == 2
    assert message in ended.err
    assert ended.err.count("error: ") == 1
    assert "Traceback" not in ended.err
    assert not ended.folder.exists()


def test_what_an_engine_cannot_do(evaluate: Done, evaluated: Evaluated) -> None:
    """Said before anything is made."""
    outcome = evaluate("run", "--batch-invariant")
    assert outcome.status == 2
    assert "--batch-invariant is a mode of vLLM, and the engine is hf" in outcome.err
    outcome = evaluate("run", "--data-parallel", "2", "--engine", "server", "--endpoint", "http://localhost:1/v1")
    assert outcome.status == 2
    assert "--data-parallel 2 starts engines in this run, and --engine server starts none. Leave it out" in outcome.err
    server = ("--engine", "server", "--endpoint", "http://localhost:1/v1", "--adapter", f"whole={evaluated.base}")
    outcome = evaluate("run", *server)
    assert outcome.status == 2
    classifier = evaluate("run", "--adapter", f"whole={evaluated.judge}")
    assert "which does not answer. A classifier is given to --judges" in classifier.err
    assert "each endpoint serves the base and its adapters, and whole is a whole model" in outcome.err
    assert not outcome.folder.exists()


def test_sparsity_is_left_out_on_request(evaluate: Done) -> None:
    ended = evaluate("run", "--skip-sparsity", "--limit", "2")
    assert ended.status == 0
    assert not (ended.folder / "measurements.jsonl").exists()
    assert not any(name.startswith("sparsity") for name in ended.results()["cells"]["mono"])


def test_a_report_with_another_seed(evaluate: Done, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the bootstrap; values are the same. Flags of other stages are refused."""
    before = Outcome(0, "", "", copied).results()
    seeds = []
    monkeypatch.setattr(run_module, "build", lambda *given: seeds.append(given[-1]) or build(*given))
    after = evaluate("report", "--seed", "5").results()
    assert seeds == [5]
    assert (before["run"]["bootstrap"]["seed"], after["run"]["bootstrap"]["seed"]) == (0, 5)
    for model, cells in before["cells"].items():
        values = [cell and cell["value"] for cell in cells.values()]
        assert [cell and cell["value"] for cell in after["cells"][model].values()] == values
    refused = evaluate("report", "--limit", "3")
    assert refused.status == 2
    assert "monolora eval report does not read --limit" in refused.err


def test_stages_and_folders_that_are_not_there(evaluate: Done, tmp_path: Path) -> None:
    assert "Did you mean score" in evaluate("scores").err
    assert "Which stage? It comes before the flags" in evaluate("--model").err
    assert "There is no run in" in evaluate("report").err
    (tmp_path / "out").mkdir()
    assert "holds no evaluation" in evaluate("score").err
    (tmp_path / "out" / "thesis.txt").touch()
    assert "exists and is no evaluation" in evaluate("run").err


def test_a_folder_of_another_run(evaluate: Done, copied: Path) -> None:
    ended = evaluate("run", "--max-new-tokens", "7", "--dtype", "bfloat16", "--tasks", "demo")
    assert ended.status == 2
    assert "--max-new-tokens 6, now 7; --dtype float32, now bfloat16" in ended.err
    assert "--task-limit 4, now not given" in ended.err
    (copied / "run.json").write_text("{")
    assert "is no record of an evaluation" in evaluate("report").err


def test_an_unavailable_judge(evaluate: Done, evaluated: Evaluated) -> None:
    """By default nothing is begun; with --keep-going the others go on, and it is said."""
    both = ("--judges", f"shieldgemma,classifier:{evaluated.judge}")
    refused = evaluate("run", *both)
    assert refused.status == 2
    assert "google/shieldgemma" in refused.err
    assert not refused.folder.exists()
    with pytest.warns(UserWarning, match="Continuing without the judge shieldgemma: .* google/shieldgemma|gated|reach"):
        ended = evaluate("run", *both, "--keep-going")
    assert ended.status == 0
    assert [judge["name"] for judge in ended.results()["judges"]] == ["tiny-judge", "refusal"]
    with pytest.warns(UserWarning, match="Continuing without the judge shieldgemma"):
        assert evaluate("run", "--judges", "shieldgemma", "--keep-going", name="none").status == 2


def test_a_judge_that_fails_in_the_middle(evaluate: Done, monkeypatch: pytest.MonkeyPatch) -> None:
    from monolora.errors import RunError

    def failing(target: str, job: Any, log: Path) -> Any:
        for number, row in enumerate(results_inline(target, job, log)):
            if "refusal" not in target and number == 3:
                raise RunError("The process was ended by signal 9.")
            yield row

    monkeypatch.setattr(score, "worker_rows", failing)
    ended = evaluate("run")
    assert ended.status == 1
    assert "ended by signal 9" in ended.err
    with pytest.warns(UserWarning, match="Continuing without the remaining judgements of tiny-judge"):
        assert evaluate("score", "--keep-going").status == 0
    monkeypatch.setattr(score, "worker_rows", results_inline)
    assert evaluate("run").status == 0
    assert evaluate("run").results()["invalid"] == []


def test_checkpoints_along_a_run(evaluate: Done, evaluated: Evaluated, tmp_path: Path) -> None:
    for step, folder in ((5, evaluated.lora), (10, evaluated.mono)):
        shutil.copytree(folder, tmp_path / "run" / f"checkpoint-{step}")
    words = (
        "--model",
        str(evaluated.base),
        *evaluated.run_flags()[6:],
        "--checkpoints",
        *map(str, (tmp_path / "run").glob("*")),
    )
    ended = evaluate("run", base=words)
    assert ended.status == 0
    assert [(model["name"], model["step"]) for model in ended.results()["models"]] == [
        ("base", None),
        ("step 5", 5),
        ("step 10", 10),
    ]
    assert {row["step"] for row in ended.results()["steps"]} == {0, 5, 10}


def test_a_whole_finetuned_model(evaluate: Done, evaluated: Evaluated, tmp_path: Path) -> None:
    """It stands beside the adapters, in an engine of its own; a copy of the base answers as the base does."""
    shutil.copytree(evaluated.base, tmp_path / "copy")
    ended = evaluate("run", "--adapter", f"full={tmp_path / 'copy'}")
    assert ended.status == 0
    cells = ended.results()["cells"]
    assert ended.results()["models"][-1]["kind"] == "model"
    assert cells["full"] == cells["base"]
    assert cells["full"]["sparsity/alignment"] is None


def test_a_run_that_was_given_up_before_anything_was_made_begins_again(evaluate: Done, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").touch()
    assert evaluate("run", "--judges", "refusal").status == 0


def test_a_response_that_came_later_is_judged_anew(evaluate: Done, copied: Path) -> None:
    """Also where the stages are called one by one."""
    path, task = copied / "responses.jsonl", ("--tasks", "demo", "--task-limit", "4")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    judged = {row["response"] for row in Outcome(0, "", "", copied).rows("scores.jsonl")}
    for row in rows:
        if row["key"] in judged:
            row.update(status=INVALID, reason="server: 500", text="")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (copied / "scores.jsonl").unlink()
    assert evaluate("score").status == 0
    assert evaluate("generate", *task, "--retry-invalid").status == 0
    assert evaluate("score").status == 0
    results = evaluate("report").results()
    assert results["invalid"] == []
    assert [judge["name"] for judge in results["judges"]] == ["tiny-judge", "refusal"]


def test_two_checkpoints_of_one_step(evaluate: Done, evaluated: Evaluated, tmp_path: Path) -> None:
    for run, folder in (("a", evaluated.lora), ("b", evaluated.mono)):
        shutil.copytree(folder, tmp_path / run / "checkpoint-10")
    checkpoints = [str(tmp_path / run / "checkpoint-10") for run in "ab"]
    ended = evaluate("generate", "--checkpoints", *checkpoints)
    assert ended.status == 2
    assert "Two models are named 'step 10'" in ended.err


def test_a_judge_with_damaged_weights_does_not_stop_the_others(
    evaluate: Done, evaluated: Evaluated, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(evaluated.judge, tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    save_file(
        {n: t for n, t in weights.items() if "classifier" not in n}, broken / "model.safetensors", {"format": "pt"}
    )
    with pytest.warns(UserWarning, match="Continuing without the remaining judgements of broken"):
        ended = evaluate("run", "--judges", f"classifier:{broken},refusal", "--keep-going")
    assert ended.status == 0
    assert ended.results()["cells"]["base"]["questions/refusal/flagged"]["value"] is not None
    assert ended.results()["cells"]["base"]["questions/broken/flagged"]["value"] is None
