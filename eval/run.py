"""A run from prompts to report, stage by stage, and its ``run.json``.

An interrupted run resumes where it stopped: responses, judgements and measurements that have a record are not computed
again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast, get_type_hints

from typing_extensions import TypedDict

from monolora.data import prompt_sets
from monolora.data.prompt_sets import PromptSet
from monolora.errors import InputError, in_one_line
from monolora.eval import plan as plans
from monolora.eval import report
from monolora.eval.command_line import SCORE_FLAGS
from monolora.eval.judges import Judge
from monolora.eval.measures import records as measured_records
from monolora.eval.measures.details import prompt_entries
from monolora.eval.measures.measures import columns_of
from monolora.eval.measures.results import FORMAT, build
from monolora.eval.measures.table import Table, tidy
from monolora.eval.plan import Plan
from monolora.eval.score import judge_identity, make_judges, score
from monolora.eval.settings import Settings, named_paths
from monolora.eval.store import Store, is_invalid, opened
from monolora.files import read_json, saving, type_problem, write_json
from monolora.locks import locked, no_empty_folder
from monolora.run_record import provenance
from monolora.runs import Kind
from monolora.stats import RESAMPLES
from monolora.terminal import Terminal, say, suggest

FILE = "run.json"
# The settings that responses depend on. A run has one value of each, so that all of its responses are comparable.
# Adapters, tasks and judges may be added and removed.
_FIXED = (
    "model", "suite", "limit", "xstest_limit", "task_limit", "unsafe_only", "max_new_tokens", "temperature", "top_p",
    "chat_template_path",
    "seed", "engine", "dtype", "max_model_len", "batch_invariant",
)  # fmt: skip
_REPORTED = ("config", "models", "sets", "versions", "machine", "git", "stages")  # of how the report was made
_JUDGE_SETTINGS = frozenset(SCORE_FLAGS) - {"out", "keep_going", "retry_invalid", "trust_remote_code"}

# The files of an evaluation. It adds to an existing folder; only a study replaces one.
KIND = Kind(
    name="evaluation",
    keys=("config", "models", "sets", "judges", "stages"),
    files=(
        r"plan\.json|(responses|scores|measurements)\.jsonl|results\.json|table\.(csv|tex)|report\.html",
        r"\.part\.[\w.]+|\.[\w.]+\.part|\.lock|logs/([^/]+\.log)?",
    ),
    is_whole=False,
)


def run(settings: Settings) -> None:
    """Run all stages."""
    with _exclusive(settings):
        _generate(settings, with_judges=True)
        _score(settings)
        _report(settings)


def generate_stage(settings: Settings) -> None:
    """Generate the responses, and measure sparsity and drift."""
    with _exclusive(settings):
        _generate(settings, with_judges=False)


def score_stage(settings: Settings) -> None:
    """Judge the responses of the run."""
    with _exclusive(settings):
        _score(settings)


def report_stage(settings: Settings) -> None:
    """Write statistics and report from the records of the run."""
    with _exclusive(settings):
        _report(settings)


@contextmanager
def _exclusive(settings: Settings) -> Iterator[None]:
    """Keep other processes out of the run's folder, from the check of its settings to the end of the stage."""
    with locked(settings.out, "--out"), no_empty_folder(Path(settings.out)):
        yield


def _generate(settings: Settings, with_judges: bool) -> None:
    # Imported here: a report needs neither models nor engines.
    from monolora.eval.generate import check_engine, generate, plan_run, resolve_engine
    from monolora.eval.measurements import (
        measure_coherence,
        measure_drift,
        measure_margin,
        measure_sparsity,
    )
    from monolora.eval.models import evaluated_models

    settings = replace(settings, engine=resolve_engine(settings))
    folder = Path(settings.out)
    _check_folder(folder, settings)
    sets = planned_sets(settings)
    models = evaluated_models(settings)
    check_engine(settings, models)
    panel = make_judges(settings) if with_judges else []
    plan, items = plan_run(settings, models, sets, plans.today(folder))
    _create(folder)
    store = Store(folder)
    record = _new_record(settings, plan, panel)
    if (folder / FILE).is_file():
        earlier = read(folder)
        record |= {"stages": earlier["stages"]}
        if not with_judges:  # the judges of earlier stages stay in the report
            record |= {"judges": earlier["judges"]}
    write(folder, record)
    plans.write(folder, plan)
    if settings.retry_invalid:
        store.responses.drop(is_invalid)
        store.measurements.drop(lambda measurement: measurement.kind in ("drift", "coherence"))  # of the old answers
    started = time.monotonic()
    generate(settings, store, items)
    if not settings.skip_sparsity:
        measure_sparsity(settings, store, plan, items)
    measure_drift(settings, store, plan, models, items)
    measure_margin(settings, store, plan, models, items)
    measure_coherence(settings, store, plan, models, items)
    write(folder, _with_stage(record, "generate", started))


def _score(settings: Settings) -> None:
    folder = Path(settings.out)
    record, plan, panel = read(folder), plans.read(folder), make_judges(settings)
    judges = {judge["name"]: judge for judge in record["judges"]} | {judge.name: judge.as_record() for judge in panel}
    # Stored as the defaults of a later `score` without flags.
    judge_settings = {name: value for name, value in settings.stored().items() if name in _JUDGE_SETTINGS}
    record = record | {"judges": list(judges.values()), "config": record["config"] | judge_settings}
    store = Store(folder)
    if settings.retry_invalid:
        identities = {judge_identity(judge) for judge in panel}
        store.judgements.drop(lambda judgement: is_invalid(judgement) and judgement.judge in identities)
    write(folder, record)
    started = time.monotonic()
    score(settings, store, plan, panel)
    write(folder, _with_stage(record, "score", started))


def _report(settings: Settings) -> None:
    folder = Path(settings.out)
    record, plan = read(folder), plans.read(folder)
    panel = [_judge(stored) for stored in record["judges"]]
    records = measured_records.read(plan, panel, Store(folder))
    reported = {name: record[name] for name in _REPORTED}
    results = build(reported | {"bootstrap": {"resamples": RESAMPLES, "seed": settings.seed}}, records, settings.seed)
    report.write(folder, results, list(prompt_entries(records)))
    report.show(results, Terminal())
    say(f"Report: {folder / 'report.html'}; also results.json, table.csv, table.tex")
    if adapters := record["config"].get("adapter"):
        first = named_paths(adapters, "--adapter")
        suggest(
            "monolora", "explain", next(iter(first.values())), "--dataset", "beavertails", "--out", "runs/explained"
        )


def table(folder: Path) -> Table:
    """The tidy table of the run in a folder, value by value, for other statistics.

    Raises:
        InputError: if the folder holds no run, or a damaged one.
    """
    record, plan = read(folder), plans.read(folder)
    with opened(folder) as store:
        records = measured_records.read(plan, [_judge(stored) for stored in record["judges"]], store)
    return tidy(records.models, columns_of(records.by_set()))


def read_results(folder: Path) -> dict[str, Any]:
    """The ``results.json`` of the run in a folder.

    Raises:
        InputError: if there is none, or it was written by another version.
    """
    again = f"Write it again with: monolora eval report --out {folder}"
    results = read_json(folder / report.RESULTS, again)
    if results["format"] != FORMAT:
        raise InputError(f"{folder / report.RESULTS} is of another version. {again}")
    return cast(dict[str, Any], results)


class _Record(TypedDict):
    """The part of ``run.json`` that later stages read."""

    config: dict[str, Any]
    judges: list[dict[str, Any]]
    stages: dict[str, Any]


def read(folder: Path) -> dict[str, Any]:
    """The ``run.json`` of a run.

    Raises:
        InputError: if it is missing or damaged.
    """
    path = folder / FILE
    if not path.is_file():
        raise InputError(
            f"{folder} holds no evaluation: {FILE} is missing. Begin with: monolora eval run --out {folder} …"
        )
    try:
        record = read_json(path, "Take another --out.", _Record)
        for name, kind in get_type_hints(Settings).items():
            value = record["config"].get(name)
            if problem := type_problem(tuple(value) if isinstance(value, list) else value, kind | None):
                raise InputError(f"config.{name}: {problem} Take another --out.")
        list(map(_judge, record["judges"]))
    except (InputError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no record of an evaluation: {in_one_line(error)}") from error
    return cast(dict[str, Any], record)


def write(folder: Path, record: dict[str, Any]) -> None:
    """Write ``run.json``.

    Raises:
        SaveError: if it cannot be written.
    """
    with saving(folder):
        write_json(folder / FILE, record)


def _check_folder(folder: Path, settings: Settings) -> None:
    """Refuse a folder that holds anything but a run whose responses are comparable to those of this one."""
    if not KIND.is_begun(folder, "--out"):
        return
    # Through JSON, as the stored config: tuples become lists.
    stored, current = read(folder)["config"], json.loads(json.dumps(settings.stored()))
    differing = [name for name in _FIXED if stored.get(name) != current[name]]
    if differing:
        values = "; ".join(
            f"--{name.replace('_', '-')} {_as_text(stored.get(name))}, now {_as_text(current[name])}"
            for name in differing
        )
        raise InputError(
            f"--out {folder} holds a run with other settings: {values}. Take another --out, or give the same flags "
            "again."
        )


def _as_text(value: Any) -> str:
    if value in (None, "", []):
        return "not given"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def planned_sets(settings: Settings) -> list[PromptSet]:
    """The prompts of a run: those of the suite, of the tasks, and what only the base answers.

    Raises:
        InputError: if a set is unknown or unavailable.
    """
    sets = prompt_sets.suite(settings.suite, settings.limit, settings.xstest_limit, settings.unsafe_only)
    tasks = prompt_sets.names(f"task:{name}" for name in settings.tasks)
    sets += [prompt_sets.load(name, settings.task_limit) for name in tasks]
    answered = {prompts.name for prompts in sets}
    for name in prompt_sets.names(settings.drift_sets):
        if prompt_sets.set_name(name) not in answered:
            followed = prompt_sets.load(name, settings.drift)
            sets.append(replace(followed, purpose="drift", scorer=None, max_new_tokens=None))
    return sets


def _create(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder} cannot be created: {error.strerror}. Take another folder.") from error


def _new_record(settings: Settings, plan: Plan, panel: Sequence[Judge]) -> dict[str, Any]:
    return {
        "status": "running",
        "config": settings.stored(),
        "models": [model._asdict() for model in plan.models],
        "sets": {prompts.name: prompts.spec for prompts in plan.sets},
        "judges": [judge.as_record() for judge in panel],
        "stages": {},
        **provenance(),
    }


def _with_stage(record: dict[str, Any], stage: str, started: float) -> dict[str, Any]:
    """The record after a stage, with its seconds over all calls, including those that were resumed."""
    earlier = record["stages"].get(stage, {"seconds": 0.0})["seconds"]
    seconds = round(earlier + time.monotonic() - started, 1)
    finished = {"seconds": seconds, "at": datetime.now(UTC).isoformat(timespec="seconds")}
    return record | {"status": f"{stage} done", "stages": record["stages"] | {stage: finished}}


def _judge(stored: dict[str, Any]) -> Judge:
    return Judge(**stored | {"scores": tuple(stored["scores"]), "unsafe": tuple(stored["unsafe"])})
