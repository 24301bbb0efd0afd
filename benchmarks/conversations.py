"""Tokens and seconds of a training step: whole conversations in one pass, against one example an answer.

    python benchmarks/conversations.py --out conversations.json

    whole    the recipe's trainer: all answers of a conversation in one sequence
    split    the same trainer with every answer as an example of its own, as --conversations split

The conversations are made of Dolly's rows, each row a turn; those with more than --max-length tokens are left out.
Steps of both sides have equally many answers, and rows come by their length, as they do in a long run: in a short one
there are too few to group. Each side trains one epoch in each round, with a fresh adapter; sides take turns. Tokens are
those of the rows, without padding. The losses and gradients are the same (tests).
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from rounds import flag_parser, in_turns, machine, of_groups, save, spread
from train_e2e import Clock
from transformers import PreTrainedTokenizerBase

from monolora import MonoLoraConfig
from monolora.data.chat_template import render_all
from monolora.data.conversations import AUTO, SPLIT, sequences
from monolora.data.example import Example
from monolora.data.tasks import dolly
from monolora.hub import load_causal_lm, load_tokenizer, resolve_model
from monolora.recipes.training.arguments import TrainingArguments
from monolora.recipes.training.trainer import SftTrainer

SIDES = {"whole": AUTO, "split": SPLIT}


def main() -> None:
    flags = _flags()
    tokenizer = load_tokenizer(resolve_model(flags.model))
    examples = _answers(flags, tokenizer)
    rendered = render_all(examples, tokenizer)
    rows = {side: _by_length(sequences(examples, rendered, tokenizer, how).rows) for side, how in SIDES.items()}
    steps = -(-flags.conversations // flags.batch_size)
    tokens = {side: sum(map(len, made["input_ids"])) / steps for side, made in rows.items()}
    seconds = in_turns({side: partial(_train, flags, side, rows[side]) for side in SIDES}, flags.rounds, warmup=0)
    report = {
        "flags": vars(flags),
        "machine": machine("peft", "trl", "transformers"),
        "tokens_per_step": tokens,
        "seconds_per_step": {side: spread([each / steps for each in seconds[side]]) for side in SIDES},
        "split / whole": {
            "tokens": tokens["split"] / tokens["whole"],
            "seconds": of_groups(seconds, lambda of: of["split"] / of["whole"]),
        },
    }
    title = f"{flags.conversations} conversations of {flags.turns} turns, {report['machine']['device']}"
    table = Table(title=title, title_justify="left")
    for head in ("side", "sequences", "tokens a step", "seconds a step"):
        table.add_column(head, justify="left" if head == "side" else "right")
    for side, value in report["seconds_per_step"].items():
        shown = "{median:.2f} ({smallest:.2f}–{largest:.2f})".format(**value)
        table.add_row(side, str(len(rows[side])), f"{tokens[side]:,.0f}", shown)
    console = Console()
    console.print(table)
    console.print("split / whole, tokens: {tokens:.2f}".format(**report["split / whole"]))
    console.print(
        "split / whole, seconds: {median:.2f} ({smallest:.2f}–{largest:.2f})".format(
            **report["split / whole"]["seconds"]
        )
    )
    save(report, flags.out)


def _flags() -> argparse.Namespace:
    parser = flag_parser(__doc__)
    parser.add_argument("--conversations", type=int, default=32, help="(default: %(default)s)")
    parser.add_argument("--turns", type=int, default=4, help="of a conversation (default: %(default)s)")
    parser.add_argument("--max-length", type=int, default=1024, help="of a conversation (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=4, help="conversations of a step (default: %(default)s)")
    parser.add_argument("--targets", nargs="+", default=["q_proj", "v_proj"])
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def _answers(flags: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """The answers of all conversations, each with everything before it as its prompt."""
    found: list[Example] = []
    rows = iter(dolly.load().train)
    while len(found) < flags.conversations * flags.turns:
        origin = f"conversation {len(found) // flags.turns + 1}"
        history: tuple[dict[str, Any], ...] = ()
        answers: list[Example] = []
        for _ in range(flags.turns):
            answers.append(next(rows)._replace(history=history, origin=origin))
            history = (*answers[-1].messages, answers[-1].answer_message)
        if len(render_all(answers[-1:], tokenizer)[0]["input_ids"]) <= flags.max_length:
            found += answers
    return found


def _by_length(rows: Dataset) -> Dataset:
    lengths = [len(ids) for ids in rows["input_ids"]]
    return rows.select(sorted(range(len(rows)), key=lengths.__getitem__))


def _train(flags: argparse.Namespace, side: str, rows: Dataset) -> float:
    """Train one epoch; the seconds of its steps alone."""
    clock = Clock()
    folder = resolve_model(flags.model)
    with tempfile.TemporaryDirectory() as output:
        torch.manual_seed(0)
        SftTrainer(
            model=load_causal_lm(folder, dtype="bfloat16"),
            args=TrainingArguments(
                output_dir=output,
                per_device_train_batch_size=flags.batch_size * (flags.turns if side == "split" else 1),
                num_train_epochs=1, learning_rate=1e-3, logging_steps=1, save_strategy="no", report_to="none",
                disable_tqdm=True, train_sampling_strategy="sequential", use_cpu=not torch.cuda.is_available(),
            ),
            train_dataset=rows,
            processing_class=load_tokenizer(folder),
            peft_config=MonoLoraConfig(r=8, lora_alpha=16, target_modules=flags.targets, task_type="CAUSAL_LM"),
            callbacks=[clock],
        ).train()  # fmt: skip
    return clock.seconds


if __name__ == "__main__":
    main()
