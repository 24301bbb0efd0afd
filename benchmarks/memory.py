"""Memory of a training step: what autograd keeps for the backward, and the most that the process holds.

    python benchmarks/memory.py --out memory.json

Sides as in train_step.py. ``saved`` is what autograd keeps beside the weights, counted once a storage; ``saved a
layer`` is what a side adds to ``frozen`` for each adapted layer. ``peak`` is the most that is held in a second step,
weights included: by the process (Linux), or by the GPU's allocator.
"""

from __future__ import annotations

import argparse
import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from rich.console import Console
from rich.table import Table
from rounds import flag_parser, machine, save
from torch import nn
from train_step import DTYPES, SIDES, TARGETS, adapted, model_step

from monolora.hub import load_causal_lm, resolve_model


def main() -> None:
    flags = _flags()
    rows = [_in_own_process(flags, side) for side in SIDES]
    floor = rows[0]["saved"]
    for row in rows:
        row["saved_a_layer"] = (row["saved"] - floor) / row["layers"] if row["layers"] else 0
    report = {"flags": vars(flags), "machine": machine("peft", "transformers"), "rows": rows}
    show(report)
    save(report, flags.out)


def _flags() -> argparse.Namespace:
    parser = flag_parser(__doc__)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--targets", choices=TARGETS, default="all-linear")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=768)
    return parser.parse_args()


def _in_own_process(flags: argparse.Namespace, side: str) -> dict[str, Any]:
    """So that no side finds memory that another one has freed."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_measure, args=(theirs, flags, side))
    process.start()
    theirs.close()
    row = ours.recv()
    process.join()
    return dict(row)


def _measure(connection: Connection, flags: argparse.Namespace, side: str) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = load_causal_lm(resolve_model(flags.model), dtype=DTYPES[flags.dtype]).to(device)
    model = adapted(side, base, flags.targets, flags.rank)
    ids = torch.randint(0, 128, (1, flags.tokens), device=device, generator=torch.Generator(device).manual_seed(0))
    saved = saved_bytes(model, ids, flags.dtype)  # the first step, which also warms up
    reset_peak(device)
    model_step(model, ids, flags.dtype)
    layers = sum(isinstance(module, LoraLayer) for module in model.modules())
    connection.send({"side": side, "layers": layers, "saved": saved, "peak": peak(device)})


def saved_bytes(model: nn.Module, ids: torch.Tensor, dtype: str) -> int:
    """Bytes that autograd saves in a forward for the backward, without weights, which are in memory anyway."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model_step(model, ids, dtype)
    return sum(kept.values())


def reset_peak(device: str) -> None:
    """The peak counts from here."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM: see proc(5)


def peak(device: str) -> int:
    """The most bytes that were held since."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def show(report: dict[str, Any]) -> None:
    table = Table(
        title=f"A step of {report['flags']['tokens']} tokens, {report['flags']['dtype']}", title_justify="left"
    )
    for head in ("side", "saved MB", "saved a layer kB", "peak MB"):
        table.add_column(head, justify="left" if head == "side" else "right")
    for row in report["rows"]:
        table.add_row(
            row["side"], f"{row['saved'] / 1e6:.1f}", f"{row['saved_a_layer'] / 1e3:.1f}", f"{row['peak'] / 1e6:.0f}"
        )
    Console().print(table)


if __name__ == "__main__":
    main()
