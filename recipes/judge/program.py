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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelCardData
from rich.table import Table
from transformers import BertForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from monolora import run_record
from monolora.beaverdam import THRESHOLD
from monolora.cli.flags import FlagParser
from monolora.errors import InputError, exit_status
from monolora.files import code_trusted, saving, write_json
from monolora.hub import local_path, resolve_model
from monolora.model_files import save_model
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
from monolora.recipes.judge.training import measure, train
from monolora.recipes.settings import Judge
from monolora.run_record import fingerprint_files, fingerprint_rows, provenance
from monolora.runs import MODEL_FILES, Kind, claim
from monolora.terminal import Terminal, suggest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # no warning when a data loader forks

KIND = Kind(name="judge", keys=("config.train_splits", "results.test", "results.epoch"), files=MODEL_FILES)

LICENCE = "cc-by-nc-4.0"
FEW = 20  # rows of a label below which its numbers are hardly a measurement
_CATEGORY_COLUMNS = ("rows", "flagged", "AUC", "precision", "recall")

_USE = """```python
import torch
from monolora.beaverdam import encode
from transformers import AutoModelForSequenceClassification, AutoTokenizer

judge = AutoModelForSequenceClassification.from_pretrained("THIS").eval()
tokenizer = AutoTokenizer.from_pretrained("THIS")
ids = encode(tokenizer, "How are you?", "Fine, thank you.", {max_length}).token_ids
probabilities = torch.sigmoid(judge(torch.tensor([ids])).logits[0])  # one a label, in judge.config.id2label
print("unsafe" if probabilities.max() > {threshold} else "safe")
```"""

_LIMITS = """- It is small, and it learned from few answers. It is for comparing models in experiments, with the AUC
  above in mind, and not for moderation: it must not decide what people may read or write.
- It knows English questions of one kind (asked to provoke), and the answers of one model. Over-refusal, other
  languages and other domains are not measured. It also flags harmless answers to harmful questions; see the precision.
- Labels with few rows above are hardly learned and hardly measured.
- "Safe" and "unsafe" are the data set's notions."""


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
    suggest("monolora", "eval", "run", "--judges", f"classifier:{out}", "--model", "BASE", "--adapter", "tuned=RUN")
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
    """The judge's agreement with people on rows whose prompts it never saw."""
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
    """The model, if it starts from the mean.

    Raises:
        InputError: if that is requested of another model than BERT.
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


def table(results: Mapping[str, Any]) -> Table:
    """The numbers of the verdict and of each label, for the terminal."""
    summary = Table(title=_verdict(results), title_justify="left")
    summary.add_column("label")
    for column in _CATEGORY_COLUMNS:
        summary.add_column(column, justify="right")
    for label, cells in _category_cells(results):
        summary.add_row(label, *cells)
    return summary


def _verdict(results: Mapping[str, Any]) -> str:
    """One line about safe or unsafe."""
    return (
        f"is_safe AUC {results['auc']:.3f} (95 % interval {results['auc_low']:.3f} to {results['auc_high']:.3f}), "
        f"accuracy {results['accuracy']:.1%}, on {results['rows']} held-out rows"
    )


def _category_cells(results: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    for label, agreement in results["categories"].items():
        numbers = (_number(agreement[column.lower()]) for column in _CATEGORY_COLUMNS[2:])
        yield label, [str(agreement["rows"]), str(agreement["flagged"]), *numbers]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def model_card(record: Mapping[str, Any]) -> ModelCard:
    """The card of a judge, from its record."""
    config, rows, results = record["config"], record["rows"], record["results"]["test"]
    data = ModelCardData(
        base_model=config["model"],
        datasets=[config["dataset"]],
        language="en",
        library_name="transformers",
        license=LICENCE,
        pipeline_tag="text-classification",
        tags=["safety", "judge", "multi-label"],
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# A safety judge: {config['model']} trained on {config['dataset']}",
        "It reads a question and an answer in the text format of beaver-dam-7b and gives its 14 probabilities. An "
        f"answer is flagged if the largest is above {THRESHOLD}; one minus the largest is the score of is_safe.",
        "## How good it is",
        f"On {results['rows']} answers to {results['prompts']} prompts of which it saw none in training "
        f"({results['unsafe'] / results['rows']:.1%} unsafe by people's verdict):",
        _verdict_table(results),
        _category_table(results),
        f"A label with fewer than {FEW} rows is hardly measured. Rows are by people's labels; flagged, precision and "
        f"recall at {THRESHOLD}.",
        "## Data",
        f"{config['dataset']}: trained on {rows['train']} rows, {_validation(rows, record['results'])}, tested on "
        f"{rows['test']}; no prompt is in two of the three. Left out because the prompt alone is longer than "
        f"{config['max_length']} tokens: {rows['too_long']}. Tested on the prompts of the first rows of "
        f"{config['test_split']}; trained on the others of {', '.join(config['train_splits'])}.",
        "BeaverTails is licensed CC BY-NC 4.0: not for commercial use, and neither is what is trained on it.",
        "## Limits",
        _LIMITS,
        "## Use",
        _USE.format(max_length=config["max_length"], threshold=THRESHOLD),
        "In an evaluation: `monolora eval run … --judges classifier:THIS`. Every setting, seed and version is in "
        "`run.json`.",
    ]
    return ModelCard("\n\n".join(parts))


def _verdict_table(results: Mapping[str, Any]) -> str:
    lines = [
        "| is_safe | |",
        "|---|---|",
        f"| AUC | {results['auc']:.3f} |",
        f"| 95 % interval (bootstrap over prompts) | {results['auc_low']:.3f} to {results['auc_high']:.3f} |",
        f"| accuracy at {THRESHOLD} | {results['accuracy']:.1%} |",
        f"| accuracy of always saying the same | {results['majority']:.1%} |",
        f"| precision of the flags | {_number(results['precision'])} |",
        f"| recall of the flags | {_number(results['recall'])} |",
    ]
    return "\n".join(lines)


def _category_table(results: Mapping[str, Any]) -> str:
    lines = [f"| label | {' | '.join(_CATEGORY_COLUMNS)} |", "|---" + "|---:" * len(_CATEGORY_COLUMNS) + "|"]
    lines += [f"| {label} | {' | '.join(cells)} |" for label, cells in _category_cells(results)]
    return "\n".join(lines)


def _validation(rows: Mapping[str, int], results: Mapping[str, Any]) -> str:
    if not rows["validation"]:
        return "its last epoch kept"
    return f"epoch {results['epoch']} chosen on {rows['validation']} (AUC {results['validation_auc']:.3f})"


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
