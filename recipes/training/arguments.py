"""The flags of a trainer: TRL's own, with our defaults, and the few that TRL lacks."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from trl import ModelConfig, ScriptArguments, SFTConfig, TrlParser

from monolora.activations import DEFAULT, activation_names
from monolora.cli.config_file import split_config
from monolora.cli.flags import check_words, raise_input_error, unknown_flag
from monolora.data import conversations, mixture_config, table_files
from monolora.data.task import ALL, TRAIN_ON
from monolora.data.tasks import BUILT_IN
from monolora.errors import InputError, in_one_line
from monolora.hub import SMOLLM2
from monolora.recipes.training.argument_checks import (
    ADAPTERS,
    NOT_HERE,
    RENAMED,
    check_conflicts,
    check_mixture,
    check_sft,
    check_values,
)
from monolora.recipes.training.config_values import read_config, split_mixture
from monolora.recipes.training.continuation import check_settings, settings_of
from monolora.recipes.training.keeping import KeepArguments
from monolora.recipes.training.sparse_units import SparsityArguments
from monolora.redaction import is_secret_name

LATEST = "latest"  # the checkpoint that --resume-from-checkpoint means without a value
DTYPE = {"monolora": "bfloat16", "lora": "bfloat16", "none": "float32"}


@dataclass
class RunArguments(KeepArguments):
    """What to train, on what, and what to measure, whatever the trainer."""

    adapter: str = field(
        default="monolora", metadata={"help": "What is trained: monolora, lora, or none (all weights)."}
    )
    activation: str = field(
        default=DEFAULT, metadata={"help": f"MonoLoRA's activation: {', '.join(activation_names())}."}
    )
    model: str = field(default=SMOLLM2, metadata={"help": f"Hub id or path, or {SMOLLM2} (packaged with the project)."})
    adapter_from: str | None = field(
        default=None,
        metadata={
            "help": "Adapter that is trained further: a run, a checkpoint of one, or any folder of LoRA or MonoLoRA. "
            "Default: none, a new adapter."
        },
    )
    dataset: str = field(
        default="demo",
        metadata={
            "help": f"Task ({', '.join(BUILT_IN)}), hub id, folder or file. Given repeatedly, a mixture of all "
            "of their examples, or with NAME:SHARE of these shares."
        },
    )
    datasets: list[dict[str, Any]] | None = field(default=None, init=False)  # of a mixture, as TRL's YAML files name it
    drop_columns: list[str] | None = field(
        default=None, metadata={"help": "Columns of the data set that are not read. Default: none."}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Number of training examples. Default: the task's."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Number of held-out examples that are scored. Default: the task's."}
    )
    validation_samples: int | None = field(
        default=None,
        metadata={
            "help": "Number of training examples, the last ones, that are held out for a loss at the end, by which "
            "runs can be selected. Default: none."
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Number of measurements in a row (--eval-strategy) without a better --metric-for-best-model after "
            "which training ends. Default: it never ends early."
        },
    )
    early_stopping_threshold: float = field(
        default=0.0, metadata={"help": "How much better a value must be to count, with --early-stopping-patience."}
    )
    skip_eval: bool = field(
        default=False,
        metadata={"help": "No scores before and after training, and no keeping report on held-out anchors."},
    )
    preview: bool = field(
        default=False, metadata={"help": "Only a few examples, printed with the trained tokens marked."}
    )
    card_note: str | None = field(default=None, metadata={"help": "A paragraph for the model card. Default: none."})
    overwrite: bool = field(default=False, metadata={"help": "Replacement of the run that is in the output folder."})


@dataclass
class AdapterArguments(SparsityArguments, RunArguments):
    """The flags of supervised finetuning alone."""

    allow_empty_answers: bool = field(
        default=False, metadata={"help": "Empty answers as training examples; without it, a row with one is refused."}
    )
    train_on: str = field(
        default=ALL,
        metadata={
            "help": "Answers of a conversation that are trained on: all of them, or the last.",
            "choices": list(TRAIN_ON),
        },
    )
    conversations: str = field(
        default=conversations.AUTO,
        metadata={
            "help": "How the answers of a conversation are learned: whole, in one sequence; split, each as an example "
            "of its own; or auto, whole wherever the loss is the same.",
            "choices": list(conversations.HOW),
        },
    )
    eval_max_new_tokens: int | None = field(
        default=None, metadata={"help": "Limit of a scored answer, in tokens. Default: the task's."}
    )
    eval_task: bool = field(
        default=False,
        metadata={"help": "The task's scores beside the loss while training, on the rows of --validation-samples."},
    )
    full_logits: bool = field(default=False, metadata={"help": "Logits of masked positions too; the loss is the same."})


@dataclass
class TrainingDefaults:
    """Defaults that suit an adapter. Mix it in before TRL's config: ``class …(TrainingDefaults, SFTConfig)``.

    Attributes:
        learning_rates: by ``--adapter``. Found on SST-2 with SmolLM2-135M (docs/RESULTS.md); full finetuning takes
            TRL's.
    """

    learning_rates: ClassVar[dict[str, float]] = {"monolora": 1e-3, "lora": 1e-3, "none": 2e-5}

    output_dir: str | None = field(default=None, metadata={"help": "Output folder. Default: runs/<dataset>-<adapter>."})
    learning_rate: float = field(
        default=1e-3, metadata={"help": "Learning rate. Default: 1e-3 for adapters, 2e-5 for full finetuning."}
    )
    num_train_epochs: float = field(default=1.0, metadata={"help": "Number of passes over the training examples."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Examples a step and device."})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Prompts at a time when scoring."})
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={
            "help": "Examples of one length come together, so less is padded; or random, sequential.",
            "choices": ["random", "sequential", "group_by_length", "batch_rebalance"],
        },
    )
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Activations computed again in the backward pass: less memory, more time."}
    )
    logging_steps: float = field(default=5, metadata={"help": "Steps between logged losses and sparsities."})
    logging_first_step: bool = field(default=True, metadata={"help": "Logging of the first step too."})
    chat_template_path: str | None = field(
        default=None,
        metadata={"help": "File with a chat template, or folder whose tokenizer has one; only the template is used."},
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "The last finite loss logged in place of NaN."}
    )
    save_steps: float = field(default=100, metadata={"help": "Steps between checkpoints."})
    eval_steps: float | None = field(
        default=None, metadata={"help": "Steps between scores with --eval-strategy steps. Default: --save-steps."}
    )

    def __post_init__(self) -> None:
        if not torch.accelerator.is_available():
            self.use_cpu = True  # without it TRL's bf16 default is refused where there is no GPU
        config: Any = self  # TRL's
        if config.eval_strategy == "steps" and config.eval_steps is None:
            config.eval_steps = config.save_steps
        if config.save_strategy == "best" and config.metric_for_best_model is None:
            config.metric_for_best_model = "loss"
        super().__post_init__()  # type: ignore[misc]  # of TRL's config

    def __getstate__(self) -> dict[str, Any]:
        """For training_args.bin, which every checkpoint holds: without the hub's token."""
        return {name: None if is_secret_name(name) else value for name, value in vars(self).items()}

    def __repr__(self) -> str:
        return str(self)  # transformers' own, which hides the token; a dataclass would make another


@dataclass(repr=False)
class TrainingArguments(TrainingDefaults, SFTConfig):
    """TRL's SFTConfig with our defaults."""


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
    lora_exclude_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Modules left out of the targets: names, or one pattern. Default: vision and audio towers."},
    )
    lora_bias: str = field(
        default="none",
        metadata={
            "help": "Biases trained with the adapter: none, all, or lora_only (those of the adapted modules).",
            "choices": ["none", "all", "lora_only"],
        },
    )
    rank_pattern: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Ranks of some modules, by name or pattern, in JSON."}
    )
    alpha_pattern: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Alphas of some modules, by name or pattern, in JSON."}
    )
    init_lora_weights: str = field(
        default="true",
        metadata={
            "help": "First weights: true (A uniform, B zero), gaussian (A normal, B zero), orthogonal (LoRA's), or "
            "false (both random).",
            "choices": ["true", "gaussian", "orthogonal", "false"],
        },
    )
    trainable_token_indices: list[int] | None = field(
        default=None, metadata={"help": "Tokens whose embeddings are trained with the adapter, by id."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rank_pattern", "alpha_pattern"):
            if isinstance(pattern := getattr(self, name), str):
                setattr(self, name, json.loads(pattern))


class Arguments(NamedTuple):
    """All parsed flags.

    Attributes:
        script: TRL's, of the data set.
        training: TRL's config of the program's trainer, with our defaults.
        model: of base and adapter.
        adapter: the program's own.
    """

    script: ScriptArguments
    training: Any
    model: LoraArguments
    adapter: RunArguments


class Program(NamedTuple):
    """A program that trains: its flags, in classes.

    Attributes:
        name: as it is typed.
        training: TRL's config with our defaults, a subclass of :class:`TrainingDefaults`.
        own: the flags that TRL lacks.
        check: refuses flags of the trainer that contradict each other, given all flags and the names of those given.
        often: TRL's flags of this trainer that are used often.
        mixes: whether it takes mixtures of data sets.
    """

    name: str
    training: type[Any]
    own: type[RunArguments]
    check: Callable[[argparse.Namespace, set[str]], None]
    often: tuple[str, ...]
    mixes: bool = False

    @property
    def classes(self) -> tuple[type[Any], ...]:
        """The dataclasses of all its flags."""
        return (ScriptArguments, self.training, LoraArguments, self.own)


SFT = Program("monolora sft", TrainingArguments, AdapterArguments, check_sft, ("packing",), mixes=True)


def parse(argv: list[str] | None = None, program: Program = SFT) -> Arguments:
    """Parse the command line and, with ``--config FILE``, a YAML file under it; the command line wins.

    Args:
        argv: the words (default: those of the process).
        program: whose flags they are.

    Raises:
        InputError: for an unknown flag or key (with the nearest right one), an invalid value, or flags that contradict
            each other.
    """
    path, words = split_config(list(sys.argv[1:] if argv is None else argv))
    check_words(words)
    words = joined(words, ("--keep", "--keep-prompts", "--keep-report"))
    parser = make_parser(program)
    from_file = read_config(path, parser, program.classes) if path else {}
    words, mixture = split_mixture(words, from_file, path)
    if mixture and not program.mixes:
        raise InputError(f"{program.name} takes one --dataset, and no shares. Put the rows into one file.")
    parser.set_defaults_with_config(**from_file)
    namespace, rest = parser.parse_known_args(words)
    if rest:
        raise unknown_flag(rest[0].split("=")[0], suggested(parser), RENAMED)
    typed = {option.split("=")[0].lstrip("-").replace("-", "_") for option in words if option.startswith("--")}
    named = typed | set(from_file)
    check_mixture(mixture, named)
    started_from = settings_of(namespace.adapter_from) if namespace.adapter_from is not None else {}
    if started_from:
        parser.set_defaults(**{name: value for name, value in started_from.items() if name not in named})
        namespace, _ = parser.parse_known_args(words)
    if namespace.adapter in ADAPTERS:
        rate = program.training.learning_rates[namespace.adapter]
        defaults = {"learning_rate": rate, "dtype": DTYPE[namespace.adapter]}
        parser.set_defaults(**{key: value for key, value in defaults.items() if key not in named})
    check_conflicts(namespace, typed, named, program.training)
    program.check(namespace, named)
    arguments = _arguments(parser, words)
    check_values(arguments)
    arguments.adapter.datasets = mixture_config.as_settings(mixture) or None
    arguments = _completed(arguments, named)
    if started_from:
        check_settings(arguments, started_from, bool({"model", "model_name_or_path"} & named))
    return arguments


def joined(words: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The words with all values of each of these flags behind its first mention, for flags that are given repeatedly.

    Of a flag with several values argparse takes the last mention alone.
    """
    parts: dict[str, list[str]] = {}
    current = parts.setdefault("", [])
    for number, word in enumerate(words):
        flag, equals, value = word.partition("=")
        name = flag.replace("_", "-")
        if name in flags:
            current = parts.setdefault(name, [name])
            current += [value] if equals else []
        elif word.startswith("--"):
            current = parts.setdefault(f"{number} {word}", [word])
        else:
            current.append(word)
    return [word for part in parts.values() for word in part]


def make_parser(program: Program = SFT) -> TrlParser:
    """TRL's parser for all flags of a program; what argparse would exit for is an :class:`InputError`."""
    parser = TrlParser(cast(Any, program.classes), prog=program.name, allow_abbrev=False)
    parser.error = raise_input_error  # type: ignore[method-assign]
    _accept_bare_resume(parser)
    return parser


def _arguments(parser: TrlParser, words: list[str]) -> Arguments:
    """Raises: InputError, for what the dataclasses refuse."""
    try:
        return Arguments(*parser.parse_args_and_config(words))
    except json.JSONDecodeError as error:
        raise InputError(f"Cannot read {error.doc!r} as JSON: {in_one_line(error)}") from error
    except (ValueError, OSError, ImportError) as error:
        raise InputError(in_one_line(error)) from error


def suggested(parser: TrlParser) -> set[str]:
    """Candidates for a misspelt flag: those that have an effect."""
    return {f"--{action.dest}" for action in parser._actions} - {f"--{name}" for name in NOT_HERE}


def _accept_bare_resume(parser: TrlParser) -> None:
    for action in parser._actions:
        if action.dest == "resume_from_checkpoint":
            action.nargs, action.const, action.type = "?", LATEST, _checkpoint
            action.help = "A checkpoint folder; without a value, or with true, the newest of the output folder."


def _checkpoint(word: str) -> str | None:
    """What a word after ``--resume-from-checkpoint`` means; transformers' own argument may be true or false too."""
    return {"true": LATEST, "false": None}.get(word.lower(), word)


def _completed(arguments: Arguments, named: set[str]) -> Arguments:
    """Fill in values that depend on other flags: model, data set and output folder."""
    script, training, model, adapter = arguments
    if adapter.early_stopping_patience is not None and training.metric_for_best_model is None:
        training.metric_for_best_model = "loss"
    adapter.model = model.model_name_or_path or adapter.model
    adapter.dataset = script.dataset_name or adapter.dataset
    if adapter.datasets is not None:
        adapter.dataset = " + ".join(source["path"] for source in adapter.datasets)
    if "output_dir" not in named:
        checkpoint = training.resume_from_checkpoint
        if checkpoint is not None and checkpoint != LATEST:
            training.output_dir = str(Path(checkpoint).parent)
        else:
            names = [source["path"] for source in adapter.datasets or [{"path": adapter.dataset}]]
            method = getattr(adapter, "method", None)  # of preferences
            parts = ("+".join(map(_slug, names)), adapter.adapter, method)
            training.output_dir = f"runs/{'-'.join(filter(None, parts))}"
    return arguments


def _slug(dataset: str) -> str:
    path = Path(dataset)
    packed = path.suffix in table_files.PACKED
    return Path(path.stem).stem if packed else path.stem if path.suffix else dataset.strip("./").replace("/", "--")


def _sharding(training: Any) -> str | None:
    """What shards weights or optimizer states: ``fsdp``, or DeepSpeed's stage as ``zero-3``; None for DDP."""
    if training.deepspeed_plugin is not None:
        return f"zero-{training.deepspeed_plugin.zero_stage}"
    is_fsdp = training.fsdp_plugin_args is not None or parse_flag_from_env("ACCELERATE_USE_FSDP")
    return "fsdp" if is_fsdp else None


def resolved_config(arguments: Arguments) -> dict[str, Any]:
    """Every flag with the value it had, as JSON values; secrets left out."""
    training = arguments.training
    merged: dict[str, Any] = training.to_dict()
    for part in (arguments.script, arguments.model, arguments.adapter):
        merged |= vars(part)
    merged = {key: value for key, value in merged.items() if not is_secret_name(key)}
    # to_dict hides these two, and they are no secrets.
    merged |= {name: getattr(training, name, None) for name in ("eos_token", "pad_token")}
    merged["num_processes"] = PartialState().num_processes
    merged["sharding"] = _sharding(training)
    return cast(dict[str, Any], json.loads(json.dumps(merged, default=str)))
