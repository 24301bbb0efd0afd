"""Law 7: batch 1 × accumulation 8 equals batch 8; a resumed run equals one that was not stopped, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from monolora.recipes import sft
from monolora.recipes.training.arguments import parse
from monolora.recipes.training.trainer import SftTrainer

# The vocabulary of `make_llama`: three special tokens and sixty words.
WORDS = [f"w{number}" for number in range(3, 63)]
FLAGS = ["--dtype", "float32", "--bf16", "false", "--skip-eval", "--learning-rate", "0.01", "--seed", "3"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The models are so small that threads cost more than they give."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def base(make_llama: Callable[..., LlamaForCausalLM], tmp_path: Path) -> Path:
    """A tiny Llama with a tokenizer of whole words."""
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<s>", "</s>", *WORDS, "<unk>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(tmp_path / "base")
    make_llama().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def wide_base(base: Path, make_llama: Callable[..., LlamaForCausalLM]) -> Path:
    """The same with layers that bitsandbytes quantizes: it takes 64 weights at a time."""
    make_llama(hidden_size=64, intermediate_size=64).save_pretrained(base)
    return base


@pytest.fixture
def train(base: Path, tmp_path: Path) -> Callable[..., dict[str, torch.Tensor]]:
    """``train(*flags, name="run")``: the adapter's tensors after a run over 32 examples of different lengths."""
    rows = [
        {"prompt": " ".join(WORDS[n : n + 2 + n % 5]), "completion": " " + " ".join(WORDS[-1 - n % 7 :])}
        for n in range(36)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(*flags: str, name: str = "run") -> dict[str, torch.Tensor]:
        where = ["--model", str(base), "--dataset", str(data), "--output-dir", str(tmp_path / name)]
        sft.run(parse([*where, *FLAGS, *flags]))
        (weights,) = [
            *(tmp_path / name).glob("adapter_model.safetensors"),
            *(tmp_path / name).glob("model.safetensors"),
        ]
        return load_file(weights)

    return run


def history(run: Path) -> list[dict[str, Any]]:
    """What the trainer logged."""
    return json.loads((run / "run.json").read_text())["history"]


def test_logits_of_masked_positions_change_nothing(
    train: Callable[..., dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    """By default only learned positions have logits; ``--full-logits`` is the model's own loss over all of them."""
    flags = ("--optim", "sgd", "--learning-rate", "0.5", "--per-device-train-batch-size", "4", "--logging-steps", "1")
    learned, full = train(*flags, name="learned"), train(*flags, "--full-logits", name="full")
    for name, tensor in full.items():
        torch.testing.assert_close(learned[name], tensor, rtol=1e-4, atol=1e-6)
    losses = [[entry["loss"] for entry in history(tmp_path / name) if "loss" in entry] for name in ("learned", "full")]
    assert len(losses[0]) > 5
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_grouping_by_length_pads_less(train: Callable[..., dict[str, torch.Tensor]], tmp_path: Path) -> None:
    """And the share of padding is in the record."""
    shares = []
    for strategy in ("group_by_length", "random"):
        train("--train-sampling-strategy", strategy, "--per-device-train-batch-size", "4", name=strategy)
        found = [entry["padding_share"] for entry in history(tmp_path / strategy) if "padding_share" in entry]
        shares.append(sum(found) / len(found))
    assert 0 <= shares[0] < shares[1]


@pytest.mark.parametrize("adapter", ["monolora", "lora"])
def test_accumulation_equals_a_larger_batch(train: Callable[..., dict[str, torch.Tensor]], adapter: str) -> None:
    """Examples differ in length, so averaging means of micro-batches instead of tokens would show."""
    # Plain SGD: Adam divides by the gradient's size, which makes rounding of tiny gradients visible.
    flags = ("--adapter", adapter, "--optim", "sgd", "--learning-rate", "0.5", "--num-train-epochs", "3")
    whole = train(*flags, "--per-device-train-batch-size", "8", name="whole")
    parts = train(*flags, "--per-device-train-batch-size", "1", "--gradient-accumulation-steps", "8", name="parts")
    start = train(*flags, "--per-device-train-batch-size", "8", "--learning-rate", "1e-12", name="start")
    assert any((whole[name] - start[name]).abs().max() > 1e-3 for name in whole)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-4, atol=1e-6)


def _stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise in the step after ``step``, as a lost machine would."""
    original = SftTrainer.training_step

    def training_step(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step >= step:
            raise ConnectionError("the machine is gone")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(SftTrainer, "training_step", training_step)


@pytest.mark.parametrize(
    "flags",
    [
        "--adapter monolora",
        "--adapter monolora --activation topk:2 --lora-dropout 0.3",
        "--adapter monolora --gradient-accumulation-steps 2 --per-device-train-batch-size 2",
        "--adapter lora --lora-dropout 0.3",
        "--adapter none",
        "--adapter monolora --dtype bfloat16",
        "--adapter lora --dtype float16",
        "--adapter none --dtype bfloat16",
        "--adapter monolora --load-in-4bit --use-bnb-nested-quant --lora-target-modules all-linear",
        "--adapter lora --load-in-4bit --dtype bfloat16",
        "--adapter monolora --load-in-4bit --lora-modules-to-save lm_head",
        "--adapter monolora --load-in-8bit",
        "--adapter lora --load-in-8bit --gradient-checkpointing",
    ],
)
@pytest.mark.usefixtures("wide_base")
def test_resumed_equals_uninterrupted(
    train: Callable[..., dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str
) -> None:
    """Stopped in the middle of the second epoch, one step after a checkpoint."""
    given = ("--per-device-train-batch-size", "4", *flags.split(), "--num-train-epochs", "2", "--save-steps", "3")
    given += ("--logging-steps", "1")
    whole = train(*given, name="whole")
    with monkeypatch.context() as patched:
        _stop_after(13, patched)
        with pytest.raises(ConnectionError):
            train(*given, name="stopped")
    assert not (tmp_path / "stopped" / "adapter_model.safetensors").exists()
    assert (tmp_path / "stopped" / "checkpoint-12").is_dir()
    resumed = train(*given, "--resume-from-checkpoint", name="stopped")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    assert _logged(tmp_path / "whole") == _logged(tmp_path / "stopped")


def _logged(folder: Path) -> list[dict[str, float]]:
    """Loss, gradient norm, learning rate and sparsity of every step. TRL counts tokens from the resumed step on."""
    history = json.loads((folder / "run.json").read_text())["history"]
    keys = ("step", "loss", "grad_norm", "learning_rate", "sparsity", "dead_units")
    return [{key: entry[key] for key in keys if key in entry} for entry in history if "loss" in entry]


def test_resumed_from_a_named_checkpoint(train: Callable[..., dict[str, torch.Tensor]], tmp_path: Path) -> None:
    """From an earlier checkpoint than the last, in a folder of its own; the seed decides, not luck."""
    given = ("--per-device-train-batch-size", "4", "--save-steps", "3")
    whole = train(*given, name="whole")
    again = train(*given, "--resume-from-checkpoint", str(tmp_path / "whole" / "checkpoint-3"), name="again")
    other = train(*given, "--seed", "4", name="other")
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())
    assert not any(torch.equal(tensor, other[name]) for name, tensor in whole.items())
