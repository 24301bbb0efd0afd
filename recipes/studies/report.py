"""What a study leaves to be read: ``report.md`` with verdicts and tables, the same as CSV and JSON, and figures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence

from monolora.errors import SaveError
from monolora.recipes.experiments.records import write_aside
from monolora.recipes.studies import tables
from monolora.recipes.studies.about import about
from monolora.recipes.studies.chosen import Chosen, chosen
from monolora.recipes.studies.claims import Verdict, claims, counted, verdicts
from monolora.recipes.studies.gathered import Values, of_dataset
from monolora.recipes.studies.plots import draw
from monolora.recipes.studies.settings import Study

REPORT, TABLE, VERDICTS = "report.md", "table.csv", "verdicts.json"


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
    text = report_text(study, columns, rates, decided)
    folder = study.folder / "report"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_aside(folder / REPORT, lambda path: path.write_text(text))
        write_aside(folder / TABLE, lambda path: path.write_text(_csv(study, columns)))
        write_aside(folder / VERDICTS, lambda path: path.write_text(as_json(decided)))
    except OSError as error:
        raise SaveError.of(folder, error, "Free space, then give the same command again.") from error
    draw(study, columns, folder)
    return text


def _csv(study: Study, columns: Mapping[str, Sequence[Values]]) -> str:
    rows = [row for dataset, of in columns.items() for row in tables.csv_rows(study, dataset, of)]
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def report_text(
    study: Study,
    columns: Mapping[str, Sequence[Values]],
    rates: Mapping[str, Mapping[str, Chosen]],
    decided: Sequence[Verdict],
) -> str:
    """The whole report, as Markdown."""
    title = f"# {study.model}: {', '.join(study.adapters)} on {', '.join(study.datasets)}"
    parts = [title, "", about(study, rates), ""]
    parts += ["## Which claims hold", "", *_verdict_lines(decided), "", "![](standing.png)"]
    parts += ["", "![](curves.png)"] if study.curve is not None else []
    for dataset, of_dataset_ in columns.items():
        parts += ["", f"## {dataset}", "", tables.main_table(study, of_dataset_)]
        if (paper := tables.paper_table(dataset)) is not None:
            parts += ["", "Another model, other judges: for the form, not for the numbers.", "", paper]
        parts += ["", "Differences, paired by seed and prompt; p-values here are not corrected.", ""]
        parts += [tables.differences(study, of_dataset_)]
        parts += ["", "Learning rates, and the losses on held-out training examples with the first seed.", ""]
        parts += [tables.rates_table(rates[dataset]), ""]
        parts += [tables.runs_table(study, dataset, rates[dataset], study.folder / "report"), ""]
        parts += [f"Evaluation: [run.json](../{dataset}/eval/run.json); the answers are in `report.html` beside it."]
    return "\n".join(parts).rstrip() + "\n"


def _verdict_lines(decided: Sequence[Verdict]) -> list[str]:
    count = counted(decided)
    lines = [f"Of {len(decided)} claims {count['holds']} hold here, {count['does not hold']} do not, and "
             f"{count['cannot be told']} cannot be told at this size.", ""]  # fmt: skip
    for each in decided:
        claim = each.claim
        lines.append(f"- {claim.dataset}: {claim.text} ({claim.source}): **{each.answer}**. {each.text}")
    return lines


def as_json(decided: Sequence[Verdict]) -> str:
    """The verdicts, for programs."""
    rows = [
        {
            "dataset": each.claim.dataset,
            "claim": each.claim.text,
            "source": each.claim.source,
            "answer": each.answer,
            "estimate": None if each.estimate is None else each.estimate._asdict(),
            "p_holm": each.p_holm,
        }
        for each in decided
    ]
    return json.dumps(json.loads(json.dumps(rows), parse_constant=lambda name: None), indent=2) + "\n"
