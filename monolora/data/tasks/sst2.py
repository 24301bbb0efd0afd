"""SST-2 (Socher et al. 2013): is a sentence of a film review positive or negative?

Scored on the 872 validation rows (GLUE's test labels are hidden). Prompt: that of the public code closest to the
paper's setting.
"""

from __future__ import annotations

from random import Random

from monolora.data.datasets import load_dataset
from monolora.data.example import Example
from monolora.data.scoring import Classification
from monolora.data.task import Task

DATASET = "stanfordnlp/sst2"
LABELS = ("negative", "positive")
INSTRUCTION = "Analyze the sentiment of the input, and respond only positive or negative"


def load() -> Task:
    """All 67,349 training rows in a fixed random order, and the 872 validation rows in theirs."""
    splits = load_dataset(DATASET)
    train = [_example(row) for row in splits["train"]]
    Random(0).shuffle(train)
    return Task(
        name="sst2",
        train=train,
        test=[_example(row) for row in splits["validation"]],
        scorer=Classification(LABELS),
        max_new_tokens=5,
        train_samples=5000,
        test_samples=872,
    )


def _example(row: dict) -> Example:
    return Example(INSTRUCTION, LABELS[row["label"]], context=row["sentence"].strip())
