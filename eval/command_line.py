"""The flags of a stage: from its command line, a YAML file, or the run that it continues."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields, replace
from pathlib import Path
from typing import Any

from monolora.cli.config_file import load_yaml, settings_in, split_config
from monolora.cli.flags import FlagParser, api_key, frozen, spelled
from monolora.errors import InputError
from monolora.eval.settings import ENDPOINTS, Settings
from monolora.redaction import remember_url

SCORE_FLAGS = (
    "out", "judges", "judge_engine", "judge_endpoint", "judge_dtype", "judge_batch_size", "judge_max_model_len",
    "beaverdam_max_length",
    "judge_device", "judge_text", "judge_tensor_parallel_size", "unsafe_labels", "gpu_memory_utilization",
    "concurrency", "retries", "timeout", "api_key_env", "trust_remote_code", "keep_going", "retry_invalid",
)  # fmt: skip
REPORT_FLAGS = ("out", "seed")


def parse(
    words: Sequence[str],
    prog: str,
    stored: Mapping[str, Any] | None = None,
    *,
    read: Sequence[str] | None = None,
    whole: bool = True,
) -> Settings:
    """The settings in the words of a command line, over those of ``--config``, over those of an earlier run.

    Args:
        words: flags and values.
        prog: the stage, for ``--help`` and messages.
        stored: the settings in the run's ``run.json``, for stages that continue it.
        read: the settings that the stage reads (default: all); only ``--config`` may hold others too.
        whole: whether to check that the settings are complete and consistent.

    Raises:
        InputError: for invalid flags, keys and values.
    """
    path, typed = split_config(list(words))
    values = dict(stored or {})
    if path:
        values |= _of_file(path)
    names = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in typed if word.startswith("--")}
    if read is not None and (unread := sorted(names & {option.name for option in fields(Settings)} - {*read})):
        raise InputError(f"{prog} does not read {spelled(unread[0])}. See {prog} --help.")
    for name in ENDPOINTS:  # new ones replace those of the run, and another engine needs none
        if stored and names & {name, name.replace("endpoint", "engine")}:
            values[name] = ()
    options = [option for option in fields(Settings) if read is None or option.name in read]
    values |= {name: value for name, value in _parsed(typed, prog, options).items() if name in names}
    settings = Settings(**{o.name: frozen(values[o.name]) for o in fields(Settings) if o.name in values})
    settings = replace(settings, checkpoints=_globbed(settings.checkpoints))
    for url in (*settings.endpoint, *settings.judge_endpoint):
        remember_url(url)
    if settings.api_key_env not in (None, (stored or {}).get("api_key_env")):
        api_key(settings.api_key_env)  # checked before the flag is stored: it may be the key itself
    if whole:
        settings.check()
    return settings


def _parsed(words: Sequence[str], prog: str, options: Sequence[Field[Any]]) -> dict[str, Any]:
    parser = FlagParser(prog, "score and report have the settings of their run as defaults.")
    parser.add_argument("--config", metavar="FILE", help="flags from a YAML file; the command line takes precedence")
    parser.add_settings(options)
    return vars(parser.parse(words))


def _of_file(path: Path) -> dict[str, Any]:
    """The flags in a YAML file; ``adapter`` may be a mapping of names to paths."""
    loaded = load_yaml(path)
    if isinstance(loaded.get("adapter"), dict):
        loaded["adapter"] = [f"{adapter}={folder}" for adapter, folder in loaded["adapter"].items()]
    return settings_in(loaded, fields(Settings), f"--config {path}")


def _globbed(paths: Sequence[str]) -> tuple[str, ...]:
    """Expand ``checkpoint-*``, which a shell does itself but a YAML file or quotes leave to us."""
    folders: list[str] = []
    for path in paths:
        here = glob.glob(path) if glob.has_magic(path) and not Path(path).exists() else [path]
        if not here:
            raise InputError(f"--checkpoints {path}: no folder matches. Give folders named checkpoint-STEP.")
        folders += sorted(here)
    return tuple(folders)
