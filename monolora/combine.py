"""Adding up adapters exactly: what ``MonoLoraModel.add_weighted_adapter`` checks, plans and copies."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from monolora.activations import activation_named
from monolora.config import MonoLoraConfig
from monolora.layer import MonoLoraLayer


def combined_config(
    model: nn.Module, configs: Mapping[str, MonoLoraConfig], adapters: Sequence[str], weights: Sequence[float]
) -> MonoLoraConfig:
    """The config of the sum of ``adapters``: every layer that any of them adapts, with their ranks added up.

    Raises:
        ValueError: for unknown adapters, another number of weights than of adapters, different activations, several
            adapters whose units depend on each other (of ``topk``, the k largest of all are not the k largest of
            each), trained parameters outside of A and B (biases, saved modules, tokens), or grouped convolutions.
    """
    unknown = [name for name in adapters if name not in configs]
    if unknown or not adapters:
        raise ValueError(f"Adapter {unknown[0] if unknown else '(none given)'} does not exist; there are {[*configs]}.")
    if len(weights) != len(adapters):
        raise ValueError(f"Got {len(adapters)} adapters and {len(weights)} weights; give one weight an adapter.")
    _check_same_kind([configs[name] for name in adapters])
    ranks = _combined_ranks(model, adapters)
    rank = max(ranks.values())
    # By whole names, since no common setting of the adapters' patterns and exclusions need exist.
    pattern = {re.escape(name): r for name, r in ranks.items() if r != rank}
    return replace(
        configs[adapters[0]],
        r=rank,
        lora_alpha=rank,
        rank_pattern=pattern,
        alpha_pattern=dict(pattern),
        use_rslora=False,
        target_modules=sorted(ranks),
        exclude_modules=None,
        layers_to_transform=None,
        layers_pattern=None,
    )


def _check_same_kind(configs: Sequence[MonoLoraConfig]) -> None:
    activations = {config.activation for config in configs}
    if len(activations) > 1:
        raise ValueError(f"Cannot combine adapters of different activations: {', '.join(sorted(activations))}.")
    (activation,) = activations
    if activation_named(activation).over_units and len(configs) > 1:
        raise ValueError(
            f"Cannot combine {activation} adapters exactly: a unit depends on the others, which would be more."
        )
    if len({config.lora_bias for config in configs}) > 1:
        raise ValueError("Cannot combine adapters with and without lora_bias.")
    for config in configs:
        if config.bias != "none" or config.modules_to_save or config.trainable_token_indices:
            raise ValueError(
                "Cannot combine adapters that train more than A and B: bias, modules_to_save or "
                "trainable_token_indices is set."
            )


def _combined_ranks(model: nn.Module, adapters: Sequence[str]) -> dict[str, int]:
    """Module name to the sum of the ranks that the adapters have there."""
    ranks = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, MonoLoraLayer):
            continue
        rank = sum(unit_tensors(layer, adapter)[0].shape[0] for adapter in adapters if adapter in layer.activation)
        base = layer.get_base_layer()
        if rank and isinstance(base, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and base.groups > 1:
            raise ValueError(f"Cannot combine adapters on grouped convolutions, such as {name}.")
        if rank:
            ranks[name] = rank
    return ranks


def concatenate_units(layer: MonoLoraLayer, adapters: Sequence[str], weights: Sequence[float], into: str) -> None:
    """Fill adapter ``into`` of a layer with the units of ``adapters``, side by side.

    Args:
        layer: a layer where ``into`` has scaling 1 and as many units as the ``adapters`` have there together.
        adapters: names; those that do not target this layer are ignored.
        weights: one factor an adapter.
        into: name of the adapter to be filled.
    """
    A, B, bias = unit_tensors(layer, into)
    if bias is not None:
        bias.zero_()
    start = 0
    for name, weight in zip(adapters, weights, strict=True):
        if name not in layer.activation:
            continue
        part_A, part_B, part_bias = unit_tensors(layer, name)
        factor, end = weight * layer.scaling[name], start + part_A.shape[0]
        A[start:end] = part_A
        B[:, start:end] = part_B * factor
        if bias is not None and part_bias is not None:
            bias += part_bias * factor
        threshold, part_threshold = layer.threshold(into), layer.threshold(name)
        if threshold is not None and part_threshold is not None:
            threshold.data[start:end] = part_threshold.data
        start = end


def unit_tensors(layer: MonoLoraLayer, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """A ``(r, in, ...)``, B ``(out, r, ...)`` and B's bias of one adapter, as the live parameters' data."""
    if name in layer.lora_embedding_A:
        return layer.lora_embedding_A[name].data, layer.lora_embedding_B[name].data, None
    A, B = layer.lora_A[name], layer.lora_B[name]
    assert isinstance(A, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))
    assert isinstance(B, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))
    return A.weight.data, B.weight.data, None if B.bias is None else B.bias.data
