"""What a study leaves to be read: ``report.md`` with verdicts and tables, the same as CSV and JSON, and figures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from monolora.csv_text import csv_text
from monolora.errors import SaveError
from monolora.recipes.studies import tables
from monolora.recipes.studies.about import about
from monolora.recipes.studies.chosen import Chosen, chosen
from monolora.recipes.studies.claims import Verdict, claims, counted, verdicts
from monolora.recipes.studies.definitions import definitions
from monolora.recipes.studies.gathered import Values, of_dataset
from monolora.recipes.studies.plots import draw, figure_name
from monolora.recipes.studies.settings import Study
from monolora.runs import write_aside

REPORT, TABLE, DIFFERENCES, VERDICTS = "report.md", "table.csv", "differences.csv", "verdicts.json"


def write_report(study: Study) -> str:
    """Write everything; returns what stands in ``report.md``. The same records give the same bytes.

    Raises:
        InputError: if a cell of the study is missing or damaged.
        SaveError: if the disk does not take the files.
    """
    columns = {dataset: of_dataset(study, dataset) for dataset in study.datasets}
    rates = {
        dataset: {adapter: chosen(study, dataset, adapter) for adapter in study.adapters} for dataset in study.datasets
    }
    decided = verdicts([claim for dataset, of in columns.items() for claim in claims(study, dataset, of)])
    texts = {
        REPORT: report_text(study, columns, rates, decided),
        TABLE: _csv(tables.csv_rows(study, dataset, of) for dataset, of in columns.items()),
        DIFFERENCES: _csv(tables.csv_differences(study, dataset, of) for dataset, of in columns.items()),
        VERDICTS: as_json(decided),
    }
    folder = study.folder / "report"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_aside(folder / name, lambda path, text=text: path.write_text(text))  # type: ignore[misc]
    except OSError as error:
        raise SaveError.of(folder, error, "Free space, then give the same command again.") from error
    draw(study, columns, folder)
    return texts[REPORT]


def _csv(by_dataset: Iterable[Iterable[Mapping[str, Any]]]) -> str:
    rows = list(chain.from_iterable(by_dataset))
    return csv_text([list(rows[0]), *([row[name] for name in rows[0]] for row in rows)])


def report_text(
    study: Study,
    columns: Mapping[str, Sequence[Values]],
    rates: Mapping[str, Mapping[str, Chosen]],
    decided: Sequence[Verdict],
) -> str:
    """The whole report, as Markdown."""
    parts = [f"# {study.model}: {', '.join(study.adapters)} on {', '.join(study.datasets)}", "", about(study, rates)]
    parts += ["", "## Which of the paper's claims hold", ""]
    parts += _verdict_lines([each for each in decided if each.claim.is_the_papers])
    parts += ["", "## Other questions", ""]
    parts += _verdict_lines([each for each in decided if not each.claim.is_the_papers])
    for dataset, of_dataset_ in columns.items():
        parts += ["", f"## {dataset}", "", *_of_dataset(study, dataset, of_dataset_, rates[dataset])]
    shown = {dataset: tables.headline(of) + tables.beside(of) for dataset, of in columns.items()}
    parts += ["", "## What the columns are", "", definitions(study, shown)]
    return "\n".join(parts).rstrip() + "\n"


def _of_dataset(study: Study, dataset: str, columns: Sequence[Values], rates: Mapping[str, Chosen]) -> Iterator[str]:
    folder = study.folder / "report"
    first, second = tables.headline(columns), tables.beside(columns)
    yield from ("The columns of the paper's table 2:", "", tables.means_table(study, first), "")
    if (paper := tables.paper_table(dataset)) is not None:
        yield from (f"The paper's rows{_unlike_the_papers(study, dataset)}:", "", paper, "")
    yield from ("Beside them:", "", tables.means_table(study, second), "")
    yield from (f"![means of {dataset}]({figure_name('means', dataset)}.png)", "")
    if study.curve is not None:
        yield from (f"![along the training on {dataset}]({figure_name('along', dataset)}.png)", "")
        records = ", ".join(f"[{adapter}](../{dataset}/curves/{adapter}/run.json)" for adapter in study.curve.adapters)
        yield from (f"run.json of the curves: {records}.", "")
    yield from ("Differences, paired by seed and prompt; p-values here are not corrected.", "")
    for compared in tables.pairs(study):
        yield from (tables.differences([*first, *second], compared), "")
    yield from ("Learning rates, and the losses on held-out training examples with the first seed:", "")
    yield from (tables.rates_table(study, dataset, rates, folder), "")
    yield from (tables.runs_table(study, dataset, rates, folder), "")
    where = "in `report.html` beside it, in the study's own folder"
    yield f"Evaluation: [run.json](../{dataset}/eval/run.json); the answers are {where}."


def _unlike_the_papers(study: Study, dataset: str) -> str:
    """What is other than in the paper, so that its numbers are not to be compared."""
    judges = str(study.eval.get("judges", ""))
    others = [
        *([] if "llama-2-7b-chat" in study.model.lower() else ["of another model"]),
        *([] if "shieldgemma" in judges and "beaverdam" in judges else ["other judges"]),
        *(["a metric that it does not name"] if dataset == "dolly" else []),
    ]
    return f" ({', '.join(others)}: to be set beside these, not compared)" if others else ""


def _verdict_lines(decided: Sequence[Verdict]) -> list[str]:
    if not decided:
        return ["None is asked here."]
    count = counted(decided)
    lines = [f"{len(decided)} in all. Hold here: {count['holds']}. Do not hold: {count['does not hold']}. "
             f"Cannot be told at this size: {count['cannot be told']}.", ""]  # fmt: skip
    for each in decided:
        claim = each.claim
        source = f" ({claim.source})" if claim.is_the_papers else ""
        lines.append(f"- {claim.dataset}: {claim.text}{source}: **{each.answer}**. {each.text}")
    return lines


def as_json(decided: Sequence[Verdict]) -> str:
    """The verdicts, for programs."""
    rows = [
        {
            "dataset": each.claim.dataset,
            "claim": each.claim.text,
            "source": each.claim.source,
            "column": each.claim.values.column.id,
            "model": each.claim.model,
            "against": each.claim.against,
            "better": each.claim.better,
            "margin": each.claim.margin,
            "answer": each.answer,
            "text": each.text,
            "estimate": None if each.estimate is None else each.estimate._asdict(),
            "p_holm": each.p_holm,
        }
        for each in decided
    ]
    return json.dumps(json.loads(json.dumps(rows), parse_constant=lambda name: None), indent=2) + "\n"
