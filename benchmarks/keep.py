"""Seconds of training with keepers, against the same run without one, on SST-2.

    python benchmarks/keep.py --rounds 5 --out keep.json

    none, silence, replay, kl     the recipe's trainer and defaults with MonoLoRA, one epoch on the same rows
    lora, lora-silence            plain LoRA, and its two-sided form

The time is from the first step to the last: anchors, answers and activations are prepared before the clock starts.
Sides take turns. Replay adds rows, so its time is of more work, not of overhead.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial

import torch
from datasets import concatenate_datasets
from peft import LoraConfig
from rich.console import Console
from rich.table import Table
from rounds import Seconds, flag_parser, in_turns, machine, of_groups, save, spread
from train_e2e import Clock

from monolora import MonoLoraConfig
from monolora.data.chat_template import render_all
from monolora.data.tasks import sst2
from monolora.hub import load_causal_lm, load_tokenizer, resolve_model
from monolora.recipes.training.arguments import TrainingArguments
from monolora.recipes.training.keeping import KeepArguments, make_keeping
from monolora.recipes.training.trainer import SftTrainer
from monolora.run_record import fingerprint_files

SIDES = ("none", "silence", "replay", "kl", "lora", "lora-silence")


def main() -> None:
    flags = _flags()
    seconds = in_turns({side: partial(_train, flags, side) for side in flags.sides}, flags.rounds, warmup=0)
    report = {
        "flags": vars(flags),
        "machine": machine("peft", "trl", "transformers"),
        "seconds": {side: spread(seconds[side]) for side in flags.sides},
        "ratios": ratios(seconds),
    }
    table = Table(title=f"SST-2, {flags.rows} rows, {report['machine']['device']}", title_justify="left")
    for head in ("side", "seconds"):
        table.add_column(head, justify="left" if head == "side" else "right")
    for side, value in report["seconds"].items():
        table.add_row(side, "{median:.2f} ({smallest:.2f}–{largest:.2f})".format(**value))
    console = Console()
    console.print(table)
    for name, ratio in report["ratios"].items():
        console.print(f"{name}: " + "{median:.3f} ({smallest:.3f}–{largest:.3f})".format(**ratio))
    save(report, flags.out)


def _flags() -> argparse.Namespace:
    parser = flag_parser(__doc__)
    parser.add_argument("--rows", type=int, default=128, help="of SST-2 (default: %(default)s)")
    parser.add_argument("--anchors", type=int, default=300)
    parser.add_argument("--targets", nargs="+", default=["q_proj", "v_proj"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    return parser.parse_args()


def _train(flags: argparse.Namespace, side: str) -> float:
    """Train one epoch; the seconds of its steps alone."""
    folder = resolve_model(flags.model)
    base, tokenizer = fingerprint_files(folder), load_tokenizer(folder)
    model = load_causal_lm(folder, dtype="bfloat16")
    task = sst2.load()
    rows = render_all(task.train[: flags.rows], tokenizer)
    name = side.removeprefix("lora").removeprefix("-")
    keep = KeepArguments(keep=[name] if name in ("silence", "replay", "kl") else None, keep_samples=flags.anchors)
    keeping = make_keeping(keep, task.test, model, tokenizer, base, folder, batch_size=32)
    added = keeping.rows(len(rows), 0)
    clock = Clock()
    config = LoraConfig if side.startswith("lora") else MonoLoraConfig
    with tempfile.TemporaryDirectory() as output:
        torch.manual_seed(0)
        trainer = SftTrainer(
            model=model,
            args=TrainingArguments(
                output_dir=output, per_device_train_batch_size=16, num_train_epochs=1, learning_rate=1e-3,
                logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(),
            ),
            train_dataset=rows if added is None else concatenate_datasets([rows, added.cast(rows.features)]),
            processing_class=tokenizer,
            peft_config=config(r=8, lora_alpha=16, target_modules=flags.targets, task_type="CAUSAL_LM"),
            callbacks=[clock],
            keepers=keeping.keepers,
        )  # fmt: skip
        keeping.prepare(trainer, tokenizer, rows, keep, base)
        trainer.train()
    return clock.seconds


def ratios(seconds: Seconds) -> dict[str, dict[str, float]]:
    """Of seconds, each keeper's to the same adapter's without one."""
    pairs = [(side, "lora" if side.startswith("lora") else "none") for side in seconds if side not in ("none", "lora")]
    return {
        f"{kept} / {plain}": of_groups(seconds, lambda of, kept=kept, plain=plain: of[kept] / of[plain])
        for kept, plain in pairs
    }


if __name__ == "__main__":
    main()
