"""Which units a model has, in one fixed order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from monolora.errors import InputError
from monolora.layer import MonoLoraLayer
from monolora.units import MERGING, UnitName, adapted_layers


@dataclass(frozen=True, eq=False)
class Layout:
    """The units of one adapter of a model, module by module.

    Attributes:
        layers: adapted layers, by name in the base model.
        ranks: their numbers of units.
        adapter: its name in the model.
        signed: whether activations may be negative: of plain LoRA, and of MonoLoRA with ``activation="identity"``.
    """

    layers: dict[str, LoraLayer]
    ranks: dict[str, int]
    adapter: str
    signed: bool

    @staticmethod
    def of(model: nn.Module, adapter: str = "default") -> Layout:
        """The units of a model's adapter.

        Raises:
            InputError: if it has none, or some that are never computed (with their module).
        """
        layers = {name: layer for layer, name in adapted_layers(model).items() if adapter in layer.r}
        ranks = {name: layer.r[adapter] for name, layer in layers.items()}
        if not ranks:
            raise InputError("The adapter is neither MonoLoRA nor LoRA, or has no units left: nothing to explain.")
        for name, layer in layers.items():
            if isinstance(layer, MERGING):
                raise InputError(
                    f"The units of {name} are never computed, so they cannot be explained: its {type(layer).__name__} "
                    "merges the adapter into the base weight at every call. Train one with target_modules that are "
                    "linear layers."
                )
        return Layout(layers, ranks, adapter, any(_is_signed(layer, adapter) for layer in layers.values()))

    @cached_property
    def units(self) -> list[UnitName]:
        """All units in order."""
        return [UnitName(name, unit) for name, rank in self.ranks.items() for unit in range(rank)]

    def module_of(self, place: int) -> str:
        """The module of the unit at a place of :attr:`units`."""
        return self.units[place].module

    def places(self) -> dict[UnitName, int]:
        """Where in :attr:`units` each one is."""
        return {unit: place for place, unit in enumerate(self.units)}

    def output_direction_norms(self) -> torch.Tensor:
        """``‖s B[:, j]‖`` of every unit, float32 ``(U,)``: what an activation of 1 adds to the output, in length."""
        return torch.cat([_direction_norms(layer, self.adapter) for layer in self.layers.values()])


def not_of_tokens(module: str) -> InputError:
    """What to say of a module that sees other rows than the tokens of the batch."""
    return InputError(
        f"{module} sees rows of its own, not the tokens of the batch, as a routed expert does: its units are no "
        "tokens' and cannot be explained. Train an adapter on other modules."
    )


def _is_signed(layer: LoraLayer, adapter: str) -> bool:
    return not isinstance(layer, MonoLoraLayer) or layer.activation[adapter] == "identity"


def _direction_norms(layer: Any, adapter: str) -> torch.Tensor:
    if adapter in layer.lora_embedding_B:
        B = layer.lora_embedding_B[adapter]
    else:
        B = layer.lora_B[adapter].weight
    return B.detach().float().movedim(1, 0).flatten(1).norm(dim=1).cpu() * abs(layer.scaling[adapter])
