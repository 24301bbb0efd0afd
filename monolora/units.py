"""The units of an adapter: their names, and observing their activations while the model runs.

A unit is one of the r hidden entries of an adapted module: a row of A with the column of B that it feeds.

Shapes: R units of a module.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.tuners import lora
from peft.tuners.lora import layer as lora_layers
from peft.tuners.lora.layer import LoraLayer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from monolora.activations import activation_named
from monolora.errors import InputError, unknown
from monolora.layer import MonoLoraLayer, UnitObserver, monolora_class

# They merge the adapter into the base weight at every call, so that units are never computed.
MERGING = (lora_layers.ParamWrapper, lora_layers.MultiheadAttention)

# Called with (layer, adapter name, units); the units have their dimension last, ``(..., R)``.
See = Callable[[LoraLayer, str, torch.Tensor], None]


class UnitName(NamedTuple):
    """Names a unit; written ``model.layers.3.self_attn.q_proj:5``.

    Attributes:
        module: of the base model.
        unit: row of A, from 0.
    """

    module: str
    unit: int

    def __str__(self) -> str:
        return f"{self.module}:{self.unit}"

    @staticmethod
    def parse(text: str) -> UnitName:
        """The unit that a text names.

        Raises:
            InputError: if it is not ``MODULE:NUMBER``.
        """
        module, colon, unit = text.strip().rpartition(":")
        if not (colon and module and unit.isdecimal()):
            raise InputError(f"{text!r} names no unit. Write MODULE:NUMBER, as model.layers.3.self_attn.q_proj:5.")
        return UnitName(module, int(unit))


def find_units(names: Iterable[str], units: Mapping[str, int]) -> set[UnitName]:
    """The units by their names, in which a module's last parts suffice (``3.self_attn.q_proj:5``).

    Args:
        names: in any order; a unit named twice is one.
        units: of each module, by its whole name.

    Raises:
        InputError: for what names no unit, no module, several modules, or a unit that the module does not have.
    """
    unit_names = set()
    for name in names:
        unit_name = UnitName.parse(name)
        module = _module(unit_name.module, units)
        if unit_name.unit >= units[module]:
            last = units[module] - 1
            raise InputError(
                f"{module} has no unit {unit_name.unit}. Take one of its {units[module]} units, 0 to {last}."
            )
        unit_names.add(UnitName(module, unit_name.unit))
    return unit_names


def _module(name: str, modules: Iterable[str]) -> str:
    if name in modules:
        return name
    ending = [module for module in modules if module.endswith(f".{name}")]
    if len(ending) == 1:
        return ending[0]
    if ending:
        some = ", ".join(ending[:3]) + (", …" if len(ending) > 3 else "")
        raise InputError(f"{name!r} is the end of {len(ending)} modules' names: {some}. Write more of the name.")
    parts = name.count(".") + 1
    ends = sorted({".".join(module.split(".")[-parts:]) for module in modules})
    raise unknown("module", name, difflib.get_close_matches(name, ends, n=3, cutoff=0))


_FROM_LAYER = re.compile(r".*?\.(\d+\..+)")


def short_names(modules: Iterable[str]) -> dict[str, str]:
    """Names of modules from the layer's number on (``3.self_attn.q_proj``), as :func:`find_units` takes them.

    Whole names where there is no number, or where several modules would share the short one.
    """
    short = {module: match[1] if (match := _FROM_LAYER.fullmatch(module)) else module for module in modules}
    often = Counter(short.values())
    return {module: name if often[name] == 1 else module for module, name in short.items()}


def inner_model(model: nn.Module) -> nn.Module:
    """The base model, whose forward and module names count: a ``PeftModel``'s generate() goes past its own forward."""
    model = model.module if isinstance(model, DistributedDataParallel) else model
    return model.get_base_model() if isinstance(model, PeftModel) else model


def input_device(model: nn.Module) -> torch.device:
    """Where a language model's token ids go: where its input embeddings are, or to the CPU if these are on disk."""
    base: Any = inner_model(model)
    device: torch.device = base.get_input_embeddings().weight.device
    return torch.device("cpu") if device.type == "meta" else device


def adapted_layers(model: nn.Module) -> dict[LoraLayer, str]:
    """The LoRA and MonoLoRA layers of a model, with their names in the base model, in its order."""
    return {layer: name for name, layer in inner_model(model).named_modules() if isinstance(layer, LoraLayer)}


def watch(layers: Iterable[LoraLayer], see: See, *, with_gradient: bool = False) -> list[Callable[[], None]]:
    """Show ``see`` the units of the layers' active adapters whenever they are run; plain LoRA's are ``A x``.

    Several may watch the same layers, and end in any order.

    Args:
        layers: adapted layers.
        see: the observer.
        with_gradient: whether a loss of MonoLoRA's units has a gradient; plain LoRA's are shown without.

    Returns:
        Functions that end it, to be called once each.
    """
    ends: list[Callable[[], None]] = []
    see_monolora = see if with_gradient else partial(_see_detached, see)
    for layer in layers:
        if isinstance(layer, MonoLoraLayer):
            ends.append(_watch_monolora(layer, see_monolora))
        elif isinstance(layer, lora.Embedding):
            ends.append(layer.register_forward_hook(partial(_see_plain_embedding, see)).remove)
        else:
            for adapter_name, A in layer.lora_A.items():
                ends.append(A.register_forward_hook(partial(_see_plain, see, layer, adapter_name)).remove)
    return ends


class _Watchers:
    """The observer of a watched layer; it also calls the previous one, which is restored in the end."""

    def __init__(self, before: UnitObserver | None) -> None:
        self.before = before
        self.all: list[See] = []

    def __call__(self, layer: MonoLoraLayer, adapter_name: str, h: torch.Tensor) -> None:
        if self.before is not None:
            self.before(layer, adapter_name, h)
        for see in self.all:
            see(layer, adapter_name, h.movedim(layer.unit_dim, -1))


def _watch_monolora(layer: MonoLoraLayer, see: See) -> Callable[[], None]:
    observer = layer.unit_observer
    watchers = observer if isinstance(observer, _Watchers) else _Watchers(observer)
    watchers.all.append(see)
    layer.unit_observer = watchers
    return partial(_unwatch, layer, watchers, see)


def _unwatch(layer: MonoLoraLayer, watchers: _Watchers, see: See) -> None:
    watchers.all.remove(see)
    if not watchers.all:
        layer.unit_observer = watchers.before


def _see_detached(see: See, layer: LoraLayer, adapter_name: str, h: torch.Tensor) -> None:
    see(layer, adapter_name, h.detach())


def _see_plain(
    see: See, layer: LoraLayer, adapter_name: str, module: nn.Module, args: Any, output: torch.Tensor
) -> None:
    unit_dim = monolora_class(type(layer)).unit_dim
    see(layer, adapter_name, output.detach().movedim(unit_dim, -1))


def _see_plain_embedding(see: See, layer: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    """LoRA's embedding keeps A as a bare parameter, where no hook sees its output."""
    for adapter_name in [] if layer.disable_adapters else layer.active_adapters:
        if adapter_name in layer.lora_embedding_A:
            see(layer, adapter_name, layer.lora_embedding_A[adapter_name].detach().T[args[0]])


# Which units a model has, in one fixed order.


@dataclass(frozen=True, eq=False)
class Layout:
    """The units of one adapter of a model, module by module.

    Attributes:
        layers: adapted layers, by name in the base model.
        ranks: their numbers of units.
        adapter: its name in the model.
        signed: whether activations may be negative: of plain LoRA, and where MonoLoRA's activation says so.
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

    def module_of(self, index: int) -> str:
        """The module of a unit, by its index in :attr:`units`."""
        return self.units[index].module

    def indices(self) -> dict[UnitName, int]:
        """The index of each unit in :attr:`units`."""
        return {unit: index for index, unit in enumerate(self.units)}

    def matrices(self) -> dict[str, Matrices]:
        """A and B of every module."""
        return {name: matrices_of(layer, self.adapter) for name, layer in self.layers.items()}

    def output_direction_norms(self) -> torch.Tensor:
        """``‖s B[:, j]‖`` of every unit, float32 ``(U,)``: what an activation of 1 adds to the output, in length."""
        return torch.cat([_direction_norms(layer, self.adapter) for layer in self.layers.values()])


class Matrices(NamedTuple):
    """The weights of an adapter in one module.

    Attributes:
        A: a unit for each index of the first dimension, ``(R, in, …)``.
        B: a unit for each index of the second, ``(out, R, …)``.
    """

    A: torch.nn.Parameter
    B: torch.nn.Parameter


def matrices_of(layer: Any, adapter: str) -> Matrices:
    """The parameters of an adapter in a layer, in which changes take effect at once."""
    if adapter in layer.lora_embedding_B:
        return Matrices(layer.lora_embedding_A[adapter], layer.lora_embedding_B[adapter])
    return Matrices(layer.lora_A[adapter].weight, layer.lora_B[adapter].weight)


def not_of_tokens(module: str) -> InputError:
    """The error for a module whose rows are not the tokens of the batch."""
    return InputError(
        f"{module} sees rows of its own, not the tokens of the batch, as a routed expert does: its units do "
        "not belong to tokens and cannot be explained. Train an adapter on other modules."
    )


def _is_signed(layer: LoraLayer, adapter: str) -> bool:
    return not isinstance(layer, MonoLoraLayer) or activation_named(layer.activation[adapter]).signed


def _direction_norms(layer: Any, adapter: str) -> torch.Tensor:
    B = matrices_of(layer, adapter).B
    return B.detach().float().movedim(1, 0).flatten(1).norm(dim=1).cpu() * abs(layer.scaling[adapter])
