"""``monolora judge``: train a small safety judge in beaver-dam's labels and text format, and measure it.

    monolora judge --output-dir runs/judge
    monolora judge --model smollm2-135m-instruct --learning-rate 5e-5 --epochs 2 --output-dir runs/judge-smollm2

beaver-dam-7b is gated by its size: it does not run on every machine. This trains any Hugging Face backbone on the same
data, BeaverTails, as a classifier of the same form, which ``monolora eval run --judges classifier:OUT`` then uses. It
never sees the prompts that the alignment suite asks: those are what it is tested on.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # no warning when a data loader forks

import numpy as np
import torch
from transformers import BertForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from monolora import run_record
from monolora.beaverdam import MAX_LENGTH
from monolora.errors import InputError, SaveError, exit_status, is_disk_trouble
from monolora.flags import FlagParser
from monolora.hub import MINILM, local_path, resolve_model
from monolora.model_files import save_model
from monolora.provenance import fingerprint_files, fingerprint_rows, provenance
from monolora.recipes import judge_data
from monolora.recipes.judge_data import Splits
from monolora.recipes.judge_model import (
    Example,
    encode_rows,
    load_backbone,
    load_tokenizer,
    longest,
    probabilities,
    start_from_mean,
)
from monolora.recipes.judge_report import model_card, table
from monolora.recipes.judge_training import measure, train
from monolora.remote_code import TRUST_HELP, code_trusted
from monolora.runs import MODEL_FILES, Kind, claim
from monolora.terminal import Terminal

KIND = Kind(name="judge", keys=("config.train_splits", "results.test", "results.epoch"), files=MODEL_FILES)


def main(argv: list[str]) -> int:
    """Train, measure and save; returns the exit status."""
    flags = parse(argv)
    out = Path(flags.output_dir)
    with claim(out, KIND, "--output-dir") as folder:
        folder.check(flags.overwrite)
        folder.check_apart(filter(None, map(local_path, (flags.model, flags.dataset))))
        with folder.whole() as aside, code_trusted(flags.trust_remote_code):
            record = run(flags, aside)
    console = Terminal()
    console.print(table(record["results"]["test"]))
    console.print(f"Saved to {out} after {record['results']['seconds']['total']:.0f} s.")
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags of a command line.

    Raises:
        InputError: for flags that are unknown, and values that cannot be.
    """
    flags = _parser().parse(argv)
    _check_numbers(flags)
    return flags


def run(flags: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train a judge and write it into the empty ``folder``; returns what ``run.json`` holds.

    Raises:
        InputError: for a model or data that cannot be used.
        RunError: if training diverged.
        SaveError: if the disk does not take the judge.
    """
    started = time.monotonic()
    rows, flags.train_splits = judge_data.load(
        flags.dataset, flags.train_splits, flags.test_split, flags.validation_share, flags.seed
    )
    backbone = resolve_model(flags.model)
    set_seed(flags.seed)  # of the head, which is drawn
    model = load_backbone(backbone)
    tokenizer = load_tokenizer(backbone, model)
    flags.max_length = longest(model, flags.max_length)
    if (bert := _to_start_from_mean(model, flags)) is not None:
        start_from_mean(bert)
    encoded = {name: encode_rows(each, tokenizer, flags.max_length) for name, each in rows._asdict().items()}
    examples = {name: each for name, (each, _) in encoded.items()}
    for name, (each, too_long) in encoded.items():
        if flags.validation_share or name != "validation":
            judge_data.check_both_kinds(name, (example.row.unsafe for example in each), too_long)
    print(", ".join(f"{name}: {len(each)} rows" for name, each in examples.items()), file=sys.stderr)
    trained = train(model, tokenizer, examples["train"], examples["validation"], flags, folder)
    seconds = {"train": time.monotonic() - started}
    found = measured(model, tokenizer, examples["test"], flags)
    seconds["total"] = time.monotonic() - started
    record = {
        "status": "done",
        "config": vars(flags),
        "seeds": {"seed": flags.seed},
        **provenance(),
        "fingerprints": _fingerprints(backbone, rows),
        "rows": {name: len(each) for name, each in examples.items()}
        | {"too_long": sum(left_out for _, left_out in encoded.values())},
        "results": {
            "test": found,
            "epoch": trained.epoch,
            "validation_auc": trained.validation_auc,
            "parameters": model.num_parameters(),
            "seconds": seconds,
        },
        "history": trained.history,
    }
    _save(model, tokenizer, record, folder, flags.output_dir)
    return record


def measured(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], flags: argparse.Namespace
) -> dict[str, Any]:
    """What the judge is worth on rows with prompts that it never saw."""
    found = probabilities(model, tokenizer, examples, flags.batch_size)
    rows = [example.row for example in examples]
    return measure(
        found,
        np.array([row.labels for row in rows]),
        np.array([row.unsafe for row in rows]),
        [judge_data.prompt_key(row.prompt) for row in rows],
    )


def _parser() -> FlagParser:
    parser = FlagParser("monolora judge", __doc__)
    parser.add_argument("--model", default=MINILM, help="the backbone: a path or a hub id (default: %(default)s)")
    parser.add_argument("--dataset", default=judge_data.DATASET, help="in BeaverTails' columns (default: %(default)s)")
    parser.add_argument(
        "--train-splits",
        nargs="+",
        help="trained on, beside the test split's other prompts (default: 30k_train, where the data set has it)",
    )
    parser.add_argument("--test-split", default=judge_data.TEST_SPLIT, help="(default: %(default)s)")
    parser.add_argument(
        "--validation-share", type=float, default=0.15, help="of the prompts to train on, to choose the epoch by"
    )
    parser.add_argument("--output-dir", default="runs/judge", help="(default: %(default)s)")
    parser.add_argument("--trust-remote-code", action="store_true", help=TRUST_HELP)
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier judge in --output-dir")
    parser.add_argument("--max-length", type=int, default=MAX_LENGTH, help="in tokens (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=4, help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="(default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="(default: %(default)s)")
    parser.add_argument("--head-learning-rate", type=float, default=1e-3, help="(default: %(default)s)")
    parser.add_argument("--warmup", type=float, default=0.1, help="share of all steps (default: %(default)s)")
    parser.add_argument("--weight-decay", type=float, default=0.01, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=42, help="(default: %(default)s)")
    parser.add_argument(
        "--start-from-mean",
        action=argparse.BooleanOptionalAction,
        help="the last layer of an encoder begins as the mean over the tokens (default: where the backbone is a BERT)",
    )
    parser.add_argument(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        default=_has_bfloat16(),
        help="train in bfloat16 (default: where the machine computes in it)",
    )
    return parser


def _has_bfloat16() -> bool:
    return torch.cuda.is_bf16_supported() if torch.cuda.is_available() else torch.cpu._is_avx512_bf16_supported()


def _check_numbers(flags: argparse.Namespace) -> None:
    """Raises: InputError, for numbers that cannot be."""
    for name in ("epochs", "batch_size", "max_length"):
        if getattr(flags, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1.")
    for name in ("learning_rate", "head_learning_rate"):
        if not 0 < getattr(flags, name) < float("inf"):
            raise InputError(f"--{name.replace('_', '-')} must be above 0.")
    if not 0 <= flags.weight_decay < float("inf"):
        raise InputError("--weight-decay must not be negative.")
    for name in ("warmup", "validation_share"):
        if not 0 <= getattr(flags, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be from 0 to below 1.")


def _to_start_from_mean(model: PreTrainedModel, flags: argparse.Namespace) -> BertForSequenceClassification | None:
    """The model, if it is to start from the mean.

    Raises:
        InputError: where it is asked of a model that cannot.
    """
    bert = model if isinstance(model, BertForSequenceClassification) else None
    if flags.start_from_mean and bert is None:
        raise InputError(f"--start-from-mean is for BERT; {flags.model} is a {model.config.model_type}. Leave it out.")
    return bert if flags.start_from_mean is not False else None


def _fingerprints(backbone: str, rows: Splits) -> dict[str, str]:
    return {
        "model": fingerprint_files(backbone),
        **{name: fingerprint_rows(map(str, each)) for name, each in rows._asdict().items()},
    }


def _save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, record: dict[str, Any], folder: Path, out: str
) -> None:
    """Raises: SaveError, if the disk does not take it."""
    try:
        save_model(model, folder, tokenizer)
        model_card(record).save(folder / "README.md")
        run_record.write(folder, record)
    except Exception as error:
        if is_disk_trouble(error):
            raise SaveError.of(out, error, "Nothing was left there. Free space, then train again.") from error
        raise


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
