"""Loading adapter folders with their base model."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Required

import torch
from accelerate.hooks import AlignDevicesHook
from bitsandbytes.nn import Linear4bit
from peft import (
    MODEL_TYPE_TO_PEFT_MODEL_MAPPING,
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model_state_dict,
    peft_model,
)
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora.layer import LoraLayer
from peft.utils import load_peft_weights
from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers
from safetensors import safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import TypedDict

from monolora.checkpoint import (
    adapted_modules,
    check_tensors,
    check_weights_file,
    file_name,
    model_name,
    origin_of,
    room_for,
    saved_beside,
    vocabulary_in,
)
from monolora.config import MonoLoraConfig, check_numbers
from monolora.errors import InputError, in_one_line
from monolora.files import read_json
from monolora.hub import check_vocabulary, load_causal_lm, load_tokenizer, on_gpus, resolve_model
from monolora.model_files import adopt_generation_config
from monolora.targets import module_names, near_misses, resolve_patterns

SUM = "sum"  # the name of a weighted sum of adapters


class _Settings(TypedDict, total=False):
    """Types in adapter_config.json of LoRA and MonoLoRA, which PEFT does not check."""

    peft_type: Required[str]
    base_model_name_or_path: str | None
    revision: str | None
    task_type: str | None
    inference_mode: bool
    r: int
    bias: str
    activation: str
    target_modules: list[str] | str | None
    exclude_modules: list[str] | str | None
    target_parameters: list[str] | None
    modules_to_save: list[str] | None
    layers_to_transform: list[int] | int | None
    layers_pattern: list[str] | str | None
    rank_pattern: dict[str, int] | None
    alpha_pattern: dict[str, Any] | None
    trainable_token_indices: list[int] | dict[str, list[int]] | None
    use_rslora: bool
    use_dora: bool
    fan_in_fan_out: bool
    lora_bias: bool
    init_lora_weights: bool | str | None


def load_adapted(
    folder: str, base: str | None = None, dtype: torch.dtype | str = torch.bfloat16, **options: Any
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """A causal language model with the adapter in ``folder``, in eval mode, and its tokenizer.

    The base gets the vocabulary with which the adapter was trained: that of the embeddings in the folder, otherwise
    that of the folder's tokenizer if it is larger than the base's.

    Args:
        folder: an adapter folder as ``save_pretrained`` writes it, MonoLoRA or any other PEFT method.
        base: the base model's id or path; by default the one that the adapter names.
        dtype: of the base weights.
        options: for the base model's ``from_pretrained``: ``quantization_config``, ``max_memory``, …

    Raises:
        InputError: if the folder holds no adapter, names no base, does not fit the base, or its files are damaged.
    """
    recorded = adapter_config(folder).base_model_name_or_path
    named = base or recorded
    if not named:
        raise InputError(f"{folder}/adapter_config.json names no base model. Give it with --model.")
    path = resolve_model(named)
    model = load_causal_lm(path, dtype=dtype, **on_gpus() | options)
    model.name_or_path = named
    tokenizer = adapter_tokenizer(folder, named)
    fit_vocabulary(model, folder, tokenizer)
    check_vocabulary(model, tokenizer, folder)
    return _in_eval_mode(attach_fitting(model, folder, named)), tokenizer


def attach_fitting(model: PreTrainedModel, folder: str, base: str, **options: Any) -> PeftModel:
    """As :func:`attach`, with the generation config in the folder.

    Args:
        model: the base, with the adapter's vocabulary (:func:`fit_vocabulary`).
        folder: of the adapter.
        base: the name of the base, for messages.
        options: for :func:`attach`.

    Raises:
        InputError: also where the adapter does not fit.
    """
    adapted: PeftModel = _fitting(folder, base, partial(attach, model, folder, **options))
    adopt_generation_config(model, folder)
    return adapted


def adapter_tokenizer(folder: str, base: str) -> PreTrainedTokenizerBase:
    """The tokenizer saved with the adapter, otherwise that of its base; with a padding token.

    Raises:
        InputError: if it is missing, or its files are damaged.
    """
    tokenizer = load_tokenizer(folder if has_tokenizer(folder) else resolve_model(base))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def has_tokenizer(folder: str) -> bool:
    """Whether a tokenizer was saved with the adapter."""
    return (Path(folder) / "tokenizer.json").is_file()


def load_sum(
    folders: Sequence[str], weights: Sequence[float], base: str | None = None, **options: Any
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """As :func:`load_adapted`, for the weighted sum of several MonoLoRA adapters on one base.

    Args:
        folders: adapter folders; base and tokenizer are those of the first.
        weights: a factor per adapter, of any sign.
        base: as for :func:`load_adapted`.
        options: as for :func:`load_adapted`, including the dtype.

    Raises:
        InputError: as :func:`load_adapted`, and for adapters that have no exact sum.
    """
    model, tokenizer = load_adapted(folders[0], base, **options)
    if len(folders) == 1 and weights[0] == 1:
        return model, tokenizer
    for folder in folders:
        if adapter_config(folder).peft_type != "MONOLORA":
            raise InputError(f"{folder} is no MonoLoRA adapter; only those are added up or weighted.")
    if any(parameter.device.type == "meta" for parameter in model.parameters()):
        raise InputError(
            "Adapters are added up and weighted in memory, and parts of the model are not. Raise --max-memory."
        )
    names = [f"adapter{number}" for number in range(len(folders))]
    for name, folder in zip(names, folders, strict=True):
        _fitting(folder, "the base of the first", partial(model.load_adapter, folder, name))
    try:
        model.add_weighted_adapter(names, list(weights), SUM, "cat")
    except ValueError as error:
        raise InputError(f"These adapters cannot be added up: {in_one_line(error)}") from error
    model.set_adapter(SUM)
    for name in ["default", *names]:
        model.delete_adapter(name)
    return _in_eval_mode(model), tokenizer


def adapter_config(folder: str) -> PeftConfig:
    """The config of the adapter in a folder. The adapter's weight file is checked too.

    Raises:
        InputError: if there is no adapter, its files are damaged, or its method is unknown.
    """
    path = Path(folder) / "adapter_config.json"
    if not path.is_file():
        raise InputError(f"{folder} holds no adapter: adapter_config.json is missing.")
    check_weights_file(folder)
    if not (Path(folder) / "adapter_model.safetensors").is_file():
        raise InputError(f"{folder} holds no weights: adapter_model.safetensors is missing. Copy the whole folder.")
    try:
        method = read_json(path, "Copy it again.", _Settings)["peft_type"]
        if method not in PEFT_TYPE_TO_CONFIG_MAPPING:
            raise ValueError(f"its peft_type {method!r} is no method of PEFT, nor MONOLORA")
        config = PEFT_TYPE_TO_CONFIG_MAPPING[method].from_pretrained(folder)
        if isinstance(config, LoraConfig):
            check_numbers(config)
        return config
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise InputError(f"{path} cannot be used: {in_one_line(error)}") from error


def _in_eval_mode(model: PeftModel) -> PeftModel:
    """Except 4-bit layers: on some CPUs bitsandbytes repacks them in eval mode and then dequantizes them wrongly."""
    model.eval()
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.training = True
    return model


def fit_vocabulary(model: PreTrainedModel, folder: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the model as many embeddings as the adapter was trained with. The values of new ones are in its file.

    Args:
        model: the base.
        folder: of the adapter.
        tokenizer: of the adapter.

    Raises:
        InputError: where the embeddings are on disk.
    """
    weight = model.get_input_embeddings().get_parameter("weight")
    rows, base_rows = vocabulary_in(folder, model), len(weight)
    if rows is None and (Path(folder) / "tokenizer_config.json").is_file():
        rows = max(len(tokenizer), base_rows)  # as AutoPeftModel does
    if rows is None or rows == base_rows:
        return
    if weight.device.type == "meta":
        raise InputError(f"{folder} has a vocabulary of its own, and the embeddings are on disk. Raise --max-memory.")
    model.resize_token_embeddings(rows)


def attach(
    model: PreTrainedModel, folder: str, *, is_trainable: bool = False, autocast_adapter_dtype: bool = True
) -> PeftModel:
    """The model with the adapter of a folder, MonoLoRA or any other PEFT method, whose files are checked.

    With offloaded layers PEFT would offload the adapter too, copying the base's weight files into the working
    directory. Here the adapter stays in memory.

    Args:
        model: the base.
        folder: of the adapter.
        is_trainable: whether it is to be trained.
        autocast_adapter_dtype: whether an adapter in half precision becomes float32, as PEFT's option of this name.

    Raises:
        InputError: if the folder holds no adapter, or its files are damaged or hold foreign tensors.
        ValueError, RuntimeError: if PEFT refuses the adapter.
    """
    config = adapter_config(folder)
    config.inference_mode = not is_trainable
    is_monolora = isinstance(config, MonoLoraConfig)
    if not is_monolora:  # MonoLoRA resolves its patterns itself
        pattern = vars(config).get("target_modules")
        resolve_patterns(config, module_names(model), adapted_modules(folder))
        if pattern and not vars(config)["target_modules"]:
            raise ValueError(f"target_modules {pattern!r} matches nothing. {near_misses(model, None)}")
    offloaded = bool({"cpu", "disk"} & set(vars(model).get("hf_device_map", {}).values()))
    if offloaded and not isinstance(config, LoraConfig):
        raise InputError(f"{folder} is no MonoLoRA or LoRA adapter; only those can be on a model larger than memory.")
    kind = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type or "", PeftModel)
    adapted = kind(model, config, autocast_adapter_dtype=autocast_adapter_dtype)
    tensors = load_peft_weights(folder, device="cpu")
    if not is_monolora:
        _check_tensors(adapted, config, tensors)
    if not offloaded:
        adapted.load_adapter(folder, "default", is_trainable=is_trainable)
        return adapted
    for layer in adapted.modules():
        if isinstance(layer, LoraLayer):
            _bring_into_memory(layer)
    peft_model.set_peft_model_state_dict(adapted, tensors)
    return adapted


def _check_tensors(adapted: PeftModel, config: PeftConfig, tensors: Mapping[str, torch.Tensor]) -> None:
    """Check an adapter of another method as MonoLoRA adapters are checked when they are loaded."""
    in_model = adapted.state_dict()
    own = get_peft_model_state_dict(adapted, in_model, save_embedding_layers=False)
    names = {key: file_name(key, "default") for key in in_model} | saved_beside(adapted, "default")
    of_adapter = [key for key in in_model if names[key] in own]
    room = room_for(adapted, "default", in_model, of_adapter, names)._replace(own=own)
    renamed = convert_peft_adapter_state_dict_for_transformers(adapted, config, dict(tensors))
    check_tensors(renamed, room, origin_of(config.base_model_name_or_path, model_name(adapted)))


def _bring_into_memory(layer: Any) -> None:
    """Allocate the units of an offloaded layer on the device where accelerate runs it; values are loaded later."""
    hook = vars(layer.get_base_layer()).get("_hf_hook")
    if isinstance(hook, AlignDevicesHook) and hook.offload:
        for name, part in layer.named_children():
            if name in layer.adapter_layer_names:
                part.to_empty(device=hook.execution_device)


def _fitting(folder: str, base: str, load: Callable[[], Any]) -> Any:
    """The result of ``load``. If a file does not fit its base, the error is one line."""
    try:
        with warnings.catch_warnings():
            # For other methods than MonoLoRA, PEFT only warns if a file lacks tensors.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            return load()
    except (ValueError, RuntimeError, UserWarning) as error:
        raise InputError(f"{folder} does not fit {base}: {' '.join(str(error).split())[:500]}") from error


# The A of a linear layer: (rank, inputs); B: (outputs, rank).
_LINEAR = re.compile(r"base_model\.model\.(?P<module>.+)\.(?:lora|monolora)_(?P<part>[AB])\.weight")


def check_fits(adapter: str, base: str) -> None:
    """Compare the sizes of an adapter's linear layers with those of the base's weights.

    Args:
        adapter: folder with ``adapter_model.safetensors``, MonoLoRA or LoRA.
        base: folder with the model's ``.safetensors`` files.

    Raises:
        InputError: naming the first layer whose size differs in the base.
    """
    shapes = {name.removesuffix(".weight"): shape for name, shape in _shapes(sorted(Path(base).glob("*.safetensors")))}
    if not shapes or "quantization_config" in read_json(Path(base) / "config.json", "Copy the model again."):
        return  # an older format, or packed weights of another shape: the loader checks these
    for name, shape in _shapes([Path(adapter) / "adapter_model.safetensors"]):
        match = _LINEAR.fullmatch(name)
        if match is None:
            continue
        module, part = match["module"], match["part"]
        if module not in shapes:
            continue  # PEFT and transformers may use another name than the file
        size, side = (shape[1], "inputs") if part == "A" else (shape[0], "outputs")
        if size not in shapes[module]:  # (outputs, inputs), or transposed as in GPT-2
            raise InputError(
                f"{adapter} does not fit {base}: its {module} has {size} {side}, and the model's weight is of shape "
                f"{tuple(shapes[module])}. Give the base that it was trained on."
            )


def _shapes(files: list[Path]) -> Iterator[tuple[str, list[int]]]:
    for path in files:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                yield name, file.get_slice(name).get_shape()
