"""The report of a study as a page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from monolora.recipes.study import findings, tables
from monolora.recipes.study.claims import Verdict
from monolora.recipes.study.findings import asked_by, unlike_the_papers
from monolora.recipes.study.plan import SelectedRate
from monolora.recipes.study.plots import Along, along_training, figure_name, in_figure, keepers
from monolora.recipes.study.results import BASE, Values, definitions
from monolora.recipes.study.settings import Study
from monolora.reporting.charts import Curves, Line, Measured, Panel, Point, axis_of, curves, panel
from monolora.reporting.html import chart_style, inline, rendered
from monolora.reporting.numbers import NOTHING, format_interval, format_number
from monolora.reporting.palette import colour_name
from monolora.reporting.tables import Grid

_FOLDER = Path(__file__).parent


class Part(NamedTuple):
    """One data set on the page.

    Attributes:
        name: of it.
        panels: means of each adapter, a chart a column.
        curves: along the training.
        kept: the figure of score against drift, as SVG; empty for none.
        tables: titles and tables that are always shown.
        details: titles and tables that are opened.
    """

    name: str
    panels: list[Panel]
    curves: list[Curves]
    kept: Markup
    tables: dict[str, Grid]
    details: dict[str, list[Grid]]


def page(
    study: Study,
    columns: Mapping[str, Sequence[Values]],
    rates: Mapping[str, Mapping[str, SelectedRate]],
    decided: Sequence[Verdict],
    about: Sequence[str],
) -> str:
    """The whole page.

    Args:
        study: a completed one, whose figures are drawn.
        columns: of each data set.
        rates: selected for each data set and adapter.
        decided: the verdicts.
        about: sentences on how it was made; links as Markdown has them.

    Raises:
        InputError: if a cell of the study is missing or damaged.
    """
    in_tables = {dataset: tables.headline(own) + tables.beside(own) for dataset, own in columns.items()}
    retained = "" if any(verdict.claim.is_the_papers for verdict in decided) else findings.retention(study, columns)
    return rendered(
        _FOLDER,
        "page.html.j2",
        title=findings.title(study),
        message=retained or findings.verdict_count(decided),
        lead=findings.verdict_count(decided) if retained else "",
        style=chart_style() + (_FOLDER / "page.css").read_text(encoding="utf-8"),
        inline=inline,
        rows=findings.rows(study),
        judges=findings.judges(study),
        colours={model: _colour(study, model) for model in (BASE, *study.adapters)},
        verdicts=asked_by(decided),
        parts=[_part(study, dataset, own, rates[dataset]) for dataset, own in columns.items()],
        definitions=definitions(study, in_tables),
        about=about,
    )


def _part(study: Study, dataset: str, columns: Sequence[Values], rates: Mapping[str, SelectedRate]) -> Part:
    folder = study.folder / "report"
    first, second = tables.headline(columns), tables.beside(columns)
    paper = tables.paper_table(dataset)
    compared = [tables.differences([*first, *second], pairs) for pairs in tables.pairs(study)]
    kept = folder / f"{figure_name('kept', dataset)}.svg"
    return Part(
        name=dataset,
        panels=[_panel(study, values) for values in in_figure(columns)],
        curves=[_curves(study, along) for along in along_training(study, dataset)],
        kept=_svg(kept) if keepers(study) and kept.is_file() else Markup(""),
        tables={
            "The columns of the paper’s table 2": tables.means_table(study, first),
            **({} if paper is None else {f"The paper’s rows{unlike_the_papers(study, dataset)}": paper}),
            "Beside them": tables.means_table(study, second),
        },
        details={
            "Differences, paired by seed and prompt; p-values here are not corrected": compared,
            "Learning rates, losses on held-out training examples, and the record of each run": [
                tables.rates_table(study, dataset, rates, folder),
                tables.runs_table(study, dataset, rates, folder),
            ],
        },
    )


def _svg(path: Path) -> Markup:
    """The element of a figure's file, without what stands before it."""
    text = path.read_text(encoding="utf-8")
    return Markup(text[text.index("<svg") :])


def _colour(study: Study, model: str) -> str:
    return colour_name(None if model == BASE else list(study.adapters).index(model))


def _panel(study: Study, values: Values) -> Panel:
    drawn = [
        _measured(study, values, model) for model in (BASE, *study.adapters) if model != BASE or values.column.of_base
    ]
    base = values.mean(BASE) if values.column.of_base else None
    prompts = len(values.weights_P)
    title = f"{tables.head(values)}{f', {prompts:,} prompts' if prompts > 1 else ''}"
    better = f"; {values.column.better} is better" if values.column.better else ""
    reference = None if base is None else base.mean
    return panel(f"{title}{better}", drawn, axis_of(drawn), reference, findings.compared(study, values))


def _measured(study: Study, values: Values, model: str) -> Measured:
    estimate = values.mean(model)
    if estimate is None:
        return Measured(model, _colour(study, model), None, None, None, NOTHING)
    text, interval = tables.shown(values, estimate)
    return Measured(model, _colour(study, model), estimate.mean, estimate.low, estimate.high, text, interval)


def _curves(study: Study, along: Along) -> Curves:
    lines = {adapter: Line(_colour(study, adapter), _points(rows), _last(rows)) for adapter, rows in along.rows.items()}
    column = along.column
    return curves(
        f"{column.title}, {column.unit}".rstrip(", "), {name: line for name, line in lines.items() if line.points}
    )


def _points(rows: Sequence[Mapping[str, Any]]) -> list[Point]:
    return [Point(row["step"], row["value"], row["low"], row["high"]) for row in rows]


def _last(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return NOTHING
    last = rows[-1]
    digits = 1 if abs(last["value"]) >= 1 else 3
    return f"{format_number(last['value'], digits)} {format_interval(last['low'], last['high'], digits)}".rstrip()
