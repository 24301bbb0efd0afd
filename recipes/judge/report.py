"""What a trained judge leaves for people: the table, and the card that says what it is worth and what not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from rich.table import Table

from monolora.beaverdam import THRESHOLD

LICENCE = "cc-by-nc-4.0"
FEW = 20  # with fewer rows of a label, what is said of it is hardly a measurement
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


def table(results: Mapping[str, Any]) -> Table:
    """The verdict's numbers and every label's, for the terminal."""
    shown = Table(title=_verdict(results), title_justify="left")
    shown.add_column("label")
    for column in _CATEGORY_COLUMNS:
        shown.add_column(column, justify="right")
    for label, cells in _category_cells(results):
        shown.add_row(label, *cells)
    return shown


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
