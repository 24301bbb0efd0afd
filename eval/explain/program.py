"""``monolora explain ADAPTER --out DIR``: what each unit of an adapter fires on and does.

Prints the data sets and the units of the largest effect, and writes a page to explore.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.table import Table
from rich.text import Text

from monolora.cli.flags import FlagParser
from monolora.errors import InputError, exit_status
from monolora.eval.explain.compare import check_output, compare, write_comparison
from monolora.eval.explain.compare_report import show
from monolora.eval.explain.explorer import module_parts
from monolora.eval.explain.output import FEATURES, KIND, PAGE
from monolora.eval.explain.records import DatasetFeatures, Explained
from monolora.eval.explain.run import check_output as check_output_of
from monolora.eval.explain.run import explain
from monolora.eval.explain.score_report import score_tables, show_scores
from monolora.eval.explain.settings import Call, Settings
from monolora.eval.settings import named_paths
from monolora.files import code_trusted
from monolora.locks import locked, no_empty_folder
from monolora.reporting.numbers import plain
from monolora.runs import claim
from monolora.terminal import Terminal, say, suggest

_ROWS = 10


def summary(explained: Explained, console: Terminal) -> None:
    """Print the summary, without texts and tokens of safety sets."""
    for dataset in explained.datasets:
        console.print(_table(explained, dataset))
        console.print(Text(_facts(dataset)))
        console.print()
    show_scores(score_tables(explained.scores), console)


def _facts(dataset: DatasetFeatures) -> str:
    dead, always = int((dataset.firing == 0).sum()), int((dataset.firing == 1).sum())
    facts = (
        f"{len(dataset.firing)} units on {dataset.tokens:,} tokens of {dataset.texts:,} texts: "
        f"{1 - dataset.firing.mean():.1%} of activations are 0; {dead} units never fire, {always} on every token."
    )
    if dataset.labels:
        facts += _of_labels(dataset)
    return plain(f"{facts} {dataset.note}".rstrip())


def _of_labels(dataset: DatasetFeatures) -> str:
    consistency = np.concatenate([end.consistency for end in dataset.ends])
    measured = consistency[~np.isnan(consistency)]
    informative = f" {int((dataset.information_q < 0.05).sum())} units go with the label (q < 0.05)."
    if not len(measured):
        return f" No unit is excited by {dataset.strongest} texts or more.{informative}"
    return (
        f" Of the {dataset.strongest} texts that excite a unit most, {measured.mean():.1%} have the same label "
        f"({dataset.chance:.1%} by chance).{informative}"
    )


def _table(explained: Explained, dataset: DatasetFeatures) -> Table:
    rows = _rows(explained, dataset)
    heading = Text(f"Units of the largest effect on {plain(dataset.name)}")
    table = Table(title=heading, title_justify="left", box=None)
    for column, title in enumerate(("unit", "effect", "fires on", "bits")):
        # on a narrow terminal, only the columns after these give way
        width = max(len(title), *(len(row[column]) for row in rows))
        table.add_column(title, justify="right" if column else "left", no_wrap=True, min_width=width)
    for title in ("strongest texts", "tokens"):
        table.add_column(title, overflow="ellipsis", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _rows(explained: Explained, dataset: DatasetFeatures) -> list[tuple[str, ...]]:
    parts = {parts.name: parts for parts in module_parts(dict.fromkeys(unit.module for unit in explained.units))}
    end = dataset.ends[0]
    rows: list[tuple[str, ...]] = []
    for unit in np.argsort(-dataset.effect, kind="stable")[:_ROWS].tolist():
        label = "–" if end.label[unit] is None else f"{end.consistency[unit]:.0%} {plain(str(end.label[unit]))}"
        bits = "–" if np.isnan(dataset.information[unit]) else f"{dataset.information[unit]:.3f}"
        tokens = "(not shown)" if dataset.is_gated else " ".join(repr(mean.token) for mean in end.tokens[unit][:4])
        short = f"{parts[explained.units[unit].module].short} {explained.units[unit].unit}"
        rows.append((short, f"{dataset.effect[unit]:.2%}", f"{dataset.firing[unit]:.0%}", bits, label, tokens))
    return rows


def main(argv: list[str]) -> int:
    """Run from the command line; returns the exit status."""
    return run(FlagParser("monolora explain", __doc__).parse_into(argv, Call))


def run(call: Call) -> int:
    """Explain one adapter, or compare several; returns the exit status."""
    settings, console = call.settings, Terminal()
    if call.adapter:
        with code_trusted(settings.trust_remote_code):
            explained = explain(call.adapter, settings)
        summary(explained, console)
        say(f"{Path(settings.out) / PAGE}: open it in a browser.")
        strongest = explained.units[int(explained.datasets[0].effect.argmax())]
        suggest("monolora", "prune", call.adapter, f"{call.adapter}-pruned", "--units", str(strongest))
        return 0
    out = Path(settings.out)
    with code_trusted(settings.trust_remote_code), locked(out), no_empty_folder(out):
        check_output(out, settings.overwrite)
        comparison = compare(_explained(_named(settings.compare), settings))
        write_comparison(out, comparison)
    show(comparison, console)
    return 0


def _named(words: tuple[str, ...]) -> dict[str, str]:
    paths = named_paths(words, "--compare")
    for name, path in paths.items():
        if "/" in name or "\\" in name or name.startswith("."):
            raise InputError(f"--compare {name}={path}: {name} cannot be a folder's name. Take letters and digits.")
    if len(paths) < 2:
        raise InputError("--compare needs two adapters or more.")
    return paths


def _explained(paths: Mapping[str, str], settings: Settings) -> dict[str, Path]:
    """Folders of explanations, by name; adapters are explained first, all of their folders checked before."""
    adapters = {name: path for name, path in paths.items() if not (Path(path) / FEATURES).is_file()}
    settings_of = {name: replace(settings, out=str(Path(settings.out) / name)) for name in adapters}
    for name, path in adapters.items():
        with claim(settings_of[name].out, KIND) as folder:
            check_output_of(folder, path, settings_of[name])
            folder.check_apart(paths.values())
    for name, path in adapters.items():
        explain(path, settings_of[name])
    return {name: Path(settings_of[name].out if name in adapters else path) for name, path in paths.items()}


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
