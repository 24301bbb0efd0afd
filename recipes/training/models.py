"""The model that is trained, and its adapter."""

from __future__ import annotations

import difflib
import functools
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import datasets
import torch
from accelerate import DeepSpeedPlugin, PartialState
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn
from transformers import IntervalStrategy, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl.trainer.utils import get_quantization_config

from monolora import hub
from monolora.activations import CONTROL
from monolora.adapters import attach_fitting
from monolora.config import MonoLoraConfig
from monolora.data.chat_template import set_chat_template
from monolora.errors import InputError, in_one_line
from monolora.keep.keeper import Keeper
from monolora.recipes.training import validation
from monolora.recipes.training.arguments import AdapterArguments, Arguments, TrainingArguments
from monolora.recipes.training.checkpoints import AtomicCheckpoints, OwnSteps
from monolora.recipes.training.continuation import starting_adapter
from monolora.recipes.training.trainer import SftTrainer
from monolora.sparsity import SparsityCallback
from monolora.targets import (
    all_linear,
    default_targets,
    gives_a_linear_map,
    is_all_linear,
    near_misses,
    other_towers,
    read_as_experts,
)


def peft_config(arguments: Arguments) -> LoraConfig | None:
    """The PEFT config of the run, or None for full finetuning.

    Raises:
        InputError: for values that PEFT or MonoLoRA refuse.
    """
    kind, model = arguments.adapter.adapter, arguments.model
    if kind == "none":
        return None
    if arguments.adapter.adapter_from is not None:
        return starting_adapter(arguments.adapter.adapter_from)
    config: Callable[..., LoraConfig] = (
        functools.partial(LoraConfig, use_dora=model.use_dora)
        if kind == "lora"
        else functools.partial(MonoLoraConfig, activation=arguments.adapter.activation)
    )
    try:
        return config(
            r=model.lora_r,
            lora_alpha=model.lora_alpha,
            lora_dropout=model.lora_dropout,
            target_modules=_as_names(model.lora_target_modules),
            target_parameters=model.lora_target_parameters,
            modules_to_save=model.lora_modules_to_save,
            exclude_modules=_as_names(model.lora_exclude_modules),
            bias=model.lora_bias,
            rank_pattern=model.rank_pattern or {},
            alpha_pattern=model.alpha_pattern or {},
            init_lora_weights={"true": True, "false": False}.get(model.init_lora_weights, model.init_lora_weights),
            trainable_token_indices=model.trainable_token_indices,
            use_rslora=model.use_rslora,
            task_type="CAUSAL_LM",
        )
    except (ValueError, TypeError) as error:
        raise InputError(str(error)) from error


def _as_names(targets: str | list[str] | None) -> str | list[str] | None:
    """A single pattern as a string, and a single name as a list: PEFT reads a string as a pattern of whole names."""
    if isinstance(targets, list):
        targets = targets[0] if len(targets) == 1 else targets
    if isinstance(targets, str) and not is_all_linear(targets) and re.fullmatch(r"[\w.]+", targets):
        return [targets]
    return targets


def settle_targets(model: nn.Module, config: LoraConfig) -> None:
    """Give the config the modules of this model that are adapted, the same ones for LoRA and MonoLoRA.

    The family's defaults and ``all-linear`` become names. Vision and audio towers, where text does not go, are left
    out unless ``--lora-exclude-modules`` is given. A warning tells where PEFT's LoRA adapts other modules than
    MonoLoRA.

    Raises:
        InputError: for a name or pattern of a flag that matches no module, or modules that no adapter fits on.
    """
    for flag, patterns in {
        "--lora-target-modules": config.target_modules,
        "--lora-exclude-modules": config.exclude_modules,
        "--rank-pattern": config.rank_pattern,
        "--alpha-pattern": config.alpha_pattern,
    }.items():
        _check_matches(model, flag, patterns)
    _check_token_indices(model, config.trainable_token_indices)
    _check_embeddings(model, config)
    every = is_all_linear(config.target_modules)
    try:
        if every:
            config.target_modules = sorted(all_linear(model))
        elif config.target_modules is None and not config.target_parameters:
            defaults = default_targets(model)
            config.target_modules = defaults if isinstance(defaults, str) else sorted(defaults)
    except ValueError as error:
        raise InputError(f"{error} {near_misses(model, None)} Give some with --lora-target-modules.") from error
    if config.exclude_modules is None and (towers := other_towers(model)):
        config.exclude_modules = rf"({'|'.join(map(re.escape, towers))})\..*"
    for name, module in model.named_modules():
        if not gives_a_linear_map(module) and check_target_module_exists(config, name) is True:
            raise InputError(
                f"--lora-target-modules matches {name}, a {type(module).__name__}, whose forward gives something else "
                "than W x + b. Leave it out."
            )
    if experts := read_as_experts(model, config):
        names = ", ".join(sorted({name.rpartition(".")[-1] for name in experts}))
        same = f"For LoRA on the modules that MonoLoRA adapts, use --adapter monolora --activation {CONTROL}."
        if every:
            config.target_modules = sorted(set(config.target_modules or ()) - experts)
            warnings.warn(
                f"LoRA leaves {names} out: PEFT takes these names for the fused experts. {same}", stacklevel=2
            )
        else:
            warnings.warn(f"LoRA adapts the fused experts for {names}, which MonoLoRA does not. {same}", stacklevel=2)


def _check_matches(model: nn.Module, flag: str, names: str | Iterable[str] | None) -> None:
    """Check that every name or pattern of a flag matches a module; PEFT ignores those that do not.

    Raises:
        InputError: naming the first that matches none, and the nearest module names.
    """
    if names is None or is_all_linear(names):
        return
    if isinstance(names, str):
        patterns = {names: names}
    elif isinstance(names, Mapping):  # as PEFT matches the keys of rank_pattern and alpha_pattern
        patterns = {name: rf"(.*\.)?({name})" for name in names}
    else:
        patterns = {name: rf"(.*\.)?{re.escape(name)}" for name in names}
    modules = [name for name, _ in model.named_modules()]
    for name, pattern in sorted(patterns.items()):
        try:
            matched = any(re.fullmatch(pattern, module) for module in modules)
        except re.error as error:
            raise InputError(f"{flag} {name} is no regular expression: {error}.") from error
        if not matched:
            raise InputError(f"{flag} {name} matches no module. {near_misses(model, name)}")


def _check_embeddings(model: nn.Module, config: LoraConfig) -> None:
    """Raises: InputError, where saved modules and trained tokens would both train the embeddings."""
    embedding = model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None
    names = [name for name, module in model.named_modules() if module is embedding]
    for saved in config.modules_to_save or ():
        if config.trainable_token_indices and any(name == saved or name.endswith(f".{saved}") for name in names):
            raise InputError(
                f"--lora-modules-to-save {saved} trains all embeddings, and --trainable-token-indices some of them. "
                "Keep one of the two."
            )


def _check_token_indices(model: nn.Module, indices: Iterable[int] | Mapping[str, list[int]] | None) -> None:
    embedding = model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None
    if indices is None or not isinstance(embedding, nn.Embedding):
        return
    wrong = [index for index in indices if not 0 <= int(index) < embedding.num_embeddings]
    if wrong:
        raise InputError(
            f"--trainable-token-indices {wrong[0]} is no token of the model: ids go from 0 to "
            f"{embedding.num_embeddings - 1}."
        )


def check_named(model: nn.Module, names: Iterable[str] | None, flag: str, *, parameters: bool) -> None:
    """Check that every name of a flag is one of the model's, or the end of one after a dot; PEFT ignores others.

    Args:
        model: the base.
        names: the flag's values.
        flag: its name, for the message.
        parameters: whether they are names of parameters, and not of modules.

    Raises:
        InputError: naming the first unknown one, and the nearest.
    """
    known = [name for name, _ in (model.named_parameters() if parameters else model.named_modules()) if name]
    for name in names or ():
        if any(f".{path}".endswith(f".{name}") for path in known):
            continue
        lasts = sorted({last for path in known if not (last := path.rpartition(".")[-1]).isdigit()})
        near = difflib.get_close_matches(name.rpartition(".")[-1], lasts, n=3)
        hint = f"Nearest names: {', '.join(near)}." if near else f"Names in this model: {', '.join(lasts)}."
        raise InputError(f"{flag} {name} is no {'parameter' if parameters else 'module'} of the model. {hint}")


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
    """The base model in ``--dtype``, quantized with ``--load-in-4bit`` or ``--load-in-8bit``.

    Where keepers or their report read the base before training, every process loads it whole, under ZeRO-3 too.

    Raises:
        InputError: if the folder holds no causal language model, or a weight file is damaged.
    """
    model_args = arguments.model
    one_gpu = torch.cuda.is_available() and not arguments.training.use_cpu and PartialState().num_processes == 1
    is_read = bool(arguments.adapter.keep or arguments.adapter.keep_report)
    with _unpartitioned(arguments.training.deepspeed_plugin) if is_read else nullcontext():
        model = hub.load_causal_lm(
            folder,
            dtype=model_args.dtype,
            attn_implementation=model_args.attn_implementation,
            quantization_config=get_quantization_config(model_args),
            trust_remote_code=arguments.training.trust_remote_code,
            device_map={"": 0} if one_gpu else None,
        )
    # PEFT reads the base's config by this name when it saves, so it is a path unless the hub's cache has it.
    model.name_or_path = arguments.adapter.model if "/snapshots/" in folder else str(Path(folder).resolve())
    return model


@contextmanager
def _unpartitioned(plugin: DeepSpeedPlugin | None) -> Iterator[None]:
    """Weights that are loaded in the block are whole; transformers would partition them for ZeRO-3."""
    if plugin is None:
        yield
        return
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        plugin.set_deepspeed_weakref()


def make_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    adapter: LoraConfig | None,
    rows: datasets.Dataset,
    arguments: Arguments,
    keepers: Sequence[Keeper] = (),
    kind: Callable[..., Any] | None = None,
) -> Any:
    """A trainer of TRL's around model, adapter and rows.

    Args:
        model: the base.
        tokenizer: its tokenizer.
        adapter: its config; None for full finetuning. With ``--adapter-from`` it is loaded.
        rows: tokenized.
        arguments: all flags.
        keepers: of ``--keep``.
        kind: the trainer; by default, of supervised finetuning.

    Raises:
        InputError: for what TRL or PEFT refuse, such as a target pattern that matches no module.
    """
    start, policy = arguments.adapter.adapter_from, cast(PreTrainedModel | PeftModel, model)
    if start is not None:
        policy, adapter = _attached(model, start, arguments), None
    elif adapter is not None:
        settle_targets(model, adapter)
        check_named(model, adapter.modules_to_save, "--lora-modules-to-save", parameters=False)
        check_named(model, adapter.target_parameters, "--lora-target-parameters", parameters=True)
    scored = arguments.training.eval_strategy != IntervalStrategy.NO
    kind = kind or functools.partial(SftTrainer, full_logits=cast(AdapterArguments, arguments.adapter).full_logits)
    try:
        trainer = kind(
            model=policy,
            args=arguments.training,
            train_dataset=rows,
            eval_dataset=rows.select([0]) if scored else None,  # asked for, and not used: the trainer has scores
            processing_class=tokenizer,
            peft_config=adapter,
            callbacks=[OwnSteps(), *validation.callbacks(arguments.training, arguments.adapter)],
            keepers=keepers,
        )
        check_gathers(trainer.accelerator.state.deepspeed_plugin)
        _try_optimizer(trainer)
    except (ValueError, TypeError, RuntimeError, ImportError, OSError) as error:
        raise InputError(in_one_line(error)) from error
    SparsityCallback().add_to(trainer)
    if not Path(arguments.adapter.model).exists():
        trainer.base_id = arguments.adapter.model
    return trainer


def _attached(model: PreTrainedModel, folder: str, arguments: Arguments) -> PeftModel:
    """The base with the adapter of ``--adapter-from``, to be trained.

    Raises:
        InputError: if the adapter does not fit.
    """
    plugin = arguments.training.deepspeed_plugin
    in_one_dtype = plugin is not None and plugin.zero_stage == 3  # as TRL makes new adapters there
    options = {"is_trainable": True, "autocast_adapter_dtype": not in_one_dtype}
    policy = attach_fitting(model, folder, arguments.adapter.model, **options)
    for config in policy.peft_config.values():
        config.base_model_name_or_path = model.name_or_path  # where PEFT reads the base's config when it saves
    return policy


def _try_optimizer(trainer: AtomicCheckpoints) -> None:
    """Make optimizer and schedule, and discard them: the trainer makes its own when training begins.

    So a missing package or an invalid argument is reported before anything is written.
    """
    if is_sharded(trainer):  # they are made of the spread weights there
        return
    trainer.create_optimizer_and_scheduler(num_training_steps=1)
    trainer.optimizer = trainer.lr_scheduler = None


def is_sharded(trainer: AtomicCheckpoints) -> bool:
    """Whether FSDP or ZeRO-3 shards the weights when training begins."""
    accelerator = trainer.accelerator
    plugin = accelerator.state.deepspeed_plugin
    return trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3)


def check_gathers(plugin: DeepSpeedPlugin | None) -> None:
    """Check that DeepSpeed gathers the weights when they are saved.

    Raises:
        InputError: if ZeRO-3 is configured not to: neither adapter nor model could be written.
    """
    if plugin is None or plugin.zero_stage != 3:
        return
    if not plugin.deepspeed_config["zero_optimization"].get("stage3_gather_16bit_weights_on_model_save"):
        raise InputError(
            "DeepSpeed's ZeRO-3 would save no model: its weights are not gathered. Set zero3_save_16bit_model: true "
            "(in a DeepSpeed config: stage3_gather_16bit_weights_on_model_save) as recipes/accelerate/zero3.yaml does."
        )
