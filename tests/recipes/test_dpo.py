"""``monolora dpo`` as a whole, in this process, on tiny models: what it learns, leaves and refuses."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer

from monolora import cli
from monolora.data.preference_tasks import load_preferences
from monolora.data.task import Source
from monolora.recipes import dpo
from monolora.recipes.calibration_data import run_task
from monolora.recipes.training import command
from monolora.recipes.training.preference_arguments import LOSSES, PROGRAMS
from monolora.run_record import SFT
from tests.support.conversations import assistant, user
from tests.support.preferences import JUDGED, PAIRS, TEXTS
from tests.support.program_runs import Outcome, lines_of

Run = Callable[..., Any]
QUICK = [
    "--max-train-samples", "12", "--max-eval-samples", "4", "--per-device-train-batch-size", "4", "--max-steps", "3",
    "--learning-rate", "0.02", "--dtype", "float32", "--bf16", "false", "--logging-steps", "1",
]  # fmt: skip
SINGLE = [JUDGED[2 * number + number % 2] for number in range(len(PAIRS))]  # one answer to each prompt


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONOLORA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run_dpo(chat_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], write_rows: Run) -> Run:
    """``run_dpo(*flags, rows=PAIRS, name="run")``: the program on tiny pairs, in float32."""

    def run(*flags: str, rows: list[dict[str, Any]] = PAIRS, name: str = "run", model: Path = chat_model) -> Outcome:
        folder = tmp_path / name
        data = [] if "--dataset" in flags else ["--dataset", write_rows(rows)]
        capsys.readouterr()
        status = dpo.main(["--model", str(model), "--output-dir", str(folder), *QUICK, *data, *flags])
        printed = capsys.readouterr()
        if status == 0 and folder.is_dir():
            assert SFT.foreign(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == []
        return Outcome(status, folder, printed.out, lines_of(printed.err))

    return run


@pytest.fixture
def refused(run_dpo: Run) -> Callable[..., str]:
    """``refused(*flags)``: the message of a run that must end with one line, status 2, and no output folder."""

    def run(*flags: str, **options: Any) -> str:
        outcome = run_dpo(*flags, **options)
        assert (outcome.status, len(outcome.err)) == (2, 1), outcome.err
        assert not outcome.folder.exists()
        return str(outcome.err[0].removeprefix("error: "))

    return run


def _weights(folder: Path, name: str = "adapter_model") -> dict[str, torch.Tensor]:
    return dict(load_file(folder / f"{name}.safetensors"))


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_run_leaves_what_it_says(run_dpo: Run) -> None:
    outcome = run_dpo("--validation-samples", "2")
    assert outcome.status == 0, outcome.err
    assert {line.split(" ")[0] for line in outcome.err} == {"step", "3"}  # no warnings
    assert "pairs right" in outcome.err[-2]
    assert outcome.out.startswith("Data: 14 of 16 rows read for training, 12 pairs, 12 trained on; 1 held out.")
    assert outcome.out.rstrip().endswith(f"Next: monolora keep-report {outcome.folder}")
    record = outcome.record
    assert (record["status"], record["config"]["method"], record["config"]["loss_type"]) == ("done", "dpo", ["sigmoid"])
    results = record["results"]
    assert results["before"].keys() == {"n", "chosen_likelier", "log_probability_margin"}
    assert results["after"].keys() == {*results["before"], "reward_accuracy", "reward_margin"}
    assert results["validation"].keys() == {*results["after"], "loss"}
    assert outcome.losses[0] == pytest.approx(math.log(2))  # policy and reference are one
    assert results["sparsity"]["zeros"] == pytest.approx(0.5, abs=0.2)
    card = (outcome.folder / "README.md").read_text()
    assert "(MonoLoRA, DPO)" in card
    assert "- dpo\n" in card
    assert "| reward accuracy | – | " in card


def test_the_scores_are_trls(
    run_dpo: Run, chat_model: Path, chat_tokenizer: PreTrainedTokenizerBase, write_rows: Run, tmp_path: Path
) -> None:
    """Rewards of the saved model, by TRL's own evaluation against the base."""
    after = run_dpo("--adapter", "none", "--dataset", _with_test_split(write_rows, tmp_path)).record["results"]["after"]
    quiet = {"report_to": "none", "disable_tqdm": True}
    arguments = DPOConfig(str(tmp_path / "trl"), per_device_eval_batch_size=4, bf16=False, use_cpu=True, **quiet)
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(tmp_path / "run"),
        ref_model=AutoModelForCausalLM.from_pretrained(chat_model),
        args=arguments,
        train_dataset=Dataset.from_list(PAIRS),
        eval_dataset=Dataset.from_list(PAIRS[12:]),
        processing_class=chat_tokenizer,
    )
    expected = trainer.evaluate()
    assert after["n"] == 4
    assert after["reward_accuracy"] == pytest.approx(expected["eval_rewards/accuracies"])
    assert after["reward_margin"] == pytest.approx(expected["eval_rewards/margins"], rel=1e-4)
    margin = expected["eval_logps/chosen"] - expected["eval_logps/rejected"]
    assert after["log_probability_margin"] == pytest.approx(margin, rel=1e-4)


def _with_test_split(write_rows: Run, folder: Path) -> str:
    (folder / "data").mkdir()
    write_rows(PAIRS[:12], "data/train.jsonl")
    write_rows(PAIRS[12:], "data/test.jsonl")
    return str(folder / "data")


@pytest.mark.parametrize(
    "flags", [(), ("--method", "kto", "--adapter", "lora"), ("--adapter", "none", "--loss-type", "ipo")], ids=" ".join
)
def test_a_resumed_run_is_the_uninterrupted_one(run_dpo: Run, flags: tuple[str, ...]) -> None:
    """Bit for bit, and it is scored against the same reference."""
    words = (*flags, "--save-steps", "2")
    whole = run_dpo(*words, name="whole")
    shutil.copytree(whole.folder, part := whole.folder.with_name("part"))
    for path in [*part.glob("*.safetensors"), *part.glob("checkpoint-3")]:
        path.unlink() if path.is_file() else shutil.rmtree(path)
    resumed = run_dpo(*words, "--resume-from-checkpoint", str(part / "checkpoint-2"), name="part")
    assert resumed.status == 0, resumed.err
    file = "model" if "none" in flags else "adapter_model"
    assert _same(_weights(whole.folder, file), _weights(resumed.folder, file))
    assert resumed.losses == whole.losses
    assert [resumed.record["results"][when] for when in ("before", "after")] == [
        whole.record["results"][when] for when in ("before", "after")
    ]


@pytest.mark.parametrize("flags", [(), ("--method", "kto")], ids=" ".join)
def test_a_run_goes_on_from_an_adapter(run_dpo: Run, flags: tuple[str, ...]) -> None:
    """The reference is that adapter: before training nothing is rewarded; it is named, and a resumed run has it too."""
    start = run_dpo("--lora-r", "4", "--activation", "topk:2", name="start").folder
    words = (*flags, "--adapter-from", str(start), "--save-steps", "2")
    whole = run_dpo(*words, name="whole")
    assert whole.status == 0, whole.err
    if not flags:
        assert whole.losses[0] == pytest.approx(math.log(2))
    assert whole.record["reference"] == str(start)
    if not flags:
        first = json.loads((start / "run.json").read_text())
        assert whole.record["results"]["before"].items() <= first["results"]["after"].items()
    checkpoint = str(whole.folder / "checkpoint-2")
    resumed = run_dpo(*words, "--resume-from-checkpoint", checkpoint, name="resumed")
    assert resumed.status == 0, resumed.err
    assert _same(_weights(whole.folder), _weights(resumed.folder))
    assert resumed.losses == whole.losses
    assert resumed.record["results"]["after"] == whole.record["results"]["after"]
    assert not list(whole.folder.rglob("ref"))


def test_kto_learns_from_answers_with_a_label_and_from_pairs(run_dpo: Run) -> None:
    flags = ("--method", "kto", "--desirable-weight", "1.5", "--validation-samples", "2")
    judged = run_dpo(*flags, rows=SINGLE, name="judged")
    assert judged.status == 0, judged.err
    assert judged.record["rows"]["unit"] == "answers"
    assert judged.record["results"]["before"] == {"n": 1}
    assert judged.record["results"]["after"].keys() == {"n", "reward_accuracy", "reward_margin"}
    assert "(MonoLoRA, KTO)" in (judged.folder / "README.md").read_text()
    pairs = run_dpo("--method", "kto", name="pairs")
    assert (pairs.record["rows"]["examples"], pairs.record["rows"]["train"]) == (24, 24)
    assert "chosen_likelier" in pairs.record["results"]["after"]


def test_the_method_may_stand_in_a_file(run_dpo: Run, tmp_path: Path) -> None:
    (tmp_path / "flags.yaml").write_text("method: kto\nundesirable_weight: 0.5\nskip_eval: true\nmax_steps: 1\n")
    outcome = run_dpo("--config", str(tmp_path / "flags.yaml"))
    assert outcome.status == 0, outcome.err
    assert outcome.record["config"]["undesirable_weight"] == 0.5
    assert outcome.record["results"]["after"] is None


def test_a_preview_shows_both_answers_and_writes_nothing(run_dpo: Run) -> None:
    outcome = run_dpo("--preview", "--train-sampling-strategy", "sequential")
    assert outcome.status == 0, outcome.err
    assert re.findall(r"--- (example \d, \w+): \d+ tokens", outcome.out) == [
        "example 1, chosen", "example 1, rejected", "example 2, chosen", "example 2, rejected",
    ]  # fmt: skip
    assert re.search(r"\[assistant\]\n⟦The \w+ is positive.</s>⟧", outcome.out)
    assert not outcome.folder.exists()


def test_keepers_are_added_to_the_loss(run_dpo: Run) -> None:
    """Once a step, whatever it is divided into. In the first step the KL and its gradient are zero, as B is."""
    keep = ("--keep", "kl:2", "--keep-prompts", "chat", "--keep-samples", "12", "--keep-answer-tokens", "4")
    flags = ("--skip-eval", "--max-steps", "2", "--per-device-train-batch-size", "2", "--optim", "sgd")
    flags += ("--learning-rate", "100", "--gradient-accumulation-steps", "2", "--lr-scheduler-type", "constant")
    plain = run_dpo(*flags, name="plain")
    kept = run_dpo(*flags, *keep, name="kept")
    first, second = (entry for entry in kept.record["history"] if "loss" in entry)
    assert first["keep_kl"] == pytest.approx(0, abs=1e-6)
    assert second["keep_kl"] > 1e-3
    assert second["loss"] == pytest.approx(plain.losses[1] + second["keep_kl"], rel=1e-3)


def test_silence_and_the_report(run_dpo: Run) -> None:
    keep = ("--keep", "silence:3", "--keep-prompts", "task:demo", "--keep-samples", "12", "--keep-answer-tokens", "4")
    outcome = run_dpo(*keep, "--keep-report", "refusals")
    assert outcome.status == 0, outcome.err
    record = outcome.record
    assert set(record["results"]["keeping"]["sets"]) == {"held-out anchors", "refusals"}
    assert record["results"]["keeping"]["keepers"]["silence"]["on_anchors"] < 0.1


def test_a_merge_is_calibrated_on_the_better_answers(run_dpo: Run) -> None:
    record = run_dpo("--skip-eval", "--max-steps", "1").record
    task = run_task(record)
    read = load_preferences(record["config"]["dataset"], Source())
    assert task.train == [preference.chosen for preference in read.train[:12]]
    assert {example.response for example in task.test} <= {row["chosen"] for row in TEXTS}


def _changed(number: int, **columns: Any) -> list[dict[str, Any]]:
    """The pairs with other cells in the row of this number."""
    return [{**row, **columns} if index == number else row for index, row in enumerate(PAIRS, start=1)]


SAME = {"chosen": [assistant("Yes.")], "rejected": [assistant("Yes.")]}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (_changed(3, **SAME), r"row 3: 'chosen' and 'rejected' are the same. Leave the row out."),
        (_changed(2, rejected=[assistant("  ")]), r"row 2: 'rejected' is empty. Leave the row out."),
        (_changed(2, chosen=[]), r"row 2: 'chosen' is empty"),
        (_changed(2, chosen=None), r"row 2: 'chosen' is empty"),
        (_changed(4, chosen=[user("Who?"), assistant("I.")]), r"row 4: after the prompt, 'chosen' must be one message"),
        (_changed(4, prompt=[]), r"row 4: 'prompt' must be a list of messages"),
        ([{"prompt": "a", "completion": "b"}] * 4, r"needed are 'prompt' \+ 'chosen' \+ 'rejected'"),
        ([{**row, "prompt": "Tell me."} for row in PAIRS], r"row 1: 'prompt' is a text .* --drop-columns prompt"),
        ([{"chosen": "ab", "rejected": "cd"}] * 4, r"row 1: .* have no common beginning"),
        ([{"chosen": "a b", "rejected": "a b c"}] * 4, r"row 1: .* one is the beginning of the other"),
        (SINGLE, r"row \d+: it has one answer and a label, which --method kto learns from"),
    ],
)  # fmt: skip
def test_rows_that_are_refused(refused: Callable[..., str], rows: list[dict[str, Any]], message: str) -> None:
    assert re.search(message, refused(rows=rows)), message


@pytest.mark.parametrize("label", ["perhaps", 2, None])
def test_labels_that_are_refused(refused: Callable[..., str], label: Any) -> None:
    rows = [{**row, "label": str(row["label"]) if isinstance(label, str) else int(row["label"])} for row in JUDGED]
    rows[4]["label"] = label
    assert re.search(r"row 5: 'label' must be true or false", refused("--method", "kto", rows=rows))


def test_answers_that_a_template_makes_the_same(
    refused: Callable[..., str], chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    template = chat_tokenizer.chat_template.replace("message.content", "message.content|trim")
    (tmp_path / "trimmed.jinja").write_text(template)
    rows = _changed(5, chosen=[assistant("Yes.")], rejected=[assistant("Yes. ")])
    message = refused("--chat-template-path", str(tmp_path / "trimmed.jinja"), "--max-train-samples", "15", rows=rows)
    assert "row 5: 'chosen' and 'rejected' are the same tokens once they are rendered" in message


def test_a_template_that_does_not_extend_the_prompt(refused: Callable[..., str], tmp_path: Path) -> None:
    """A prompt that the model would never be given in use."""
    template = (
        "{{ bos_token }}{% if add_generation_prompt %}(answer!){% endif %}{% for message in messages %}"
        "[{{ message.role }}]{{ message.content }}{{ eos_token }}{% endfor %}"
    )
    (tmp_path / "template.jinja").write_text(template)
    message = refused("--chat-template-path", str(tmp_path / "template.jinja"))
    assert re.search(r"row \d+: the chat template renders the prompt otherwise once it is answered", message)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--method", "ppo"), "Unknown --method 'ppo'; choose one of dpo, kto."),
        (("--desirable-weight", "2"), "Unknown flag --desirable-weight"),
        (("--method", "kto", "--loss-weights", "1"), "Unknown flag --loss-weights"),
        (("--loss-type", "sigmoyd"), "Unknown --loss-type 'sigmoyd'; choose one of sigmoid"),
        (("--loss-weights", "1", "2"), "loss_weights"),
        (("--loss-type", "exo_pair"), "Label smoothing must be greater than 0.0"),
        (("--beta", "0"), "--beta must be a number above 0, got 0.0."),
        (("--f-divergence-type", "kl"), "Unknown --f-divergence-type 'kl'"),
        (("--label-smoothing", "0.1"), "--label-smoothing has no effect without --loss-type"),
        (("--label-smoothing", "0.7", "--loss-type", "robust"), "--label-smoothing must be at least 0 and below 0.5"),
        (("--ld-alpha", "2"), "--ld-alpha must be between 0 and 1"),
        (("--lora-dropout", "0.1"), "--lora-dropout has no effect here: TRL switches dropout off"),
        (("--neftune-noise-alpha", "5"), "--neftune-noise-alpha has no effect here"),
        (("--lora-bias", "all"), "--lora-bias all trains biases that stay when the adapter is switched off"),
        (("--padding-free",), "--padding-free has no effect here"),
        (("--sync-ref-model",), "--sync-ref-model moves a reference that is a model of its own"),
        (("--ref-model-sync-steps", "5"), "--ref-model-sync-steps has no effect without --sync-ref-model"),
        (("--precompute-ref-batch-size", "5"), "has no effect without --precompute-ref-log-probs"),
        (("--keep", "replay"), "--keep replay adds rows with one answer"),
        (("--method", "kto", "--per-device-train-batch-size", "1"), "--per-device-train-batch-size must be at least 2"),
        (("--method", "kto", "--train-sampling-strategy", "random"), "--train-sampling-strategy must be sequential"),
        (("--lora-target-modules", "lm_head"), "Applying a PEFT adapter to `lm_head` is not supported"),
        (("--full-logits",), "Unknown flag --full-logits"),
        (("--max-train-samples", "2"), "fewer than the 4 of a single step"),
        (("--max-length", "3"), "Raise --max-length"),
        (("--dataset", "beavertails", "--drop-columns", "x"), "--dataset beavertails has its own splits and columns"),
    ],
)  # fmt: skip
def test_flags_that_are_refused(refused: Callable[..., str], flags: tuple[str, ...], message: str) -> None:
    assert message in refused(*flags)


@pytest.mark.parametrize("flags", [("--loss-type", "sigmoid", "sft", "--loss-weights", "1", "0.1"),
                                   ("--precompute-ref-log-probs", "--adapter", "none"),
                                   ("--precompute-ref-log-probs", "--gradient-checkpointing"),
                                   ("--adapter", "none", "--sync-ref-model", "--ref-model-sync-steps", "1"),
                                   ("--load-in-4bit",)], ids=" ".join)  # fmt: skip
def test_trls_flags_work(run_dpo: Run, flags: tuple[str, ...]) -> None:
    outcome = run_dpo(*flags, "--skip-eval")
    assert outcome.status == 0, outcome.err
    assert all(map(math.isfinite, outcome.losses))


def test_the_losses_are_those_of_trl() -> None:
    (help_,) = (flag.metadata["help"] for flag in fields(DPOConfig) if flag.name == "loss_type")
    assert set(re.findall(r"`'(\w+)'`", help_)) == set(LOSSES)


def test_every_method_has_its_flags() -> None:
    assert tuple(PROGRAMS) == command.METHODS
    assert {*PROGRAMS, "sft"} == command.COPIES.keys()


def test_help_is_of_the_method(capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for words in (["dpo", "--help"], ["dpo", "--method", "kto", "--help"]):
        with pytest.raises(SystemExit):
            cli.main(words)
        texts.append(capsys.readouterr().out)
    assert "--label-smoothing" in texts[0]
    assert "--desirable-weight" in texts[1]
    assert "TRL's DPOConfig work too: monolora dpo --help-all" in texts[0]
    assert "TRL's KTOConfig work too: monolora dpo --method kto --help-all" in texts[1]


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_scores_while_training(run_dpo: Run, method: str) -> None:
    """They leave the training as it is, decide on the best step, and the last ones are the result's."""
    flags = ("--method", method, "--validation-samples", "2", "--skip-eval", "--save-steps", "1")
    plain = run_dpo(*flags)
    chosen = ("--eval-strategy", "steps", "--metric-for-best-model", "reward_margin", "--load-best-model-at-end")
    scored = run_dpo(*flags, *chosen, name="scored")
    assert scored.losses == plain.losses
    margins = {
        entry["step"]: entry["eval_reward_margin"]
        for entry in scored.record["history"]
        if "eval_reward_margin" in entry
    }
    assert list(margins) == [1, 2, 3]
    results = scored.record["results"]
    assert results["best"]["value"] == max(margins.values())
    assert results["validation"]["reward_margin"] == pytest.approx(max(margins.values()), rel=1e-5)
    if results["best"]["step"] == 3:
        assert plain.record["results"]["validation"] == results["validation"]
    assert "choose one of loss, reward_accuracy" in run_dpo(
        *flags, "--eval-strategy", "steps", "--metric-for-best-model", "accuracy", name="refused"
    ).err[-1]  # fmt: skip
