"""Exact checkpoints in vLLM: base and adapter in one set of weights, without any LoRA machinery.

To vLLM, as to transformers (:mod:`monolora.merge.quantizer`), ``"monolora"`` is a quantization method: its public
interface for other linear layers. vLLM fuses modules (q, k and v; gate and up), so their units are stacked:

    y = W x + B act(A x)      A = [A_q; A_k; A_v],  B = blockdiag(s_q B_q, s_k B_k, s_v B_v)

Imported by the plugin, where vLLM is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.model_executor.layers.linear import (
    LinearBase,
    UnquantizedLinearMethod,
    register_weight_loader_v2_supported_method,
)
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

from monolora.activations import activate, activation_named
from monolora.merge.files import weight_files
from monolora.merge.quantizer import BakedGroup, baked_groups, check_checkpoint
from monolora.merge.unload import BAKED

# Legend: N tokens; I, O inputs and outputs of this rank; R units of all parts together.


def register() -> None:
    """Make the method known to vLLM; a second call does nothing."""
    if BAKED not in QUANTIZATION_METHODS:
        register_quantization_config(BAKED)(ExactCheckpointConfig)


class ExactCheckpointConfig(QuantizationConfig):
    """The description in ``config.json`` of the modules with units.

    Args:
        groups: see :class:`monolora.merge.quantizer.BakedGroup`.
    """

    def __init__(self, groups: Iterable[BakedGroup]) -> None:
        super().__init__()
        self.units = {name: group for group in groups for name in group.modules}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ExactCheckpointConfig:
        return cls(baked_groups(config["groups"]))

    def maybe_update_config(
        self, model_name: str, hf_config: PreTrainedConfig | None = None, revision: str | None = None
    ) -> None:
        """Compare config and files, before the model is built; nothing is updated.

        Raises:
            InputError: naming the first module or tensor that does not fit.
        """
        assert hf_config is not None
        check_checkpoint(hf_config, weight_files(Path(model_name)))

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        """Rename modules as vLLM does."""
        self.units = hf_to_vllm_mapper.apply_dict(self.units)

    def get_quant_method(self, layer: nn.Module, prefix: str) -> Any:
        """A method for the layer, which vLLM makes of one module or of several.

        Raises:
            ValueError: if the layer keeps units and is not linear.
        """
        path, _, last = prefix.rpartition(".")
        modules = [f"{path}.{part}" for part in self.packed_modules_mapping.get(last, [])] or [prefix]
        parts = [self.units.get(module) for module in modules]
        if isinstance(layer, LinearBase):
            return ExactLinearMethod(prefix, parts) if any(parts) else UnquantizedLinearMethod()
        if any(parts):
            raise ValueError(
                f"{prefix} keeps MonoLoRA units and is a {type(layer).__name__}; in vLLM only linear layers can. "
                "Write the checkpoint with `monolora merge ADAPTER OUT`, without --method exact."
            )
        return None

    def get_name(self) -> str:
        return BAKED

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.float32, torch.bfloat16, torch.float16]

    @classmethod
    def get_min_capability(cls) -> int:
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []


class _Part(NamedTuple):
    """The position of one module's units in a layer.

    Attributes:
        group: the kind of units; None for a module without.
        units: its rows of A and of B.
        outputs: its columns of B.
    """

    group: BakedGroup | None
    units: slice
    outputs: slice


@register_weight_loader_v2_supported_method
class ExactLinearMethod(UnquantizedLinearMethod):
    """``y = W x + B act(A x)``.

    Args:
        prefix: the layer's name.
        groups: one entry for every module that the layer is made of, None for one without units.
    """

    def __init__(self, prefix: str, groups: Sequence[BakedGroup | None]) -> None:
        super().__init__()
        self.prefix, self.groups = prefix, groups
        self.parts: list[_Part] = []

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra: Any,
    ) -> None:
        """vLLM's own ``weight``, then A ``(R, I)``, B ``(R, O)`` and, where there are any, B's bias ``(O,)`` and the
        thresholds ``(R, 1)``."""
        super().create_weights(
            layer, input_size_per_partition, output_partition_sizes, input_size, output_size, params_dtype, **extra
        )
        self.parts = list(_parts(self.groups, output_partition_sizes))
        self.inputs_are_split = input_size_per_partition < input_size
        R, O = self.parts[-1].units.stop, self.parts[-1].outputs.stop  # noqa: E741
        shapes: dict[str, tuple[int, ...]] = {"monolora_A": (R, input_size_per_partition), "monolora_B": (R, O)}
        if any(group is not None and group.bias for group in self.groups):
            shapes["monolora_B_bias"] = (O,)
        if any(map(_has_threshold, self.groups)):
            shapes["monolora_threshold"] = (R, 1)
        for name, shape in shapes.items():
            dtype = torch.float32 if name == "monolora_threshold" else params_dtype
            parameter = nn.Parameter(torch.zeros(shape, dtype=dtype), requires_grad=False)
            # A reload starts from a copy of these attributes and from uninitialized memory.
            vars(parameter).update(weight_loader=self._loader(layer, name), modules_loaded=frozenset())
            layer.register_parameter(name, parameter)

    def _loader(self, layer: Any, name: str) -> Any:
        """The loader of one module's tensor, or this rank's share of it; B and its bias are scaled.

        Zeros are written too, as parameters may hold anything before.
        """

        # vLLM's reload replaces the argument of this name: `param`.
        def load(param: nn.Parameter, loaded: torch.Tensor, shard_id: str | int | None = None) -> None:
            shard_id = vars(loaded).get("shard_id", shard_id)
            number = {"q": 0, "k": 1, "v": 2, None: 0}.get(shard_id, shard_id)  # type: ignore[arg-type]
            assert isinstance(number, int)
            part = self.parts[number]
            assert part.group is not None
            width, outputs = param.shape[-1], part.outputs.stop - part.outputs.start
            if name in ("monolora_A", "monolora_threshold"):
                rows, values = part.units, _share(loaded, 1, width, layer)
            else:
                rows, values = part.outputs, _share(loaded, 0, outputs, layer) * part.group.scaling
                if self.inputs_are_split and layer.tp_rank > 0:
                    values = torch.zeros_like(values)  # the ranks' outputs are summed: once is enough
            if name == "monolora_B":  # zero for the outputs of the layer's other modules
                rows, values = part.units, F.pad(values.t(), (part.outputs.start, width - part.outputs.stop))
            if values.shape != param.data[rows].shape:
                raise ValueError(
                    f"{name} of {self.prefix} has shape {tuple(loaded.shape)}, which is not what the checkpoint's "
                    "config.json says. Write it again with `monolora merge ADAPTER OUT --method exact`."
                )
            param.data[rows] = values
            if name == "monolora_B_bias":
                for other in self.parts:
                    if other.group is None or not other.group.bias:
                        param.data[other.outputs] = 0
            if not param.is_meta:  # where a reload only counts
                vars(param)["modules_loaded"] |= {number}

        return load

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """vLLM's own.

        Raises:
            ValueError: if the checkpoint lacks a tensor; vLLM looks only at checkpoints that are not quantized.
        """
        lacking = [
            name
            for name, parameter in layer.named_parameters(recurse=False)
            for number, group in enumerate(self.groups)
            if name.startswith("monolora_")
            and group is not None
            and (name != "monolora_B_bias" or group.bias)
            and (name != "monolora_threshold" or _has_threshold(group))
            and number not in vars(parameter)["modules_loaded"]
        ]
        if lacking:
            raise ValueError(
                f"The checkpoint lacks {min(lacking)} of {self.prefix} ({len(lacking)} such tensors). "
                "Write it again with `monolora merge ADAPTER OUT --method exact`."
            )
        super().process_weights_after_loading(layer)

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Shape ``(N, I)`` to ``(N, O)``."""
        y_NO = super().apply(layer, x, bias)
        z_NR = F.linear(x, layer.monolora_A)
        if self.inputs_are_split:
            z_NR = tensor_model_parallel_all_reduce(z_NR)
        h_NR = self._activate(z_NR, layer._parameters.get("monolora_threshold"))
        # Product and sum in one operation: for matrices this thin the sum alone costs as much as the product.
        adapted_NO = torch.addmm(y_NO.flatten(0, -2), h_NR.flatten(0, -2), layer.monolora_B).view_as(y_NO)
        return adapted_NO + layer.monolora_B_bias if "monolora_B_bias" in layer._parameters else adapted_NO

    def _activate(self, z_NR: torch.Tensor, threshold_R1: torch.Tensor | None) -> torch.Tensor:
        parts = [(part.units, part.group.activation) for part in self.parts if part.group is not None]
        first, *others = {name for _, name in parts}
        if not others and not activation_named(first).over_units:
            parts = [(slice(None), first)]
        h = [
            activate(z_NR[..., units], name, threshold=None if threshold_R1 is None else threshold_R1[units])
            for units, name in parts
        ]
        return h[0] if len(h) == 1 else torch.cat(h, dim=-1)


def _has_threshold(group: BakedGroup | None) -> bool:
    return group is not None and activation_named(group.activation).threshold is not None


def _parts(groups: Sequence[BakedGroup | None], output_sizes: Sequence[int]) -> Iterable[_Part]:
    if len(groups) == 1:  # vLLM may still list several outputs
        output_sizes = [sum(output_sizes)]
    units = outputs = 0
    for group, size in zip(groups, output_sizes, strict=True):
        r = 0 if group is None else group.r
        yield _Part(group, slice(units, units + r), slice(outputs, outputs + size))
        units, outputs = units + r, outputs + size


def _share(loaded: torch.Tensor, dim: int, size: int, layer: Any) -> torch.Tensor:
    """This rank's ``size`` entries of a tensor; several ranks may share them."""
    shares = loaded.shape[dim] // size
    return loaded.narrow(dim, layer.tp_rank * shares // layer.tp_size * size, size)
