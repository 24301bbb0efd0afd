"""MonoLoraModel: PEFT's LoraModel, with our layers, our names on disk, and no merge."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NoReturn

import torch
from peft.tuners.lora import LoraModel
from peft.tuners.lora.layer import LoraLayer
from peft.utils import _freeze_adapter
from peft.utils.save_and_load import _validate_lora_adapter_state_dict
from torch import nn

from monolora.activations import topk_of
from monolora.checkpoint import check_no_lora_tensors, check_tensors, origin_of, to_disk_names, to_memory_names
from monolora.config import MonoLoraConfig
from monolora.layer import MERGE_HINT, MonoLoraLayer
from monolora.targets import near_misses


class MonoLoraModel(LoraModel):
    """The tuner behind ``peft_type="MONOLORA"``; made by ``get_peft_model``, used like ``LoraModel``.

    Target matching, quantized layers, patterns, weight tying, mixed batches and hotswap are PEFT's. What differs:
    the layers' forward, the tensors' names on disk, ``add_weighted_adapter`` (``"cat"`` only) and merging, which
    raises.
    """

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """As PEFT's; a target pattern that matches nothing is answered with the nearest module names."""
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except ValueError as error:
            hint = near_misses(model, self.peft_config[adapter_name].target_modules)
            if hint and not any(isinstance(module, MonoLoraLayer) for module in model.modules()):
                raise ValueError(f"{error} {hint}") from error
            raise

    @staticmethod
    def _create_new_module(
        lora_config: MonoLoraConfig, adapter_name: str, target: nn.Module, **kwargs: Any
    ) -> nn.Module:
        if isinstance(target, nn.MultiheadAttention):
            raise ValueError(
                "MonoLoRA does not support nn.MultiheadAttention: PEFT merges it into the base weight at every call, "
                "which an activation makes impossible. Exclude it (exclude_modules), or target its out_proj's peers."
            )
        layer = LoraModel._create_new_module(lora_config, adapter_name, target, **kwargs)
        return MonoLoraLayer.adopt(layer, adapter_name, lora_config)

    def _check_merge_allowed(self) -> NoReturn:
        raise ValueError(MERGE_HINT)

    def add_weighted_adapter(
        self, adapters: list[str], weights: list[float], adapter_name: str, combination_type: str = "cat", **kwargs: Any
    ) -> None:
        """Add the adapter whose output is the weighted sum of the given adapters' outputs, exactly.

        The units are put side by side (``A`` stacked, rank added up) and weight × scaling goes to ``B``: before the
        ReLU a negative weight would silence other units. Scaling is 1 afterwards.

        Args:
            adapters: names of the adapters to add up.
            weights: one factor an adapter, of any sign.
            adapter_name: name of the new adapter; if it exists already, nothing is done (as in PEFT).
            combination_type: ``"cat"``; every other type mixes weights, which is not the sum of non-linear adapters.

        Raises:
            ValueError: for another combination type, adapters of different activations, or several ``topk`` adapters
                (the k largest of all units are not the k largest of each).
        """
        if adapter_name in self.peft_config:
            return
        if combination_type != "cat" or kwargs:
            raise ValueError(
                f"MonoLoRA adapters can only be combined with combination_type='cat', got {combination_type!r}"
                f"{' with ' + ', '.join(kwargs) if kwargs else ''}: mixing A's or B's does not mix non-linear outputs."
            )
        _, rank, target_modules = self._check_add_weighted_adapter(adapters, "cat", None)
        self._check_same_kind(adapters)
        self.peft_config[adapter_name] = replace(
            self.peft_config[adapters[0]],
            r=rank,
            lora_alpha=rank,
            target_modules=target_modules,
            alpha_pattern={},
            rank_pattern={},
            use_rslora=False,
        )
        self.inject_adapter(self.model, adapter_name)
        _freeze_adapter(self.model, adapter_name)
        for layer in self.model.modules():
            if isinstance(layer, MonoLoraLayer) and adapter_name in layer.activation:
                _concatenate(layer, adapters, weights, adapter_name)

    def _check_same_kind(self, adapters: list[str]) -> None:
        activations = {self.peft_config[name].activation for name in adapters}
        if len(activations) > 1:
            raise ValueError(f"Cannot combine adapters of different activations: {', '.join(sorted(activations))}.")
        (activation,) = activations
        if topk_of(activation) is not None and len(adapters) > 1:
            raise ValueError(
                f"Cannot combine {activation} adapters exactly: top-k over all units is not top-k over each."
            )
        if len({self.peft_config[name].lora_bias for name in adapters}) > 1:
            raise ValueError("Cannot combine adapters with and without lora_bias.")

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, torch.Tensor]:
        tensors = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        # PEFT warns of tensors left empty by ZeRO-3 only where the type is LORA.
        _validate_lora_adapter_state_dict(tensors, adapter_name=adapter_name)
        return to_disk_names(tensors)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """File tensors under the model's names, checked.

        Raises:
            AdapterFileError: for missing, foreign, misshapen or non-finite tensors, or those of a plain LoRA.
        """
        check_no_lora_tensors(state_dict)
        remapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, to_memory_names(state_dict))
        in_model = {key: value.shape for key, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
        prefix = "base_model.model."
        if not any(key.startswith(prefix) for key in in_model):  # injected without a PeftModel around it
            remapped = {key.removeprefix(prefix): value for key, value in remapped.items()}
        expected = {key: shape for key, shape in in_model.items() if _is_unit_tensor(key, adapter_name)}
        origin = origin_of(config.base_model_name_or_path, model.__dict__.get("name_or_path"))
        check_tensors(remapped, expected, in_model, origin)
        return remapped


def _is_unit_tensor(key: str, adapter_name: str) -> bool:
    return f"_A.{adapter_name}" in key or f"_B.{adapter_name}" in key


def _unit_tensors(layer: LoraLayer, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """A ``(r, in, ...)``, B ``(out, r, ...)`` and B's bias of one adapter, as the live parameters' data."""
    if name in layer.lora_embedding_A:
        return layer.lora_embedding_A[name].data, layer.lora_embedding_B[name].data, None
    A, B = layer.lora_A[name], layer.lora_B[name]
    return A.weight.data, B.weight.data, None if B.bias is None else B.bias.data


def _concatenate(layer: MonoLoraLayer, adapters: list[str], weights: list[float], into: str) -> None:
    A, B, bias = _unit_tensors(layer, into)
    A.zero_()
    B.zero_()
    if bias is not None:
        bias.zero_()
    start = 0
    for name, weight in zip(adapters, weights, strict=True):
        if name not in layer.activation:
            continue
        part_A, part_B, part_bias = _unit_tensors(layer, name)
        if part_B.shape[1] != part_A.shape[0]:
            raise ValueError(f"Cannot combine adapters on grouped convolutions, such as {layer.get_base_layer()}.")
        factor, end = weight * layer.scaling[name], start + part_A.shape[0]
        A[start:end] = part_A
        B[:, start:end] = part_B * factor
        if bias is not None and part_bias is not None:
            bias += part_bias * factor
        start = end
