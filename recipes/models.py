"""Loading what a run trains: tokenizer, base model and trainer."""

from __future__ import annotations

from pathlib import Path

import datasets
import torch
from accelerate import DeepSpeedPlugin, PartialState
from peft import LoraConfig, get_peft_model_state_dict
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.utils import get_quantization_config

from monolora import hub
from monolora.errors import InputError, in_one_line
from monolora.recipes.adapter_config import check_named, settle_targets
from monolora.recipes.arguments import Arguments, TrainingArguments
from monolora.recipes.chat_template import set_chat_template
from monolora.recipes.trainer import OwnSteps, SftTrainer
from monolora.sparsity import SparsityCallback


def load_tokenizer(folder: str, training: TrainingArguments) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with the chat template of ``--chat-template-path`` if one is given.

    Raises:
        InputError: if the folder has none, the template cannot be used, or the end token is none of its tokens.
    """
    tokenizer = hub.load_tokenizer(folder, trust_remote_code=training.trust_remote_code)
    eos = training.eos_token
    if eos is not None and eos not in tokenizer.get_vocab():
        raise InputError(f"--eos-token {eos} is none of the tokenizer's tokens; its own is {tokenizer.eos_token}.")
    if eos is not None:
        tokenizer.eos_token = eos  # as TRL does, but before the examples are tokenized
    path = training.chat_template_path
    if path is None:
        return tokenizer
    training.chat_template_path = None  # done here; TRL would take the folder's tokens too, and resize the model
    set_chat_template(tokenizer, path)
    return tokenizer


def load_model(folder: str, arguments: Arguments) -> PreTrainedModel:
    """The base model in ``--dtype``, quantized if asked for.

    Raises:
        InputError: if the folder holds no causal language model, or a weight file is damaged.
    """
    model_args = arguments.model
    one_gpu = torch.cuda.is_available() and not arguments.training.use_cpu and PartialState().num_processes == 1
    model = hub.load_causal_lm(
        folder,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
        quantization_config=get_quantization_config(model_args),
        trust_remote_code=arguments.training.trust_remote_code,
        device_map={"": 0} if one_gpu else None,
    )
    # What adapter_config.json will name as the base: the hub's id where the model came from the hub.
    from_hub = not Path(arguments.adapter.model).exists() and "/snapshots/" in folder
    model.name_or_path = arguments.adapter.model if from_hub else str(Path(folder).resolve())
    return model


def make_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    adapter: LoraConfig | None,
    rows: datasets.Dataset,
    arguments: Arguments,
) -> SftTrainer:
    """TRL's trainer around model, adapter and rows.

    Raises:
        InputError: for what TRL or PEFT refuse, such as a target pattern that matches no module.
    """
    if adapter is not None:
        settle_targets(model, adapter)
        check_named(model, adapter.modules_to_save, "--lora-modules-to-save", parameters=False)
        check_named(model, adapter.target_parameters, "--lora-target-parameters", parameters=True)
    try:
        trainer = SftTrainer(
            model=model,
            args=arguments.training,
            train_dataset=rows,
            processing_class=tokenizer,
            peft_config=adapter,
            callbacks=[OwnSteps()],
            full_logits=arguments.adapter.full_logits,
        )
        check_gathers(trainer.accelerator.state.deepspeed_plugin)
        if adapter is not None:  # now, before FSDP or DeepSpeed spread the tensors
            written = get_peft_model_state_dict(trainer.model)
            trainer.adapter_shapes = {name: tensor.shape for name, tensor in written.items()}
        _try_optimizer(trainer)
    except (ValueError, TypeError, RuntimeError, ImportError, OSError) as error:
        raise InputError(in_one_line(error)) from error
    SparsityCallback().add_to(trainer)
    return trainer


def _try_optimizer(trainer: SftTrainer) -> None:
    """Make optimizer and schedule, and forget them: the trainer makes its own when training begins.

    What they refuse (a package that is missing, an argument that cannot be) is then known before anything is written.
    """
    if is_sharded(trainer):  # they are made of the spread weights there
        return
    trainer.create_optimizer_and_scheduler(num_training_steps=1)
    trainer.optimizer = trainer.lr_scheduler = None


def is_sharded(trainer: SftTrainer) -> bool:
    """Whether FSDP or ZeRO-3 spreads the weights over processes, so that no process can generate alone."""
    accelerator = trainer.accelerator
    plugin = accelerator.state.deepspeed_plugin
    return trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3)


def check_gathers(plugin: DeepSpeedPlugin | None) -> None:
    """Check that DeepSpeed will give the weights back whole when they are saved.

    Raises:
        InputError: if ZeRO-3 is told not to: no adapter and no model could be written.
    """
    if plugin is None or plugin.zero_stage != 3:
        return
    if not plugin.deepspeed_config["zero_optimization"].get("stage3_gather_16bit_weights_on_model_save"):
        raise InputError(
            "DeepSpeed's ZeRO-3 would save no model: its weights are not gathered. Set zero3_save_16bit_model: true "
            "(in a DeepSpeed config: stage3_gather_16bit_weights_on_model_save) as recipes/accelerate/zero3.yaml does."
        )
