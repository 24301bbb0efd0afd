"""The whole program, in this process, on tiny models: what a run leaves, and what it refuses."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from monolora.data.scoring import Classification, score, validation_loss
from monolora.data.tasks import demo
from monolora.inference import Inference
from monolora.recipes.training.arguments import parse
from monolora.recipes.training.trainer import SftTrainer
from tests.support.conversations import CHATML, CHATS, WEATHER, assistant, user

Run = Callable[..., Any]


def test_run_leaves_what_it_says(run_sft: Run) -> None:
    outcome = run_sft("--save-steps", "2", "--report-to", "tensorboard")
    assert outcome.status == 0
    assert {line.split(" ")[0] for line in outcome.err} == {"step", "4"}  # no warnings
    assert outcome.out.rstrip().endswith(f"Next: monolora keep-report {outcome.folder}")
    assert "accuracy" in outcome.out
    files = {path.name for path in outcome.folder.iterdir()}
    assert files >= {"README.md", "adapter_config.json", "adapter_model.safetensors", "run.json", "training.png"}
    assert files >= {"checkpoint-2", "checkpoint-4", "tokenizer.json"}
    assert not any(name.startswith(".") or name.endswith(".bin") for name in files)
    assert (outcome.folder / "training.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


class _Full(io.StringIO):
    """A terminal on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_terminal_that_takes_nothing_loses_nothing(
    run_sft: Run, monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    """Neither the lines of progress nor the table of results may cost the model."""
    monkeypatch.setattr(sys, stream, _Full())
    outcome = run_sft("--skip-eval", "--max-steps", "2")
    if stream == "stdout":
        assert outcome.status == 1
        assert "OSError: [Errno 28] No space left on device" in outcome.err[-1]
    assert outcome.record["status"] == "done"
    assert (outcome.folder / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("name", ["[/b]", "a[red]b", "x\x1b[31my"])
def test_names_that_look_like_markup(run_sft: Run, write_rows: Callable[..., str], name: str) -> None:
    rows = write_rows([{"instruction": "a", "output": "b"}] * 30, f"{name.replace('/', ':')}.jsonl")
    outcome = run_sft("--dataset", rows, "--skip-eval", "--max-steps", "1", name=name)
    assert outcome.status == 0
    assert [line.split(" ")[0] for line in outcome.err] == ["step", "1"]
    assert "\x1b" not in outcome.out
    assert "Saved to " in outcome.out


def test_record(run_sft: Run, chat_model: Path) -> None:
    record = run_sft().record
    assert record["status"] == "done"
    assert record["config"]["adapter"] == "monolora"
    assert record["config"]["model"] == str(chat_model)
    assert record["seeds"] == {"seed": 42, "data_seed": None}
    assert record["versions"].keys() >= {"torch", "transformers", "peft", "trl", "monolora", "python"}
    assert all(len(print_) == 16 for print_ in record["fingerprints"].values())
    assert record["rows"] == {
        "examples": 16,
        "train": 16,
        "packed": False,
        "end_token_trained": 1.0,
        "test": 6,
        "validation": 0,
        "dropped": 0,
        "truncated": 0,
    }
    results = record["results"]
    for scores in (results["before"], results["after"]):
        assert scores.keys() == {"n", "accuracy", "unparsed", "likelihood_accuracy"}
        assert scores["n"] == 6
    assert results["sparsity"]["zeros"] == pytest.approx(0.5, abs=0.2)
    assert results["trained_parameters"] == 4096
    assert 0 < results["seconds"]["train"] < results["seconds"]["total"]
    assert {name for name in record["config"] if name.endswith("token")} == {"eos_token", "pad_token"}  # no secrets


def test_every_logged_step_has_sparsity(run_sft: Run) -> None:
    """Four steps on the same four rows, whose loss falls."""
    outcome = run_sft("--report-to", "tensorboard", "--max-train-samples", "4", "--num-train-epochs", "4")
    steps = [entry for entry in outcome.record["history"] if "loss" in entry]
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4]
    assert all(0 < entry["sparsity"] < 1 and entry["dead_units"] >= 0 for entry in steps)
    assert steps[-1]["loss"] < steps[0]["loss"]
    (events,) = outcome.folder.rglob("events.out.tfevents.*")
    tags = EventAccumulator(str(events.parent)).Reload().Tags()["scalars"]
    assert {"train/loss", "train/sparsity", "train/dead_units"} <= set(tags)


def test_lora_is_not_sparse(run_sft: Run) -> None:
    record = run_sft("--adapter", "lora").record
    assert record["results"]["sparsity"]["zeros"] == 0
    assert all(entry["sparsity"] == 0 for entry in record["history"] if "loss" in entry)


def test_identity_trains_as_lora_does(run_sft: Run) -> None:
    lora = run_sft("--adapter", "lora", name="lora")
    identity = run_sft("--activation", "identity", name="identity")
    assert identity.losses == pytest.approx(lora.losses, abs=1e-5)


def test_saved_adapter_gives_the_recorded_scores(
    run_sft: Run, chat_tokenizer: PreTrainedTokenizerBase, chat_model: Path
) -> None:
    outcome = run_sft("--num-train-epochs", "4")
    model = AutoPeftModelForCausalLM.from_pretrained(outcome.folder, dtype=torch.float32)
    inference = Inference(model=model, tokenizer=chat_tokenizer, batch_size=3)
    rows = demo.load().test[:6]
    assert score(inference, Classification(demo.LABELS), rows, 5) == outcome.record["results"]["after"]
    base = AutoModelForCausalLM.from_pretrained(chat_model, dtype=torch.float32)
    inference = Inference(model=base, tokenizer=chat_tokenizer, batch_size=3)
    assert score(inference, Classification(demo.LABELS), rows, 5) == outcome.record["results"]["before"]


@pytest.mark.parametrize("adapter", ["monolora", "lora", "none"])
def test_the_cards_code_runs_as_it_stands(
    run_sft: Run, chat_model: Path, empty_mirror: Path, capsys: pytest.CaptureFixture[str], adapter: str
) -> None:
    """The base is named by its id, of a mirror here; nothing names a folder of this machine but the run's own."""
    (empty_mirror / "org").mkdir()
    (empty_mirror / "org" / "base").symlink_to(chat_model)
    outcome = run_sft("--adapter", adapter, "--skip-eval", model=Path("org/base"))
    assert outcome.status == 0, outcome.err
    if adapter != "none":
        named = json.loads((outcome.folder / "adapter_config.json").read_text())["base_model_name_or_path"]
        assert named == "org/base"
    (code,) = re.findall(r"```python\n(.*?)```", (outcome.folder / "README.md").read_text(), re.S)
    names: dict[str, Any] = {}
    capsys.readouterr()
    exec(code, names)
    model, tokenizer = names["model"], names["tokenizer"]
    if adapter != "none":
        assert model.peft_config["default"].base_model_name_or_path == "org/base"
    expected = model.generate(**names["prompt"], max_new_tokens=64)[0][names["prompt"].input_ids.shape[1] :]
    assert capsys.readouterr().out == tokenizer.decode(expected, skip_special_tokens=True) + "\n"


def test_validation_chooses_between_runs(
    run_sft: Run, chat_tokenizer: PreTrainedTokenizerBase, refused: Callable[..., str]
) -> None:
    """The held-out loss is that of the saved adapter on training rows that no run of this length sees."""
    outcome = run_sft("--validation-samples", "9", "--skip-eval")
    task = demo.load()
    rows = task.validation(9, 16)
    assert rows == task.train[-9:]
    model = AutoPeftModelForCausalLM.from_pretrained(outcome.folder, dtype=torch.float32)
    inference = Inference(model=model, tokenizer=chat_tokenizer, batch_size=9)
    found = outcome.record["results"]
    assert found["after"] is None
    assert found["validation"] == {"n": 9, "loss": pytest.approx(validation_loss(inference, rows)["loss"], rel=1e-5)}
    assert "validation" in outcome.record["fingerprints"]
    assert outcome.record["rows"]["validation"] == 9
    most = len(task.train) - 16
    assert f"so {most} are not trained on" in refused("--validation-samples", str(most + 1), name="refused")
    assert "at least 1" in refused("--validation-samples", "0", name="refused")


def test_model_card_has_the_measured_numbers(run_sft: Run, chat_model: Path) -> None:
    outcome = run_sft()
    card = (outcome.folder / "README.md").read_text()
    assert f"base_model: {chat_model}" in card
    assert f"| accuracy | {outcome.record['results']['before']['accuracy']:.1%} |" in card
    assert f"{outcome.record['results']['sparsity']['zeros']:.1%} zeros" in card
    assert "import monolora" in card
    assert "![training](training.png)" in card


def test_full_finetuning_saves_a_checkpoint(run_sft: Run, chat_model: Path) -> None:
    outcome = run_sft("--adapter", "none", "--learning-rate", "0.001", "--save-steps", "4")
    model = AutoModelForCausalLM.from_pretrained(outcome.folder)
    before = load_file(chat_model / "model.safetensors")
    assert outcome.record["results"]["trained_parameters"] == sum(p.numel() for p in model.parameters())
    assert outcome.record["results"]["sparsity"] is None
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert (outcome.folder / "checkpoint-4" / "model.safetensors").is_file()
    assert "from transformers import AutoModelForCausalLM" in (outcome.folder / "README.md").read_text()


@pytest.mark.parametrize("adapter", ["lora", "monolora"])
def test_qlora_trains(run_sft: Run, adapter: str) -> None:
    flags = ("--adapter", adapter, "--load-in-4bit", "--max-steps", "2")
    outcome = run_sft(*flags)
    assert outcome.status == 0
    trained = load_file(outcome.folder / "adapter_model.safetensors")
    assert all(tensor.abs().sum() > 0 for name, tensor in trained.items() if "_B" in name)
    # Scoring leaves no trace in the quantized weights.
    unscored = load_file(run_sft(*flags, "--skip-eval", name="unscored").folder / "adapter_model.safetensors")
    assert all(torch.equal(tensor, unscored[name]) for name, tensor in trained.items())


def test_packing(run_sft: Run) -> None:
    packed = run_sft("--packing", "--packing-strategy", "wrapped", "--max-length", "64", name="wrapped")
    assert packed.status == 0
    rows = packed.record["rows"]
    assert rows["examples"] == 16
    assert rows["packed"]
    assert 0.9 < rows["end_token_trained"] <= 1


def test_packed_examples_do_not_see_each_other(run_sft: Run) -> None:
    """One step over the same examples: packed whole (TRL's bfd) and one by one, the loss is the same."""
    flags = ("--max-steps", "1", "--learning-rate", "1e-6", "--skip-eval", "--max-train-samples", "4")
    plain = run_sft(*flags, name="plain")
    packed = run_sft(*flags, "--packing", "--max-length", "256", name="packed")
    assert packed.record["rows"]["train"] < 4
    assert packed.losses == pytest.approx(plain.losses, abs=1e-5)


def test_models_without_a_chat_template_get_alpaca(run_sft: Run, plain_model: Path) -> None:
    outcome = run_sft("--preview", model=plain_model)
    assert "### Instruction:" in outcome.out
    assert "⟦positive</s>⟧" in outcome.out
    assert run_sft(model=plain_model).status == 0


def test_preview_marks_the_trained_tokens_and_writes_nothing(run_sft: Run) -> None:
    outcome = run_sft("--preview")
    assert outcome.status == 0
    assert outcome.out.count("--- example ") == 3
    for example in demo.load().train[:3]:
        assert example.context in outcome.out
        assert f"[assistant]\n⟦{example.response}</s>⟧" in outcome.out
    assert not outcome.folder.exists()


def test_conversations(run_sft: Run, write_rows: Callable[..., str]) -> None:
    chat = [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": "good?"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "bad?"},
        {"role": "assistant", "content": "no"},
    ]
    outcome = run_sft("--dataset", write_rows([{"messages": chat}] * 6))
    assert outcome.record["rows"]["examples"] == 10  # two turns each; one row is held out
    assert outcome.record["results"]["after"].keys() == {"n", "bleu", "rouge1", "rouge2", "rougeL", "perplexity"}
    assert outcome.record["results"]["after"]["perplexity"] < outcome.record["results"]["before"]["perplexity"]


def test_defaults_of_the_embedded_run() -> None:
    arguments = parse(["--adapter", "monolora"])
    assert arguments.adapter.model == "smollm2-135m-instruct"
    assert arguments.adapter.dataset == "demo"
    assert arguments.training.output_dir == "runs/demo-monolora"


def test_output_folder_of_another_run_is_not_touched(run_sft: Run) -> None:
    first = run_sft("--skip-eval", "--max-steps", "1")
    written = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    second = run_sft("--skip-eval", "--max-steps", "1", "--seed", "7")
    assert second.status == 2
    assert "--overwrite" in second.err[-1]
    assert "--resume-from-checkpoint" in second.err[-1]
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")} == written
    third = run_sft("--skip-eval", "--max-steps", "1", "--seed", "7", "--overwrite")
    assert third.status == 0
    assert third.record["seeds"]["seed"] == 7


def test_folder_of_something_else_is_never_overwritten(run_sft: Run, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    outcome = run_sft("--overwrite")
    assert outcome.status == 2
    assert (tmp_path / "run" / "thesis.tex").read_text() == "years of work"


def test_divergence_is_a_failure(run_sft: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def poison(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = original(self, *args, **kwargs)
        return loss * float("nan")

    original = SftTrainer.compute_loss
    monkeypatch.setattr(SftTrainer, "compute_loss", poison)
    outcome = run_sft("--skip-eval")
    assert outcome.status == 1
    assert "diverged" in outcome.err[-1]
    assert "--learning-rate" in outcome.err[-1]
    assert outcome.record["status"] == "running"
    assert not (outcome.folder / "adapter_model.safetensors").exists()


def test_ctrl_c(run_sft: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SftTrainer, "training_step", interrupted)
    outcome = run_sft("--skip-eval")
    assert outcome.status == 130
    assert outcome.err == ["stopped"]


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, on tracing
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # likewise, in TRL's head
def test_a_compiled_run_has_the_same_losses(run_sft: Callable[..., Any]) -> None:
    """By TRL's own head: a compiled model has no hooks, and the completion head is one."""
    compiled = run_sft("--skip-eval", "--torch-compile", "--torch-compile-backend", "eager", name="compiled")
    assert compiled.status == 0
    assert compiled.losses == pytest.approx(run_sft("--skip-eval", name="plain").losses, rel=1e-4)


@pytest.mark.filterwarnings("ignore:.*lose every trained token")
def test_a_run_shows_tools_and_counts(
    run_sft: Callable[..., Any], write_rows: Callable[..., str], tmp_path: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "chatml.jinja").write_text(CHATML)
    chat = CHATS["result"]["messages"]
    chats = [[chat[0], user(f"{k}: hi"), *chat[2:], user("thanks")] for k in range(4)]
    long = [user("word " * 400), assistant("yes")]
    rows = [{"messages": each, "tools": [WEATHER]} for each in chats]
    flags = ["--chat-template-path", str(tmp_path / "chatml.jinja"), "--skip-eval"]
    shown = run_sft("--dataset", write_rows(rows), *flags, "--preview").out
    assert '"name": "weather", "description": "Of a city."' in shown
    assert '⟦<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call></s>' in shown
    assert "⟦It is sunny.</s>" in shown
    path = write_rows([*rows, {"messages": long}, {"messages": [long[0], assistant("", weight=0)]}])
    outcome = run_sft("--dataset", path, *flags, "--max-steps", "1", "--max-length", "400")
    assert outcome.status == 0
    counted = outcome.record["rows"]
    assert (counted["data_set"], counted["read"], counted["test"]) == (6, 5, 2)
    assert counted["examples"] == 7
    assert counted["dropped"] == counted["untrained_rows"] == counted["untrained_turns"] == 1
    assert counted["unanswered_turns"] == 3
    assert "Data: 5 of 6 rows read for training, 7 examples, 1 rows without a trained turn" in outcome.out
    assert "1 dropped (longer than --max-length)" in outcome.out
    system = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    (tmp_path / "chatml.jinja").write_text(system + CHATML)
    message = refused("--dataset", write_rows(rows), *flags, name="refused")
    assert "the chat template refuses it: System role not supported" in message
    assert "rows.jsonl, row " in message
