"""The flags of ``recipes/sft.py``: TRL's own, with our defaults, and the few that TRL lacks."""

from __future__ import annotations

import difflib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig, TrlParser

from monolora.config import MonoLoraConfig
from monolora.errors import InputError, unknown
from monolora.hub import SMOLLM2

ADAPTERS = ("monolora", "lora", "none")
# Learning rates found on SST-2 with SmolLM2-135M (docs/RESULTS.md); full finetuning takes TRL's.
LEARNING_RATE = {"monolora": 1e-3, "lora": 1e-3, "none": 2e-5}
DTYPE = {"monolora": "bfloat16", "lora": "bfloat16", "none": "float32"}


@dataclass
class AdapterArguments:
    """What to train, on what, and what to measure."""

    adapter: str = field(default="monolora", metadata={"help": "monolora, lora, or none (full finetuning)."})
    activation: str = field(default="relu", metadata={"help": "MonoLoRA's: relu, identity, softplus or topk:<k>."})
    model: str = field(default=SMOLLM2, metadata={"help": f"A hub id, a path, or {SMOLLM2} (comes with the project)."})
    dataset: str = field(
        default="demo",
        metadata={"help": "demo, sst2, dolly, a hub id, or a .jsonl, .csv or .parquet file."},
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Training examples taken. Default: the task's."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Held-out examples scored. Default: the task's."}
    )
    eval_max_new_tokens: int | None = field(
        default=None, metadata={"help": "Length of scored answers. Default: the task's."}
    )
    skip_eval: bool = field(default=False, metadata={"help": "Do not score the task before and after training."})
    preview: bool = field(
        default=False, metadata={"help": "Print three examples with the trained tokens marked, and stop."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace the run that is in the output folder."})


@dataclass
class TrainingArguments(SFTConfig):
    """TRL's SFTConfig with defaults that suit an adapter."""

    output_dir: str | None = field(default=None, metadata={"help": "Default: runs/<dataset>-<adapter>."})
    learning_rate: float = field(
        default=1e-3, metadata={"help": "Default: 1e-3 for adapters, 2e-5 for full finetuning."}
    )
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the training examples."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Examples a step and device."})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Prompts at a time when scoring."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Trade time for memory."})
    logging_steps: float = field(default=5, metadata={"help": "Steps between logged losses and sparsities."})
    save_steps: float = field(default=100, metadata={"help": "Steps between checkpoints."})
    packing_strategy: str = field(
        default="wrapped",
        metadata={
            "help": "With --packing: wrapped; bfd needs flash attention.",
            "choices": ["wrapped", "bfd", "bfd_split"],
        },
    )

    def __post_init__(self) -> None:
        if not torch.accelerator.is_available():
            self.use_cpu = True  # without it TRL's bf16 default is refused where there is no GPU
        super().__post_init__()


@dataclass
class LoraArguments(ModelConfig):
    """TRL's ModelConfig with the defaults of our runs; its ``lora_…`` flags shape both kinds of adapter."""

    dtype: str | None = field(
        default="bfloat16",
        metadata={
            "help": "Base weights. Default: bfloat16 under an adapter, float32 for full finetuning.",
            "choices": ["auto", "bfloat16", "float16", "float32"],
        },
    )
    lora_r: int = field(default=8, metadata={"help": "Rank: units an adapted module."})
    lora_alpha: int = field(default=16, metadata={"help": "The update is scaled by lora_alpha / lora_r."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout on the adapter's input."})


class Arguments(NamedTuple):
    """All parsed flags."""

    script: ScriptArguments
    training: TrainingArguments
    model: LoraArguments
    mixture: DatasetMixtureConfig
    adapter: AdapterArguments


def parse(argv: list[str] | None = None) -> Arguments:
    """Parse the command line and, with ``--config FILE``, a YAML file under it; the command line wins.

    Raises:
        InputError: for an unknown flag or key (with the nearest right one), a value that cannot be, or flags that
            contradict each other.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = TrlParser(
        (ScriptArguments, TrainingArguments, LoraArguments, DatasetMixtureConfig, AdapterArguments), allow_abbrev=False
    )
    _accept_bare_resume(parser)
    parser.error = _raise_input_error  # type: ignore[method-assign]
    keys = _config_keys(argv)
    known = {option for action in parser._actions for option in action.option_strings}
    given = {option.split("=")[0] for option in argv if option.startswith("--")}
    for option in [*(f"--{key}" for key in keys), *sorted(given)]:
        if option not in known | {"--config", "--env"}:
            raise InputError(f"Unknown flag {option}.{_nearest_flag(option, known)}")
    named = {option.lstrip("-").replace("-", "_") for option in given} | set(keys)
    _set_adapter_defaults(parser, argv, named)
    try:
        arguments = Arguments(*parser.parse_args_and_config(argv))
    except InputError:
        raise
    except (ValueError, OSError) as error:
        raise InputError(str(error).splitlines()[0]) from error
    _check(arguments, named)
    return arguments


def _accept_bare_resume(parser: TrlParser) -> None:
    for action in parser._actions:
        if action.dest == "resume_from_checkpoint":
            action.nargs, action.const = "?", "latest"
            action.help = "A checkpoint folder; without a value, the newest of the output folder."


def _raise_input_error(message: str) -> None:
    raise InputError(f"{message[0].upper()}{message[1:]}. See --help.")


def _config_keys(argv: list[str]) -> list[str]:
    if "--config" not in argv:
        return []
    place = argv.index("--config") + 1
    if place >= len(argv):
        raise InputError("--config needs a YAML file.")
    path = Path(argv[place])
    try:
        loaded = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"Cannot read --config {path}: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise InputError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, dict):
        raise InputError(f"--config {path} must be a mapping of flags to values.")
    return [str(key) for key in loaded]


def _nearest_flag(option: str, known: set[str]) -> str:
    near = difflib.get_close_matches(option.replace("_", "-"), {name.replace("_", "-") for name in known}, n=1)
    return f" Did you mean {near[0]}?" if near else " See --help."


def _set_adapter_defaults(parser: TrlParser, argv: list[str], named: set[str]) -> None:
    """Defaults that depend on the kind of adapter, for flags that were not given."""
    adapter = "monolora"
    if "--config" in argv:
        adapter = yaml.safe_load(Path(argv[argv.index("--config") + 1]).read_text()).get("adapter", adapter)
    for place, word in enumerate(argv):
        if word == "--adapter" and place + 1 < len(argv):
            adapter = argv[place + 1]
        elif word.startswith("--adapter="):
            adapter = word.split("=", 1)[1]
    if adapter in ADAPTERS:
        defaults = {"learning_rate": LEARNING_RATE[adapter], "dtype": DTYPE[adapter]}
        parser.set_defaults(**{key: value for key, value in defaults.items() if key not in named})


def _check(arguments: Arguments, named: set[str]) -> None:
    adapter, training, model = arguments.adapter, arguments.training, arguments.model
    if adapter.adapter not in ADAPTERS:
        raise unknown("--adapter", adapter.adapter, ADAPTERS)
    if "activation" in named and adapter.adapter != "monolora":
        raise InputError(f"--activation is MonoLoRA's; --adapter {adapter.adapter} has none. Leave it out.")
    for name in ("max_train_samples", "max_eval_samples", "eval_max_new_tokens"):
        value = getattr(adapter, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1, got {value}.")
    for flag, ours, theirs in (
        ("--model", "model", model.model_name_or_path),
        ("--dataset", "dataset", arguments.script.dataset_name),
    ):
        if theirs is not None:
            if ours in named:
                raise InputError(f"{flag} and TRL's name for it are both given; keep {flag}.")
            setattr(adapter, ours, theirs)
    if adapter.adapter == "none" and (model.load_in_4bit or model.load_in_8bit):
        raise InputError(
            "Quantized weights cannot be trained: --adapter none needs --load-in-4bit and --load-in-8bit off."
        )
    if model.use_dora and adapter.adapter == "monolora":
        raise InputError("MonoLoRA does not support --use-dora: with an activation there is no matrix to renormalise.")
    if "output_dir" not in named:
        training.output_dir = f"runs/{_slug(adapter.dataset)}-{adapter.adapter}"


def _slug(dataset: str) -> str:
    path = Path(dataset)
    return path.stem if path.suffix else dataset.strip("./").replace("/", "--")


def peft_config(arguments: Arguments) -> Any:
    """The PEFT config of the run, or None for full finetuning.

    Raises:
        InputError: for values that PEFT or MonoLoRA refuse.
    """
    from peft import LoraConfig

    kind, model = arguments.adapter.adapter, arguments.model
    if kind == "none":
        return None
    options = {
        "r": model.lora_r,
        "lora_alpha": model.lora_alpha,
        "lora_dropout": model.lora_dropout,
        "target_modules": model.lora_target_modules,
        "modules_to_save": model.lora_modules_to_save,
        "use_rslora": model.use_rslora,
        "task_type": "CAUSAL_LM",
    }
    if model.lora_r < 1:
        raise InputError(f"--lora-r must be at least 1, got {model.lora_r}; a common choice is 8.")
    try:
        if kind == "lora":
            return LoraConfig(**options, use_dora=model.use_dora, target_parameters=model.lora_target_parameters)
        return MonoLoraConfig(
            **options, target_parameters=model.lora_target_parameters, activation=arguments.adapter.activation
        )
    except (ValueError, TypeError) as error:
        raise InputError(str(error)) from error
