"""Mixtures and whole texts in ``monolora sft``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from monolora.data.mixture import interleaved
from monolora.data.scoring import validation_loss
from monolora.data.tasks import Example, demo, load_task
from monolora.inference import Inference
from monolora.recipes.calibration_data import run_task, same_rows
from monolora.recipes.training.arguments import parse
from monolora.recipes.training.data import read_data
from tests.support.program_runs import Outcome

Run = Callable[..., Outcome]
Write = Callable[..., str]


@pytest.fixture
def rows(write_rows: Write) -> str:
    """A data set of its own."""
    return write_rows([{"question": f"say {k}", "answer": f"{k} it is"} for k in range(40)])


def test_a_mixture_is_recorded(run_sft: Run, rows: str, chat_tokenizer: PreTrainedTokenizerBase) -> None:
    flags = ("--dataset", "demo:0.75", f"--dataset={rows}:0.25", "--validation-samples", "8", "--seed", "5")
    outcome = run_sft(*flags, "--train-sampling-strategy", "sequential")
    assert outcome.status == 0, outcome.err
    record = outcome.record
    sources = record["rows"]["sources"]
    assert [(part["examples"], part["train"], part["share"]) for part in sources.values()] == [
        (12, 12, 0.75), (4, 4, 0.25),
    ]  # fmt: skip
    assert record["config"]["dataset"] == f"demo + {rows}"
    assert [source["fraction"] for source in record["config"]["datasets"]] == [0.75, 0.25]
    card = (outcome.folder / "README.md").read_text()
    assert "Scores on 6 held-out examples of demo:" in card
    assert "- demo: 12 examples (75.0%; asked for 75.0%)" in card
    # Scored is the first, and its labels are single words with an end token.
    assert record["results"]["after"].keys() == {"n", "accuracy", "unparsed", "likelihood_accuracy"}
    labels = [len(chat_tokenizer(example.response)["input_ids"]) for example in demo.load().train[:12]]
    assert sources["demo"]["answer_tokens"] >= sum(labels)
    assert sources["demo"]["token_share"] + sources[rows]["token_share"] == pytest.approx(1)
    assert "demo: 12 examples (75.0%; asked for 75.0%)" in outcome.out
    assert f"{rows}: 4 examples (25.0%; asked for 25.0%)" in outcome.out
    _check_losses(outcome, read_data(parse(list(flags)), load_task).validation, chat_tokenizer, rows)
    # What a merge is fitted to later are the rows that were trained on, in their order.
    task = run_task(record)
    assert same_rows(record, "train", task.train)
    assert [example.context != "" for example in task.train] == [source == 0 for source in interleaved([12, 4], 5)]


def _check_losses(outcome: Outcome, validation: list[Example], tokenizer: PreTrainedTokenizerBase, rows: str) -> None:
    model = AutoPeftModelForCausalLM.from_pretrained(outcome.folder, dtype=torch.float32)
    inference = Inference(model=model, tokenizer=tokenizer, batch_size=4)
    losses = outcome.record["results"]["validation"]
    assert losses["n"] == len(validation) == 8
    for name, part in (("demo", validation[:6]), (rows, validation[6:])):
        alone = validation_loss(inference, part)
        assert losses["sources"][name] == {"n": len(part), "loss": pytest.approx(alone["loss"], rel=1e-5)}
    assert losses["loss"] == pytest.approx(validation_loss(inference, validation)["loss"], rel=1e-5)


@pytest.mark.parametrize("order", ["sequential", "group_by_length"])
def test_a_resumed_mixture_is_one_that_was_not_stopped(run_sft: Run, rows: str, order: str) -> None:
    flags = ("--dataset", "demo:3", "--dataset", f"{rows}:1", "--save-steps", "2", "--skip-eval")
    flags = (*flags, "--train-sampling-strategy", order)
    whole = run_sft(*flags, name="whole")
    again = run_sft(*flags, "--resume-from-checkpoint", str(whole.folder / "checkpoint-2"), name="again")
    assert (whole.status, again.status) == (0, 0), again.err
    wanted, tensors = (load_file(run.folder / "adapter_model.safetensors") for run in (whole, again))
    assert wanted.keys() == tensors.keys()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in wanted.items())
    other = run_sft(*flags, "--dataset", "dolly:1", "--resume-from-checkpoint", str(whole.folder / "checkpoint-2"))
    assert other.status == 2
    assert "is of a run with other settings" in other.err[-1]


def test_trls_list_in_a_file(tmp_path: Path, rows: str) -> None:
    config = tmp_path / "mix.yaml"
    config.write_text(
        f"datasets:\n- path: demo\n  fraction: 0.5\n- path: {rows}\n  fraction: 0.5\n  columns: [question, answer]\n"
    )
    data = read_data(parse(["--config", str(config), "--max-train-samples", "10"]), load_task)
    assert sum(example.context == "" for example in data.train) == 5
    # The command line wins, with one data set or several.
    for words in (["--dataset", "demo"], ["--dataset-name", "demo"]):
        arguments = parse(["--config", str(config), *words])
        assert (arguments.adapter.dataset, arguments.adapter.datasets) == ("demo", None)
    words = ["--dataset", "demo", "--dataset", rows]
    arguments = parse(["--config", str(config), *words])
    assert [source["fraction"] for source in arguments.adapter.datasets or ()] == [None, None]
    assert arguments.training.output_dir == "runs/demo+rows-monolora"


def test_names_of_output_folders(tmp_path: Path) -> None:
    for word, name in (("a/rows.jsonl.gz", "rows"), ("owner/data", "owner--data"), ("rows.csv", "rows")):
        assert parse(["--dataset", word]).training.output_dir == f"runs/{name}-monolora"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--dataset demo:0.5 --dataset ROWS", "ROWS has no share, and others have one"),
        ("--dataset demo --dataset demo", "--dataset demo is named twice"),
        ("--dataset demo:0.5", "this is the only data set"),
        ("--dataset demo --dataset ROWS --drop-columns id", "--drop-columns is of a single data set. In a mixture"),
        ("--dataset demo --dataset ROWS --dataset-config x", "--dataset-config is of a single data set"),
        ("--dataset demo --dataset ROWS --dataset-name x", "--dataset-name is of a single data set"),
        ("--dataset demo --dataset ROWS --dataset-test-split x", "--dataset-test-split is of a single data set"),
        ("--dataset demo --dataset ROWS --dataset-streaming", "shuffled and counted first"),
        ("--dataset demo --dataset nothing.jsonl", "There is no data set at nothing.jsonl"),
        ("--dataset demo --dataset", "Argument --dataset: expected one argument"),
        ("--dataset --seed 1", "Argument --dataset: expected one argument"),
        ("--config TWO", "has both dataset and datasets. Keep one of them"),
        ("--config STREAM", "Unknown flag --streaming. Streams are not read"),
        ("--config SPLIT", "Unknown flag --test_split_size. A tenth of a data set's rows"),
        ("--config FOREIGN", "entry 1, 'pth'; choose one of path"),
    ],
)
def test_bad_mixtures_write_nothing(
    refused: Callable[..., str], rows: str, tmp_path: Path, words: str, says: str
) -> None:
    files = {
        "TWO": {"dataset": "demo", "datasets": [{"path": "demo"}]},
        "STREAM": {"datasets": [{"path": "demo"}], "streaming": True},
        "SPLIT": {"datasets": [{"path": "demo"}], "test_split_size": 0.1},
        "FOREIGN": {"datasets": [{"pth": "demo"}]},
    }
    for name, content in files.items():
        (tmp_path / f"{name}.yaml").write_text(json.dumps(content))
        words = words.replace(name, str(tmp_path / f"{name}.yaml"))
    assert says.replace("ROWS", rows) in refused(*words.replace("ROWS", rows).split())


def test_the_data_set_that_limits_is_named(run_sft: Run, rows: str) -> None:
    shown = run_sft("--dataset", "demo:0.5", "--dataset", f"{rows}:0.5", "--max-train-samples", "200", "--preview").out
    assert f"{rows} is used up: the mixture has 72 examples, and more would need some of them again." in shown
    assert f"{rows}: 36 examples (50.0%; asked for 50.0%)" in shown
    enough = run_sft("--dataset", "demo:0.5", "--dataset", f"{rows}:0.5", "--preview").out
    assert "is used up" not in enough


def test_whole_texts(run_sft: Run, write_rows: Write, chat_tokenizer: PreTrainedTokenizerBase) -> None:
    """Trained on as a whole; the score is transformers' own loss on the held-out texts."""
    texts = [f"The cat number {k} sat on the mat." for k in range(20)]
    path = write_rows([{"text": text} for text in texts])
    outcome = run_sft("--dataset", path)
    assert outcome.status == 0, outcome.err
    assert "Rows of the format 'text' are trained on as a whole, as in pretraining (language modelling)." in outcome.out
    results = outcome.record["results"]
    assert results["after"].keys() == {"n", "perplexity"}
    test = read_data(parse(["--dataset", path]), load_task).test
    model: Any = AutoPeftModelForCausalLM.from_pretrained(outcome.folder, dtype=torch.float32)
    nats, tokens = 0.0, 0
    for example in test:
        ids = torch.tensor(chat_tokenizer(example.response + chat_tokenizer.eos_token)["input_ids"])
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, :-1]
        nats += float(cross_entropy(logits, ids[1:], reduction="sum"))
        tokens += len(ids) - 1
    assert results["after"]["perplexity"] == pytest.approx(torch.tensor(nats / tokens).exp().item(), rel=1e-4)
    shown = run_sft("--dataset", path, "--preview").out
    assert "⟦" in shown
