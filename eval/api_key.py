"""The key of endpoints: it is in an environment variable, and only the variable's name is a flag."""

from __future__ import annotations

import difflib
import os
import re

from monolora.errors import InputError
from monolora.redaction import is_secret_name, remember


def api_key(variable: str) -> str:
    """The key in an environment variable.

    Raises:
        InputError: if there is no such variable, or it is empty. What was given is shown only where it can be nothing
            but a name: it may be the key itself.
    """
    key = os.environ.get(variable, "")
    if key:
        remember(key)
        return key
    is_name = re.fullmatch(r"[A-Z]+(_[A-Z]+)+", variable) is not None and is_secret_name(variable)
    if is_name:
        raise InputError(
            f"--api-key-env: the environment variable {variable}, which should hold the servers' key, is not set. "
            f"Run: export {variable}=…"
        )
    remember(variable)
    near = difflib.get_close_matches(variable, filter(is_secret_name, os.environ), n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise InputError(
        "--api-key-env takes the name of the environment variable that holds the servers' key, such as VLLM_API_KEY. "
        f"None is set by the given name, which is not shown: it may be a key.{hint}"
    )
