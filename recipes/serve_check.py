"""``monolora serve-check BASE [ADAPTER]``: does vLLM answer through the adapter as transformers does?

A few prompts go through both, base and adapter side by side. Exit status 1 if vLLM ignores the adapter, drops its
activation, or differs by more than its dtype's rounding: it should then not be used for measurements. Without
ADAPTER the model itself is checked: a base, or the output of ``monolora merge``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from monolora.adapters import adapter_config
from monolora.cli.flags import FlagParser
from monolora.errors import InputError, RunError, exit_status, in_one_line
from monolora.files import code_trusted, read_text
from monolora.hub import load_config, resolve_model
from monolora.recipes.settings import ServeCheck
from monolora.terminal import Terminal
from monolora.vllm import Canary, check_vllm
from monolora.vllm.adapter_folders import largest_rank, served_config, vllm_rank
from monolora.vllm.canary import PROMPTS, measure
from monolora.vllm.plugin import check_not_left_out

MAX_MODEL_LEN = 512
KV_CACHE_BYTES = 1 << 30  # enough for a few prompts; vLLM's default is nearly the whole GPU


def main(argv: list[str]) -> int:
    """Run from the command line; returns the exit status."""
    return run(FlagParser("monolora serve-check", __doc__).parse_into(argv, ServeCheck))


def run(settings: ServeCheck) -> int:
    """Check and print; returns the exit status."""
    # Read when vLLM is imported: print only errors, and compile nothing for a few prompts.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if not torch.cuda.is_available():
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    check_vllm()
    if (Path(settings.base) / "adapter_config.json").is_file():
        raise InputError(
            f"{settings.base} is an adapter. Its base comes first: monolora serve-check BASE {settings.base}"
        )
    base, prompts = resolve_model(settings.base), _prompts(settings.prompts)
    device = _device(settings.device)
    with code_trusted(settings.trust_remote_code):
        load_config(base)  # unreadable files are refused before an engine starts
        measured = measure(_engine(base, settings), settings.adapter, prompts=prompts, device=device)
    show(measured, Terminal())
    measured.check()
    return 0


def _prompts(file: str | None) -> Sequence[str]:
    if file is None:
        return PROMPTS
    prompts = [line for line in read_text(file, flag="prompts from").splitlines() if line.strip()]
    if not prompts:
        raise InputError(f"{file} holds no prompts. Write one a line.")
    return prompts


def _device(name: str) -> str:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # CPU builds of torch raise the latter for "cuda"
        raise InputError(f"--device {name}: {in_one_line(error)}") from error
    return name


def _engine(base: str, settings: ServeCheck) -> Any:
    from vllm import LLM

    lora_settings = {} if settings.adapter is None else _lora_settings(settings.adapter, settings.fully_sharded_loras)
    try:
        return LLM(
            base,
            dtype=settings.dtype,
            max_model_len=MAX_MODEL_LEN,
            kv_cache_memory_bytes=KV_CACHE_BYTES,
            tensor_parallel_size=settings.tensor_parallel_size,
            enforce_eager=settings.enforce_eager or not torch.cuda.is_available(),
            use_tqdm_on_load=False,
            trust_remote_code=settings.trust_remote_code,
            **lora_settings,
        )
    except (ValueError, RuntimeError, OSError, NotImplementedError) as error:
        raise RunError(f"vLLM does not start with {base}: {in_one_line(error)}") from error


def _lora_settings(adapter: str, fully_sharded: bool) -> dict[str, Any]:
    """The requirements of this adapter on an engine.

    Raises:
        InputError: if it is no adapter, or none that vLLM serves.
    """
    config: Any = served_config(adapter)
    if config is None:
        config = adapter_config(adapter)
    else:
        check_not_left_out()
    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": vllm_rank(largest_rank(config), adapter),
        "fully_sharded_loras": fully_sharded,
    }


def show(measured: Canary, console: Terminal) -> None:
    """Print the results."""
    table = Table(show_header=False, title=f"vLLM and transformers, {measured.dtype}, {measured.tokens} tokens each")
    what = "checkpoint" if measured.adapter_error is None else "base"
    table.add_row(what, f"{measured.base_error:.2g}", "rms difference of the log-probs")
    if measured.adapter_error is not None:
        table.add_row("adapter", f"{measured.adapter_error:.2g}", "the same through the adapter")
    if measured.applied is not None:
        table.add_row("applied", str(measured.applied), "of the adapter's effect is in vLLM's answers")
    if measured.activation is not None:
        table.add_row("activation", str(measured.activation), "of the activation's effect is")
    console.print(table)


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
