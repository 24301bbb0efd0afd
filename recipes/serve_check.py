"""``monolora serve-check BASE [ADAPTER]``: does vLLM answer through the adapter as transformers does?

A few prompts go through both, base and adapter side by side. Exit status 1 if vLLM ignores the adapter, drops its
activation, or differs by more than its dtype's rounding: nothing that it serves should be measured then. Without
ADAPTER the model itself is checked: a base, or what ``monolora merge`` wrote.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from monolora.adapters import adapter_config
from monolora.errors import InputError, RunError, exit_status, in_one_line
from monolora.files import read_text
from monolora.flags import FlagParser
from monolora.hub import load_config, resolve_model
from monolora.remote_code import TRUST_HELP, code_trusted
from monolora.terminal import Terminal
from monolora.vllm import Canary, check_vllm
from monolora.vllm.adapter_folders import largest_rank, served_config, vllm_rank
from monolora.vllm.canary import PROMPTS, measure
from monolora.vllm.plugin import check_not_left_out

MAX_MODEL_LEN = 512
KV_CACHE_BYTES = 1 << 30  # a few prompts need no more; vLLM would take nearly the whole GPU


def main(argv: list[str]) -> int:
    """Check and print; returns the exit status."""
    flags = _parser().parse(argv)
    # Read when vLLM is imported: only its errors, and nothing compiled where nothing gains from it.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if not torch.cuda.is_available():
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    check_vllm()
    if (Path(flags.base) / "adapter_config.json").is_file():
        raise InputError(f"{flags.base} is an adapter. Its base comes first: monolora serve-check BASE {flags.base}")
    base, prompts = resolve_model(flags.base), _prompts(flags.prompts)
    device = _device(flags.device)
    with code_trusted(flags.trust_remote_code):
        load_config(base)  # what cannot be read is refused before an engine starts
        measured = measure(_engine(base, flags), flags.adapter, prompts=prompts, device=device)
    show(measured, Terminal())
    measured.check()
    return 0


def _parser() -> FlagParser:
    parser = FlagParser("monolora serve-check", __doc__)
    parser.add_argument("base", help="the model that vLLM serves: a path, a hub id, or smollm2-135m-instruct")
    parser.add_argument("adapter", nargs="?", help="folder of a MonoLoRA or LoRA adapter")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--prompts", metavar="FILE", help="one prompt a line (default: a few built in)")
    parser.add_argument("--device", default="cpu", help="of transformers' copy (default: cpu, the GPU is vLLM's)")
    parser.add_argument("--tensor-parallel-size", type=int, default=1)
    parser.add_argument("--fully-sharded-loras", action="store_true", help="as for vllm serve")
    parser.add_argument("--enforce-eager", action="store_true", help="as for vllm serve")
    parser.add_argument("--trust-remote-code", action="store_true", help=TRUST_HELP)
    return parser


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


def _engine(base: str, flags: argparse.Namespace) -> Any:
    from vllm import LLM

    lora_settings = {} if flags.adapter is None else _lora_settings(flags)
    try:
        return LLM(
            base,
            dtype=flags.dtype,
            max_model_len=MAX_MODEL_LEN,
            kv_cache_memory_bytes=KV_CACHE_BYTES,
            tensor_parallel_size=flags.tensor_parallel_size,
            enforce_eager=flags.enforce_eager or not torch.cuda.is_available(),
            use_tqdm_on_load=False,
            trust_remote_code=flags.trust_remote_code,
            **lora_settings,
        )
    except (ValueError, RuntimeError, OSError, NotImplementedError) as error:
        raise RunError(f"vLLM does not start with {base}: {in_one_line(error)}") from error


def _lora_settings(flags: argparse.Namespace) -> dict[str, Any]:
    """What an engine needs for this adapter.

    Raises:
        InputError: if it is none, or none that vLLM serves.
    """
    config: Any = served_config(flags.adapter)
    if config is None:
        config = adapter_config(flags.adapter)
    else:
        check_not_left_out()
    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": vllm_rank(largest_rank(config), flags.adapter),
        "fully_sharded_loras": flags.fully_sharded_loras,
    }


def show(measured: Canary, console: Terminal) -> None:
    """Print what was measured."""
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
