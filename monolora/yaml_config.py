"""``--config FILE``: where it stands on a command line, and what the file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from monolora.errors import InputError
from monolora.redaction import secret_setting


def split_config(words: list[str]) -> tuple[Path | None, list[str]]:
    """The file after ``--config``, and the other words of the command line.

    Raises:
        InputError: if ``--config`` has no value or is given twice.
    """
    rest: list[str] = []
    paths: list[str] = []
    remaining = iter(words)
    for word in remaining:
        if word == "--config":
            paths.append(next(remaining, ""))
        elif word.startswith("--config="):
            paths.append(word.partition("=")[2])
        else:
            rest.append(word)
    if len(paths) > 1:
        raise InputError("--config is given twice. Put everything into one file.")
    if "" in paths:
        raise InputError("--config needs a YAML file.")
    return (Path(paths[0]) if paths else None), rest


def load_yaml(path: Path) -> dict[Any, Any]:
    """The mapping in a YAML file.

    Raises:
        InputError: if the file cannot be read, is no mapping, or holds a token, key or password.
    """
    try:
        loaded = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"Cannot read --config {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, dict):
        raise InputError(f"--config {path} must be a mapping of flags to values.")
    if (name := secret_setting(loaded)) is not None:
        raise InputError(
            f"--config {path}: {name} holds a secret, and files are copied and shared. Leave it out, and set an "
            "environment variable: HF_TOKEN for the hub, WANDB_API_KEY for its logs, --api-key-env NAME for endpoints."
        )
    return loaded
