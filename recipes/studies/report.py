"""What a study leaves to be read: ``report.md`` with verdicts and tables, the same as CSV and JSON, and figures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from monolora.errors import SaveError
from monolora.recipes.experiments.records import write_aside
from monolora.recipes.record import read as read_run
from monolora.recipes.studies import tables
from monolora.recipes.studies.cells import training
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
    parts = [f"# {study.model}: {' and '.join(study.adapters)} on {', '.join(study.datasets)}", _about(study), ""]
    parts += ["## Which claims hold", "", *_verdict_lines(decided)]
    for dataset, of_dataset_ in columns.items():
        parts += ["", f"## {dataset}", "", tables.main_table(study, of_dataset_)]
        if (paper := tables.paper_table(dataset)) is not None:
            parts += ["", "Another model, other judges: for the form, not for the numbers.", "", paper]
        parts += ["", "Differences, paired by seed and prompt; p-values here are not corrected.", ""]
        parts += [tables.differences(study, of_dataset_)]
        parts += ["", f"Learning rates, chosen on {_validation(study, dataset)}.", ""]
        parts += [tables.rates_table(rates[dataset]), ""]
        parts += [tables.runs_table(study, dataset, rates[dataset], study.folder / "report"), ""]
        parts += [f"Evaluation: [run.json](../{dataset}/eval/run.json), [report.html](../{dataset}/eval/report.html)."]
    return "\n".join(parts).rstrip() + "\n"


def _about(study: Study) -> str:
    first = training(
        study, next(iter(study.datasets)), next(iter(study.adapters)), study.learning_rates[0], study.seeds[0]
    )
    git: Mapping[str, Any] = (read_run(first.folder) or {}).get("git") or {}
    state = f"commit {git['commit'][:7]}{' and changes' if git['dirty'] else ''}" if git else "an installed package"
    seeds = ", ".join(map(str, study.seeds))
    return (
        f"\nSeeds {seeds}; {state}. Every adapter saw the same examples in the same order, as often, at the learning "
        "rate that suited it best of those that all had. Values are means; in brackets are 95 % intervals over seeds "
        "and prompts at once (random effects of both); where all values are the same there is none. They say nothing "
        "of other base models, data sets or judges."
    )


def _verdict_lines(decided: Sequence[Verdict]) -> list[str]:
    count = counted(decided)
    lines = [f"Of {len(decided)} claims {count['holds']} hold here, {count['does not hold']} do not, and "
             f"{count['cannot be told']} cannot be told at this size.", ""]  # fmt: skip
    for each in decided:
        claim = each.claim
        lines.append(f"- {claim.dataset}: {claim.text} ({claim.source}): **{each.answer}**. {each.text}")
    return lines


def _validation(study: Study, dataset: str) -> str:
    flags = {**study.sft, **study.datasets[dataset].sft}
    return f"{flags.get('validation_samples')} training examples that are neither trained on nor tested"


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
