"""Which modules an adapter targets: the defaults of a model family, all linear ones, and names for messages."""

from __future__ import annotations

import copy
import difflib
import re
import warnings
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pyarrow
import pyarrow.compute
import torch
from peft import LoraConfig, PeftType
from peft.tuners.tuners_utils import BaseTunerLayer, _maybe_include_all_linear_layers
from peft.utils.constants import INCLUDE_LINEAR_LAYERS_SHORTHAND, TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from monolora.errors import InputError

_KINDS = (nn.Linear, Conv1D, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)

# What the families that transformers has call the projections to queries and to values, alone or fused. Of low-rank
# projections (DeepSeek's) it is the second one, whose outputs are the queries and values.
_QUERIES_AND_VALUES = re.compile(
    r"(q|query)(_proj|_lin|_b_proj|_gate_proj)?|project_q|Wq"
    r"|(v|value)(_proj|_lin|_proj_current|_proj_delayed)?|project_v|Wv|kv_proj|kv_b_proj"
    r"|qkv|qkv_proj|query_key_value|Wqkv|c_attn|in_proj_qkvz?"
)
# Where no layer has attention, as in Mamba: the projection of a mixer's input.
_MIXER_INPUTS = re.compile(r"in_proj")
# Names of a linear module that the attention's own module wraps, as Moshi's `q_proj.linear`.
_WRAPPED = ("linear", "layer")


def default_targets(model: nn.Module) -> set[str] | str:
    """The default targets: PEFT's for its families, otherwise the projections to queries and values.

    These include linear attention's; without any, the input projections of the layers' mixers are targeted.

    Args:
        model: a transformers model, or any other.

    Returns:
        Names as for ``target_modules``; a pattern for a few families.

    Raises:
        ValueError: if no module has a known name.
    """
    config = model.config if isinstance(model, PreTrainedModel) else None
    if config is not None and (known := TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(config.model_type)):
        return known if isinstance(known, str) else set(known)
    towers = other_towers(model)
    paths = [name for name in _linear_names(model) if not name.startswith(tuple(f"{tower}." for tower in towers))]
    for pattern in (_QUERIES_AND_VALUES, _MIXER_INPUTS):
        if names := {name for name in map(_own_name, paths) if pattern.fullmatch(name.partition(".")[0])}:
            return names
    raise ValueError("No module is known to make queries or values in this model. Please specify `target_modules`.")


def _own_name(path: str) -> str:
    """The last part of a module's name; the last two for a linear module that a projection wraps."""
    *_, parent, last = ["", *path.split(".")]
    return f"{parent}.{last}" if parent and last in _WRAPPED else last


def all_linear(model: nn.Module) -> set[str]:
    """The full names for ``target_modules="all-linear"``: PEFT's, without modules that cannot be adapted.

    Left out are linear modules whose own forward is not ``W x + b``, such as the routers of Llama 4, and with a warning
    experts whose weights are fused into one parameter.

    Args:
        model: a transformers model, or any other.
    """
    shorthand = LoraConfig(target_modules=INCLUDE_LINEAR_LAYERS_SHORTHAND, task_type="CAUSAL_LM")
    named: set[str] = vars(_maybe_include_all_linear_layers(shorthand, model))["target_modules"]
    if experts := fused_experts(model):
        warnings.warn(
            f"all-linear leaves the experts out: their weights are fused into parameters ({experts[0]}, {len(experts)} "
            "in all), which are no linear modules.",
            stacklevel=2,
        )
    return {name for name in named if gives_a_linear_map(model.get_submodule(name))}


def is_all_linear(targets: object) -> bool:
    """Whether ``target_modules`` is PEFT's shorthand."""
    return isinstance(targets, str) and targets.lower() == INCLUDE_LINEAR_LAYERS_SHORTHAND


def gives_a_linear_map(module: nn.Module) -> bool:
    """Whether a linear module of a model's own class gives ``W x + b``; true for any other kind of module.

    Tried on one input of zeros: a router's subclass of ``nn.Linear`` returns a tuple, a grouped one another shape.
    """
    kind = type(module)
    if not isinstance(module, nn.Linear) or not kind.__module__.startswith("transformers.models."):
        return True
    weight = module.weight
    with torch.no_grad():
        try:
            output: Any = module(torch.zeros(1, module.in_features, dtype=weight.dtype, device=weight.device))
        except RuntimeError:  # it needs an input of another shape
            return False
    return isinstance(output, torch.Tensor) and output.shape == (1, module.out_features)


def fused_experts(model: nn.Module) -> list[str]:
    """Names of the parameters that hold the weights of all experts of a layer, one matrix an expert."""
    return [
        f"{name}.{parameter_name}"
        for name, module in model.named_modules()
        if "expert" in f"{name} {type(module).__name__}".lower()
        for parameter_name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3
    ]


def other_towers(model: nn.Module) -> list[str]:
    """Names of the modules of a model for several modalities that text does not go through: its vision tower, …

    They are the models within it that read no text, and all that stands beside its text model.
    """
    if not isinstance(model, PreTrainedModel):
        return []
    parts = [(name, part) for name, part in model.named_modules() if name and isinstance(part, PreTrainedModel)]
    towers = {name for name, part in parts if "text" not in part.input_modalities}  # a word, or several
    text = model.get_decoder() if model.config.get_text_config() is not model.config else None
    for path in (name for name, part in parts if part is text):
        way = path.split(".")
        for level, step in enumerate(way):
            parent = ".".join(way[:level])
            for child, module in model.get_submodule(parent).named_children():
                if child != step and module is not model.get_output_embeddings():
                    towers.add(f"{parent}.{child}".strip("."))
    return sorted(name for name in towers if not name.startswith(tuple(f"{other}." for other in towers)))


def read_as_experts(model: nn.Module, config: LoraConfig) -> set[str]:
    """Those targets of a plain LoRA that PEFT takes for names of fused experts, and adapts these instead.

    In models whose experts were modules of these names before transformers 5, PEFT 0.21 moves the names from
    ``target_modules`` to ``target_parameters``, those of shared experts and dense layers too.

    Args:
        model: the base model, without adapters.
        config: of any adapter; one that is no plain LoRA is read as it stands.

    Returns:
        The targets that are moved; of a pattern, the parameters that are adapted.
    """
    if config.peft_type != PeftType.LORA or config.target_modules is None or not isinstance(model, PreTrainedModel):
        return set()
    converted = LoraConfig(target_modules=copy.copy(config.target_modules))
    convert_peft_config_for_transformers(converted, model, None)
    if isinstance(config.target_modules, str):
        return set(converted.target_parameters or ())
    return set(config.target_modules) - set(converted.target_modules or ())


def _linear_names(model: nn.Module) -> list[str]:
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and gives_a_linear_map(module)
    ]


def target_names(model: nn.Module) -> list[str]:
    """Last name parts of the model's linear, convolution and embedding modules, sorted, each once."""
    adapted = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))
    return sorted(
        {
            name.rpartition(".")[-1]
            for name, module in model.named_modules()
            if name and isinstance(module, (*_KINDS, BaseTunerLayer)) and not name.startswith(adapted)
        }
    )


def module_names(model: nn.Module) -> list[str]:
    """Names of all modules, without those inside adapted layers."""
    adapted = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))
    return [name for name, _ in model.named_modules() if name and not name.startswith(adapted)]


def near_misses(model: nn.Module, targets: str | Iterable[str] | None) -> str:
    """A sentence with the module names nearest to ``targets``, or all of them; empty where the model has none."""
    names = target_names(model)
    targets = [targets] if isinstance(targets, str) else sorted(targets or [])
    near = list(dict.fromkeys(match for name in targets for match in difflib.get_close_matches(name, names, n=3)))
    if near:
        return f"Nearest module names: {', '.join(near)}."
    return f"Module names in this model: {', '.join(names)}." if names else ""


# Names, and patterns with a single repeated character, which any engine matches in bounded time.
_NAME = re.compile(r"[\w.^$\\-]*(?:[*+?][\w.^$\\-]*)?")
_TARGETS = ("target_modules", "exclude_modules", "feedforward_modules")
_VALUES = ("rank_pattern", "alpha_pattern")
_NAMES = ("modules_to_save", "layers_pattern")


def resolve_patterns(config: Any, names: Sequence[str], in_file: Collection[str]) -> None:
    """Replace the patterns of a config by the modules that they match, in place; plain names stay.

    Args:
        config: of any method of PEFT, from a file.
        names: of the modules of the model that it is for.
        in_file: names of the modules with tensors in the adapter's file.

    Raises:
        InputError: for a pattern where names are required, and for one beyond RE2 unless the file lists its modules.
    """
    settings = vars(config)
    for field in _NAMES:
        value = settings.get(field) or ()
        for name in [value] if isinstance(value, str) else value:
            if not _NAME.fullmatch(str(name)):
                raise InputError(f"{field} names {name!r}, which is no module's name. Correct adapter_config.json.")
    if any(_is_pattern(settings.get(field)) for field in _TARGETS):
        _resolve_targets(settings, names, in_file)
    resolve_values(config, names)


def resolve_values(config: Any, names: Sequence[str]) -> None:
    """As :func:`resolve_patterns`, for the keys of ``rank_pattern`` and ``alpha_pattern`` alone."""
    settings = vars(config)
    for field in _VALUES:
        values = settings.get(field) or {}
        if any(map(_is_pattern, values)):
            settings[field] = _by_names(field, values, names)


def check_bounded(config: Any) -> None:
    """Check that the keys of ``rank_pattern`` and ``alpha_pattern`` can be run in Python's ``re``, as vLLM does.

    Raises:
        InputError: naming the first whose time is not bounded.
    """
    for field in _VALUES:
        for key in filter(_is_pattern, vars(config)[field] or {}):
            raise InputError(f"{field} has the pattern {key!r}, which cannot be checked safely. Name modules instead.")


def _is_pattern(value: object) -> bool:
    return isinstance(value, str) and value != "all-linear" and not _NAME.fullmatch(value)


def _resolve_targets(settings: dict[str, Any], names: Sequence[str], in_file: Collection[str]) -> None:
    matches: dict[str, list[str] | None] = {
        field: _matching(settings[field], names) for field in _TARGETS if _is_pattern(settings.get(field))
    }
    if None in matches.values():  # RE2 has no syntax for one of them
        if not in_file:
            field = next(field for field, modules in matches.items() if modules is None)
            raise InputError(
                f"{field} {settings[field]!r} cannot be checked safely. Download the adapter and load it from there, "
                "where its file tells what is meant, or name the modules instead."
            )
        matches = {"target_modules": [name for name in names if name in in_file]}
        settings["exclude_modules"] = settings["layers_to_transform"] = settings["layers_pattern"] = None
    for field, modules in matches.items():
        # One pattern of whole names: those of a list would match as ends of longer names too.
        settings[field] = "|".join(map(re.escape, modules or ()))


def _by_names(field: str, values: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Each key as one pattern of whole names, with the key's matches, in the same order."""
    resolved: dict[str, Any] = {}
    for key, value in values.items():
        modules = _matching(rf"(?:.*\.)?(?:{key})", names) if _is_pattern(key) else None
        if modules is None and _is_pattern(key):
            raise InputError(f"{field} has the pattern {key!r}, which cannot be checked safely. Name modules instead.")
        if modules is None:
            resolved.setdefault(key, value)
        elif modules:  # the first of several that match counts
            resolved.setdefault(f"^(?:{'|'.join(map(re.escape, modules))})", value)
    return resolved


def _matching(pattern: str, names: Sequence[str]) -> list[str] | None:
    """The names that ``pattern`` matches as a whole; None if RE2 does not take it."""
    try:
        matched = pyarrow.compute.match_substring_regex(pyarrow.array(names), pattern=f"^(?:{pattern})$")
    except pyarrow.ArrowInvalid:
        return None
    return [name for name, matches in zip(names, matched.to_pylist(), strict=True) if matches]
