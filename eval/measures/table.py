"""The tidy table of an evaluation: its rows are models, its columns measures, value by value.

Tables, figures, claims and the report select columns by the fields of :class:`Column`, never by the spelling of an id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monolora.data.prompt_sets import Prompt

Test = Literal["mcnemar", "bootstrap"]
MCNEMAR: Test = "mcnemar"
BOOTSTRAP: Test = "bootstrap"
PERCENT = "%"

Aspect = Literal["harm", "sparsity", "task", "refusal", "drift", "text", "cost"]
Shown = Literal["steps", "study", "figure", "curves"]


class Model(NamedTuple):
    """A row of the table.

    Attributes:
        name: distinct within a run.
        kind: ``base``, ``adapter`` (on the base) or ``model`` (whole, finetuned elsewhere).
        path: as the user gave it.
        step: of training, for checkpoints along one run, else None.
        notes: for readers of its row.
    """

    name: str
    kind: str
    path: str | None = None
    step: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Column:
    """The head of a column.

    Attributes:
        metric: as ``flagged`` or ``accuracy``; distinct within one judge and set.
        set: name of the prompt set.
        judge: name of the judge whose verdicts it is made of; empty for none.
        aspect: the topic of the metric, whatever judge and set.
        title: for people.
        group: heading above the title; may be empty.
        description: of a value, for a glossary.
        unit: of value, interval and differences: ``%``, ``tokens`` or nothing.
        better: ``lower``, ``higher``, or None where neither is.
        test: of two models' difference: ``mcnemar`` for flags, ``bootstrap`` for means, or None.
        headline: whether it is one of the columns of the paper's table 2. Those are shown in ``steps`` and ``study``.
        of_base: whether the base has a value of its own; a drift from it has none.
        shown_in: where else than in the table: along checkpoints (``steps``), in a study's table beside the headline
            columns (``study``), in its figure of means (``figure``) and in that of checkpoints (``curves``).
        id: distinct within the table, as files name it; ``SET/JUDGE/METRIC`` by default.
    """

    metric: str
    set: str
    judge: str = ""
    aspect: Aspect
    title: str
    group: str
    description: str
    unit: str = PERCENT
    better: Literal["lower", "higher"] | None = None
    test: Test | None = None
    headline: bool = False
    of_base: bool = True
    shown_in: tuple[Shown, ...] = ("study",)
    id: str = ""

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", "/".join(filter(None, (self.set, self.judge, self.metric))))

    @property
    def is_flag(self) -> bool:
        """Whether its values are flags, 0 or 100."""
        return self.test == MCNEMAR

    def stored(self) -> dict[str, Any]:
        """The entry of ``results.json``."""
        return asdict(self) | {"shown_in": list(self.shown_in)}

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Column:
        """The inverse of :meth:`stored`."""
        return cls(**{**stored, "shown_in": tuple(stored["shown_in"])})


class PromptValues(NamedTuple):
    """A column of means over prompts.

    Attributes:
        column: its head.
        prompts: of the mean.
        values_MP: in the column's unit, flags as 0 and 100; NaN if invalid. Shape ``(models, prompts)``.
    """

    column: Column
    prompts: Sequence[Prompt]
    values_MP: NDArray[np.float64]


Cell = dict[str, Any]
"""``value``, ``low``, ``high`` (None where unknown), ``n`` and ``invalid``; sparsity's has ``units`` and ``dead_units``
too."""


class SetValues(NamedTuple):
    """A column of one number a model, which is no mean over prompts: cells by model, None where nothing is measured."""

    column: Column
    cells: Mapping[str, Cell | None]


def cell(value: float | None, n: int, invalid: int, low: float | None = None, high: float | None = None) -> Cell:
    """A cell; ``n`` and ``invalid`` are rows of the set, a prompt counted as often as it has the prompt."""
    return {"value": value, "low": low, "high": high, "n": n, "invalid": invalid}


KEYS = ("column", "model", "set", "judge", "metric")


class Matrix(NamedTuple):
    """A column of means over prompts.

    Attributes:
        column: its head.
        prompts: keys of the prompts.
        weights_P: number of rows of the set that each stands for.
        values_MP: shape ``(models, prompts)``.
    """

    column: Column
    prompts: tuple[str, ...]
    weights_P: NDArray[np.float64]
    values_MP: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Table:
    """All results of an evaluation.

    Attributes:
        models: in the order of the rows of each column.
        columns: in their order.
        values: one row a column, model and prompt: ``column`` (its id), ``model``, ``set``, ``judge``, ``metric``,
            ``prompt`` (its key; empty for a number of the whole set), ``weight`` (rows of the set that it stands for)
            and ``value`` (in the column's unit, flags as 0 and 100; NaN for what is invalid).
        cells: of the columns that are no means over prompts, by column id and model; None where nothing is measured.
    """

    models: Sequence[Model]
    columns: Sequence[Column]
    values: pd.DataFrame
    cells: Mapping[str, Mapping[str, Cell | None]]

    def matrices(self) -> list[Matrix]:
        """The columns that are means over prompts."""
        rows = {str(name): own for name, own in self.values.groupby("column", observed=True, sort=False)}
        count, matrices = len(self.models), []
        for column in self.columns:
            if column.id not in self.cells:
                own = rows[column.id]
                n = len(own) // count  # the rows of a column are ordered by model
                values_MP = own["value"].to_numpy(np.float64).reshape(count, n)
                weights_P = own["weight"].to_numpy(np.float64)[:n]
                matrices.append(Matrix(column, tuple(own["prompt"][:n]), weights_P, values_MP))
        return matrices


def tidy(models: Sequence[Model], columns: Sequence[PromptValues | SetValues]) -> Table:
    """The table of columns."""
    blocks = [_block(models, values) for values in columns]
    frame = (
        pd.concat(blocks, ignore_index=True) if blocks else pd.DataFrame(columns=[*KEYS, "prompt", "weight", "value"])
    )
    return Table(
        models=models,
        columns=[values.column for values in columns],
        values=frame.astype(dict.fromkeys(KEYS, "category")),
        cells={values.column.id: values.cells for values in columns if isinstance(values, SetValues)},
    )


def _block(models: Sequence[Model], values: PromptValues | SetValues) -> pd.DataFrame:
    if isinstance(values, PromptValues):
        keys, weights_P, values_MP = (
            [prompt.key for prompt in values.prompts],
            np.array([prompt.weight for prompt in values.prompts], np.float64),
            values.values_MP,
        )
    else:
        keys, weights_P, values_MP = [""], np.ones(1), _numbers(models, values.cells)
    column = values.column
    return pd.DataFrame(
        {
            "column": column.id,
            "model": np.repeat([model.name for model in models], len(keys)),
            "set": column.set,
            "judge": column.judge,
            "metric": column.metric,
            "prompt": np.tile(keys, len(models)),
            "weight": np.tile(weights_P, len(models)),
            "value": values_MP.ravel(),
        }
    )


def _numbers(models: Sequence[Model], cells: Mapping[str, Cell | None]) -> NDArray[np.float64]:
    values = [None if (cell := cells.get(model.name)) is None else cell["value"] for model in models]
    return np.array([np.nan if value is None else value for value in values], np.float64)[:, None]
