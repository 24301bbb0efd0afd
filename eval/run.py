"""A run from prompts to report, stage by stage, and its ``run.json``.

A run that was interrupted goes on where it was: what has a record is not done again.
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
from monolora.errors import InputError, SaveError, in_one_line
from monolora.eval import plan as plans
from monolora.eval import report
from monolora.eval.command_line import SCORE_FLAGS
from monolora.eval.judges import Judge
from monolora.eval.measured import columns as measured_columns
from monolora.eval.measured import measured
from monolora.eval.measures.columns import Measured, Whole
from monolora.eval.measures.model import Model
from monolora.eval.plan import Plan
from monolora.eval.score import judge_identity, make_judges, score
from monolora.eval.settings import Settings
from monolora.eval.store import Store, is_invalid, opened
from monolora.files import read_json, type_problem
from monolora.locks import locked, no_empty_folder
from monolora.provenance import provenance
from monolora.runs import Kind, write_json
from monolora.terminal import Terminal, say

FILE = "run.json"
# What a response depends on, the model's weights aside. A run has one value of each; adapters, tasks and judges may
# come and go.
_FIXED = (
    "model", "suite", "limit", "xstest_limit", "task_limit", "unsafe_only", "max_new_tokens", "temperature", "top_p",
    "chat_template_path",
    "seed", "engine", "dtype", "max_model_len", "batch_invariant",
)  # fmt: skip
_OF_JUDGES = frozenset(SCORE_FLAGS) - {"out", "keep_going", "retry_invalid", "trust_remote_code"}


# What an evaluation writes. It goes on with what is there; only a study replaces one.
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
    """All stages."""
    with _alone(settings):
        _generate(settings, with_judges=True)
        _score(settings)
        _report(settings)


def generate_stage(settings: Settings) -> None:
    """Only the responses, and the sparsity."""
    with _alone(settings):
        _generate(settings, with_judges=False)


def score_stage(settings: Settings) -> None:
    """Only the judgements, on the responses that are there."""
    with _alone(settings):
        _score(settings)


def report_stage(settings: Settings) -> None:
    """Only the statistics and the report, of the records that are there."""
    with _alone(settings):
        _report(settings)


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """No other process works in the run folder, from the check of its settings to the report."""
    with locked(settings.out, "--out"), no_empty_folder(Path(settings.out)):
        yield


def _generate(settings: Settings, with_judges: bool) -> None:
    # Imported here: they bring transformers and TRL, and a report needs neither.
    from monolora.eval.generate import check_can_answer, engine_of, generate, measure_drift, measure_sparsity, planned
    from monolora.eval.models import subjects

    settings = replace(settings, engine=engine_of(settings))
    folder = Path(settings.out)
    _check_folder(folder, settings)
    sets = _prompt_sets(settings)
    models = subjects(settings)
    check_can_answer(settings, models)
    panel = make_judges(settings) if with_judges else []
    plan, items = planned(settings, models, sets, plans.today(folder))
    _make(folder)
    store = Store(folder)
    record = _started(settings, plan, panel)
    if (folder / FILE).is_file():
        earlier = read(folder)
        record |= {"stages": earlier["stages"]}
        if not with_judges:  # those who have judged stay in the report
            record |= {"judges": earlier["judges"]}
    write(folder, record)
    plans.write(folder, plan)
    if settings.retry_invalid:
        store.responses.drop(is_invalid)
        store.measurements.drop(lambda each: each.kind == "drift")  # of the answers that were there
    started = time.monotonic()
    generate(settings, store, items)
    if not settings.skip_sparsity:
        measure_sparsity(settings, store, plan, items)
    measure_drift(settings, store, plan, models, items)
    write(folder, _ended(record, "generate", started))


def _score(settings: Settings) -> None:
    folder = Path(settings.out)
    record, plan, panel = read(folder), plans.read(folder), make_judges(settings)
    judges = {each["name"]: each for each in record["judges"]} | {each.name: each.stored() for each in panel}
    asked = {name: value for name, value in settings.stored().items() if name in _OF_JUDGES}  # for a next bare `score`
    record = record | {"judges": list(judges.values()), "config": record["config"] | asked}
    store = Store(folder)
    if settings.retry_invalid:
        own = {judge_identity(judge) for judge in panel}
        store.judgements.drop(lambda each: is_invalid(each) and each.judge in own)
    write(folder, record)
    started = time.monotonic()
    score(settings, store, plan, panel)
    write(folder, _ended(record, "score", started))


def _report(settings: Settings) -> None:
    folder = Path(settings.out)
    record, plan = read(folder), plans.read(folder)
    panel = [_judge(each) for each in record["judges"]]
    results, entries = measured(record, plan, panel, Store(folder), settings.seed)
    report.write(folder, results, entries)
    report.show(results, Terminal())
    say(f"Report: {folder / 'report.html'}; also results.json, table.csv, table.tex")


def columns(folder: Path) -> tuple[list[Model], list[Measured | Whole]]:
    """The models of the run in a folder and all its columns, value by value, for statistics of one's own.

    Raises:
        InputError: if there is none, or it is damaged.
    """
    record, plan = read(folder), plans.read(folder)
    with opened(folder) as store:
        return measured_columns(plan, [_judge(each) for each in record["judges"]], store)


class _Record(TypedDict):
    """What later stages read of a run."""

    config: dict[str, Any]
    judges: list[dict[str, Any]]
    stages: dict[str, Any]


def read(folder: Path) -> dict[str, Any]:
    """The ``run.json`` of a run.

    Raises:
        InputError: if there is none, or it is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        raise InputError(
            f"{folder} holds no evaluation: {FILE} is missing. Begin with: monolora eval run --out {folder} …"
        )
    try:
        found = read_json(path, "Take another --out.", _Record)
        for name, kind in get_type_hints(Settings).items():
            value = found["config"].get(name)
            if problem := type_problem(tuple(value) if isinstance(value, list) else value, kind | None):
                raise InputError(f"config.{name}: {problem} Take another --out.")
        list(map(_judge, found["judges"]))
    except (InputError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no record of an evaluation: {in_one_line(error)}") from error
    return cast(dict[str, Any], found)


def write(folder: Path, record: dict[str, Any]) -> None:
    """Write ``run.json``.

    Raises:
        SaveError: if the disk does not take it.
    """
    try:
        write_json(folder / FILE, record)
    except OSError as error:
        raise SaveError.of(folder, error, "Free space, then give the same command again.") from error


def _check_folder(folder: Path, settings: Settings) -> None:
    """Only a new folder, or that of a run whose responses are comparable, is written to."""
    if not folder.exists() or all(path.name == ".lock" or ".part" in path.name for path in folder.iterdir()):
        return  # new, or given up before anything was in it
    if not (folder / FILE).is_file():
        raise InputError(f"--out {folder} has files of something else than an evaluation. Take another folder.")
    there, here = read(folder)["config"], json.loads(json.dumps(settings.stored()))
    differing = [name for name in _FIXED if there.get(name) != here[name]]
    if differing:
        values = "; ".join(
            f"--{name.replace('_', '-')} {_shown(there.get(name))}, now {_shown(here[name])}" for name in differing
        )
        raise InputError(
            f"--out {folder} holds a run with other settings: {values}. Take another --out, or give the same flags "
            "again."
        )


def _shown(value: Any) -> str:
    if value in (None, "", []):
        return "not given"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _prompt_sets(settings: Settings) -> list[PromptSet]:
    sets = prompt_sets.suite(settings.suite, settings.limit, settings.xstest_limit, settings.unsafe_only)
    tasks = prompt_sets.names(f"task:{name}" for name in settings.tasks)
    return sets + [prompt_sets.load(name, settings.task_limit) for name in tasks]


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder} cannot be made: {error.strerror}. Take another folder.") from error


def _started(settings: Settings, plan: Plan, panel: Sequence[Judge]) -> dict[str, Any]:
    return {
        "status": "running",
        "config": settings.stored(),
        "models": [each._asdict() for each in plan.models],
        "sets": {each.name: each.spec for each in plan.sets},
        "judges": [each.stored() for each in panel],
        "stages": {},
        **provenance(),
    }


def _ended(record: dict[str, Any], stage: str, started: float) -> dict[str, Any]:
    """With the stage's seconds, those of earlier calls that it went on from included."""
    earlier = record["stages"].get(stage, {"seconds": 0.0})["seconds"]
    seconds = round(earlier + time.monotonic() - started, 1)
    ended = {"seconds": seconds, "at": datetime.now(UTC).isoformat(timespec="seconds")}
    return record | {"status": f"{stage} done", "stages": record["stages"] | {stage: ended}}


def _judge(stored: dict[str, Any]) -> Judge:
    return Judge(**stored | {"scores": tuple(stored["scores"]), "unsafe": tuple(stored["unsafe"])})
