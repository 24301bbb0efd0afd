"""Baked layers: a base layer that keeps an adapter's units for good, as plain parameters of its own.

A baked layer is still what its base layer was (an ``nn.Linear``, a ``Conv1D``, an ``nn.Embedding``, or a model's own
subclass of these), with the same ``weight`` under the same name. So any adapter can be trained on top of it. Its
forward does what :class:`monolora.layer.MonoLoraLayer` does in evaluation mode, operation by operation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from monolora.activations import activate, activation_named
from monolora.functional import add_expanded, monolora_linear
from monolora.layer import compute_dtype
from monolora.merge.unload import Units


class BakedLayer(nn.Module):
    """Mixin: ``base(x) + s B act(A x)``. Made by :func:`bake` from an existing layer, never constructed."""

    base_class: ClassVar[type[nn.Module]]

    monolora_A: nn.Parameter
    monolora_B: nn.Parameter
    monolora_B_bias: nn.Parameter | None
    monolora_threshold: nn.Parameter | None
    monolora_scaling: float
    monolora_activation: str

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The base layer's input, output shape and dtype."""
        result = super().forward(x, *args, **kwargs)
        return self._add_delta(result, x).to(result.dtype)

    def _add_delta(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``y + s B act(A x)``; the second term in the dtype of A and B (or autocast's)."""
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.monolora_A.dtype)
        h = self._activate(F.linear(x, self.monolora_A))
        if self.monolora_B_bias is None:
            return add_expanded(y, h, self.monolora_B, self.monolora_scaling)
        return y + F.linear(h, self.monolora_B, self.monolora_B_bias) * self.monolora_scaling

    def _activate(self, z: torch.Tensor) -> torch.Tensor:
        return activate(z, self.monolora_activation, threshold=self.monolora_threshold)

    @property
    def units(self) -> Units:
        """The live parameters."""
        A, B, bias, threshold = self.monolora_A, self.monolora_B, self.monolora_B_bias, self.monolora_threshold
        return Units(A, B, bias, self.monolora_scaling, self.monolora_activation, threshold)

    @classmethod
    def sizes(cls, layer: nn.Module) -> tuple[int, int]:
        """How many inputs and outputs a layer of the base class has."""
        assert isinstance(layer.weight, torch.Tensor)
        inputs, outputs = layer.weight.shape
        return inputs, outputs

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, monolora_r={len(self.monolora_A)}, activation={self.monolora_activation!r}"

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickle finds classes by name, and this class may have been created for one from the model's own file.
        return _blank, (self.base_class,), self.__dict__


class BakedLinear(BakedLayer, nn.Linear):
    """Over ``nn.Linear``; the plain dense case takes the fused path, as in training."""

    base_class = nn.Linear

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        """Args: x: shape ``(..., in_features)``. Returns: shape ``(..., out_features)``."""
        if args or kwargs or not self._can_fuse(x):
            return super().forward(x, *args, **kwargs)
        units = (self.monolora_A, self.monolora_B, self.monolora_scaling, self.monolora_activation)
        y, _ = monolora_linear(x.to(self.weight.dtype), self.weight, self.bias, *units)
        return y

    def _can_fuse(self, x: torch.Tensor) -> bool:
        """As :class:`monolora.layer.MonoLoraLinear` decides. Hooks do not matter here: they run outside."""
        return (
            type(self) is BakedLinear
            and activation_named(self.monolora_activation).gradient is not None
            and self.monolora_B_bias is None
            and all(type(part) is nn.Parameter for part in (self.weight, self.monolora_A, self.monolora_B))
            and self.weight.dim() == 2
            and self.weight.dtype == compute_dtype(x)
        )

    @classmethod
    def sizes(cls, layer: nn.Module) -> tuple[int, int]:
        outputs, inputs = super().sizes(layer)
        return inputs, outputs


class BakedConv1D(BakedLayer, Conv1D):
    """Over transformers' ``Conv1D``, a linear layer whose weight is ``(in, out)``."""

    base_class = Conv1D


class BakedEmbedding(BakedLayer, nn.Embedding):  # type: ignore[misc]
    """Over ``nn.Embedding``: the units of a token are ``act(A[:, token])``."""

    base_class = nn.Embedding

    def _add_delta(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        settings = (self.padding_idx, self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse)
        h = self._activate(F.embedding(x, self.monolora_A.T, *settings))
        delta = (h @ self.monolora_B.T) * self.monolora_scaling
        scale = self._scale()
        return y + (delta if scale is None else delta * scale.to(delta.dtype))

    def _scale(self) -> torch.Tensor | None:
        """The factor in the base layer's own forward (Gemma's), under the name that PEFT expects."""
        scale = getattr(self, "embed_scale", None)
        if isinstance(scale, (int, float)):
            return torch.tensor(scale, device=self.weight.device, dtype=self.weight.dtype)
        return scale


_CLASSES: dict[type[nn.Module], type[BakedLayer]] = {
    kind.base_class: kind for kind in (BakedLinear, BakedConv1D, BakedEmbedding)
}


def baked_class(base_class: type[nn.Module]) -> type[BakedLayer]:
    """The baked class over a layer class: a predefined one, or one made here (Gemma's embedding, …).

    Raises:
        ValueError: for any other layer, such as a convolution, and for baked layers.
    """
    if issubclass(base_class, BakedLayer):
        raise ValueError("it keeps a MonoLoRA adapter already; train the new adapter on the original model")
    if base_class in _CLASSES:
        return _CLASSES[base_class]
    for kind in (BakedLinear, BakedConv1D, BakedEmbedding):
        if issubclass(base_class, kind.base_class):
            members = {"base_class": base_class, "__module__": __name__, "__doc__": f"Over {base_class.__name__}."}
            return _CLASSES.setdefault(base_class, type(f"Baked{base_class.__name__}", (kind, base_class), members))
    raise ValueError(
        f"it is a {base_class.__name__}, and exact checkpoints keep linear layers, Conv1D and embeddings only; keep "
        "the adapter beside its base model, or train one without this module in target_modules"
    )


def _blank(base_class: type[nn.Module]) -> BakedLayer:
    """A baked layer without content, for pickle to fill."""
    kind = baked_class(base_class)
    return kind.__new__(kind)


def check_bakeable(model: nn.Module, names: Mapping[str, object]) -> None:
    """Check that every named module can keep units.

    Raises:
        ValueError: naming the first that cannot, and what to do.
    """
    for name in names:
        try:
            baked_class(type(model.get_submodule(name)))
        except ValueError as error:
            raise ValueError(f"Cannot bake the adapter into {name}: {error}.") from error


def bake(model: nn.Module, units: Mapping[str, Units]) -> None:
    """Make every named module keep its units, in place; hooks, tied weights and references to it stay.

    Args:
        model: a model without PEFT layers.
        units: by module name, as :func:`monolora.merge.unload` gives them.

    Raises:
        ValueError: for layers that cannot keep units (see :func:`baked_class`). Nothing has been changed then.
    """
    check_bakeable(model, units)
    for name, (A, B, bias, scaling, activation, threshold) in units.items():
        layer = model.get_submodule(name)
        layer.__class__ = baked_class(type(layer))
        assert isinstance(layer, BakedLayer)
        layer.monolora_A, layer.monolora_B = nn.Parameter(A), nn.Parameter(B)
        for part, tensor in (("B_bias", bias), ("threshold", threshold)):
            layer.register_parameter(f"monolora_{part}", None if tensor is None else nn.Parameter(tensor))
        layer.monolora_scaling, layer.monolora_activation = scaling, activation


def baked_layers(model: nn.Module) -> dict[str, BakedLayer]:
    """The baked layers of a model, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BakedLayer)}
