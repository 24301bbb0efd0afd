"""The HTML page of the report, and the data of its script: short keys, numbers rounded as shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from monolora.eval.measures.table import Column
from monolora.eval.report import charts, findings
from monolora.eval.report.lookups import ALPHA, MARK, View, unit
from monolora.eval.store import OK
from monolora.reporting.charts import Panel
from monolora.reporting.html import chart_style, flat, rendered, script_json
from monolora.reporting.numbers import NOTHING, format_number, format_p


def browser_data(view: View, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``models`` and ``judges`` by index, and a row an entry.

    A row has the set ``s``, the prompt ``p``, its categories ``c``, label ``l`` and weight ``w``, an answer ``a`` a
    model and, for each model, a judgement ``j`` a judge; null where there is none.
    """
    judges = view.results["judges"]
    return {
        "models": view.models,
        "judges": [
            {"name": judge["name"], "refusal": judge["kind"] == "refusal", "scores": list(judge["scores"])}
            | {"unsafe": [name in judge["unsafe"] for name in judge["scores"]]}
            for judge in judges
        ],
        "rows": [_row(view.models, judges, entry) for entry in entries],
    }


def _row(models: Sequence[str], judges: Sequence[Mapping[str, Any]], entry: Mapping[str, Any]) -> dict[str, Any]:
    answers, judgements = entry["answers"], entry["judgements"]
    return {
        "s": entry["set"],
        "p": entry["prompt"],
        "c": list(entry["categories"]),
        "l": entry["label"],
        "w": entry["weight"],
        "a": [_answer(answers.get(model)) for model in models],
        "j": [
            [_judgement(judge, judgements.get(model, {}).get(judge["name"])) for judge in judges] for model in models
        ],
    }


def _answer(answer: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Text ``t``, tokens ``n``; ``x`` is why it is invalid, ``cut`` and ``limit`` are 1 or absent."""
    if answer is None:
        return None
    marks = {"cut": answer["cut"], "limit": answer["finish"] == "length"}
    entry = {"t": answer["text"], "n": answer["tokens"], **{mark: 1 for mark, is_set in marks.items() if is_set}}
    return entry if answer["status"] == OK else entry | {"x": answer["reason"] or "invalid"}


def _judgement(judge: Mapping[str, Any], judgement: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Flag ``f`` and scores ``v`` in the judge's order; or ``x``, why it is invalid."""
    if judgement is None:
        return None
    if judgement["status"] != OK:
        return {"x": judgement["reason"] or "invalid"}
    scores = judgement["scores"]
    return {"f": int(judgement["flagged"]), "v": [round(scores[name], 4) for name in judge["scores"]]}


_FOLDER = Path(__file__).parent
_READINGS = {"better": "better", "worse": "worse", "other": "differs", "": "none found"}


class Cell(NamedTuple):
    """A cell of a table of scores: value, interval, mark, and ``better``, ``worse``, ``other`` or nothing."""

    value: str
    interval: str
    mark: str
    reading: str


class Scores(NamedTuple):
    """A table of scores.

    Attributes:
        title: above it.
        groups: name and number of columns of each.
        columns: title and unit of each.
        rows: model, its colour, its cells.
    """

    title: str
    groups: list[tuple[str, int]]
    columns: list[tuple[str, str]]
    rows: list[tuple[str, str, list[Cell]]]


class Difference(NamedTuple):
    """A row of the table of differences as shown; ``reading`` is in words, ``style`` its CSS class or empty."""

    column: str
    change: str
    interval: str
    p: str
    p_holm: str
    gained: str
    lost: str
    n: str
    reading: str
    style: str


class Shares(NamedTuple):
    """Bars of one judge on one set."""

    title: str
    panels: list[Panel]


def page(results: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> str:
    """The whole page.

    Args:
        results: the content of ``results.json``.
        entries: prompts with the models' answers and their judgements.
    """
    view = View(results)
    return rendered(
        _FOLDER,
        "page.html.j2",
        title=results["title"],
        message=findings.message(view),
        style=chart_style() + (_FOLDER / "page.css").read_text(encoding="utf-8"),
        script=(_FOLDER / "page.js").read_text(encoding="utf-8"),
        results=results,
        view=view,
        alpha=ALPHA,
        mark=MARK,
        findings=findings.findings(view),
        scores=_scores(view, "Scores", view.headline),
        others=_scores(view, "What else was measured", view.others),
        against_base={pair: rows for pair, rows in _differences(view).items() if pair[1] == view.base},
        between={pair: rows for pair, rows in _differences(view).items() if pair[1] != view.base},
        groups=charts.groups(view),
        categories=_shares(view, results["categories"], "category"),
        labels=_shares(view, results["labels"], "label"),
        curves=charts.along_training(view),
        agreement=[{**row, "shown": format_number(row["kappa"], 2)} for row in results["agreement"]],
        reasons=sorted(results["invalid"], key=lambda row: -row["count"]),
        colours={model: charts.colour(view, model) for model in view.models},
        made=[(name, list(flat(value))) for name, value in results["run"].items()],
        data=script_json(browser_data(view, entries)),
        prompts=len(entries),
    )


def _scores(view: View, title: str, columns: Sequence[Column]) -> Scores:
    return Scores(
        title,
        [(group, len(list(members))) for group, members in groupby(columns, key=lambda column: column.group)],
        [(column.title, column.unit) for column in columns],
        [
            (model, charts.colour(view, model), [_cell(view, model, column.id) for column in columns])
            for model in view.models
        ],
    )


def _cell(view: View, model: str, column: str) -> Cell:
    reading = view.reading(view.difference(model, column))
    mark = MARK if view.marked(model, column) else ""
    return Cell(view.value(model, column), view.interval(model, column), mark, reading)


def _differences(view: View) -> dict[tuple[str, str], list[Difference]]:
    """The rows of differences, by pair of models."""
    return {
        (model, against): [_difference(view, row) for row in rows]
        for (model, against), rows in _grouped(view.results["differences"], "model", "against").items()
    }


def _difference(view: View, row: Mapping[str, Any]) -> Difference:
    column = view.column(row["column"])
    reading = view.reading(row)
    gained, lost, n = (NOTHING if row[key] is None else str(row[key]) for key in ("gained", "lost", "n"))
    return Difference(
        column=view.full_title(column),
        change=f"{view.change(row)} {unit(column)}".rstrip(),
        interval=view.change_interval(row) or NOTHING,
        p=format_p(row["p"]),
        p_holm=format_p(row["p_holm"]),
        gained=gained,
        lost=lost,
        n=n,
        reading="not tested" if row["p_holm"] is None else _READINGS[reading],
        style=reading,
    )


def _shares(view: View, rows: Sequence[Mapping[str, Any]], key: str) -> list[Shares]:
    return [
        Shares(f"{judge} on {name}", charts.share_panels(view, own, key))
        for (judge, name), own in _grouped(rows, "judge", "set").items()
    ]


def _grouped(rows: Sequence[Mapping[str, Any]], *keys: str) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups
