"""How transformers loads an exact checkpoint: as a "quantization method", its public interface for other layer classes.

Nothing is quantized. ``config.json`` lists the baked layers; before the weights are read, the quantizer replaces
the plain layers by baked ones, on the meta device.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import transformers
from peft import PeftModel
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.quantizers import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from monolora.activations import activation_named, check_activation
from monolora.errors import InputError
from monolora.merge.baked import BakedLayer, bake, baked_class, baked_layers, check_bakeable
from monolora.merge.files import FLOAT_DTYPES, check_tensors
from monolora.merge.unload import BAKED, Units, unload
from monolora.model_files import save_model

# In config.json, where stock transformers looks for the name of a weights file: it refuses this one and shows it.
NEEDS_MONOLORA = (
    "this checkpoint keeps a MonoLoRA adapter with its activation. Run `pip install monolora`, and `import monolora` "
    "before loading it."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BakedGroup:
    """The modules that keep units of one kind.

    Args:
        modules: their names in the model that was saved.
        r: units of each.
        scaling: s.
        activation: see :mod:`monolora.activations`.
        bias: whether B has a bias.
        dtype: of A, B and the threshold.
    """

    modules: Sequence[str]
    r: int
    scaling: float
    activation: str
    bias: bool
    dtype: str

    def __post_init__(self) -> None:
        check_activation(self.activation)
        described: tuple[tuple[str, str, bool], ...] = (
            ("modules", "a list of names", _are_names(self.modules)),
            ("r", "a whole number of at least 1", _is_number(self.r) and self.r == int(self.r) >= 1),
            ("scaling", "a finite number", _is_number(self.scaling)),
            ("bias", "true or false", isinstance(self.bias, bool)),
            (
                "dtype",
                f"one of {', '.join(map(dtype_name, FLOAT_DTYPES))}",
                self.dtype in map(dtype_name, FLOAT_DTYPES),
            ),
        )
        for name, need, holds in described:
            if not holds:
                raise _damaged(f"{name} of a group is {vars(self)[name]!r}, not {need}")

    def empty_units(self, layer: nn.Module) -> Units:
        """Tensors of the right shapes for a plain layer, without values."""
        inputs, outputs = baked_class(type(layer)).sizes(layer)
        shapes = ((self.r, inputs), (outputs, self.r), (outputs,), (self.r, 1))
        A, B, bias, threshold = (torch.empty(shape, dtype=dtype_named(self.dtype), device="meta") for shape in shapes)
        has_threshold = activation_named(self.activation).threshold is not None
        return Units(
            A, B, bias if self.bias else None, self.scaling, self.activation, threshold if has_threshold else None
        )


class MonoLoraQuantizationConfig(QuantizationConfigMixin):
    """The description of baked layers in ``config.json`` of an exact checkpoint.

    Args:
        groups: modules by the kind of their units.
        other_dtypes: dtype to the names of the base model's tensors that have it, where it is not the model's.
        quant_method: ``"monolora"``.

    Raises:
        InputError: for values that no export writes: other types, dtypes or activations, numbers that are not finite,
            a module that is named twice.
    """

    def __init__(
        self,
        groups: Sequence[BakedGroup | Mapping[str, Any]],
        other_dtypes: Mapping[str, Sequence[str]] | None = None,
        quant_method: str = BAKED,
    ) -> None:
        self.quant_method = quant_method  # type: ignore[assignment]
        self.groups = baked_groups(groups)
        self.other_dtypes = dict(other_dtypes or {})
        for dtype, tensors in self.other_dtypes.items():
            if dtype not in map(dtype_name, FLOAT_DTYPES) or not _are_names(tensors):
                raise _damaged(f"other_dtypes has {dtype!r} for {tensors!r}, not names of tensors for a dtype")

    @classmethod
    def of(cls, model: PreTrainedModel) -> MonoLoraQuantizationConfig:
        """The description of a model with baked layers."""
        layers = baked_layers(model)
        kinds: dict[tuple[Any, ...], list[str]] = defaultdict(list)
        for name, (A, _, bias, scaling, activation, _) in ((name, layer.units) for name, layer in layers.items()):
            kinds[len(A), scaling, activation, bias is not None, dtype_name(A.dtype)].append(name)
        groups = [
            BakedGroup(modules=names, r=r, scaling=scaling, activation=activation, bias=bias, dtype=dtype)
            for (r, scaling, activation, bias, dtype), names in kinds.items()
        ]
        return cls(groups, _other_dtypes(model))

    def to_dict(self) -> dict[str, Any]:
        written = {"quant_method": self.quant_method, "groups": [dataclasses.asdict(group) for group in self.groups]}
        return written | ({"other_dtypes": dict(self.other_dtypes)} if self.other_dtypes else {})


def baked_groups(groups: Sequence[BakedGroup | Mapping[str, Any]]) -> list[BakedGroup]:
    """The groups that ``config.json`` lists.

    Raises:
        InputError: if it is no list of groups, one of them has other fields, or two name one module.
    """
    if not isinstance(groups, (list, tuple)) or not groups:
        raise _damaged(f"groups is {groups!r}, not a list of groups")
    fields = {field.name for field in dataclasses.fields(BakedGroup)}
    for group in groups:
        if not isinstance(group, BakedGroup) and (not isinstance(group, Mapping) or set(group) != fields):
            raise _damaged(f"a group is {group!r}, not a mapping of {', '.join(sorted(fields))}")
    parsed = [group if isinstance(group, BakedGroup) else BakedGroup(**group) for group in groups]
    check_named_once(name for group in parsed for name in group.modules)
    return parsed


def check_named_once(modules: Iterable[str]) -> None:
    """Raises: InputError, naming a module that comes twice."""
    module, count = Counter(modules).most_common(1)[0]
    if count > 1:
        raise _damaged(f"module {module!r} is named {count} times")


def _damaged(what: str) -> InputError:
    return InputError(
        f"The MonoLoRA part of the checkpoint's config.json is damaged: {what}. Copy the file again, or export again."
    )


def _are_names(value: object) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(name, str) for name in value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_checkpoint(config: PreTrainedConfig, files: Iterable[str] = ()) -> None:
    """Check an exact checkpoint that another library is about to load: config, modules and tensors must agree.

    Args:
        config: of the checkpoint. Where transformers has no class of its architecture, nothing is checked.
        files: its safetensors; none where they are not at hand.

    Raises:
        InputError: naming the first module or tensor that does not fit.
    """
    model_class = getattr(transformers, (config.architectures or [""])[0], None)  # a lazy module: vars() has no classes
    if model_class is None:
        return
    description: Any = config.quantization_config
    with torch.device("meta"):
        model = model_class(config)
    if isinstance(description, Mapping):
        description = MonoLoraQuantizationConfig.from_dict(dict(description))
    MonoLoraHfQuantizer(description)._process_model_before_weight_loading(model, files)


class MonoLoraHfQuantizer(HfQuantizer):
    """Rebuilds the baked layers of an exact checkpoint; see the module's docstring."""

    quantization_config: MonoLoraQuantizationConfig

    def update_tp_plan(self, config: Any) -> Any:
        """Remove ``NEEDS_MONOLORA``, in the only hook that sees the config before files are looked up.

        Raises:
            ValueError: under tensor parallelism, whose plans split the base weights but not A and B.
        """
        vars(config).pop("transformers_weights", None)
        distributed = vars(config).get("distributed_config")
        if distributed is not None and (distributed.tp_plan or (distributed.tp_size or 1) > 1):
            raise ValueError(
                "Exact checkpoints of MonoLoRA cannot be split by tensor parallelism; load with device_map='auto'."
            )
        return config

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Iterable[str] | None = None, **kwargs: Any
    ) -> PreTrainedModel:
        names = _Names(model)
        by_module = {name: group for group in self.quantization_config.groups for name in group.modules}
        modules = {name: names.module(name) for name in by_module}
        check_named_once(name for name in modules.values() if name is not None)
        groups = {alias: by_module[name] for name, alias in modules.items() if alias is not None}
        check_bakeable(model, groups)
        bake(model, {name: group.empty_units(model.get_submodule(name)) for name, group in groups.items()})
        for dtype, tensors in self.quantization_config.other_dtypes.items():
            for tensor in filter(None, map(names.tensor, tensors)):
                _set_dtype(model, tensor, dtype_named(dtype))
        check_tensors(model, checkpoint_files or (), [name for name, alias in modules.items() if alias is None])
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        # Otherwise transformers would refuse .float() and full finetuning.
        model.is_quantized = False  # type: ignore[assignment]
        self._describe(model)
        return model

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[None, dict[str, str]]:
        """Update the config, before it is written; nothing else is saved."""
        self._describe(model)
        return None, {}

    def _describe(self, model: PreTrainedModel) -> None:
        """Update the description: this class may lack a head, and dtypes may have changed."""
        model.config.quantization_config = self.quantization_config = MonoLoraQuantizationConfig.of(model)

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_qat_trainable(self) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        return True


class _Names:
    """Finds modules and tensors of the saved model in a model of perhaps another class.

    ``layers.0`` of ``LlamaModel`` is ``model.layers.0`` of ``LlamaForCausalLM``, and it has no ``lm_head``.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.prefix = f"{model.base_model_prefix}."
        self.modules = {name for name, _ in model.named_modules() if name}
        self.tensors = {name for name, _ in model.named_parameters()}
        self.top = {name for part in (model, model.base_model) for name, _ in part.named_children()}
        self.is_saved_class = type(model).__name__ in (model.config.architectures or ())

    def module(self, name: str) -> str | None:
        """The name of a module here; None for that of a head that this class does not have.

        Raises:
            InputError: for a name that is not here and belongs to no such head.
        """
        return self._here(name, self.modules)

    def tensor(self, name: str) -> str | None:
        """As :meth:`module`, for a parameter."""
        return self._here(name, self.tensors)

    def _here(self, name: str, known: set[str]) -> str | None:
        bare = name.removeprefix(self.prefix)
        here = next((alias for alias in (name, bare, self.prefix + name) if alias in known), None)
        if here is None and (self.is_saved_class or bare.partition(".")[0] in self.top):
            raise InputError(f"The checkpoint's MonoLoRA config names {name!r}, which this model does not have.")
        return here


def _other_dtypes(model: PreTrainedModel) -> dict[str, list[str]]:
    """Dtype to the base tensors that have it, for every dtype but the model's."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        parent, _, last = name.rpartition(".")
        of_units = isinstance(model.get_submodule(parent), BakedLayer) and last.startswith("monolora_")
        if not of_units and parameter.is_floating_point() and parameter.dtype != model.dtype:
            names[dtype_name(parameter.dtype)].append(name)
    return dict(names)


def _set_dtype(model: nn.Module, tensor: str, dtype: torch.dtype) -> None:
    """transformers reads a tensor in the dtype that the empty parameter has."""
    parent, _, last = tensor.rpartition(".")
    parameter = model.get_parameter(tensor)
    setattr(model.get_submodule(parent), last, nn.Parameter(parameter.detach().to(dtype), parameter.requires_grad))


def dtype_name(dtype: torch.dtype) -> str:
    """As torch calls it, without the prefix: ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def dtype_named(name: str) -> torch.dtype:
    """The inverse of :func:`dtype_name`."""
    dtype = vars(torch)[name]
    assert isinstance(dtype, torch.dtype)
    return dtype


def export_exact(
    model: PeftModel,
    folder: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_shard_size: int | str = "5GB",
) -> None:
    """Write a folder that ``from_pretrained`` of every transformers class loads once ``monolora`` is imported.

    Without ``monolora`` loading fails with a message that names it.

    Args:
        model: a model with one active MonoLoRA adapter. It is consumed: load the folder to continue.
        folder: where to write config, generation config and safetensors.
        tokenizer: written beside the model, its chat template too.
        max_shard_size: the largest size of one file of weights.

    Raises:
        ValueError: where no single adapter is active, or the adapter targets a layer that cannot keep it.
    """
    base, units = unload(model)
    bake(base, units)
    base.config.quantization_config = MonoLoraQuantizationConfig.of(base)
    save_model(base, folder, tokenizer, max_shard_size=max_shard_size)
