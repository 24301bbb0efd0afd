"""``features.parquet``: a row a unit, a column a fact; those of a data set begin with its name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from monolora.eval.explain.page.explorer_data import module_parts
from monolora.eval.explain.records import DatasetFeatures, End, Explained

# The ends of signed units have other names than "strongest", which is the only end that there is without a sign.
_ENDS = ("strongest", "lowest")


def write_parquet(path: Path, explained: Explained) -> None:
    """Write the table, whole or not at all.

    Raises:
        OSError: if the disk does not take it.
    """
    aside = path.with_name(f".{path.name}.part")
    try:
        parquet.write_table(pa.table(dict(_columns(explained))), aside, compression="zstd")
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def _columns(explained: Explained) -> Iterator[tuple[str, Any]]:
    parts = {each.name: each for each in module_parts(dict.fromkeys(unit.module for unit in explained.units))}
    yield "unit", list(map(str, explained.units))
    yield "module", [unit.module for unit in explained.units]
    yield "index", [unit.unit for unit in explained.units]
    yield "layer", pa.array([parts[unit.module].layer for unit in explained.units], pa.int32())
    yield "kind", [parts[unit.module].kind for unit in explained.units]
    for dataset in explained.datasets:
        for name, values in _of_dataset(dataset, explained):
            yield f"{dataset.name}.{name}", values
    yield from _logits(explained)
    for place, measure in enumerate(explained.ablations.measures):
        changes = [explained.ablations.changes.get(unit) for unit in range(len(explained.units))]
        for field in ("value", "low", "high"):
            values = [None if each is None else each[place]._asdict()[field] for each in changes]
            yield f"ablation.{measure.id}" + ("" if field == "value" else f".{field}"), pa.array(values, pa.float64())
    for each in explained.contrasts:
        for name in ("auc", "p", "q"):
            yield f"contrast.{each.a}~{each.b}.{name}", vars(each)[name]


def _of_dataset(dataset: DatasetFeatures, explained: Explained) -> Iterator[tuple[str, Any]]:
    yield "firing_rate", dataset.firing
    for name in ("mean", "std", "max", "min", "effect", "consistency", "information", "information_q"):
        yield name, vars(dataset)[name]
    for name, end in zip(_ENDS, dataset.ends, strict=False):
        yield f"{name}_consistency", end.consistency
        yield f"{name}_label", pa.array(end.label, pa.string())
        yield f"{name}_tokens", [[token._asdict() for token in tokens] for tokens in end.tokens]
        yield f"{name}_contexts", _contexts(end)
    yield (
        "partners",
        [
            [{"unit": str(explained.units[each.unit]), "correlation": each.correlation} for each in partners]
            for partners in dataset.partners
        ],
    )


def _contexts(end: End) -> Any:
    kind = pa.list_(
        pa.struct(
            {
                "text": pa.int64(),
                "label": pa.string(),
                "value": pa.float32(),
                "peak": pa.int32(),
                "tokens": pa.list_(pa.string()),
                "activations": pa.list_(pa.float32()),
                "cut_before": pa.bool_(),
                "cut_after": pa.bool_(),
            }
        )
    )
    return pa.array([[context._asdict() for context in contexts] for contexts in end.contexts], kind)


def _logits(explained: Explained) -> Iterator[tuple[str, Any]]:
    kind = pa.list_(pa.struct({"token": pa.string(), "logit": pa.float64()}))
    yield "logits.how", pa.array([None if each is None else each.how for each in explained.logits], pa.string())
    for side in ("raised", "lowered"):
        values = [
            None if each is None else [{"token": token, "logit": value} for token, value in each._asdict()[side]]
            for each in explained.logits
        ]
        yield f"logits.{side}", pa.array(values, kind)
