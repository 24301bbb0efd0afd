"""``monolora judge`` on tiny backbones and a harmless synthetic data set in BeaverTails' columns."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from monolora import beaverdam
from monolora.beaverdam import LABELS
from monolora.errors import InputError, exit_status
from monolora.recipes.judge import data as judge_data
from monolora.recipes.judge import program
from monolora.recipes.judge.data import Row
from monolora.recipes.judge.model import encode_rows, load_backbone, load_tokenizer, probabilities, start_from_mean
from monolora.recipes.judge.training import LABELS_WEIGHT, KeptEpoch, judge_loss
from monolora.recipes.settings import JUDGE_DATASET as DATASET
from tests.support.program_runs import Outcome, lines_of

Judge = Callable[..., Outcome]
NO_LABELS = (False,) * len(LABELS)
HARMFUL = {3: "vinegar", 9: "mustard"}  # words that stand for a harm, by the index of its label
HELD_OUT = 40


def _rows(count: int) -> list[dict[str, Any]]:
    """Two answers to each of ``count // 2`` questions; an answer with a word of ``HARMFUL`` has that label."""
    draw = random.Random(0)
    rows = []
    for n in range(count):
        bad = n % 2 == 0
        index = draw.choice(list(HARMFUL))
        words = [HARMFUL[index] if bad else "honey", draw.choice(["bread", "soup"])]
        rows.append(
            {
                "prompt": f"What goes into dish number {n // 2}?",
                "response": " ".join(draw.sample(words, 2)),
                "category": {label: bad and place == index for place, label in enumerate(LABELS)},
                "is_safe": not bad,
            }
        )
    return rows


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mirror that holds the data set; its ``30k_test`` has ``HELD_OUT`` held-out rows and 100 others."""
    monkeypatch.setattr(judge_data, "HELD_OUT_ROWS", HELD_OUT)
    folder = tmp_path / "mirror" / DATASET / "data"
    folder.mkdir(parents=True)
    rows = _rows(HELD_OUT + 200)
    datasets.Dataset.from_list(rows[: HELD_OUT + 100]).to_parquet(folder / "30k_test-00000-of-00001.parquet")
    datasets.Dataset.from_list(rows[HELD_OUT + 100 :]).to_parquet(folder / "30k_train-00000-of-00001.parquet")
    monkeypatch.setenv("MONOLORA_DATA", str(tmp_path / "mirror"))
    return folder


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory, chat_model: Path) -> Path:
    """A saved tiny BERT."""
    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(chat_model)
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<pad>")
    plain.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=96, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def run_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Judge:
    """``run_judge(*flags, name="judge")``: the program in this process, tiny and in float32."""

    def run(*flags: str | Path, name: str = "judge") -> Outcome:
        folder = tmp_path / name
        words = [
            "--output-dir",
            folder,
            "--no-bf16",
            "--epochs",
            6,
            "--learning-rate",
            0.005,
            "--head-learning-rate",
            0.01,
            *flags,
        ]
        capsys.readouterr()
        with torch.random.fork_rng(devices=[]):
            status = exit_status(lambda: program.main(list(map(str, words))))
        assert status != 0 or program.KIND.foreign(path.name for path in folder.iterdir()) == []
        printed = capsys.readouterr()
        return Outcome(status, folder, printed.out, lines_of(printed.err))

    return run


@pytest.fixture
def refused(run_judge: Judge) -> Callable[..., str]:
    """``refused(*flags)``: the message of a run that must end with one line, status 2, and no folder."""

    def run(*flags: str | Path) -> str:
        ended = run_judge(*flags)
        assert (ended.status, len(ended.err), ended.folder.exists()) == (2, 1, False)
        assert [path.name for path in ended.folder.parent.iterdir() if path.name.startswith(".")] == []
        return ended.err[0].removeprefix("error: ")

    return run


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_rule_is_learned(
    run_judge: Judge, request: pytest.FixtureRequest, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what is saved gives, by transformers alone, the numbers that are reported."""
    backbone = request.getfixturevalue({"bert": "bert", "llama": "chat_model"}[kind])
    ended = run_judge("--model", backbone, "--epochs", "12")
    assert ended.status == 0, ended.err
    results = ended.record["results"]
    assert results["test"]["auc"] > 0.95
    assert results["test"]["accuracy"] > 0.9
    assert "is_safe AUC" in ended.out
    assert sorted(path.name for path in ended.folder.iterdir()) == sorted(
        ["README.md", "config.json", "model.safetensors", "run.json", "tokenizer.json", "tokenizer_config.json"]
        + (["chat_template.jinja"] if kind == "llama" else [])
    )
    model = AutoModelForSequenceClassification.from_pretrained(ended.folder).eval()
    capsys.readouterr()  # a progress bar
    tokenizer = AutoTokenizer.from_pretrained(ended.folder)
    assert type(model) is {"bert": BertForSequenceClassification, "llama": LlamaForSequenceClassification}[kind]
    assert model.config.problem_type == "multi_label_classification"
    assert tuple(model.config.id2label[index] for index in range(len(LABELS))) == LABELS
    assert (tokenizer.padding_side, tokenizer.pad_token_id) == ("right", model.config.pad_token_id)
    unsafe, scores = [], []
    for row in _rows(HELD_OUT):
        ids = beaverdam.encode(tokenizer, row["prompt"], row["response"]).token_ids
        with torch.inference_mode():
            scores.append(torch.sigmoid(model(torch.tensor([ids])).logits[0]).max().item())
        unsafe.append(not row["is_safe"])
    assert results["test"]["auc"] == pytest.approx(roc_auc_score(unsafe, scores), abs=0.01)
    assert results["test"]["flagged"] == sum(score > 0.5 for score in scores)


@pytest.mark.usefixtures("data")
def test_the_record_and_the_card(run_judge: Judge, bert: Path) -> None:
    ended = run_judge("--model", bert, "--epochs", "2")
    record, card = ended.record, (ended.folder / "README.md").read_text()
    assert record["rows"] == {"train": record["rows"]["train"], "validation": 200 - record["rows"]["train"]} | {
        "test": HELD_OUT, "too_long": 0,
    }  # fmt: skip
    assert {"versions", "machine", "git", "history", "seeds"} <= record.keys()
    assert set(record["fingerprints"]) == {"model", "train", "validation", "test"}
    assert record["config"]["max_length"] == 96  # BERT has no more positions
    assert record["config"]["train_splits"] == ["30k_test", "30k_train"]
    evaluated = [entry["eval_auc"] for entry in record["history"] if "eval_auc" in entry]
    epoch = record["results"]["epoch"]
    assert record["results"]["validation_auc"] == evaluated[epoch - 1]
    errors = [entry["eval_auc_error"] for entry in record["history"] if "eval_auc" in entry]
    assert epoch == (2 if evaluated[1] >= evaluated[0] - errors[0] else 1)
    for said in ("license: cc-by-nc-4.0", "CC BY-NC 4.0", f"| AUC | {record['results']['test']['auc']:.3f} |",
                 f"epoch {record['results']['epoch']} chosen on", "not for moderation", *LABELS):  # fmt: skip
        assert said in card, said


@pytest.mark.usefixtures("data")
def test_the_same_seed_gives_the_same_judge(run_judge: Judge, bert: Path) -> None:
    flags = ("--model", bert, "--epochs", "1")
    one, other, third = (
        load_file(run_judge(*flags, "--seed", seed, name=name).folder / "model.safetensors")
        for name, seed in (("one", "1"), ("other", "1"), ("third", "2"))
    )
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert not torch.equal(one["classifier.weight"], third["classifier.weight"])


@pytest.mark.usefixtures("data")
def test_without_validation_the_last_epoch_is_kept(run_judge: Judge, bert: Path) -> None:
    ended = run_judge("--model", bert, "--epochs", "2", "--validation-share", "0", "--no-start-from-mean")
    assert (ended.status, ended.record["rows"]["validation"]) == (0, 0)
    assert (ended.record["results"]["epoch"], ended.record["results"]["validation_auc"]) == (2, None)
    assert "its last epoch kept" in (ended.folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("aucs", "kept"),
    [
        ([0.6, 0.8, 0.8, 0.7], 3),
        ([0.6, 0.82, 0.81, 0.7], 3),  # 2 and 3 are within the error; 4 is not
        ([0.82, 0.805, 0.79], 2),  # it is the best that counts, not the last that was taken
        ([0.6, 0.7, 0.9], 3),
    ],
)
def test_the_epoch_that_is_kept(aucs: list[float], kept: int) -> None:
    """The last within a standard error, here 0.02, of the best."""
    best, model = KeptEpoch(), nn.Linear(1, 1)
    for epoch, auc in enumerate(aucs, start=1):
        nn.init.constant_(model.weight, epoch)
        metrics = {"eval_auc": auc, "eval_auc_error": 0.02}
        best.on_evaluate(None, SimpleNamespace(epoch=float(epoch)), None, metrics=metrics, model=model)
    best.restore(model)
    assert (best.auc, best.epoch, model.weight.item()) == (aucs[kept - 1], kept, kept)


def test_loss_in_closed_form() -> None:
    """The unsafe row's verdict is that of its own labels; the safe row's that of all."""
    logits = torch.tensor([[0.0, 2.0, -1.0], [-1.0, -3.0, 0.5]], requires_grad=True)
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    probability = torch.sigmoid(logits)
    of_labels = -torch.where(labels > 0, probability, 1 - probability).log().sum() / 2
    of_verdict = -(probability[0, 0].log() + (1 - probability[1, 2]).log()) / 2
    found = judge_loss({"logits": logits}, labels)
    torch.testing.assert_close(found, LABELS_WEIGHT * of_labels + of_verdict)
    assert torch.isfinite(torch.autograd.grad(found, logits)[0]).all()


def test_the_last_layer_starts_as_the_mean(bert: Path) -> None:
    """What the head reads is the mean of the layer below over all tokens but padding, added to the first token's."""
    model = load_backbone(str(bert)).eval()
    assert isinstance(model, BertForSequenceClassification)
    start_from_mean(model)
    ids = torch.randint(1, 400, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    with torch.no_grad():
        below = model.bert(ids, attention_mask=mask, output_hidden_states=True).hidden_states[-2]
        mean = torch.stack([below[0].mean(0), below[1, :6].mean(0)])
        read = nn.functional.layer_norm(below[:, 0] + mean, (32,), eps=model.config.layer_norm_eps)
        twice = nn.functional.layer_norm(read, (32,), eps=model.config.layer_norm_eps)
        torch.testing.assert_close(model(ids, attention_mask=mask).logits, model.classifier(torch.tanh(twice)))


def test_rows_are_read_as_beaver_dam_reads_them(bert: Path, chat_model: Path) -> None:
    rows = [Row("Why?", "Because.", NO_LABELS, False), Row("Why? " * 30, "So.", NO_LABELS, False)]
    for folder in (bert, chat_model):
        tokenizer = load_tokenizer(str(folder), load_backbone(str(folder)))
        examples, too_long = encode_rows(rows, tokenizer, 60)
        assert (len(examples), too_long) == (1, 1)
        end = tokenizer.eos_token or ""
        said = tokenizer.decode(examples[0].token_ids)
        assert said.removeprefix("<s>").strip() == f"BEGINNING OF CONVERSATION: USER: Why? ASSISTANT:Because.{end}"


def test_the_end_token_is_no_padding(chat_model: Path, tmp_path: Path) -> None:
    """Else the scores would depend on the engine: one reads at the end token, the other before it."""
    shutil.copytree(chat_model, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(chat_model, pad_token="</s>")
    tokenizer.save_pretrained(tmp_path / "model")
    model = load_backbone(str(tmp_path / "model"))
    found = load_tokenizer(str(tmp_path / "model"), model)
    assert found.pad_token not in (found.eos_token, None)
    assert model.config.pad_token_id == found.pad_token_id
    examples, _ = encode_rows([Row("a", "b", NO_LABELS, False), Row("a", "b c d", NO_LABELS, True)], found, 60)
    with torch.no_grad():
        states = model.model(torch.tensor([examples[0].token_ids])).last_hidden_state
        at_the_end = torch.sigmoid(model.score(states[0, -1]))
    both = probabilities(model, found, examples, 2)
    np.testing.assert_allclose(both[0], at_the_end.numpy(), atol=1e-6)


def test_batches_change_nothing(bert: Path) -> None:
    model = load_backbone(str(bert))
    tokenizer = load_tokenizer(str(bert), model)
    rows = [Row("Why?", "word " * (n % 7), NO_LABELS, False) for n in range(20)]
    examples, _ = encode_rows(rows, tokenizer, 96)
    one, many = (probabilities(model, tokenizer, examples, size) for size in (1, 8))
    np.testing.assert_allclose(one, many, atol=1e-6)


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--epochs", "0"), "--epochs must be at least 1"),
        (("--learning-rate", "nan"), "--learning-rate must be above 0"),
        (("--weight-decay", "-1"), "--weight-decay must be at least 0, got"),
        (("--validation-share", "1"), "--validation-share must be at least 0 and below 1, got"),
        (("--warmup", "-0.1"), "--warmup must be at least 0 and below 1, got"),
        (("--epoch", "3"), "Unknown flag --epoch. Did you mean --epochs?"),
        (("--epochs", "many"), "invalid int value: 'many'"),
        (("--dataset", "./nowhere"), "There is no data set at ./nowhere"),
        (("--model", "./nowhere"), "There is no model at ./nowhere"),
        (("--test-split", "30k_tset"), "Did you mean 30k_test?"),
        (("--max-length", "8"), "There are 0 rows for train, not both safe and unsafe ones, and 170 more"),
    ],
)
def test_bad_flags(refused: Callable[..., str], bert: Path, flags: tuple[str, ...], says: str) -> None:
    assert says in refused("--model", bert, *flags)


@pytest.mark.usefixtures("data")
def test_start_from_mean_is_for_bert(refused: Callable[..., str], chat_model: Path) -> None:
    assert "--start-from-mean is for BERT" in refused("--model", chat_model, "--start-from-mean")


@pytest.mark.usefixtures("data")
def test_damaged_weights(refused: Callable[..., str], bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bert, tmp_path / "damaged")
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.0.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "lack bert.encoder.layer.0.output.dense.weight (1 such)" in refused("--model", folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "nothing"}))
    assert "Cannot make a sequence classifier from" in refused("--model", folder)


@pytest.mark.usefixtures("data")
def test_output_folders(run_judge: Judge, bert: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    for flags in ((), ("--overwrite",)):
        ended = run_judge("--model", bert, *flags, name="other")
        assert (ended.status, "exists and is no judge" in ended.err[0]) == (2, True)
    first = run_judge("--model", bert, "--epochs", "1")
    weights = (first.folder / "model.safetensors").read_bytes()
    again = run_judge("--model", bert, "--epochs", "1", "--seed", "3")
    assert (again.status, "replace it with --overwrite" in again.err[0]) == (2, True)
    assert (first.folder / "model.safetensors").read_bytes() == weights
    assert run_judge("--model", bert, "--epochs", "1", "--seed", "3", "--overwrite").status == 0
    assert (first.folder / "model.safetensors").read_bytes() != weights


@pytest.mark.usefixtures("data")
def test_a_run_that_fails_leaves_the_earlier_judge(run_judge: Judge, bert: Path) -> None:
    first = run_judge("--model", bert, "--epochs", "1")
    before = {path.name: path.read_bytes() for path in first.folder.iterdir()}
    failed = run_judge("--model", bert, "--epochs", "1", "--learning-rate", "1e30", "--overwrite")
    assert failed.status == 1
    assert failed.err[-1].startswith("error: Training diverged: ")
    assert {path.name: path.read_bytes() for path in first.folder.iterdir()} == before


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=65536", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.usefixtures("data")
def test_full_disk(run_judge: Judge, bert: Path, full_disk: Path) -> None:
    ended = run_judge("--model", bert, "--epochs", "1", "--output-dir", full_disk / "out")
    assert ended.status == 1
    assert ended.err[-1].startswith(f"error: Cannot save into {full_disk / 'out'}: ")
    assert ended.err[-1].endswith("Nothing was left there. Free space, then train again.")
    assert list(full_disk.iterdir()) == []


def test_a_tokenizer_without_a_token_to_pad_with(bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bert, tmp_path / "bare")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": None}))
    with pytest.raises(InputError, match="has no special token to pad with"):
        load_tokenizer(str(folder), load_backbone(str(folder)))


def test_from_a_causal_checkpoint(chat_model: Path) -> None:
    """Only the head is new."""
    causal = LlamaForCausalLM.from_pretrained(chat_model)
    model = load_backbone(str(chat_model))
    assert isinstance(model, LlamaForSequenceClassification)
    for name, tensor in causal.model.state_dict().items():
        assert torch.equal(model.model.state_dict()[name], tensor)
