"""The flags of a step: those that all have, and those of its own section, over a config's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from monolora.cli.config_file import load_yaml, settings_in, split_config
from monolora.cli.flags import FlagParser, frozen
from monolora.errors import InputError, unknown
from monolora.recipes.vision.settings import Common, Consistency, Data, Finetune, Pretrain, Probe, Sae, Settings

SECTIONS: Mapping[str, type[Any]] = {
    "data": Data,
    "pretrain": Pretrain,
    "sae": Sae,
    "probe": Probe,
    "finetune": Finetune,
    "consistency": Consistency,
}


def parse(words: Sequence[str], step: str, description: str | None = None) -> Settings:
    """The settings in the words of a command line, over those of ``--config``.

    Args:
        words: flags and values.
        step: a section's name, or another step's, which has the flags of all steps only.
        description: for ``--help``.

    Raises:
        InputError: for flags, keys and values that cannot be.
    """
    path, typed = split_config(list(words))
    given = _of_file(load_yaml(path), f"--config {path}") if path else {}
    own = [Common, Data, *([SECTIONS[step]] if step in SECTIONS and step != "data" else [])]
    parser = FlagParser(f"monolora vision {step}", description)
    parser.add_argument("--config", metavar="FILE", help="settings from a YAML file; the command line goes before it")
    for section in own:
        parser.add_settings(fields(section), given.get(_name(section)))
    parsed = vars(parser.parse(typed))
    names = {word.partition("=")[0][2:].replace("-", "_") for word in typed if word.startswith("--")}
    names |= {name.removeprefix("no_") for name in names}
    for section in own:
        known = {each.name for each in fields(section)}
        values = {name: frozen(parsed[name]) for name in known & names}
        given[_name(section)] = given.get(_name(section), {}) | values
    settings = Settings(
        common=Common(**given.get("common", {})),
        **{name: section(**given.get(name, {})) for name, section in SECTIONS.items()},
    )
    settings.check(step)
    return settings


def _of_file(loaded: Mapping[Any, Any], where: str) -> dict[str, dict[str, Any]]:
    """Sections of a config; what all steps have stands beside the sections."""
    sections: dict[str, dict[str, Any]] = {}
    common: dict[Any, Any] = {}
    for key, value in loaded.items():
        if isinstance(value, dict):
            if key not in SECTIONS:
                raise InputError(f"{where}: {unknown('section', str(key), SECTIONS)}")
            sections[key] = settings_in(value, fields(SECTIONS[key]), f"{where}, {key}")
        elif key in SECTIONS:
            if value is None:  # a section with all its keys commented out
                continue
            raise InputError(f"{where}: {key} is a section and needs settings below it, got {value!r}.")
        else:
            common[key] = value
    sections["common"] = settings_in(common, fields(Common), where)
    return sections


def _name(section: type[Any]) -> str:
    return section.__name__.lower()
