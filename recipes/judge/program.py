"""``monolora judge``: train a small safety judge in beaver-dam's labels and text format, and measure it.

    monolora judge --output-dir runs/judge
    monolora judge --model smollm2-135m-instruct --learning-rate 5e-5 --epochs 2 --output-dir runs/judge-smollm2

beaver-dam-7b is gated by its size: it does not run on every machine. This trains any Hugging Face backbone on the same
data, BeaverTails, as a classifier of the same form, which ``monolora eval run --judges classifier:OUT`` then uses. It
never sees the prompts that the alignment suite asks: those are what it is tested on.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from monolora import run_record
from monolora.atomic import saving, write_json
from monolora.cli.flags import FlagParser
from monolora.errors import InputError, exit_status
from monolora.hub import local_path, resolve_model
from monolora.model_files import save_model
from monolora.provenance import fingerprint_files, fingerprint_rows, provenance
from monolora.recipes.judge import data as judge_data
from monolora.recipes.judge.data import Splits
from monolora.recipes.judge.model import (
    Example,
    encode_rows,
    load_backbone,
    load_tokenizer,
    longest,
    probabilities,
    start_from_mean,
)
from monolora.recipes.judge.report import model_card, table
from monolora.recipes.judge.training import measure, train
from monolora.recipes.settings import Judge
from monolora.remote_code import code_trusted
from monolora.runs import MODEL_FILES, Kind, claim
from monolora.terminal import Terminal

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # no warning when a data loader forks

KIND = Kind(name="judge", keys=("config.train_splits", "results.test", "results.epoch"), files=MODEL_FILES)


def main(argv: list[str]) -> int:
    """Run from the command line; returns the exit status."""
    return run(FlagParser("monolora judge", __doc__).parse_into(argv, Judge))


def run(settings: Judge) -> int:
    """Train, measure and save; returns the exit status."""
    out = Path(settings.output_dir)
    with claim(out, KIND, "--output-dir") as folder:
        folder.check(settings.overwrite)
        folder.check_apart(filter(None, map(local_path, (settings.model, settings.dataset))))
        with folder.whole() as aside, code_trusted(settings.trust_remote_code):
            record = train_judge(settings, aside)
    console = Terminal()
    console.print(table(record["results"]["test"]))
    console.print(f"Saved to {out} after {record['results']['seconds']['total']:.0f} s.")
    return 0


def train_judge(settings: Judge, folder: Path) -> dict[str, Any]:
    """Train a judge and write it into the empty ``folder``; returns what ``run.json`` holds.

    Raises:
        InputError: for a model or data that cannot be used.
        RunError: if training diverged.
        SaveError: if the disk does not take the judge.
    """
    started = time.monotonic()
    rows, train_splits = judge_data.load(
        settings.dataset, settings.train_splits, settings.test_split, settings.validation_share, settings.seed
    )
    backbone = resolve_model(settings.model)
    set_seed(settings.seed)  # of the head, which is drawn
    model = load_backbone(backbone)
    tokenizer = load_tokenizer(backbone, model)
    settings = replace(  # as the record has them
        settings,
        train_splits=tuple(train_splits),
        max_length=longest(model, settings.max_length),
        bf16=_has_bfloat16() if settings.bf16 is None else settings.bf16,
    )
    if (bert := _to_start_from_mean(model, settings)) is not None:
        start_from_mean(bert)
    encoded = {name: encode_rows(part, tokenizer, settings.max_length) for name, part in rows._asdict().items()}
    examples = {name: part for name, (part, _) in encoded.items()}
    for name, (part, too_long) in encoded.items():
        if settings.validation_share or name != "validation":
            judge_data.check_both_kinds(name, (example.row.unsafe for example in part), too_long)
    print(", ".join(f"{name}: {len(part)} rows" for name, part in examples.items()), file=sys.stderr)
    trained = train(model, tokenizer, examples["train"], examples["validation"], settings, folder)
    seconds = {"train": time.monotonic() - started}
    agreement = measured(model, tokenizer, examples["test"], settings.batch_size)
    seconds["total"] = time.monotonic() - started
    record = {
        "status": "done",
        "config": asdict(settings),
        "seeds": {"seed": settings.seed},
        **provenance(),
        "fingerprints": _fingerprints(backbone, rows),
        "rows": {name: len(part) for name, part in examples.items()}
        | {"too_long": sum(left_out for _, left_out in encoded.values())},
        "results": {
            "test": agreement,
            "epoch": trained.epoch,
            "validation_auc": trained.validation_auc,
            "parameters": model.num_parameters(),
            "seconds": seconds,
        },
        "history": trained.history,
    }
    _save(model, tokenizer, record, folder, settings.output_dir)
    return record


def measured(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], batch_size: int
) -> dict[str, Any]:
    """What the judge is worth on rows with prompts that it never saw."""
    rows = [example.row for example in examples]
    return measure(
        probabilities(model, tokenizer, examples, batch_size),
        np.array([row.labels for row in rows]),
        np.array([row.unsafe for row in rows]),
        [judge_data.prompt_key(row.prompt) for row in rows],
    )


def _has_bfloat16() -> bool:
    return torch.cuda.is_bf16_supported() if torch.cuda.is_available() else torch.cpu._is_avx512_bf16_supported()


def _to_start_from_mean(model: PreTrainedModel, settings: Judge) -> BertForSequenceClassification | None:
    """The model, if it is to start from the mean.

    Raises:
        InputError: where it is asked of a model that cannot.
    """
    bert = model if isinstance(model, BertForSequenceClassification) else None
    if settings.start_from_mean and bert is None:
        raise InputError(
            f"--start-from-mean is for BERT; {settings.model} is a {model.config.model_type}. Leave it out."
        )
    return bert if settings.start_from_mean is not False else None


def _fingerprints(backbone: str, rows: Splits) -> dict[str, str]:
    return {
        "model": fingerprint_files(backbone),
        **{name: fingerprint_rows(map(str, part)) for name, part in rows._asdict().items()},
    }


def _save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, record: dict[str, Any], folder: Path, out: str
) -> None:
    """Raises: SaveError, if the disk does not take it."""
    with saving(out, "Nothing was left there. Free space, then train again."):
        save_model(model, folder, tokenizer)
        model_card(record).save(folder / "README.md")
        write_json(folder / run_record.FILE, record)


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
