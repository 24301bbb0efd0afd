"""The flags of the programs that are one step: each field is a flag.

They stand apart from the programs so that help and wrong flags are answered before a program's libraries are imported.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass

from monolora.beaverdam import MAX_LENGTH
from monolora.cli.flags import REQUIRED, Flags, setting
from monolora.errors import InputError
from monolora.files import TRUST_HELP
from monolora.redaction import without_credentials

JUDGE_DATASET, JUDGE_TEST_SPLIT = "PKU-Alignment/BeaverTails", "30k_test"


@dataclass(frozen=True, kw_only=True)
class Demo(Flags):
    """Two runs of ``monolora sft``."""

    output_dir: str = setting("runs/demo", "parent of the two runs' folders")
    seed: int = setting(42, "seed of both runs", type=int)


@dataclass(frozen=True, kw_only=True)
class DataReport(Flags):
    """Data sets, and how ``monolora sft`` would read them."""

    datasets: tuple[str, ...] = setting(
        REQUIRED,
        "tasks (demo, dolly, sst2), hub ids, folders or files; with NAME:SHARE, the mixture that they make",
        positional=True,
        nargs="+",
        metavar="DATASET",
    )
    model: str = setting("smollm2-135m-instruct", "model whose tokenizer and chat template are used: a hub id or path")
    max_length: int = setting(1024, "limit of an example, in tokens", type=int, at_least=1)
    max_samples: int = setting(
        5000, "number of examples that are tokenized, the first that are trained on", type=int, at_least=1
    )
    split: str = setting("train", "split that is trained on, of data sets that are no tasks")
    dataset_config: str | None = setting(None, "configuration of a data set that has several")
    drop_columns: tuple[str, ...] = setting((), "columns that are not read", nargs="+", metavar="COLUMN")
    chat_template_path: str | None = setting(
        None, "file with a chat template, or folder whose tokenizer has one (default: the model's)"
    )
    train_on: str = setting(
        "all", "answers of a conversation that are trained on: all of them, or the last", choices=("all", "last")
    )
    conversations: str = setting(
        "auto",
        "how the answers of a conversation are learned: whole, in one sequence; split, each as an example of its own; "
        "or auto, whole wherever the loss is the same",
        choices=("auto", "whole", "split"),
    )
    out: str | None = setting(None, "HTML page to write")
    overwrite: bool = setting(False, "replacement of an earlier page in --out")
    trust_remote_code: bool = setting(False, TRUST_HELP)
    json: bool = setting(False, "JSON instead of tables: data_sets by their names, and the mixture")


@dataclass(frozen=True, kw_only=True)
class Plan(Flags):
    """A run of ``monolora sft``, by those of its flags that take memory, and the GPUs it is to run on."""

    model: str = setting(REQUIRED, "model: a hub id, a folder, or a config.json")
    gpus: str = setting(REQUIRED, "number of GPUs and memory of each in GB, as 8x80", metavar="NUMBERxGB")
    adapter: str = setting("monolora", "what is trained", choices=("monolora", "lora", "none"))
    lora_r: int = setting(8, "rank: units an adapted module", type=int, at_least=1)
    lora_target_modules: tuple[str, ...] = setting(
        (), "adapted modules, or all-linear (default: the model family's)", nargs="+", metavar="MODULE"
    )
    per_device_train_batch_size: int = setting(16, "examples a step and device", type=int, at_least=1)
    max_length: int = setting(1024, "limit of an example, in tokens", type=int, at_least=1)
    dtype: str | None = setting(
        None, "dtype of the weights (default: as sft's)", choices=("float32", "bfloat16", "float16")
    )
    bf16: bool = setting(True, "mixed precision in bfloat16", action=argparse.BooleanOptionalAction)
    optim: str | None = setting(None, "optimizer (default: as sft's)")
    keep: tuple[str, ...] = setting((), "keepers of the base's behaviour", nargs="+", metavar="NAME[:WEIGHT]")
    load_in_4bit: bool = setting(False, "base quantized to 4 bit")
    gradient_checkpointing: bool = setting(False, "activations computed again in the backward pass")
    trust_remote_code: bool = setting(False, TRUST_HELP)
    json: bool = setting(False, "JSON output instead of a table")


@dataclass(frozen=True, kw_only=True)
class Sparsity(Flags):
    """An adapter, and the prompts that it is measured on."""

    adapter: str = setting(REQUIRED, "an adapter folder, MonoLoRA or LoRA", positional=True)
    dataset: str = setting("demo", "demo, sst2, dolly, a hub id or a file")
    split: str | None = setting(None, "split of a data set that is no built-in task (default: its only one, or test)")
    model: str | None = setting(None, "the base model, if not the one that the adapter names")
    max_samples: int = setting(200, "number of prompts", type=int, at_least=1)
    batch_size: int = setting(32, "prompts in a batch", type=int, at_least=1)
    trust_remote_code: bool = setting(False, TRUST_HELP)
    json: bool = setting(False, "JSON output instead of a table")


@dataclass(frozen=True, kw_only=True)
class KeepReport(Flags):
    """An adapter, and the prompts on which it is compared with its base."""

    adapter: str = setting(REQUIRED, "an adapter folder of any PEFT method", positional=True)
    prompts: tuple[str, ...] = setting(
        ("refusals", "chat"),
        "sets of prompts: those of monolora eval, refusals, chat, beavertails-train, task:NAME, or files with a column "
        "prompt or messages",
        nargs="+",
        metavar="SET",
    )
    model: str | None = setting(None, "the base model, if not the one that the adapter names")
    max_samples: int = setting(100, "number of prompts of each set", type=int, at_least=1)
    max_new_tokens: int = setting(64, "limit of an answer, in tokens", type=int, at_least=1)
    batch_size: int = setting(32, "prompts in a batch", type=int, at_least=1)
    dtype: str = setting("bfloat16", "dtype of the base's weights", choices=("bfloat16", "float16", "float32"))
    trust_remote_code: bool = setting(False, TRUST_HELP)
    json: bool = setting(False, "JSON output instead of a table")


@dataclass(frozen=True, kw_only=True)
class Align(Flags):
    """What a model learns to refuse, and what it goes on answering."""

    model: str = setting("smollm2-135m-instruct", "hub id or path")
    refuse: tuple[str, ...] = setting(
        ("beavertails-train", "refusals", "contrast-pairs"),
        "sets of prompts to refuse, in equal parts: beavertails-train, refusals, or files with a column prompt or "
        "messages; of contrast-pairs those labelled unsafe",
        nargs="+",
        metavar="SET",
    )
    refuse_samples: int = setting(1800, "number of prompts to refuse", type=int, at_least=1)
    answer: tuple[str, ...] = setting(
        ("contrasts", "contrast-pairs", "chat", "task:dolly"),
        "sets of prompts that the model goes on answering, in equal parts; of contrast-pairs those labelled safe",
        nargs="+",
        metavar="SET",
    )
    answer_samples: int = setting(1600, "number of prompts to answer", type=int, at_least=1)
    answer_tokens: int = setting(64, "limit of the model's own answers, in tokens", type=int, at_least=1)
    answer_share: float = setting(0.5, "share of answers in the training rows", type=float, above=0, below=1)
    adapter: str = setting("none", "what is trained: none for all weights, or lora", choices=("none", "lora"))
    learning_rate: float = setting(5e-5, "learning rate", type=float, above=0)
    epochs: float = setting(1.0, "passes over the rows", type=float, above=0)
    batch_size: int = setting(16, "rows in a step", type=int, at_least=1)
    max_length: int = setting(384, "longest row, in tokens", type=int, at_least=1)
    preference_pairs: int = setting(
        0, "number of prompts of each kind for preference training (DPO) after the supervised one", type=int, at_least=0
    )
    preference_learning_rate: float = setting(2e-6, "learning rate of the preference training", type=float, above=0)
    seed: int = setting(42, "seed of refusals and training", type=int)
    output_dir: str = setting("runs/aligned", "output folder; the rows are written to OUTPUT_DIR-data")
    overwrite: bool = setting(False, "replacement of an earlier run in the output folder")
    resume_from_checkpoint: bool = setting(False, "go on from the last checkpoint")

    def check(self) -> None:
        """As for all settings; and there are enough pairs for a step."""
        super().check()
        if 0 < self.preference_pairs < self.batch_size:
            raise InputError(
                f"--preference-pairs is {self.preference_pairs} and --batch-size {self.batch_size}: one step needs as "
                "many pairs. Give more pairs or a smaller batch."
            )


@dataclass(frozen=True, kw_only=True)
class Prune(Flags):
    """The units of an adapter to take out, or to keep."""

    adapter: str = setting(REQUIRED, "an adapter folder, MonoLoRA or LoRA", positional=True)
    out: str | None = setting(
        None, "folder to write (may also stand after --units and its units)", positional=True, nargs="?"
    )
    units: tuple[str, ...] = setting((), "units to take out", nargs="+", action="extend", metavar="UNIT")
    keep: tuple[str, ...] = setting((), "units to keep", nargs="+", action="extend", metavar="UNIT")
    overwrite: bool = setting(False, "replacement of an earlier pruned adapter in OUT")

    def check(self) -> None:
        """As for all settings; and units and folder are given, units by one flag."""
        super().check()
        if bool(self.units) == bool(self.keep):
            raise InputError("Give either the units to take out with --units, or those to keep with --keep.")
        is_unit = self.target.startswith("@") or re.search(r":\d+$", self.target)
        if self.out is None and (is_unit or not self.named):
            raise InputError("OUT, the folder to write, is missing: monolora prune ADAPTER OUT --units UNIT …")

    @property
    def target(self) -> str:
        """OUT; after ``--units`` it is read as the last of the units."""
        return (self.units or self.keep)[-1] if self.out is None else self.out

    @property
    def named(self) -> tuple[str, ...]:
        """The units that are taken out or kept."""
        units = self.units or self.keep
        return units[:-1] if self.out is None else units


@dataclass(frozen=True, kw_only=True)
class Repair(Flags):
    """An adapter, what it is to keep of its base, and what that may cost its task."""

    adapter: str = setting(REQUIRED, "an adapter folder, MonoLoRA or LoRA", positional=True)
    task: str = setting(REQUIRED, "task or data set that it was trained on, whose training rows are read")
    keep_prompts: tuple[str, ...] = setting(
        REQUIRED,
        "prompts on which the base is to be kept: beavertails-train, refusals, chat, task:NAME, or files with a column "
        "prompt or messages",
        nargs="+",
        metavar="SET",
    )
    restore: str = setting(
        "kl", "what is restored: the base's distributions, or its refusal margin", choices=("kl", "refusals")
    )
    max_task_loss: float = setting(
        0.02, "rise of the task's loss that is allowed, in nats per token of the right answers", type=float, at_least=0
    )
    out: str | None = setting(None, "folder to write (default: ADAPTER-repaired)")
    lora: str | None = setting(None, "a LoRA adapter of the same task, whose ranks are a further control")
    model: str | None = setting(None, "the base model, if not the one that the adapter names")
    keep_samples: int = setting(100, "number of kept prompts; half of them choose", type=int, at_least=4)
    keep_answer_tokens: int = setting(32, "limit of the base's answers, in tokens", type=int, at_least=1)
    task_samples: int = setting(200, "number of the task's rows; half of them choose", type=int, at_least=4)
    rounds: int = setting(2, "attributions, each without the units that are out already", type=int, at_least=1)
    draws: int = setting(5, "number of random orders of units", type=int, at_least=1)
    steps: int = setting(
        64, "strengths of each way that are told apart; one more measurement for twice as many", type=int, at_least=2
    )
    batch_size: int = setting(16, "rows in a batch", type=int, at_least=1)
    dtype: str = setting("float32", "dtype of the base's weights", choices=("bfloat16", "float16", "float32"))
    overwrite: bool = setting(False, "replacement of an earlier repaired adapter in --out")
    trust_remote_code: bool = setting(False, TRUST_HELP)

    @property
    def target(self) -> str:
        """The folder to write."""
        return self.out or f"{self.adapter.rstrip('/')}-repaired"


@dataclass(frozen=True, kw_only=True)
class ServeCheck(Flags):
    """A model and an adapter to serve, and vLLM's settings."""

    base: str = setting(REQUIRED, "model that vLLM serves: a path, a hub id, or smollm2-135m-instruct", positional=True)
    adapter: str | None = setting(None, "folder of a MonoLoRA or LoRA adapter", positional=True, nargs="?")
    dtype: str = setting("auto", "dtype of the weights", choices=("auto", "float32", "bfloat16", "float16"))
    prompts: str | None = setting(
        None, "one prompt a line (default: a few of the adapter's run, or built in)", metavar="FILE"
    )
    device: str = setting("cpu", "of transformers' copy; the GPU is vLLM's")
    tensor_parallel_size: int = setting(1, "as for vllm serve", type=int, at_least=1)
    fully_sharded_loras: bool = setting(False, "as for vllm serve")
    enforce_eager: bool = setting(False, "as for vllm serve")
    trust_remote_code: bool = setting(False, TRUST_HELP)


@dataclass(frozen=True, kw_only=True)
class Chat(Flags):
    """Whom to talk to, and how answers are generated."""

    model: str | None = setting(
        None,
        "adapter folder of any PEFT method, a model's id or folder, or a merged checkpoint; with --endpoint, the name "
        "of a served model (default: its only adapter or model)",
        positional=True,
        nargs="?",
        metavar="ADAPTER_OR_MODEL",
    )
    base: str | None = setting(
        None, "the base model, if not the one that the adapter names; with --endpoint, its served name"
    )
    system: str = setting("", "system message")
    max_new_tokens: int = setting(512, "limit of an answer, in tokens", type=int, at_least=1)
    temperature: float = setting(0.0, "sampling temperature; 0 for greedy decoding", type=float, at_least=0)
    top_p: float = setting(1.0, "share of nucleus sampling, with --temperature", type=float, above=0, at_most=1)
    seed: int = setting(0, "seed of sampling", type=int)
    chat_template_path: str | None = setting(
        None, "chat template: its file, or a folder whose tokenizer has one (default: the model's own)", metavar="PATH"
    )
    dtype: str = setting("bfloat16", "dtype of the base's weights", choices=("bfloat16", "float16", "float32"))
    endpoint: str | None = setting(None, "OpenAI-compatible server that answers, as http://host:8000/v1", metavar="URL")
    api_key_env: str | None = setting(None, "environment variable with the endpoint's key", metavar="NAME")
    trust_remote_code: bool = setting(False, TRUST_HELP)

    def check(self) -> None:
        """As for all settings; and there is a model, and no flag without effect."""
        super().check()
        if self.model is None and self.endpoint is None:
            raise InputError("Whom to talk to? Give an adapter or a model: monolora chat runs/sst2")
        if self.endpoint is not None and not self.endpoint.startswith(("http://", "https://")):
            raise InputError(f"--endpoint {without_credentials(self.endpoint)} is no URL. Write http://host:8000/v1.")
        if self.endpoint is not None and self.chat_template_path is not None:
            raise InputError("With --endpoint the chat template is the server's. Leave --chat-template-path out.")
        if self.endpoint is None and self.api_key_env is not None:
            raise InputError("--api-key-env has no effect without --endpoint. Leave it out.")


@dataclass(frozen=True, kw_only=True)
class Judge(Flags):
    """The training of a judge."""

    model: str = setting("all-minilm-l6-v2", "backbone: a path or a hub id")
    dataset: str = setting(JUDGE_DATASET, "data set with BeaverTails' columns")
    train_splits: tuple[str, ...] | None = setting(
        None,
        "splits to train on, beside the test split's other prompts (default: 30k_train, if there is one)",
        nargs="+",
    )
    test_split: str = setting(JUDGE_TEST_SPLIT, "split to test on, by prompt")
    validation_share: float = setting(
        0.15, "share of the training prompts that select the epoch", type=float, at_least=0, below=1
    )
    output_dir: str = setting("runs/judge", "output folder")
    trust_remote_code: bool = setting(False, TRUST_HELP)
    overwrite: bool = setting(False, "replacement of an earlier judge in --output-dir")
    max_length: int = setting(MAX_LENGTH, "tokens of a question and its answer", type=int, at_least=1)
    epochs: int = setting(4, "passes over the rows", type=int, at_least=1)
    batch_size: int = setting(16, "rows a step", type=int, at_least=1)
    learning_rate: float = setting(1e-4, "learning rate of the backbone", type=float, above=0)
    head_learning_rate: float = setting(1e-3, "learning rate of the head, which starts at random", type=float, above=0)
    warmup: float = setting(0.1, "share of warmup steps", type=float, at_least=0, below=1)
    weight_decay: float = setting(0.01, "weight decay of all weights", type=float, at_least=0)
    seed: int = setting(42, "seed of the head, the order of rows, and the validation prompts", type=int)
    start_from_mean: bool | None = setting(
        None,
        "last layer of an encoder initialized as the mean over the tokens (default: if the backbone is a BERT)",
        action=argparse.BooleanOptionalAction,
    )
    bf16: bool | None = setting(
        None, "training in bfloat16 (default: if the hardware supports it)", action=argparse.BooleanOptionalAction
    )
