"""Read an adapter: what each of its units fires on, what it says of labels, what it does, and what is lost without it.

    monolora explain runs/sst2-monolora --dataset sst2 --dataset beavertails --out runs/explained
    monolora explain --compare lora=runs/sst2-lora mono=runs/sst2-monolora --dataset sst2 --out runs/compared

Writes features.parquet (a row a unit), explorer.html (all units, to be sorted, searched and read) and run.json. With
--compare, each PATH is an adapter, explained into OUT/NAME, or a folder of an earlier explanation; the first one is the
reference.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from monolora.errors import InputError, exit_status
from monolora.eval.explain.compare import check_output, compare, write_comparison
from monolora.eval.explain.compare_terminal import show
from monolora.eval.explain.run import check_output as check_output_of
from monolora.eval.explain.run import explain
from monolora.eval.explain.settings import Settings
from monolora.eval.explain.summary import summary
from monolora.eval.explain.written import FEATURES, KIND, PAGE
from monolora.flags import FlagParser
from monolora.locks import locked, no_empty_folder
from monolora.remote_code import code_trusted
from monolora.runs import claim
from monolora.terminal import Terminal, say


def main(argv: list[str]) -> int:
    """Explain one adapter, or compare several; returns the exit status."""
    parser = FlagParser("monolora explain", __doc__)
    parser.add_argument("adapter", nargs="?", help="an adapter folder, MonoLoRA or LoRA")
    adapter, settings = parser.parse_with(argv, "adapter", Settings)
    settings.check()
    if bool(adapter) == bool(settings.compare):
        raise InputError("Give one adapter folder to explain, or several with --compare NAME=PATH NAME=PATH.")
    console = Terminal()
    if not settings.compare:
        with code_trusted(settings.trust_remote_code):
            summary(explain(adapter, settings), console)
        say(f"{Path(settings.out) / PAGE}: open it in a browser.")
        return 0
    out = Path(settings.out)
    with code_trusted(settings.trust_remote_code), locked(out), no_empty_folder(out):
        check_output(out, settings.overwrite)
        comparison = compare(_explained(_named(settings.compare), settings))
        write_comparison(out, comparison)
    show(comparison, console)
    return 0


def _named(words: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not (name and equals and path):
            raise InputError(f"--compare {word} is not NAME=PATH. Write, for example, mono={path or word}")
        if "/" in name or "\\" in name or name.startswith("."):
            raise InputError(f"--compare {word}: {name} cannot be a folder's name. Take letters and digits.")
        if name in found:
            raise InputError(f"--compare names {name!r} twice. Take another name.")
        found[name] = path
    if len(found) < 2:
        raise InputError("--compare needs two adapters or more.")
    return found


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
