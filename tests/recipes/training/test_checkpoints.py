"""Which checkpoint a run may go on from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from monolora.recipes.training.checkpoints import Resumed

Run = Callable[..., Any]
SAVING = ("--save-steps", "2")


@pytest.fixture
def done(run_sft: Run) -> Any:
    """A finished run with two checkpoints."""
    return run_sft(*SAVING)


def test_other_settings_are_named(run_sft: Run, done: Any) -> None:
    outcome = run_sft(*SAVING, "--resume-from-checkpoint", "--lora-r", "4", "--seed", "7")
    assert outcome.status == 2
    assert "--lora-r 8 → 4, --seed 42 → 7" in outcome.err[-1]
    assert outcome.record == done.record


def test_settings_that_shape_nothing_may_differ(run_sft: Run, done: Any) -> None:
    outcome = run_sft("--save-steps", "3", "--logging-steps", "2", "--resume-from-checkpoint")
    assert outcome.status == 0
    assert outcome.record["results"]["before"] == done.record["results"]["before"]
    assert outcome.record["results"]["after"] == done.record["results"]["after"]


def test_other_held_out_rows_are_scored_anew(run_sft: Run, done: Any) -> None:
    """Before and after training on the same rows, also where a resumed run asks for other rows."""
    first = str(done.folder / "checkpoint-2")
    outcome = run_sft(*SAVING, "--resume-from-checkpoint", first, "--max-eval-samples", "9")
    fresh = run_sft(*SAVING, "--max-eval-samples", "9", name="fresh")
    assert outcome.record["results"]["before"]["n"] == 9
    for when in ("before", "after"):
        assert outcome.record["results"][when] == fresh.record["results"][when]


def _weights(outcome: Any) -> dict[str, torch.Tensor]:
    assert outcome.status == 0, outcome.err
    return dict(load_file(outcome.folder / "adapter_model.safetensors"))


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(
    ("order", "short", "long"),
    [
        ("group_by_length", ("--num-train-epochs", "1.5"), ("--num-train-epochs", "3")),
        ("random", ("--max-steps", "3"), ("--max-steps", "10")),
        ("group_by_length", ("--num-train-epochs", "1"), ("--max-steps", "7")),
    ],
)
def test_a_finished_run_goes_on_to_another_end(
    run_sft: Run, order: str, short: tuple[str, str], long: tuple[str, str]
) -> None:
    """With a constant learning rate bit for bit as a run that had that end from the beginning."""
    flags = (*SAVING, "--skip-eval", "--lr-scheduler-type", "constant", "--train-sampling-strategy", order)
    steps = len(run_sft(*flags, *short).losses)
    again = run_sft(*flags, *long, "--resume-from-checkpoint", "true")
    whole = run_sft(*flags, *long, name="whole")
    assert _same(_weights(again), _weights(whole))
    assert again.losses == whole.losses
    assert len(again.losses) > steps
    assert "The run ends after" not in again.out


def test_a_schedule_goes_to_the_new_end(run_sft: Run, done: Any) -> None:
    """From the step at which the run is resumed: transformers' own schedule of all steps."""
    at_end = _weights(done)
    outcome = run_sft(*SAVING, "--skip-eval", "--max-steps", "5", "--resume-from-checkpoint", "latest")
    assert "The run ends after 5 steps instead of 4: from here on the learning rate is that of" in outcome.out
    assert "the schedule linear over 5 steps." in outcome.out
    rates = [entry["learning_rate"] for entry in outcome.record["history"] if "loss" in entry]
    assert rates == pytest.approx([0.02 * share for share in (1, 3 / 4, 2 / 4, 1 / 4, 1 / 5)])
    assert not _same(_weights(outcome), at_end)  # where the old schedule ends, its rate is 0
    assert outcome.record["config"]["max_steps"] == 5


def test_a_run_does_not_go_back(run_sft: Run, done: Any) -> None:
    for flag, value in (("--max-steps", "3"), ("--num-train-epochs", "0.5")):
        outcome = run_sft(*SAVING, flag, value, "--resume-from-checkpoint")
        assert outcome.status == 2
        assert (
            f"checkpoint-4 has gone 4 steps, and the run would end after {value if flag[2] == 'm' else 2}. Raise"
            in (outcome.err[-1])
        )
        assert outcome.record == done.record
    shorter = run_sft(*SAVING, "--max-steps", "3", "--resume-from-checkpoint", str(done.folder / "checkpoint-2"))
    assert shorter.status == 0
    assert len(shorter.losses) == 3


def test_paths_may_be_given_in_another_way(
    run_sft: Run, chat_model: Path, write_rows: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative or whole, and through a link; other files are still other settings."""
    monkeypatch.setenv("MONOLORA_CACHE", str(tmp_path / "cache"))
    rows = [{"instruction": f"say {k}", "output": f"{k}"} for k in range(12)]
    paths = [write_rows(rows, name) for name in ("a.jsonl", "b.jsonl", "anchors.jsonl")]
    template = tmp_path / "template.jinja"
    template.write_text((chat_model / "chat_template.jinja").read_text())
    (tmp_path / "link").symlink_to(tmp_path)
    keeper = Path(__file__).parents[3] / "recipes" / "study" / "first_tokens.py"
    shutil.copy(keeper, tmp_path / "keeper.py")
    write_rows([{"prompt": f"What is {number}?"} for number in range(5)], "anchors.jsonl")

    def flags(folder: str) -> list[str]:
        a, b, anchors = (f"{folder}{Path(path).name}" for path in paths)
        return [
            *SAVING, "--skip-eval", "--dataset", f"{a}:0.5", "--dataset", f"{b}:0.5", "--chat-template-path",
            f"{folder}template.jinja", "--keep", f"{folder}keeper.py:FirstTokens:0.5", "--keep-prompts", anchors,
            "--keep-samples", "5", "--keep-answer-tokens", "2",
        ]  # fmt: skip

    monkeypatch.chdir(tmp_path)
    assert run_sft(*flags("")).status == 0
    for folder in (f"{tmp_path}/", "./", "link/"):
        outcome = run_sft(*flags(folder), "--resume-from-checkpoint")
        assert outcome.status == 0, outcome.err
    other = run_sft(*[word.replace("b.jsonl", "anchors.jsonl") for word in flags("")], "--resume-from-checkpoint")
    assert other.status == 2
    assert "is of a run with other settings: --dataset" in other.err[-1]


def test_changed_data_are_refused(run_sft: Run, write_rows: Callable[..., str]) -> None:
    rows = [{"instruction": f"say {k}", "output": f"{k}"} for k in range(12)]
    flags = (*SAVING, "--dataset", write_rows(rows), "--skip-eval")
    assert run_sft(*flags).status == 0
    write_rows([*rows[:-1], {"instruction": "say 11", "output": "twelve"}])
    outcome = run_sft(*flags, "--resume-from-checkpoint")
    assert outcome.status == 2
    assert "training examples of --dataset have changed" in outcome.err[-1]


def test_resuming_into_another_run_is_refused(run_sft: Run, done: Any) -> None:
    run_sft(*SAVING, name="other")
    outcome = run_sft(*SAVING, "--resume-from-checkpoint", str(done.folder / "checkpoint-2"), name="other")
    assert outcome.status == 2
    assert "holds another run" in outcome.err[-1]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def _poison(path: Path) -> None:
    save_file({name: tensor * float("nan") for name, tensor in load_file(path).items()}, path)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut adapter": (lambda c: _cut(c / "adapter_model.safetensors"), "truncated"),
    "no adapter": (lambda c: (c / "adapter_model.safetensors").unlink(), "has no weights"),
    "NaN": (lambda c: _poison(c / "adapter_model.safetensors"), "NaN"),
    "cut optimizer": (lambda c: _cut(c / "optimizer.pt"), "optimizer.pt is damaged"),
    "no optimizer": (lambda c: (c / "optimizer.pt").unlink(), "has no optimizer state"),
    "no schedule": (lambda c: (c / "scheduler.pt").unlink(), "has no learning rate schedule"),
    "no random state": (lambda c: (c / "rng_state.pth").unlink(), "has no random state"),
    "no state": (lambda c: (c / "trainer_state.json").unlink(), "is no checkpoint"),
    "cut state": (lambda c: _cut(c / "trainer_state.json"), "is no checkpoint"),
    "cut record": (lambda c: _cut(c.parent / "run.json"), "run.json is not JSON"),
    "record of something else": (lambda c: (c.parent / "run.json").write_text("[]"), "no record of a run"),
    "no record": (lambda c: (c.parent / "run.json").unlink(), "has no run.json"),
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where the module's one finished run is kept."""
    return {"folder": tmp_path_factory.mktemp("kept") / "run"}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_checkpoints(run_sft: Run, kept: dict[str, Path], tmp_path: Path, name: str) -> None:
    if not kept["folder"].exists():
        run_sft(*SAVING, "--skip-eval", "--output-dir", str(kept["folder"]))
    shutil.copytree(kept["folder"], tmp_path / "run")
    damage, says = DAMAGE[name]
    damage(tmp_path / "run" / "checkpoint-4")
    outcome = run_sft(*SAVING, "--skip-eval", "--resume-from-checkpoint")
    assert outcome.status == 2
    assert says in outcome.err[-1]
    if "record" not in name:
        earlier = str(tmp_path / "run" / "checkpoint-2")
        assert run_sft(*SAVING, "--skip-eval", "--resume-from-checkpoint", earlier).status == 0


def test_checkpoints_without_optimizer_state(run_sft: Run) -> None:
    outcome = run_sft(*SAVING, "--skip-eval", "--save-only-model")
    assert outcome.status == 0
    outcome = run_sft(*SAVING, "--skip-eval", "--save-only-model", "--resume-from-checkpoint")
    assert outcome.status == 2
    assert "has no optimizer state" in outcome.err[-1]
    outcome = run_sft(*SAVING, "--skip-eval", "--save-only-model", "--resume-from-checkpoint", str(outcome.folder))
    assert outcome.status == 2
    assert f"is a run. Give one of its checkpoints, such as {outcome.folder}/checkpoint-4." in outcome.err[-1]


def test_scores_before(tmp_path: Path) -> None:
    config = {"max_eval_samples": 5, "eval_max_new_tokens": None}
    resumed = Resumed(tmp_path, {"config": config, "results": {"before": {"n": 5}}})
    assert resumed.scores_before(config) == {"n": 5}
    assert resumed.scores_before(config | {"max_eval_samples": 6}) is None
    unscored = Resumed(tmp_path, {"config": config, "results": {"before": None}})
    assert unscored.scores_before(config) is None


def test_record_of_a_resumed_run_is_json(run_sft: Run, done: Any) -> None:
    outcome = run_sft(*SAVING, "--resume-from-checkpoint")
    text = (outcome.folder / "run.json").read_text()
    assert json.loads(text)["config"]["resume_from_checkpoint"] == "latest"
    assert torch.isfinite(torch.tensor(outcome.losses)).all()


def test_flags_that_an_earlier_version_did_not_have_stood_at_their_defaults(run_sft: Run, done: Any) -> None:
    record = done.record
    for flag in ("alpha_pattern", "lora_bias", "init_lora_weights", "drop_columns", "allow_empty_answers"):
        del record["config"][flag]
    (done.folder / "run.json").write_text(json.dumps(record))
    again = ("--resume-from-checkpoint", str(done.folder / "checkpoint-2"))
    for flag, value, default in (
        ("--alpha-pattern", '{"q_proj": 640}', "None → {'q_proj': 640}"),
        ("--init-lora-weights", "gaussian", "true → gaussian"),
        ("--lora-bias", "all", "none → all"),
    ):
        outcome = run_sft(*SAVING, *again, flag, value)
        assert outcome.status == 2
        assert f"other settings: {flag} {default}" in outcome.err[-1]
    assert run_sft(*SAVING, *again).status == 0


@pytest.mark.parametrize("results", [{}, {"before": 5, "after": None}, {"before": None, "after": [1]}])
def test_records_whose_results_are_damaged(run_sft: Run, done: Any, results: Any) -> None:
    (done.folder / "run.json").write_text(json.dumps(done.record | {"results": results}))
    outcome = run_sft(*SAVING, "--resume-from-checkpoint")
    assert outcome.status == 2
    assert "run.json is damaged: results." in outcome.err[-1]


def test_a_log_that_is_damaged(run_sft: Run, done: Any) -> None:
    state = done.folder / "checkpoint-4" / "trainer_state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"log_history": [{"loss": "x", "step": 1}]}))
    outcome = run_sft(*SAVING, "--resume-from-checkpoint", str(state.parent))
    assert outcome.status == 2
    assert "trainer_state.json is missing or damaged" in outcome.err[-1]
