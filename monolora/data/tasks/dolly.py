"""databricks-dolly-15k (Conover et al. 2023): instructions and answers written by people.

The data set has one split. A fixed shuffle holds out the last 1,000 rows for scoring; the paper does not say which
rows it used, so numbers are not comparable with its own.
"""

from __future__ import annotations

from random import Random

from monolora.data.datasets import load_dataset
from monolora.data.example import Example
from monolora.data.scoring import FreeText
from monolora.data.task import Task

DATASET = "databricks/databricks-dolly-15k"
HELD_OUT = 1000


def load() -> Task:
    """14,011 training and 1,000 held-out examples."""
    rows = [
        Example(row["instruction"], row["response"], context=row["context"], origin=f"{DATASET}, row {number}")
        for number, row in enumerate(load_dataset(DATASET)["train"], start=1)
    ]
    Random(0).shuffle(rows)
    return Task(name="dolly", train=rows[:-HELD_OUT], test=rows[-HELD_OUT:], scorer=FreeText(), max_new_tokens=256)
