"""A whole SFT run from the command line, against LLaMA-Factory's: the same rows, model, rank, batch and steps.

    python benchmarks/llamafactory.py --environment runs/llamafactory --rounds 3 --out llamafactory.json

    llamafactory         llamafactory-cli train, LoRA, its defaults otherwise
    lora, monolora       monolora sft, its defaults otherwise

LLaMA-Factory is installed by this program, into a virtual environment of its own in --environment, as it needs older
versions of the same libraries. Sides take turns. Reported are samples a second of the steps alone, seconds from the
command to the end of the first step, the largest resident memory of the process, and the mean loss of the second half
of the steps, each side in its own order of rows.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
import yaml
from rich.console import Console
from rich.table import Table
from rounds import flag_parser, in_turns, machine, of_groups, save, spread

from monolora.data.task import SampleLimits, Source
from monolora.data.tasks import load_task
from monolora.hub import resolve_model

VERSION = "0.9.5"
SIDES = ("llamafactory", "lora", "monolora")
_LOSS = re.compile(r"'loss': '?([\d.]+)|\bloss ([\d.]+)")


class Ended(NamedTuple):
    """What one run took, and what it reported."""

    samples_per_second: float
    first_step: float
    megabytes: float
    loss: float


def main() -> None:
    flags = _flags()
    command = _llamafactory(Path(flags.environment)) if "llamafactory" in flags.sides else None
    runs: dict[str, list[Ended]] = {side: [] for side in flags.sides}
    with tempfile.TemporaryDirectory() as work:
        _write_rows(Path(work), flags)
        sides = {side: partial(_run, side, flags, Path(work), command, runs[side]) for side in flags.sides}
        seconds = in_turns(sides, flags.rounds, warmup=0)
    report = {
        "flags": vars(flags),
        "machine": machine("peft", "trl", "transformers") | {"llamafactory": VERSION},
        "sides": {
            side: {name: spread([getattr(each, name) for each in ended]) for name in Ended._fields}
            for side, ended in runs.items()
        },
        "ratios": {
            f"{ours} / llamafactory": of_groups(seconds, lambda of, ours=ours: of["llamafactory"] / of[ours])
            for ours in flags.sides
            if ours != "llamafactory" and command
        },
    }
    _show(report)
    save(report, flags.out)


def _flags() -> argparse.Namespace:
    parser = flag_parser(__doc__)
    parser.add_argument("--environment", required=True, help="folder for LLaMA-Factory's virtual environment")
    parser.add_argument("--dataset", default="sst2", choices=("sst2", "dolly"))
    parser.add_argument("--rows", type=int, default=128, help="of the data set (default: %(default)s)")
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES, metavar="SIDE")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def _llamafactory(environment: Path) -> Path:
    """Its command, installed where it is not yet."""
    command = environment / "bin" / "llamafactory-cli"
    if not command.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        pip = [str(environment / "bin" / "pip"), "install", "--quiet"]
        subprocess.run([*pip, f"torch=={torch.__version__.partition('+')[0]}", f"llamafactory=={VERSION}"], check=True)
    return command


def _write_rows(work: Path, flags: argparse.Namespace) -> None:
    """As conversations, which both read."""
    examples = load_task(flags.dataset, Source(), limits=SampleLimits(train=flags.rows)).train[: flags.rows]
    rows = [{"messages": [*example.messages, example.answer_message]} for example in examples]
    (work / "rows.json").write_text(json.dumps(rows))
    (work / "rows").mkdir()
    for split, part in (("train", rows), ("test", rows[:1])):  # nothing is held out of the one for the other
        (work / "rows" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    about = {"file_name": "rows.json", "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
    (work / "dataset_info.json").write_text(json.dumps({"rows": about}))


def _run(side: str, flags: argparse.Namespace, work: Path, command: Path | None, ended: list[Ended]) -> float:
    """Run one side once; the seconds of its steps."""
    with tempfile.TemporaryDirectory() as output:
        words = _words(side, flags, work, Path(output), command)
        first_step, megabytes, losses = _watched(words)
        if side == "llamafactory":
            seconds = json.loads((Path(output) / "train_results.json").read_text())["train_runtime"]
        else:
            seconds = json.loads((Path(output) / "run" / "run.json").read_text())["results"]["seconds"]["train"]
    ended.append(Ended(flags.rows / seconds, first_step, megabytes, mean(losses[len(losses) // 2 :])))
    return float(seconds)


def _words(side: str, flags: argparse.Namespace, work: Path, output: Path, command: Path | None) -> list[str]:
    shared: dict[str, Any] = {
        "per_device_train_batch_size": flags.batch_size,
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "linear",
        "logging_steps": 1,
        "save_strategy": "no",
    }
    model = resolve_model(flags.model)
    if side == "llamafactory":
        config = shared | {
            "model_name_or_path": model, "stage": "sft", "do_train": True, "finetuning_type": "lora", "lora_rank": 8,
            "lora_alpha": 16, "lora_target": "q_proj,v_proj", "dataset": "rows", "dataset_dir": str(work),
            "cutoff_len": 1024, "output_dir": str(output), "bf16": True, "use_cpu": not torch.cuda.is_available(),
            "report_to": "none", "disable_tqdm": True, "gradient_accumulation_steps": 1,
        }  # fmt: skip
        (work / "config.yaml").write_text(yaml.safe_dump(config))
        return [str(command), "train", str(work / "config.yaml")]
    config = shared | {
        "model": model, "adapter": side, "dataset": str(work / "rows"), "lora_r": 8, "lora_alpha": 16,
        "lora_target_modules": "q_proj v_proj", "skip_eval": None, "output_dir": str(output / "run"),
    }  # fmt: skip
    flag_words = (
        [f"--{name.replace('_', '-')}", *str(value if value is not None else "").split()]
        for name, value in config.items()
    )
    return [sys.executable, "-m", "monolora.cli", "sft", *(word for words in flag_words for word in words)]


def _watched(words: Sequence[str]) -> tuple[float, float, list[float]]:
    """Run a command; seconds to the line of its first step, largest resident megabytes, and the losses it printed."""
    started, first_step, losses, lines = time.perf_counter(), None, [], []
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "DISABLE_VERSION_CHECK": "1"}
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, errors="replace"
    )
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if found := _LOSS.search(line):
            first_step = first_step or time.perf_counter() - started
            losses.append(float(found[1] or found[2]))
    _, status, usage = os.wait4(process.pid, 0)
    if status or first_step is None:
        raise SystemExit(f"{' '.join(words[:3])} ended with {status}:\n{''.join(lines[-30:])}")
    return first_step, usage.ru_maxrss / 1024, losses


def _show(report: Mapping[str, Any]) -> None:
    title = f"{report['flags']['dataset']}, {report['flags']['rows']} rows, {report['machine']['device']}"
    table = Table(title=title, title_justify="left")
    table.add_column("side")
    for head in ("samples/s", "first step, s", "memory, MB", "mean loss, 2nd half"):
        table.add_column(head, justify="right")
    for side, values in report["sides"].items():
        digits = {"samples_per_second": 2, "first_step": 1, "megabytes": 0, "loss": 4}
        cells = (
            f"{values[name]['median']:.{d}f} ({values[name]['smallest']:.{d}f}–{values[name]['largest']:.{d}f})"
            for name, d in digits.items()
        )
        table.add_row(side, *cells)
    console = Console()
    console.print(table)
    for name, ratio in report["ratios"].items():
        console.print(f"{name}, samples/s: " + "{median:.2f} ({smallest:.2f}–{largest:.2f})".format(**ratio))


if __name__ == "__main__":
    main()
