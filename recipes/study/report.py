"""The report of a study, from the records of its trainings, evaluations and judges."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from monolora.errors import InputError
from monolora.eval import run as runs
from monolora.files import read_json, saving, write_text
from monolora.recipes.study import tables
from monolora.recipes.study.claims import Claim, Verdict, claims, counted, targets, verdicts
from monolora.recipes.study.findings import asked_by, title, unlike_the_papers
from monolora.recipes.study.page import page
from monolora.recipes.study.plan import SelectedRate, select_rate, training
from monolora.recipes.study.plots import draw, figure_name, keepers
from monolora.recipes.study.results import Values, definitions, of_dataset
from monolora.recipes.study.settings import Study
from monolora.reporting.tables import csv_text
from monolora.run_record import RunRecord, read
from monolora.runs import Kind, OutputFolder

_ALIKE = ("max_train_samples", "num_train_epochs", "per_device_train_batch_size", "max_length", "lora_r")


def about(study: Study, rates: Mapping[str, Mapping[str, SelectedRate]]) -> list[str]:
    """Sentences for the report, with links as Markdown has them.

    Raises:
        InputError: if two adapters of a seed did not see the same examples equally often.
    """
    records = {
        (dataset, adapter, seed): _record(training(study, dataset, adapter, selected.rate, seed).folder)
        for dataset, of_dataset in rates.items()
        for adapter, selected in of_dataset.items()
        for seed in study.seeds
    }
    seeds = f"Seed {study.seeds[0]}" if len(study.seeds) == 1 else f"Seeds {', '.join(map(str, study.seeds))}"
    stages = {
        "trainings": records.values(),
        "evaluations": [runs.read(study.folder / dataset / "eval") for dataset in study.datasets],
    }
    return [
        f"{seeds}. Commits: {'; '.join(f'{stage} {_commits(of)}' for stage, of in stages.items())}.",
        *_trainings(study, records),
        f"Every adapter saw the same examples {_order(records)}, at the learning rate with the "
        "lowest loss on held-out training examples, of those that all had, with the first seed. The rate is taken as "
        "given by everything below, and where rates differ, a difference is theirs too.",
        f"Answers end after {study.eval.get('max_new_tokens', 512)} tokens.",
        *_bases(study),
        *_judges(study),
        "Values are means; in brackets are 95 % intervals, over seeds and prompts at once where there are both (random "
        "effects of both; score intervals of shares). Seeds are the order of the examples and where the training "
        "begins. Nothing is said of other training examples, base models, data sets or judges.",
    ]


def _order(records: Mapping[tuple[str, str, int], Mapping[str, Any]]) -> str:
    """How alike the trainings are; rows that a keeper adds stand among the task's."""
    replayed = dict.fromkeys(adapter for (_, adapter, _), record in records.items() if record["rows"].get("replayed"))
    if not replayed:
        return "in the same order for the same steps"
    return (
        f"equally often, in the same order for the same steps but for {', '.join(replayed)}, which read answers of the "
        "base among them, in more steps"
    )


def _record(folder: Path) -> RunRecord:
    record = read(folder)
    if record is None:
        raise InputError(f"{folder} has no record. Run the study again.")
    return record


def _commits(records: Iterable[Mapping[str, Any]]) -> str:
    commits = set()
    for record in records:
        git = record.get("git")
        changed = " and changes" if git and git["dirty"] else ""
        commits.add(f"{git['commit'][:7]}{changed}" if git else "an installed package")
    return ", ".join(sorted(commits))


def _trainings(study: Study, records: Mapping[tuple[str, str, int], Mapping[str, Any]]) -> Iterator[str]:
    for dataset in study.datasets:
        for seed in study.seeds:
            of_seed = [_seen(records[dataset, adapter, seed]) for adapter in study.adapters]
            if any(run != of_seed[0] for run in of_seed):
                raise InputError(
                    f"{dataset}, seed {seed}: the adapters did not see the same examples equally often. Give them "
                    "the same sft flags, and run the study again."
                )
        record = records[dataset, next(iter(study.adapters)), study.seeds[0]]
        config, rows, steps = record["config"], record["rows"], record["history"][-1]["step"]
        batch = config["per_device_train_batch_size"] * config["gradient_accumulation_steps"]
        entry = study.datasets[dataset]
        own = [f"task {entry.task}"] * bool(entry.task) + [f"on the base {entry.base}"] * bool(entry.base)
        named = f"{dataset}: {', '.join(own)}; " if own else f"{dataset}: "
        yield (
            f"{named}{rows['train']:,} examples, {_counted(config['num_train_epochs'], 'epoch')}, {steps} steps of "
            f"{batch}, rank {config['lora_r']}; the rate "
            + (
                f"that was selected on {entry.rates_of}."
                if entry.rates_of
                else f"selected on {rows['validation']} training examples that are neither trained on nor tested."
            )
        )


def _counted(count: float, what: str) -> str:
    return f"{count:g} {what}{'' if count == 1 else 's'}"


def _seen(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """The training examples that a run saw, and how often: steps are more where other rows stand among them."""
    alike = tuple(record["config"][name] for name in _ALIKE)
    return (*alike, record["fingerprints"]["train"], record["seeds"], record["history"][-1]["epoch"])


def _bases(study: Study) -> Iterator[str]:
    """How the bases were made that the study made."""
    for name in study.bases:
        config: Mapping[str, Any] = _record(study.folder / name)["config"]
        yield f"[{name}](../{name}/run.json), made of {study.model} by `monolora align`: {config['card_note']}"


def _judges(study: Study) -> Iterator[str]:
    """The quality of the judges that the study trained, on which all their flags depend."""
    for name in study.judges:
        path = study.folder / name / "run.json"
        if not path.is_file():
            continue
        scores = read_json(path, "Delete the folder, and give the same command again.")["results"]["test"]
        yield (
            f"[{name}](../{name}/run.json) was trained for the study: AUC {scores['auc']:.3f}, precision "
            f"{scores['precision']:.2f} and recall {scores['recall']:.2f} of unsafe on {scores['rows']:,} rows of "
            "BeaverTails that it never saw, which are not answers of these models."
        )


REPORT, PAGE, TABLE, DIFFERENCES, VERDICTS = "report.md", "report.html", "table.csv", "differences.csv", "verdicts.json"


def write_report(study: Study) -> str:
    """Write all files of the report; returns ``report.md``. The same records give the same bytes.

    Raises:
        InputError: if a cell of the study is missing or damaged.
        SaveError: if the disk does not take the files.
    """
    columns = {dataset: of_dataset(study, dataset) for dataset in study.datasets}
    rates = {
        dataset: {adapter: select_rate(study, dataset, adapter) for adapter in study.adapters}
        for dataset in study.datasets
    }
    decided = verdicts([claim for dataset, of in columns.items() for claim in _asked(study, dataset, of)])
    said = about(study, rates)
    texts = {
        REPORT: report_text(study, columns, rates, decided, said),
        TABLE: _csv(tables.csv_rows(study, dataset, of) for dataset, of in columns.items()),
        DIFFERENCES: _csv(tables.csv_differences(study, dataset, of) for dataset, of in columns.items()),
        VERDICTS: as_json(decided),
    }
    folder = study.folder / "report"
    with saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_text(folder / name, text)
    draw(study, columns, folder)
    with saving(folder):
        write_text(folder / PAGE, page(study, columns, rates, decided, said))
    return texts[REPORT]


def _asked(study: Study, dataset: str, columns: Sequence[Values]) -> Iterator[Claim]:
    yield from claims(study, dataset, columns)
    yield from targets(study, dataset, columns)


def _csv(by_dataset: Iterable[Iterable[Mapping[str, Any]]]) -> str:
    rows = list(chain.from_iterable(by_dataset))
    return csv_text([list(rows[0]), *([row[name] for name in rows[0]] for row in rows)])


def report_text(
    study: Study,
    columns: Mapping[str, Sequence[Values]],
    rates: Mapping[str, Mapping[str, SelectedRate]],
    decided: Sequence[Verdict],
    said: Sequence[str],
) -> str:
    """The whole report, as Markdown."""
    parts = [f"# {title(study)}", "", *(f"- {line}" for line in said)]
    for heading, own_verdicts in asked_by(decided).items():
        parts += ["", f"## {heading}", "", *_verdict_lines(own_verdicts)]
    for dataset, own in columns.items():
        parts += ["", f"## {dataset}", "", *_of_dataset(study, dataset, own, rates[dataset])]
    in_tables = {dataset: tables.headline(own) + tables.beside(own) for dataset, own in columns.items()}
    parts += ["", "## What the columns are", "", definitions(study, in_tables).markdown()]
    return "\n".join(parts).rstrip() + "\n"


def _of_dataset(
    study: Study, dataset: str, columns: Sequence[Values], rates: Mapping[str, SelectedRate]
) -> Iterator[str]:
    folder = study.folder / "report"
    first, second = tables.headline(columns), tables.beside(columns)
    yield from ("The columns of the paper's table 2:", "", tables.means_table(study, first).markdown(), "")
    if (paper := tables.paper_table(dataset)) is not None:
        yield from (f"The paper's rows{unlike_the_papers(study, dataset)}:", "", paper.markdown(), "")
    yield from ("Beside them:", "", tables.means_table(study, second).markdown(), "")
    yield from (f"![means of {dataset}]({figure_name('means', dataset)}.png)", "")
    if keepers(study):
        yield from (f"![task score against drift of {dataset}]({figure_name('kept', dataset)}.png)", "")
    if study.curve is not None:
        yield from (f"![along the training on {dataset}]({figure_name('along', dataset)}.png)", "")
        records = ", ".join(f"[{adapter}](../{dataset}/curves/{adapter}/run.json)" for adapter in study.curve.adapters)
        yield from (f"run.json of the curves: {records}.", "")
    yield from ("Differences, paired by seed and prompt; p-values here are not corrected.", "")
    for compared in tables.pairs(study):
        yield from (tables.differences([*first, *second], compared).markdown(), "")
    yield from ("Learning rates, and the losses on held-out training examples with the first seed:", "")
    yield from (tables.rates_table(study, dataset, rates, folder).markdown(), "")
    yield from (tables.runs_table(study, dataset, rates, folder).markdown(), "")
    where = "in `report.html` beside it, in the study's own folder"
    yield f"Evaluation: [run.json](../{dataset}/eval/run.json); the answers are {where}."


def _verdict_lines(decided: Sequence[Verdict]) -> list[str]:
    count = counted(decided)
    lines = [f"{len(decided)} in all. Hold here: {count['holds']}. Do not hold: {count['does not hold']}. "
             f"Cannot be told at this size: {count['cannot be told']}.", ""]  # fmt: skip
    for verdict in decided:
        claim = verdict.claim
        source = f" ({claim.source})" if claim.is_the_papers else ""
        lines.append(f"- {claim.dataset}: {claim.text}{source}: **{verdict.answer}**. {verdict.text}")
    return lines


def as_json(decided: Sequence[Verdict]) -> str:
    """The verdicts, for programs."""
    return json.dumps(list(map(_verdict_row, decided)), indent=2) + "\n"


def _verdict_row(verdict: Verdict) -> dict[str, Any]:
    claim = verdict.claim
    return {
        "dataset": claim.dataset, "claim": claim.text, "source": claim.source, "column": claim.values.column.id,
        "model": claim.model, "against": claim.against, "better": claim.better, "margin": claim.margin,
        "target": claim.target, "answer": verdict.answer, "text": verdict.text,
        "estimate": None if verdict.estimate is None else _finite(tables.numbers(verdict.estimate)),
        "p_holm": verdict.p_holm,
    }  # fmt: skip


def _finite(numbers: Mapping[str, float | None]) -> dict[str, float | None]:
    """JSON has no infinity, which the degrees of freedom of constant values are."""
    return {name: value if value is not None and math.isfinite(value) else None for name, value in numbers.items()}


# Its record is the verdicts; report.md beside it is for people.
KIND = Kind(
    name="copy of a study's records",
    record=f"report/{VERDICTS}",
    keys=(),
    files=(
        rf"report/({REPORT}|{PAGE}|{TABLE}|{DIFFERENCES}|[\w.-]+\.(png|svg))",
        r"cells/[\w.+-]+\.json",
        r"([^/]+/)+run\.json",
    ),
)


def check_records(study: Study, folder: OutputFolder) -> None:
    """Check that the copy can be written, before the study is run.

    Raises:
        InputError: if something else is there, or the study itself.
    """
    folder.check(overwrite=True)
    folder.check_apart([study.folder])


def keep_records(study: Study, folder: OutputFolder) -> None:
    """Copy the report, every ``run.json`` and the cells' records; an earlier copy is replaced.

    Args:
        study: a completed one.
        folder: target, after :func:`check_records`; it gets the study's own layout.

    Raises:
        SaveError: if the disk does not take it.
    """
    with saving(folder.path), folder.whole() as aside:
        for part in ("report", "cells"):
            shutil.copytree(study.folder / part, aside / part)
        for record in study.folder.glob("**/run.json"):
            copy = aside / record.relative_to(study.folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(record, copy)
