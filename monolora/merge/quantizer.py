"""How transformers loads an exact checkpoint: as a "quantization method", its public door for other layer classes.

Nothing is quantized. ``config.json`` lists the baked layers; before the weights are read, the quantizer puts baked
layers in the place of the plain ones, on the meta device.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from monolora.activations import check_activation
from monolora.merge.baked import BakedLayer, bake, baked_class, baked_layers
from monolora.merge.files import check_unit_tensors
from monolora.merge.unload import BAKED, Units

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
        dtype: of A and B.
    """

    modules: Sequence[str]
    r: int
    scaling: float
    activation: str
    bias: bool
    dtype: str

    def __post_init__(self) -> None:
        check_activation(self.activation)

    def empty_units(self, layer: nn.Module) -> Units:
        """Tensors of the right shapes for a plain layer, without values."""
        inputs, outputs = baked_class(type(layer)).sizes(layer)
        shapes = ((self.r, inputs), (outputs, self.r), (outputs,))
        A, B, bias = (torch.empty(shape, dtype=_dtype(self.dtype), device="meta") for shape in shapes)
        return Units(A, B, bias if self.bias else None, self.scaling, self.activation)


class MonoLoraQuantizationConfig(QuantizationConfigMixin):
    """What ``config.json`` of an exact checkpoint says about its baked layers.

    Args:
        groups: modules by what they keep; one group where the adapter is uniform.
        other_dtypes: dtype to the names of the base model's tensors that have it, where it is not the model's.
        quant_method: ``"monolora"``.
    """

    def __init__(
        self,
        groups: Sequence[BakedGroup | Mapping[str, Any]],
        other_dtypes: Mapping[str, Sequence[str]] | None = None,
        quant_method: str = BAKED,
    ) -> None:
        self.quant_method = quant_method  # type: ignore[assignment]
        self.groups = [group if isinstance(group, BakedGroup) else BakedGroup(**group) for group in groups]
        self.other_dtypes = dict(other_dtypes or {})

    @classmethod
    def of(cls, model: PreTrainedModel) -> MonoLoraQuantizationConfig:
        """The description of a model with baked layers."""
        layers = baked_layers(model)
        kinds: dict[tuple[Any, ...], list[str]] = defaultdict(list)
        for name, (A, _, bias, scaling, activation) in ((name, layer.units) for name, layer in layers.items()):
            kinds[len(A), scaling, activation, bias is not None, _name(A.dtype)].append(name)
        groups = [
            BakedGroup(modules=names, r=r, scaling=scaling, activation=activation, bias=bias, dtype=dtype)
            for (r, scaling, activation, bias, dtype), names in kinds.items()
        ]
        return cls(groups, _other_dtypes(model))

    def to_dict(self) -> dict[str, Any]:
        written = {"quant_method": self.quant_method, "groups": [dataclasses.asdict(group) for group in self.groups]}
        return written | ({"other_dtypes": dict(self.other_dtypes)} if self.other_dtypes else {})


class MonoLoraHfQuantizer(HfQuantizer):
    """Rebuilds the baked layers of an exact checkpoint; see the module's docstring."""

    quantization_config: MonoLoraQuantizationConfig

    def update_tp_plan(self, config: Any) -> Any:
        """The one hook that sees the config before the files are looked for: it takes ``NEEDS_MONOLORA`` away.

        Raises:
            ValueError: under tensor parallelism, whose plans split the base weights and know nothing of A and B.
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
        units = {
            name: group.empty_units(model.get_submodule(name))
            for group in self.quantization_config.groups
            for name in names.here(group.modules)
        }
        bake(model, units)
        for dtype, tensors in self.quantization_config.other_dtypes.items():
            for tensor in names.here(tensors):
                _set_dtype(model, tensor, _dtype(dtype))
        check_unit_tensors(model, checkpoint_files or ())
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        # Or transformers would refuse .float() and full finetuning, for which there is no reason here.
        model.is_quantized = False  # type: ignore[assignment]
        self._describe(model)
        return model

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[None, dict[str, str]]:
        """Nothing of its own to save; but this runs before the config is written."""
        self._describe(model)
        return None, {}

    def _describe(self, model: PreTrainedModel) -> None:
        """The class at hand may have no head, and dtypes may have been changed since."""
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
    """Finds modules and tensors of the saved model in the model at hand, whose class may be another.

    ``LlamaModel`` knows as ``layers.0`` what ``LlamaForCausalLM`` knows as ``model.layers.0``, and has no ``lm_head``.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.prefix = f"{model.base_model_prefix}."
        self.known = {name for name, _ in (*model.named_modules(), *model.named_parameters())}
        self.top = {name for part in (model, model.base_model) for name, _ in part.named_children()}

    def here(self, names: Iterable[str]) -> Iterator[str]:
        """The names here, without those of a head that this class does not have.

        Raises:
            ValueError: for a name that is not here and belongs to no such head.
        """
        for name in names:
            bare = name.removeprefix(self.prefix)
            found = next((known for known in (name, bare, self.prefix + name) if known in self.known), None)
            if found is not None:
                yield found
            elif bare.partition(".")[0] in self.top:
                raise ValueError(f"The checkpoint's MonoLoRA config names {name!r}, which this model does not have.")


def _other_dtypes(model: PreTrainedModel) -> dict[str, list[str]]:
    """Dtype to the base tensors that have it, for every dtype but the model's."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        parent, _, last = name.rpartition(".")
        of_units = isinstance(model.get_submodule(parent), BakedLayer) and last.startswith("monolora_")
        if not of_units and parameter.is_floating_point() and parameter.dtype != model.dtype:
            names[_name(parameter.dtype)].append(name)
    return dict(names)


def _set_dtype(model: nn.Module, tensor: str, dtype: torch.dtype) -> None:
    """transformers reads a tensor in the dtype that the empty parameter has."""
    parent, _, last = tensor.rpartition(".")
    parameter = model.get_parameter(tensor)
    setattr(model.get_submodule(parent), last, nn.Parameter(parameter.detach().to(dtype), parameter.requires_grad))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    dtype = vars(torch)[name]
    assert isinstance(dtype, torch.dtype)
    return dtype
