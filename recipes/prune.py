"""``monolora prune ADAPTER OUT --units UNIT …``: an adapter folder without some of its units, exactly.

UNIT is MODULE:NUMBER, as model.layers.3.self_attn.q_proj:5; the last parts of the module's name suffice if no other
module has them (3.self_attn.q_proj:5). @FILE stands for the units in a file, one a line. The base model is not loaded.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from monolora.cli.flags import FlagParser
from monolora.config import MonoLoraConfig
from monolora.errors import InputError, exit_status
from monolora.files import read_text, saving, write_json
from monolora.prune import Adapter, Pruned, read_adapter, without_units
from monolora.recipes.settings import Prune
from monolora.run_record import fingerprint_files, provenance
from monolora.runs import MODEL_FILES, Kind, OutputFolder, claim
from monolora.terminal import Terminal, suggest
from monolora.units import UnitName, find_units

JSON = "pruned.json"
# Files beside config and weights that belong to an adapter: its tokenizer, not its run's records.
_COPIED = (
    "tokenizer*.json",
    "*.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "additional_chat_templates",
    "*processor_config.json",
    "generation_config.json",
)

KIND = Kind(
    name="pruned adapter",
    record=JSON,
    keys=("source.fingerprint", "taken_out", "left"),
    files=(*MODEL_FILES, r"[^/]+\.model|\w*processor_config\.json"),
)


def main(argv: list[str]) -> int:
    """Run from the command line; returns the exit status."""
    return run(FlagParser("monolora prune", __doc__).parse_into(argv, Prune))


def run(settings: Prune) -> int:
    """Prune and write; returns the exit status."""
    with claim(settings.target, KIND) as folder:
        _prune(settings, folder)
    return 0


def _prune(settings: Prune, folder: OutputFolder) -> None:
    source, out = Path(settings.adapter), folder.path
    lists = (word[1:] for word in settings.named if word.startswith("@"))
    folder.check_apart((source, *lists))
    folder.check(settings.overwrite)
    adapter = read_adapter(settings.adapter)
    named = find_units(_names(settings.named), adapter.units)
    if not named:
        raise InputError("There are no units in the file. Name at least one.")
    everything = {UnitName(module, unit) for module, count in adapter.units.items() for unit in range(count)}
    gone = named if settings.units else everything - named
    if not gone:
        raise InputError(f"--keep names all {len(everything)} units: there is nothing to take out.")
    pruned = without_units(adapter, gone)
    with saving(out, "Nothing new was left there. Free space, then prune again."), folder.whole() as aside:
        write(aside, source, adapter, pruned, gone)
    Terminal().print(_summary(adapter, pruned, gone, out), soft_wrap=True)
    suggest("monolora", "keep-report", str(out))


def _names(words: Sequence[str]) -> Iterator[str]:
    """The units' names, including those in files."""
    for word in words:
        if not word.startswith("@"):
            yield word
            continue
        try:
            lines = read_text(word[1:], "Give one with a unit a line.").splitlines()
        except InputError as error:
            raise InputError(f"{word[1:]} cannot be read as a text file of units: {error}") from error
        yield from filter(None, map(str.strip, lines))


def write(
    folder: Path,
    source: Path,
    adapter: Adapter,
    pruned: Pruned,
    gone: Collection[UnitName],
    note: str = "Everything else is unchanged, bit for bit; nothing was retrained.",
) -> None:
    """Write a pruned adapter, with what belongs to it, its card and its record.

    Args:
        folder: that exists.
        source: folder of the whole adapter.
        adapter: what was pruned.
        pruned: what is left.
        gone: the units that were taken out.
        note: what the card says of the rest.
    """
    for pattern in _COPIED:
        for path in source.glob(pattern):
            if path.is_dir():
                shutil.copytree(path, folder / path.name)
            else:
                shutil.copy(path, folder / path.name)
    pruned.save(folder)
    record = {
        "source": {"folder": str(source.resolve()), "fingerprint": fingerprint_files(source)},
        "units": sum(adapter.units.values()),
        "taken_out": [str(unit) for unit in sorted(gone)],
        "left": pruned.left,
        **provenance(),
    }
    _card(source, adapter, pruned, gone, note).save(folder / "README.md")
    write_json(folder / JSON, record)


def _card(source: Path, adapter: Adapter, pruned: Pruned, gone: Collection[UnitName], note: str) -> ModelCard:
    base = adapter.config.base_model_name_or_path
    kind = "monolora" if isinstance(adapter.config, MonoLoraConfig) else "lora"
    data = ModelCardData(base_model=base, library_name="peft", tags=[kind, "pruned"])
    imports = ["import monolora  # registers the PEFT method"] if kind == "monolora" else []
    lines = [
        f"---\n{data.to_yaml()}\n---",
        f"# {source.resolve().name}, {len(gone)} units taken out",
        "",
        f"{_counted(adapter, pruned, gone)} {note}",
        f"`{JSON}` names the units, and the adapter that they were taken from.",
        "",
        "## Use",
        "",
        "```python",
        *imports,
        "from peft import PeftModel",
        "",
        f'model = PeftModel.from_pretrained(model, "THIS")  # of {base}',
        "```",
    ]
    return ModelCard("\n".join(lines))


def _counted(adapter: Adapter, pruned: Pruned, gone: Collection[UnitName]) -> str:
    units, modules = sum(adapter.units.values()), len(adapter.units)
    left = f"{len(gone)} of {units} units were taken out; {len(pruned.left)} of {modules} modules are left."
    nulls = sum(units.count(None) for units in pruned.left.values())
    return f"{left} {nulls} null units fill ranks up, to keep their scaling." if nulls else left


def _summary(adapter: Adapter, pruned: Pruned, gone: set[UnitName], out: Path) -> str:
    return f"{_counted(adapter, pruned, gone)}\nWrote {out}."


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
