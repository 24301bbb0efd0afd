"""Samples per second of a whole SFT run on SST-2 or Dolly, against TRL and PEFT as they come, and against the floor.

    python benchmarks/train_e2e.py --out e2e.json
    python benchmarks/train_e2e.py --dataset dolly --batch-size 8 --sides trl-lora monolora floor

    trl-lora           TRL's SFTTrainer and PEFT's LoRA, all defaults, the same batch size
    trl-lora-plain     the same without gradient checkpointing, which TRL turns on by default
    monolora           the recipe's trainer and defaults: fused layers, logits of learned tokens, grouped by length
    monolora-whole     the same, but every row is computed whole, its common prefix with others too
    monolora-random    monolora in TRL's order
    monolora-masked    in TRL's order and with TRL's head, which computes all positions on a CPU and masks them
    monolora-full      in TRL's order and with the model's own loss over the logits of all positions
    floor              no adapter, no trainer: forward and backward of the frozen model over monolora's tokens, without
                       padding and with a common prefix counted once, and logits of its learned tokens alone

Each side trains one epoch on the same rows in each round, with a fresh adapter; sides take turns. monolora and
monolora-whole see the same batches, and so do the last three, so their losses can be compared step by step. (The last
one rounds logits to bfloat16, the others do not.)
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import LoraConfig
from rich.console import Console
from rich.table import Table
from rounds import Seconds, flag_parser, in_turns, machine, of_groups, save, spread
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from monolora import MonoLoraConfig
from monolora.data.chat_template import IGNORED, render_all
from monolora.data.task import SampleLimits, Source
from monolora.data.tasks import load_task
from monolora.hub import load_causal_lm, load_tokenizer, resolve_model
from monolora.recipes.training.arguments import TrainingArguments
from monolora.recipes.training.trainer import SftTrainer
from monolora.shared_prefix import shared_prefix

SIDES = (
    "trl-lora",
    "trl-lora-plain",
    "monolora",
    "monolora-whole",
    "monolora-random",
    "monolora-masked",
    "monolora-full",
    "floor",
)


class Masked(SftTrainer):
    """TRL's own way to the loss."""

    compute_loss = SFTTrainer.compute_loss


class Whole(SftTrainer):
    """No prefix is shared."""

    def _unlearned(self, *_: Any) -> int:
        return 0


class Clock(TrainerCallback):
    """Seconds from the first step's begin to the end."""

    seconds = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.seconds = -time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.seconds += time.perf_counter()


def main() -> None:
    flags = _flags()
    examples = load_task(flags.dataset, Source(), limits=SampleLimits(train=flags.rows)).train[: flags.rows]
    rows = render_all(examples, load_tokenizer(resolve_model(flags.model)))
    losses: dict[str, list[float]] = {}
    runs: dict[str, Callable[[], float]] = {side: partial(_train, flags, side, rows, losses) for side in flags.sides}
    if "floor" in runs:
        runs["floor"] = partial(_floor, flags, _batches(flags, rows))
    seconds = in_turns(runs, flags.rounds, warmup=0)
    report = {
        "flags": vars(flags),
        "machine": machine("peft", "trl", "transformers"),
        "samples_per_second": {side: spread([len(rows) / each for each in seconds[side]]) for side in flags.sides},
        "ratios": ratios(seconds),
        "losses": losses,
    }
    show(report)
    save(report, flags.out)


def _flags() -> argparse.Namespace:
    parser = flag_parser(__doc__)
    parser.add_argument("--dataset", default="sst2", choices=("sst2", "dolly"))
    parser.add_argument("--rows", type=int, default=128, help="of the data set (default: %(default)s)")
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES, metavar="SIDE")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--targets", nargs="+", default=["q_proj", "v_proj"])
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def _train(flags: argparse.Namespace, side: str, rows: Dataset, losses: dict[str, list[float]]) -> float:
    """Train one epoch; the seconds of its steps alone."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(flags, side, rows, folder, clock)
        trainer.train()
    losses[side] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return clock.seconds


def _trainer(flags: argparse.Namespace, side: str, rows: Dataset, folder: str, clock: Clock) -> SFTTrainer:
    ours = side.startswith("monolora")
    more: dict[str, Any] = {"gradient_checkpointing": False} if side == "trl-lora-plain" else {}
    if ours and side not in ("monolora", "monolora-whole"):
        more["train_sampling_strategy"] = "random"
    arguments = (TrainingArguments if ours else SFTConfig)(
        output_dir=folder, per_device_train_batch_size=flags.batch_size, num_train_epochs=1, learning_rate=1e-3,
        logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(), **more,
    )  # fmt: skip
    torch.manual_seed(0)
    adapter = (MonoLoraConfig if ours else LoraConfig)(
        r=8, lora_alpha=16, lora_dropout=0.0, target_modules=flags.targets, task_type="CAUSAL_LM"
    )
    folder = resolve_model(flags.model)
    kind = {"monolora-masked": Masked, "monolora-whole": Whole}.get(side, SftTrainer if ours else SFTTrainer)
    trainer = kind(
        model=load_causal_lm(folder, dtype="bfloat16"),
        args=arguments,
        train_dataset=rows,
        processing_class=load_tokenizer(folder),
        peft_config=adapter,
        callbacks=[clock],
    )
    if isinstance(trainer, SftTrainer):
        trainer.full_logits = side == "monolora-full"
    return trainer


class Batch(NamedTuple):
    """What a batch asks of the frozen model.

    Attributes:
        rows: how many.
        tokens: of all rows, without padding, and the common prefix counted once where it is computed once.
        learned: tokens with a loss.
    """

    rows: int
    tokens: int
    learned: int


def _batches(flags: argparse.Namespace, rows: Dataset) -> list[Batch]:
    """Those of the side monolora."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(flags, "monolora", rows, folder, Clock())
        batches = []
        for inputs in trainer.get_train_dataloader():
            with shared_prefix(trainer.model, inputs["input_ids"], trainer._unlearned(trainer.model, inputs)) as prefix:
                count = len(inputs["input_ids"])
                tokens = int(inputs["attention_mask"].sum()) - (count - 1) * prefix
            batches.append(Batch(count, tokens, int((inputs["labels"][:, 1:] != IGNORED).sum())))
    return batches


def _floor(flags: argparse.Namespace, batches: Sequence[Batch]) -> float:
    """Seconds of all batches, each as rows of one length. Gradients flow to the embeddings of the first layer."""
    model = load_causal_lm(resolve_model(flags.model), dtype="bfloat16").train().requires_grad_(False)
    backbone: Any = model.base_model
    head, embed = model.get_output_embeddings(), model.get_input_embeddings()
    started = time.perf_counter()
    for batch in batches:
        ids = torch.randint(embed.num_embeddings, (batch.rows, -(-batch.tokens // batch.rows)), device=model.device)
        embeddings = embed(ids).requires_grad_()
        hidden = backbone(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        logits = head(hidden.flatten(0, 1)[-batch.learned :]).float()
        F.cross_entropy(logits, ids.flatten()[: batch.learned]).backward()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def ratios(seconds: Seconds) -> dict[str, dict[str, float]]:
    """Of samples per second."""
    pairs = [
        ("monolora", "trl-lora"), ("monolora", "trl-lora-plain"), ("monolora-random", "trl-lora-plain"),
        ("monolora-random", "monolora-masked"), ("monolora", "monolora-random"), ("monolora", "monolora-whole"),
        ("monolora", "floor"), ("trl-lora", "floor"),
    ]  # fmt: skip
    return {
        f"{ours} / {theirs}": of_groups(seconds, lambda of, ours=ours, theirs=theirs: of[theirs] / of[ours])
        for ours, theirs in pairs
        if ours in seconds and theirs in seconds
    }


def show(report: dict[str, Any]) -> None:
    table = Table(title=f"{report['flags']['dataset']}, {report['machine']['device']}", title_justify="left")
    for head in ("side", "samples/s", "first loss", "last loss"):
        table.add_column(head, justify="left" if head == "side" else "right")
    for side, speed in report["samples_per_second"].items():
        losses = report["losses"].get(side, [])
        shown = "{median:.2f} ({smallest:.2f}–{largest:.2f})".format(**speed)
        table.add_row(side, shown, *(f"{loss:.4f}" for loss in (*losses[:1], *losses[-1:])))
    console = Console()
    console.print(table)
    for name, ratio in report["ratios"].items():
        console.print(f"{name}: " + "{median:.2f} ({smallest:.2f}–{largest:.2f})".format(**ratio))
    losses = report["losses"]
    same = [
        ("monolora-random", "monolora-masked"),
        ("monolora-random", "monolora-full"),
        ("monolora", "monolora-whole"),
    ]
    for one, other in (pair for pair in same if losses.keys() >= {*pair}):
        largest = max(abs(a - b) for a, b in zip(losses[one], losses[other], strict=True))
        console.print(f"Largest difference of a step's loss, {one} and {other}: {largest:.2g}")


if __name__ == "__main__":
    main()
