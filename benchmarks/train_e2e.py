"""Samples per second of a whole SFT run on SST-2, against TRL and PEFT as they come.

    python benchmarks/train_e2e.py --out e2e.json

    trl-lora           TRL's SFTTrainer and PEFT's LoRA, all defaults, the same batch size
    trl-lora-plain     the same without gradient checkpointing, which TRL turns on by default
    monolora           the recipe's trainer and defaults: fused layers, logits of learned tokens, grouped by length
    monolora-whole     the same, but every row is computed whole, its common prefix with others too
    monolora-random    monolora in TRL's order
    monolora-masked    in TRL's order and with TRL's head, which computes all positions on a CPU and masks them
    monolora-full      in TRL's order and with the model's own loss over the logits of all positions

Each side trains one epoch on the same rows in each round, with a fresh adapter; sides take turns. monolora and
monolora-whole see the same batches, and so do the last three, so their losses can be compared step by step. (The last
one rounds logits to bfloat16, the others do not.)
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from rich.console import Console
from rich.table import Table
from rounds import Seconds, flag_parser, in_turns, machine, of_groups, save, spread
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from monolora import MonoLoraConfig
from monolora.data.chat_template import render_all
from monolora.data.tasks import sst2
from monolora.hub import load_causal_lm, load_tokenizer, resolve_model
from monolora.recipes.training.arguments import TrainingArguments
from monolora.recipes.training.trainer import SftTrainer

SIDES = (
    "trl-lora",
    "trl-lora-plain",
    "monolora",
    "monolora-whole",
    "monolora-random",
    "monolora-masked",
    "monolora-full",
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
    rows = render_all(sst2.load().train[: flags.rows], load_tokenizer(resolve_model(flags.model)))
    losses: dict[str, list[float]] = {}
    seconds = in_turns({side: partial(_train, flags, side, rows, losses) for side in SIDES}, flags.rounds, warmup=0)
    report = {
        "flags": vars(flags),
        "machine": machine("peft", "trl", "transformers"),
        "samples_per_second": {side: spread([len(rows) / each for each in seconds[side]]) for side in SIDES},
        "ratios": ratios(seconds),
        "losses": losses,
    }
    show(report)
    save(report, flags.out)


def _flags() -> argparse.Namespace:
    parser = flag_parser(__doc__)
    parser.add_argument("--rows", type=int, default=128, help="of SST-2 (default: %(default)s)")
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


def ratios(seconds: Seconds) -> dict[str, dict[str, float]]:
    """Of samples per second."""
    pairs = [
        ("monolora", "trl-lora"), ("monolora", "trl-lora-plain"), ("monolora-random", "trl-lora-plain"),
        ("monolora-random", "monolora-masked"), ("monolora", "monolora-random"), ("monolora", "monolora-whole"),
    ]  # fmt: skip
    return {
        f"{ours} / {theirs}": of_groups(seconds, lambda of, ours=ours, theirs=theirs: of[theirs] / of[ours])
        for ours, theirs in pairs
    }


def show(report: dict[str, Any]) -> None:
    table = Table(title=f"SST-2, {report['machine']['device']}", title_justify="left")
    for head in ("side", "samples/s", "first loss", "last loss"):
        table.add_column(head, justify="left" if head == "side" else "right")
    for side, speed in report["samples_per_second"].items():
        losses = report["losses"][side]
        shown = "{median:.2f} ({smallest:.2f}–{largest:.2f})".format(**speed)
        table.add_row(side, shown, f"{losses[0]:.4f}", f"{losses[-1]:.4f}")
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
    for one, other in same:
        largest = max(abs(a - b) for a, b in zip(losses[one], losses[other], strict=True))
        console.print(f"Largest difference of a step's loss, {one} and {other}: {largest:.2g}")


if __name__ == "__main__":
    main()
