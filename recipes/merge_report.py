"""``merge_report.json`` and ``merge_report.html``: the settings of a merge, and its fidelity to the adapter."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any, NotRequired, cast

from rich.table import Table
from typing_extensions import TypedDict

from monolora.errors import InputError, in_one_line
from monolora.files import read_json, write_json, write_text
from monolora.merge.verify import Comparison, Fidelity
from monolora.recipes.training.model_card import shown_score
from monolora.reporting.html import rendered
from monolora.runs import MODEL_FILES, Kind
from monolora.terminal import Terminal

JSON, PAGE = "merge_report.json", "merge_report.html"
ALL = "all"
DRIFT = 0.01  # nats a token; rounding a merge to bfloat16 costs a third of it


class _Merge(TypedDict):
    """How a merge was made."""

    weights: list[float]
    calibration: NotRequired[dict[str, Any] | None]


class _Report(TypedDict):
    """The part of a report that is read."""

    merge: _Merge


def read(folder: Path) -> dict[str, Any] | None:
    """The report in ``folder``, or None.

    Raises:
        InputError: if the file is no report.
    """
    path = folder / JSON
    if not path.is_file():
        return None
    try:
        return cast(dict[str, Any], read_json(path, "Remove it.", _Report))
    except InputError as error:
        raise InputError(f"{path} is no report of a merge: {in_one_line(error)}") from error


def make(
    compared: Mapping[str, Comparison],
    scores: Mapping[str, Any] | None,
    merge: Mapping[str, Any],
    least: float,
    on_anchors: Comparison | None = None,
) -> dict[str, Any]:
    """A report of a verified merge.

    Args:
        compared: the comparison on each text.
        scores: of the adapter's task, for base, adapter and merge.
        merge: how the merge was made.
        least: the share of the adapter's effect that must be kept.
        on_anchors: the comparison on held-out anchors, if the adapter's run had some. They are not pooled with the
            texts: the adapter has next to no effect on them of which a share could be kept.
    """
    overall = reduce(Comparison.pooled, compared.values()).fidelity()
    by_text = {name: comparison.fidelity() for name, comparison in compared.items()} | {ALL: overall}
    return {
        "passed": overall.retained >= least,
        "kept": overall.retained,
        "min_fidelity": least,
        "merge": dict(merge),
        "fidelity": {name: _as_json(fidelity) for name, fidelity in by_text.items()},
        "modules": overall.modules,
        "task": scores,
        **({} if on_anchors is None else {"anchors": _without_share(on_anchors.fidelity())}),
    }


KIND = Kind(
    name="merge",
    record=JSON,
    keys=("merge.method", "merge.adapters", "passed"),
    files=(*MODEL_FILES, re.escape(PAGE), r"\.part\.merge_report\.html|\.merge_report\.json\.part"),
)


def write_unverified(folder: Path, merge: Mapping[str, Any]) -> None:
    """Write the settings of a merge; :func:`write` adds its fidelity.

    Raises:
        OSError: if the disk does not take it.
    """
    write_json(folder / JSON, {"passed": None, "merge": merge})


def write(folder: Path, report: Mapping[str, Any]) -> None:
    """Write both files.

    Raises:
        OSError: if the disk does not take them.
    """
    write_json(folder / JSON, report)
    write_text(folder / PAGE, page(report))


def show(report: Mapping[str, Any], folder: Path, console: Terminal) -> None:
    """Print the summary."""
    console.print(_table(report))
    if "anchors" in report:
        console.print(anchors_sentence(report))
    if report["modules"]:
        console.print(_errors_sentence(report["modules"]), highlight=False)
    task = report["task"]
    if task is not None:
        console.print(_task_table(task))
        console.print(f"{task['same_answers']} of {task['n']} answers are the adapter's.")
    console.print(f"{verdict(report)} Report: {folder / PAGE}", soft_wrap=True)


_ADVICE = "Merge with --method exact, or serve the adapter itself."


def verdict(report: Mapping[str, Any]) -> str:
    """The result, and what to do about one that is not good enough."""
    return _kept(report) if report["passed"] else f"{_kept(report)} {_ADVICE}"


def _kept(report: Mapping[str, Any]) -> str:
    share, least = f"{report['kept']:.2%}", f"{report['min_fidelity']:.0%}"
    if report["passed"]:
        return f"The merge keeps {share} of the adapter's effect."
    return f"The merge keeps only {share} of the adapter's effect, below --min-fidelity ({least})."


def drifts(report: Mapping[str, Any]) -> bool:
    """Whether the merge is further from the adapter, on held-out anchors, than the adapter is from its base."""
    if "anchors" not in report:
        return False
    to_merged, to_base = (report["anchors"][name]["mean"] for name in ("kl_merged", "kl_base"))
    return bool(to_merged > max(to_base, DRIFT))


def anchors_sentence(report: Mapping[str, Any]) -> str:
    """What the merge loses on held-out anchors, and what loses nothing."""
    method = report["merge"].get("method")
    name = f"the {method} merge" if method in ("linear", "exact") else "the merge"
    to_merged, to_base = (f"{report['anchors'][key]['mean']:.2g}" for key in ("kl_merged", "kl_base"))
    told = (
        f"On held-out anchors {name} is {to_merged} nats a token from the adapter, and that is {to_base} from its base"
    )
    if method == "exact" and not drifts(report):
        return f"{told}: the adapter's silence is kept."
    if method == "linear":
        return f"{told}: no linear map is silent. Merge with --method exact, or serve the adapter with the vLLM plugin."
    return f"{told}."


def _table(report: Mapping[str, Any]) -> Table:
    table = Table(title="Next-token distributions on held-out text, in nats")
    table.add_column("text")
    for column in (
        "tokens", "KL to\nbase", "KL to merge\nmean / p50 / p99", "same top-1\nbase / merge", "effect\nkept",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for name, fidelity in report["fidelity"].items():
        if name == ALL:
            table.add_section()
        table.add_row(name, *_cells(fidelity))
    if "anchors" in report:
        table.add_section()
        table.add_row("anchors", *_cells(report["anchors"]))
    return table


def _cells(fidelity: Mapping[str, Any]) -> list[str]:
    merged = fidelity["kl_merged"]
    return [
        f"{fidelity['tokens']:,}",
        f"{fidelity['kl_base']['mean']:.4f}",
        " / ".join(f"{merged[name]:.4f}" for name in ("mean", "p50", "p99")),
        f"{fidelity['top1_base']:.1%} / {fidelity['top1_merged']:.1%}",
        f"{fidelity['kept']:.2%}" if "kept" in fidelity else "–",
    ]


def _task_table(task: Mapping[str, Any]) -> Table:
    table = Table(title=f"{task['name']}, {task['n']} rows")
    table.add_column()
    for who in ("base", "adapter", "merged"):
        table.add_column(who, justify="right")
    for metric, *scores in _task_rows(task):
        table.add_row(metric, *scores)
    return table


def _task_rows(task: Mapping[str, Any]) -> list[list[str]]:
    return [
        [metric.replace("_", " "), *(shown_score(metric, task[who]) for who in ("base", "adapter", "merged"))]
        for metric in task["merged"]
        if metric != "n"
    ]


_WORST = 12  # modules that are shown at first


def page(report: Mapping[str, Any]) -> str:
    """The report as a page that needs nothing else."""
    errors = report["modules"]
    sorted_errors = sorted(errors.items(), key=lambda item: item[1], reverse=True)
    folder = Path(__file__).parent
    return rendered(
        folder,
        "merge_report.html.j2",
        title="Merge report",
        message=_kept(report),
        style=(folder / "merge_report.css").read_text(encoding="utf-8"),
        report=report,
        advice=_ADVICE,
        cells={name: _cells(fidelity) for name, fidelity in report["fidelity"].items()},
        anchor_cells=_cells(report["anchors"]) if "anchors" in report else [],
        anchors_sentence=anchors_sentence(report) if "anchors" in report else "",
        task_rows=_task_rows(report["task"]) if report["task"] else [],
        errors_sentence=_errors_sentence(errors) if errors else "",
        worst=dict(sorted_errors[:_WORST]),
        others=dict(sorted_errors[_WORST:]),
        widest=max([*filter(math.isfinite, errors.values()), 1e-12]),
        settings={key: _as_words(value) for key, value in report["merge"].items() if key != "maps"},
    )


def _errors_sentence(errors: Mapping[str, float]) -> str:
    finite = {name: error for name, error in errors.items() if math.isfinite(error)}
    off = len(errors) - len(finite)  # relative to an effect of 0
    silent = f" On the text {off:,} of the modules add{'s' * (off == 1)} nothing in the adapter." if off else ""
    if not finite:
        return silent.strip()
    worst = max(finite, key=lambda name: finite[name])
    if len(finite) == 1:
        return f"The delta of {worst} is {finite[worst]:.1%} off.{silent}"
    half = f"Half of the {len(finite):,} modules’ deltas are at most {statistics.median(finite.values()):.1%} off."
    return f"{half} The worst is {worst}, {finite[worst]:.1%} off.{silent}"


def _as_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_as_words(part)}" for key, part in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_as_words, value))
    return "none" if value is None else str(value)


def _as_json(fidelity: Fidelity) -> dict[str, Any]:
    values = fidelity._asdict()
    del values["modules"]
    values["kept"] = values.pop("retained")  # the report's name
    return values | {key: values[key]._asdict() for key in ("kl_merged", "kl_base")}


def _without_share(fidelity: Fidelity) -> dict[str, Any]:
    values = _as_json(fidelity)
    del values["kept"]
    return values
