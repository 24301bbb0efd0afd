"""Loading what a run trains: tokenizer, base model and trainer."""

from __future__ import annotations

from pathlib import Path

import datasets
import torch
from accelerate import PartialState
from peft import PeftConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.utils import get_quantization_config

from monolora.errors import InputError
from monolora.recipes.arguments import Arguments, TrainingArguments
from monolora.recipes.trainer import SftTrainer
from monolora.sparsity import SparsityCallback


def load_tokenizer(folder: str, training: TrainingArguments) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with the chat template of ``--chat-template-path`` if one is given.

    Raises:
        InputError: if the folder has none, or the template cannot be read.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=training.trust_remote_code)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} has no usable tokenizer: {str(error).splitlines()[0]}") from error
    path = training.chat_template_path
    if path is None:
        return tokenizer
    if Path(path).is_file():
        tokenizer.chat_template = Path(path).read_text()
    elif Path(path).is_dir():
        tokenizer.chat_template = AutoTokenizer.from_pretrained(path).chat_template
    else:
        raise InputError(f"--chat-template-path {path} is neither a file nor a folder with a tokenizer.")
    return tokenizer


def load_model(folder: str, arguments: Arguments) -> PreTrainedModel:
    """The base model in ``--dtype``, quantized if asked for.

    Raises:
        InputError: if the folder holds no causal language model, or a weight file is damaged.
    """
    model_args = arguments.model
    options = {} if PartialState().num_processes > 1 or not torch.cuda.is_available() else {"device_map": {"": 0}}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=model_args.dtype,
            attn_implementation=model_args.attn_implementation,
            quantization_config=get_quantization_config(model_args),
            trust_remote_code=arguments.training.trust_remote_code,
            **options,
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"Cannot load a causal language model from {folder}: {str(error).splitlines()[0]}") from error
    # What adapter_config.json will name as the base: the hub's id where the model came from the hub.
    from_hub = not Path(arguments.adapter.model).exists() and "/snapshots/" in folder
    model.name_or_path = arguments.adapter.model if from_hub else str(Path(folder).resolve())
    return model


def make_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    adapter: PeftConfig | None,
    rows: datasets.Dataset,
    arguments: Arguments,
) -> SftTrainer:
    """TRL's trainer around model, adapter and rows.

    Raises:
        InputError: for what TRL or PEFT refuse, such as a target pattern that matches no module.
    """
    try:
        return SftTrainer(
            model=model,
            args=arguments.training,
            train_dataset=rows,
            processing_class=tokenizer,
            peft_config=adapter,
            callbacks=[SparsityCallback()],
        )
    except ValueError as error:
        raise InputError(" ".join(str(error).split())) from error


def is_sharded(trainer: SftTrainer) -> bool:
    """Whether FSDP or ZeRO-3 spreads the weights over processes, so that no process can generate alone."""
    accelerator = trainer.accelerator
    plugin = accelerator.state.deepspeed_plugin
    return trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3)
