"""``features.parquet``: one row a unit; columns of a data set begin with its name.

    units = pd.read_parquet("features.parquet")
    units["sst2.histogram"]  # tokens by bin; the bins' edges, the same for all units, are in sst2.histogram_edges
    about = units.attrs["monolora"]  # facts about all units together
    about["datasets"]["sst2"]["chance"], about["measures"]["sst2.accuracy"]["adapted"]

Without pandas, ``about`` is the JSON in the schema's metadata under ``PANDAS_ATTRS``. It has ``adapter``, ``method``,
``model`` and how it was ``made``; by name, ``datasets`` (texts, tokens, labels, the number of ``strongest`` texts and
their consistency by ``chance``), ``measures`` of the ablations (prompts, the ``adapted`` model's score, and the change
with ``everything`` taken out together), ``contrasts`` (number of texts) and the ``scores``. Unknown values are null.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from monolora.eval.explain.dashboards import FOLDER as DASHBOARDS
from monolora.eval.explain.explorer import explorer_page, module_parts
from monolora.eval.explain.records import Change, Contrast, DatasetFeatures, End, Explained, Score
from monolora.eval.explain.stability import ACTIVATIONS, save_samples
from monolora.eval.explain.text_sets import TextSet
from monolora.eval.explain.unit_reader import Sample
from monolora.files import saving, write_json, write_text
from monolora.runs import RUN, Kind, OutputFolder
from monolora.stats import Estimate

# Names of the ends; units without a sign have only the first.
_ENDS = ("strongest", "lowest")
_ATTRS = "PANDAS_ATTRS"  # where pandas looks for DataFrame.attrs


def write_parquet(path: Path, explained: Explained) -> None:
    """Write the table.

    Raises:
        OSError: if the disk does not take it.
    """
    about = json.loads(json.dumps(_about(explained)), parse_constant=lambda name: None)  # JSON has no NaN
    table = pa.table(dict(_columns(explained)), metadata={_ATTRS: json.dumps({"monolora": about})})
    parquet.write_table(table, path, compression="zstd")


def _facts(dataset: DatasetFeatures) -> dict[str, Any]:
    names = ("texts", "tokens", "labels", "unlabelled", "chance", "strongest", "note")
    return {name: vars(dataset)[name] for name in names}


def _about(explained: Explained) -> dict[str, Any]:
    """Facts about all units together."""
    ablations = explained.ablations
    together = itertools.zip_longest(ablations.measures, ablations.everything)
    return {
        "adapter": explained.adapter,
        "method": explained.method,
        "model": explained.model,
        "datasets": {dataset.name: _facts(dataset) for dataset in explained.datasets},
        "measures": {
            measure.id: {**measure._asdict(), "everything": None if change is None else change._asdict()}
            for measure, change in together
        },
        "contrasts": {
            _name(pair): {"a": pair.a, "b": pair.b, "texts_a": pair.texts_a, "texts_b": pair.texts_b}
            for pair in explained.contrasts
        },
        "scores": score_records(explained.scores),
        "made": dict(explained.origin),
    }


def score_records(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """As JSON: estimates with ``mean``, ``low``, ``high`` and ``p``."""
    return [
        {
            key: {name: getattr(value, name) for name in ("mean", "low", "high", "p")}
            if isinstance(value, Estimate)
            else value
            for key, value in score._asdict().items()
        }
        for score in scores
    ]


def _name(contrast: Contrast) -> str:
    return f"{contrast.a}~{contrast.b}"


def _columns(explained: Explained) -> Iterator[tuple[str, Any]]:
    parts = {parts.name: parts for parts in module_parts(dict.fromkeys(unit.module for unit in explained.units))}
    yield "unit", list(map(str, explained.units))
    yield "module", [unit.module for unit in explained.units]
    yield "index", [unit.unit for unit in explained.units]
    yield "layer", pa.array([parts[unit.module].layer for unit in explained.units], pa.int32())
    yield "kind", [parts[unit.module].kind for unit in explained.units]
    for dataset in explained.datasets:
        for name, values in _of_dataset(dataset, explained):
            yield f"{dataset.name}.{name}", values
    yield from _logits(explained)
    for index, measure in enumerate(explained.ablations.measures):
        changes = [explained.ablations.changes.get(unit) for unit in range(len(explained.units))]
        for field in Change._fields:
            values = [None if of_unit is None else of_unit[index]._asdict()[field] for of_unit in changes]
            yield f"ablation.{measure.id}" + ("" if field == "value" else f".{field}"), pa.array(values, pa.float64())
    for contrast in explained.contrasts:
        for name in ("auc", "p", "q", "firing_a", "firing_b"):
            yield f"contrast.{_name(contrast)}.{name}", vars(contrast)[name]


def _of_dataset(dataset: DatasetFeatures, explained: Explained) -> Iterator[tuple[str, Any]]:
    yield "firing_rate", dataset.firing
    for name in ("mean", "std", "max", "min", "effect", "consistency", "information", "information_q"):
        yield name, vars(dataset)[name]
    if dataset.probe is not None:
        yield "probe", dataset.probe
        yield "probe_label", dataset.probe_label
    if dataset.faithfulness is not None:
        yield "faithfulness", dataset.faithfulness
    yield "histogram", list(dataset.histogram_UE)
    yield "histogram_edges", [dataset.edges] * len(explained.units)
    for name, end in zip(_ENDS, dataset.ends, strict=False):
        yield f"{name}_consistency", end.consistency
        yield f"{name}_label", pa.array(end.label, pa.string())
        yield f"{name}_tokens", [[token._asdict() for token in tokens] for tokens in end.tokens]
        yield f"{name}_contexts", _contexts(end)
    yield (
        "partners",
        [
            [{"unit": str(explained.units[partner.unit]), "correlation": partner.correlation} for partner in partners]
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
    yield "logits.how", pa.array([None if logits is None else logits.how for logits in explained.logits], pa.string())
    for side in ("raised", "lowered"):
        values = [
            None if logits is None else [{"token": token, "logit": value} for token, value in logits._asdict()[side]]
            for logits in explained.logits
        ]
        yield f"logits.{side}", pa.array(values, kind)


FEATURES, PAGE = "features.parquet", "explorer.html"
LOGS = "logs"  # output of model judges, if any


KIND = Kind(
    name="explanation",
    record=RUN,
    keys=("made.adapter_fingerprint", "made.settings", "datasets"),
    files=(
        re.escape(FEATURES),
        re.escape(PAGE),
        re.escape(ACTIVATIONS),
        rf"{LOGS}/([^/]+\.log)?",
        rf"{DASHBOARDS}/([^/]+/(batch-0\.json)?)?",
    ),
)


@contextmanager
def whole_explanation(out: OutputFolder) -> Iterator[Path]:
    """A folder to write into, which becomes ``out`` at the end.

    Raises:
        SaveError: if the disk does not take it.
    """
    with saving(out.path, "Free space or give another folder with --out, and run it again."), out.whole() as folder:
        yield folder


def write(folder: Path, explained: Explained, text_sets: Mapping[str, TextSet], samples: Mapping[str, Sample]) -> None:
    """Write the three files, and a fourth if there are samples of activations."""
    if samples:
        save_samples(folder / ACTIVATIONS, samples, explained.is_signed)
    write_parquet(folder / FEATURES, explained)
    write_text(folder / PAGE, explorer_page(explained))
    write_json(folder / RUN, record(explained, list(text_sets.values())))


def record(explained: Explained, text_sets: Sequence[TextSet]) -> dict[str, Any]:
    """The content of ``run.json``."""
    ablations = explained.ablations
    return {
        "adapter": explained.adapter,
        "method": explained.method,
        "model": explained.model,
        "units": len(explained.units),
        "datasets": [
            {"name": features.name, "fingerprint": text_set.fingerprint(), **_facts(features)}
            for features, text_set in zip(explained.datasets, text_sets, strict=True)
        ],
        "ablations": {
            "measures": [measure._asdict() for measure in ablations.measures],
            "units": {
                str(explained.units[index]): [change._asdict() for change in changes]
                for index, changes in ablations.changes.items()
            },
            "everything": [change._asdict() for change in ablations.everything],
        },
        "scores": score_records(explained.scores),
        "made": dict(explained.origin),
    }
