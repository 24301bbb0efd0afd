"""``monolora plan --model NAME --gpus 8x80``: what a run of ``monolora sft`` takes of each GPU, and how to launch it.

A config.json is enough: no weights are read. The table has a column for each layout: DDP, with a copy of the model on
every GPU; ZeRO-2, which shards gradients and optimizer states; and FSDP2, which shards the weights too, as ZeRO-3 does.
How each number is computed: the docstring of ``recipes/training/memory.py``. The command of the first layout that fits
comes last.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from rich.table import Table
from transformers import PreTrainedConfig

from monolora.cli.flags import FlagParser
from monolora.errors import InputError, exit_status
from monolora.files import code_trusted
from monolora.hub import load_config, resolve_model
from monolora.recipes.settings import Plan
from monolora.recipes.training.arguments import parse
from monolora.recipes.training.memory import DDP, FREE, FSDP2, ZERO_2, Memory, footprint, per_gpu
from monolora.terminal import Terminal, say

GPUS_A_MACHINE = 8
CONFIGS = {DDP: "ddp.yaml", ZERO_2: "zero2.yaml", FSDP2: "fsdp2.yaml"}


class Gpus(NamedTuple):
    """GPUs of one kind: how many, and the memory of each in bytes."""

    number: int
    memory: float

    @staticmethod
    def parse(text: str) -> Gpus:
        """The GPUs that ``8x80`` names.

        Raises:
            InputError: if it names none.
        """
        match = re.fullmatch(r"([1-9]\d*)x(\d+(?:\.\d+)?)", text)
        if match is None or float(match[2]) == 0:
            raise InputError(f"--gpus {text} is not NUMBERxGB. Write, for example, 8x80 for eight GPUs of 80 GB.")
        number = int(match[1])
        if number > GPUS_A_MACHINE and number % GPUS_A_MACHINE:
            raise InputError(f"--gpus {text}: several machines have {GPUS_A_MACHINE} GPUs each. Give a multiple.")
        return Gpus(number, 1e9 * float(match[2]))


def main(argv: list[str]) -> int:
    """Run from the command line; returns the exit status."""
    return run(FlagParser("monolora plan", __doc__).parse_into(argv, Plan))


def run(settings: Plan) -> int:
    """Compute and print; returns the exit status."""
    gpus = Gpus.parse(settings.gpus)
    words = _words(settings)
    arguments = parse(words)
    arguments.training.bf16 = settings.bf16  # as on a GPU, wherever this runs
    with code_trusted(settings.trust_remote_code):
        layouts = per_gpu(footprint(_config(settings.model), arguments), arguments, gpus.number)
    fitting = [name for name, memory in layouts.items() if memory.total <= (1 - FREE) * gpus.memory]
    command = launch(fitting[0], gpus.number, words) if fitting else None
    if settings.json:
        rows = {name: {**asdict(memory), "total": memory.total} for name, memory in layouts.items()}
        print(json.dumps({"bytes": rows, "fits": fitting, "command": command}, indent=2))
        return 0
    Terminal().print(_table(layouts, fitting, settings))
    if command is None:
        say(
            "None of them fits. Take more GPUs, --gradient-checkpointing, --load-in-4bit, or a smaller "
            "--per-device-train-batch-size or --max-length."
        )
        return 0
    say(f"{fitting[0]} fits:")
    print(command)
    if gpus.number > GPUS_A_MACHINE:
        say(
            f"Run it on each of the machines, of {GPUS_A_MACHINE} GPUs, with its own --machine_rank; HOST is the first."
        )
    return 0


def _config(model: str) -> PreTrainedConfig:
    """The config of a model, or the config.json itself; of a model on the hub nothing else is downloaded."""
    return load_config(model if Path(model).is_file() else resolve_model(model, with_weights=False))


def _words(settings: Plan) -> list[str]:
    """The flags of the run that is planned; in place of a config.json, the folder that it is in."""
    model = str(Path(settings.model).parent) if Path(settings.model).is_file() else settings.model
    words = ["--model", model, "--adapter", settings.adapter]
    if settings.adapter != "none":
        words += ["--lora-r", str(settings.lora_r)]
    if settings.lora_target_modules:
        words += ["--lora-target-modules", *settings.lora_target_modules]
    words += ["--per-device-train-batch-size", str(settings.per_device_train_batch_size)]
    words += ["--max-length", str(settings.max_length)]
    if settings.dtype is not None:
        words += ["--dtype", settings.dtype]
    if settings.optim is not None:
        words += ["--optim", settings.optim]
    if settings.keep:
        words += ["--keep", *settings.keep]
    for flag in ("load_in_4bit", "gradient_checkpointing", "trust_remote_code"):
        words += [f"--{flag.replace('_', '-')}"] * getattr(settings, flag)
    return words


def launch(layout: str, gpus: int, words: list[str]) -> str:
    """The command that starts a run on so many GPUs.

    Args:
        layout: one of :data:`monolora.recipes.training.memory.LAYOUTS`.
        gpus: of all machines.
        words: the run's own flags.
    """
    command = ["accelerate", "launch", "--config_file", f"recipes/accelerate/{CONFIGS[layout]}"]
    command += ["--num_processes", str(gpus)]
    if gpus > GPUS_A_MACHINE:
        command += ["--num_machines", str(-(-gpus // GPUS_A_MACHINE)), "--machine_rank", "0"]
        command += ["--main_process_ip", "HOST", "--main_process_port", "29500"]
    return shlex.join([*command, "recipes/sft.py", *words])


def _table(layouts: Mapping[str, Memory], fitting: list[str], settings: Plan) -> Table:
    table = Table(title=f"GB on each of {settings.gpus.partition('x')[0]} GPUs: {settings.model}")
    table.add_column()
    for name in layouts:
        table.add_column(name, justify="right")
    rows = {name: asdict(memory) for name, memory in layouts.items()}
    for part in next(iter(rows.values())):
        table.add_row(part, *(f"{row[part] / 1e9:.2f}" for row in rows.values()))
    table.add_section()
    table.add_row("total", *(f"{memory.total / 1e9:.2f}" for memory in layouts.values()))
    table.add_row(f"fits, with {FREE:.0%} left free", *("yes" if name in fitting else "no" for name in layouts))
    return table


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
