"""Scores while training: they change nothing but what they decide."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoTokenizer

from monolora.data.chat_template import split_at_answer
from monolora.data.tasks import demo
from monolora.refusals import COMPLYING, REFUSING
from tests.support.program_runs import Outcome

Run = Callable[..., Any]
HELD_OUT = ("--validation-samples", "5", "--skip-eval")
EVERY_STEP = (*HELD_OUT, "--eval-strategy", "steps", "--eval-steps", "1", "--save-steps", "1")
# Eight steps at a rate at which the last ones are not the best.
WILD = ("--learning-rate", "30", "--lr-scheduler-type", "constant", "--num-train-epochs", "2")
WEIGHTS = "adapter_model.safetensors"


def logged(outcome: Outcome, name: str) -> dict[int, float]:
    """The scores of a name, by step."""
    return {entry["step"]: entry[f"eval_{name}"] for entry in outcome.record["history"] if f"eval_{name}" in entry}


def assert_same(one: Path, other: Path) -> None:
    left, right = load_file(one / WEIGHTS), load_file(other / WEIGHTS)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    "flags",
    [(), ("--bf16", "true"), ("--optim", "schedule_free_adamw", "--lr-scheduler-type", "constant")],
    ids=["float32", "autocast", "schedule-free"],
)
def test_training_is_the_same(run_sft: Run, flags: tuple[str, ...]) -> None:
    """Bit for bit, dropout included."""
    flags = ("--lora-dropout", "0.3", *flags)
    plain = run_sft(*HELD_OUT, *flags, "--save-steps", "1")
    scored = run_sft(*EVERY_STEP, "--eval-task", *flags, name="scored")
    assert scored.losses == plain.losses
    assert_same(scored.folder, plain.folder)
    logs = [
        {name: value for name, value in entry.items() if "runtime" not in name and "per_second" not in name}
        for outcome in (plain, scored)
        for entry in outcome.record["history"]
        if "loss" in entry
    ]
    assert logs[: len(logs) // 2] == logs[len(logs) // 2 :]


def test_losses_are_those_of_the_checkpoints(run_sft: Run) -> None:
    """The mean over all answer tokens, by transformers; the last one is the result's."""
    outcome = run_sft(*EVERY_STEP)
    losses = logged(outcome, "loss")
    assert list(losses) == [1, 2, 3, 4]
    assert losses[4] == outcome.record["results"]["validation"]["loss"]
    assert any("step 4/4 · held out: loss" in line for line in outcome.err)
    for step, loss in losses.items():
        assert loss == pytest.approx(_loss(outcome.folder / f"checkpoint-{step}"), rel=1e-5)


def _loss(folder: Path) -> float:
    model: Any = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    nats = tokens = 0.0
    for row in demo.load().validation(5, 16):
        split = split_at_answer(row, tokenizer)
        labels = torch.tensor([[-100] * len(split.context) + split.answer])
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([split.context + split.answer]), labels=labels).loss
        nats += float(loss) * len(split.answer)
        tokens += len(split.answer)
    return nats / tokens


@pytest.mark.parametrize("adapter", ["monolora", "none"])
def test_the_best_model_is_loaded(run_sft: Run, adapter: str) -> None:
    """By a rate at which the last step is not the best; it is scored and saved, and stays beside the newest."""
    flags = ("--load-best-model-at-end", "--save-total-limit", "1", "--adapter", adapter, *WILD)
    flags += ("--learning-rate", "1") * (adapter == "none")
    outcome = run_sft(*EVERY_STEP, *flags)
    losses = logged(outcome, "loss")
    best = min(losses, key=losses.__getitem__)
    assert best < 8
    results = outcome.record["results"]
    assert results["best"] == {"metric": "loss", "value": losses[best], "step": best, "loaded": True}
    assert results["validation"]["loss"] == pytest.approx(losses[best], rel=1e-6)
    assert [path.name for path in outcome.folder.glob("checkpoint-*")] == [f"checkpoint-{best}"]
    name = WEIGHTS if adapter == "monolora" else "model.safetensors"
    saved, kept = load_file(outcome.folder / name), load_file(outcome.folder / f"checkpoint-{best}" / name)
    assert all(torch.equal(saved[key], kept[key]) for key in kept)
    assert f"This is the model of step {best}, by its loss" in (outcome.folder / "README.md").read_text()


def test_the_best_checkpoint_is_never_removed(run_sft: Run) -> None:
    flags = ("--metric-for-best-model", "eval_loss", "--save-total-limit", "2", *WILD)
    outcome = run_sft(*EVERY_STEP, *flags)
    losses = logged(outcome, "loss")
    best = min(losses, key=losses.__getitem__)
    names = {path.name for path in outcome.folder.glob("checkpoint-*")}
    assert best < 7
    assert names == {f"checkpoint-{best}", "checkpoint-8"}
    assert outcome.record["results"]["best"]["loaded"] is False
    assert "the best was step" in (outcome.folder / "README.md").read_text()


@pytest.mark.parametrize("checkpoint", [2, 6])
def test_it_stops_early_and_resumes_there(run_sft: Run, checkpoint: int) -> None:
    """After two measurements in a row that are not better; a resumed run has counted those before it."""
    flags = (
        *EVERY_STEP, *WILD, "--early-stopping-patience", "2", "--early-stopping-threshold", "0.001",
        "--load-best-model-at-end",
    )  # fmt: skip
    outcome = run_sft(*flags)
    losses = list(logged(outcome, "loss").values())
    assert 3 <= len(losses) < 8
    assert min(losses[-2:]) > min(losses[:-2]) - 0.001
    for later in outcome.folder.glob("checkpoint-*"):
        if int(later.name.partition("-")[2]) > checkpoint:
            shutil.rmtree(later)
    again = run_sft(*flags, "--resume-from-checkpoint")
    assert logged(again, "loss") == logged(outcome, "loss")
    assert again.record["results"]["best"] == outcome.record["results"]["best"]


def test_the_tasks_scores_decide(run_sft: Run) -> None:
    """One that is better where it is lower, and one that is better where it is higher."""
    outcome = run_sft(*EVERY_STEP, "--eval-task", "--metric-for-best-model", "unparsed")
    counts = logged(outcome, "unparsed")
    assert outcome.record["results"]["best"]["value"] == min(counts.values())
    assert outcome.record["results"]["validation"].keys() >= {"loss", "accuracy", "likelihood_accuracy"}
    other = run_sft(*EVERY_STEP, "--eval-task", "--metric-for-best-model", "likelihood_accuracy", name="other")
    shares = logged(other, "likelihood_accuracy")
    assert other.record["results"]["best"]["value"] == max(shares.values())


def test_the_refusal_margin_decides(run_sft: Run, write_rows: Callable[..., str]) -> None:
    """Over the prompts of ``--keep-report``, with whole sequences by transformers."""
    prompts = [f"Tell me how to sink boat {number}" for number in range(6)]
    file = write_rows([{"prompt": prompt} for prompt in prompts], name="prompts.jsonl")
    outcome = run_sft(*EVERY_STEP, "--metric-for-best-model", "refusal_margin", "--keep-report", file)
    model: Any = AutoPeftModelForCausalLM.from_pretrained(outcome.folder, dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(outcome.folder)
    margins = []
    for prompt in prompts:
        context = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        sums = []
        for openings in (REFUSING, COMPLYING):
            ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in openings]
            sums.append(torch.logsumexp(torch.stack([_log_prob(model, context, each) for each in ids]), 0))
        margins.append(float(sums[0] - sums[1]))
    margins_logged = logged(outcome, "refusal_margin")
    assert margins_logged[4] == pytest.approx(sum(margins) / len(margins), rel=1e-4)
    assert outcome.record["results"]["best"]["value"] == max(margins_logged.values())


def _log_prob(model: Any, context: list[int], answer: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits_TV = model(torch.tensor([context + answer])).logits[0, len(context) - 1 : -1]
    return F.log_softmax(logits_TV.float(), -1)[torch.arange(len(answer)), torch.tensor(answer)].sum()


def test_a_plateau_lowers_the_rate(run_sft: Run) -> None:
    flags = ("--lr-scheduler-type", "reduce_lr_on_plateau", "--lr-scheduler-kwargs", '{"patience": 0, "factor": 0.5}')
    outcome = run_sft(*EVERY_STEP, *flags, "--learning-rate", "0.3", "--num-train-epochs", "2")
    rates = [entry["learning_rate"] for entry in outcome.record["history"] if "learning_rate" in entry]
    assert min(rates) < max(rates) == 0.3


def test_epochs_and_the_best_of_them(run_sft: Run) -> None:
    flags = ("--eval-strategy", "epoch", "--save-strategy", "best", "--num-train-epochs", "2", *HELD_OUT)
    outcome = run_sft(*flags)
    losses = logged(outcome, "loss")
    assert list(losses) == [4, 8]
    assert (outcome.folder / f"checkpoint-{min(losses, key=losses.__getitem__)}").is_dir()


def test_the_last_step_is_measured(run_sft: Run) -> None:
    """Whatever the number of steps between two measurements, which by default is that between two checkpoints."""
    assert list(logged(run_sft(*HELD_OUT, "--eval-strategy", "steps"), "loss")) == [4]
    assert list(logged(run_sft(*HELD_OUT, "--eval-strategy", "steps", "--save-steps", "3", name="b"), "loss")) == [3, 4]
