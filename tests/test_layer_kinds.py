"""What each kind of layer computes, what it refuses, and the classes behind.

Which path a linear layer takes is in tests/test_layer.py.
"""

from __future__ import annotations

import importlib
import pickle

import pytest
import torch
from peft import get_peft_model
from peft.tuners import lora
from peft.tuners.lora import layer as lora_layers
from torch import nn

import monolora.layer
from monolora import MonoLoraConfig, MonoLoraLayer
from monolora.activations import activate
from monolora.layer import monolora_class
from tests.support.one_layer import adapted, expected, layer_of

# What each kind of layer computes


def test_an_embedding_by_brute_force() -> None:
    model, tokens = adapted(nn.Embedding(7, 4)), torch.randint(0, 7, (2, 5))
    layer = layer_of(model)
    A, B = layer.lora_embedding_A["default"], layer.lora_embedding_B["default"]
    y = model(tokens)
    for row in range(2):
        for column in range(5):
            token = tokens[row, column]
            delta = layer.scaling["default"] * B @ torch.relu(A[:, token])
            torch.testing.assert_close(y[row, column], layer.base_layer.weight[token] + delta)


@pytest.mark.parametrize("activation", ["relu", "softplus", "topk:1"])
@pytest.mark.parametrize(
    ("base", "shape", "unit_dim"),
    [
        (nn.Conv1d(2, 4, 3, padding=1), (2, 2, 6), 1),
        (nn.Conv2d(2, 4, 2, stride=2), (2, 2, 6, 4), 1),
        (nn.Conv3d(2, 4, 2), (2, 2, 3, 3, 3), 1),
        (nn.Conv2d(2, 4, 2), (2, 4, 4), 0),
    ],
    ids=["1d", "2d", "3d", "2d-unbatched"],
)
def test_the_units_of_a_convolution_are_its_channels(
    base: nn.Module, shape: tuple[int, ...], unit_dim: int, activation: str
) -> None:
    model, x = adapted(base, activation=activation), torch.randn(shape)
    layer, observed = layer_of(model), []
    layer.unit_observer = lambda layer, name, h: observed.append(h)
    y = model(x)
    h = activate(layer.lora_A["default"](x), activation, unit_dim)
    torch.testing.assert_close(y, base(x) + layer.scaling["default"] * layer.lora_B["default"](h))
    assert torch.equal(observed[0], h)
    assert h.shape[unit_dim] == 3


@pytest.mark.parametrize(
    "base", [nn.Linear(6, 5), nn.Embedding(9, 5), nn.Conv2d(2, 5, 1)], ids=lambda m: type(m).__name__
)
@pytest.mark.parametrize("k", [1, 3])
def test_topk_leaves_at_most_k_units(base: nn.Module, k: int) -> None:
    model = adapted(base, activation=f"topk:{k}", r=5)
    x = {nn.Linear: torch.randn(4, 6), nn.Embedding: torch.arange(9), nn.Conv2d: torch.randn(2, 2, 3, 3)}[type(base)]
    layer, observed = layer_of(model), []
    layer.unit_observer = lambda layer, name, h: observed.append(h)
    model(x)
    active = (observed[0] != 0).sum(layer.unit_dim)
    assert active.max() == k
    assert (observed[0] >= 0).all()


def test_the_observer_sees_the_same_units_on_both_paths() -> None:
    model, x = adapted(nn.Linear(5, 4)), torch.randn(2, 3, 5, requires_grad=True)
    layer, observed = layer_of(model), []
    layer.unit_observer = lambda *seen: observed.append(seen)
    model(x)
    layer.base_layer.register_forward_hook(lambda *args: None)
    model(x)
    (fused_layer, fused_name, fused), (other_layer, other_name, other) = observed
    assert fused_layer is other_layer is layer
    assert fused_name == other_name == "default"
    assert fused.shape == other.shape == (2, 3, 3)
    torch.testing.assert_close(fused, other)
    assert all(torch.autograd.grad(units.sum(), x)[0].any() for units in (fused, other))


@pytest.mark.parametrize("activation", ["relu", "softplus", "topk:2", "identity"])
def test_an_embedding_trains(activation: str) -> None:
    """LoRA's own start, A = 0 and B random, is one that ReLU never leaves."""
    model = get_peft_model(
        nn.Sequential(nn.Embedding(8, 6)), MonoLoraConfig(target_modules=["0"], r=4, activation=activation)
    )
    tokens, target = torch.arange(8), torch.randn(8, 6)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(60):
        loss = (model(tokens) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_an_embedding_without_init_keeps_pefts_random_matrices() -> None:
    model = get_peft_model(
        nn.Sequential(nn.Embedding(8, 6)), MonoLoraConfig(target_modules=["0"], init_lora_weights=False)
    )
    assert all(parameter.abs().min() > 0 for name, parameter in model.named_parameters() if "lora_" in name)


def test_rows_of_a_mixed_batch_get_their_own_adapter() -> None:
    model, x = adapted(nn.Linear(5, 4)), torch.randn(4, 2, 5)
    model.add_adapter("other", MonoLoraConfig(target_modules=["0"], r=2, activation="identity"))
    layer_of(model).lora_B["other"].weight.data.normal_()
    y = layer_of(model)(x, adapter_names=["other", "__base__", "default", "other"])
    torch.testing.assert_close(y[0], expected(model, x[0], "other"))
    assert torch.equal(y[1], layer_of(model).base_layer(x)[1])
    torch.testing.assert_close(y[2], expected(model, x[2]))
    torch.testing.assert_close(y[3], expected(model, x[3], "other"))
    with pytest.raises(ValueError, match="Length of `adapter_names` should be the same"):
        layer_of(model)(x, adapter_names=["other"])


def test_a_mixed_batch_leaves_an_output_that_is_a_view_alone() -> None:
    class View(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.kept = super().forward(x)
            return self.kept[:]

    model, x = adapted(View(5, 4)), torch.randn(2, 5)
    y = layer_of(model)(x, adapter_names=["default", "default"])
    assert torch.equal(layer_of(model).base_layer.kept, nn.Linear.forward(layer_of(model).base_layer, x))
    torch.testing.assert_close(y, expected(model, x))


# What a layer refuses


@pytest.mark.parametrize("method", ["merge", "unmerge", "get_delta_weight"])
@pytest.mark.parametrize(
    "base", [nn.Linear(3, 2), nn.Embedding(3, 2), nn.Conv2d(3, 2, 1)], ids=lambda m: type(m).__name__
)
def test_merging_names_the_command_that_does_it(base: nn.Module, method: str) -> None:
    layer = layer_of(adapted(base))
    with pytest.raises(NotImplementedError, match="`monolora merge"):
        getattr(layer, method)("default")
    assert not layer.supports_lora_conversion()


def test_a_deleted_adapter_leaves_nothing_behind() -> None:
    model = adapted(nn.Linear(5, 4))
    model.add_adapter("other", MonoLoraConfig(target_modules=["0"], activation="softplus"))
    layer = layer_of(model)
    assert layer.activation == {"default": "relu", "other": "softplus"}
    model.delete_adapter("other")
    assert layer.activation == {"default": "relu"}
    assert list(layer.lora_A) == ["default"]


def test_the_name_in_a_printout() -> None:
    assert repr(layer_of(adapted(nn.Linear(5, 4)))).startswith("monolora.MonoLoraLinear(")


# The classes


@pytest.mark.parametrize("name", ["Linear", "Embedding", "Conv1d", "Conv2d", "Conv3d", "Linear8bitLt", "Linear4bit"])
def test_every_class_is_found_by_name_and_pickles(name: str) -> None:
    made = getattr(importlib.import_module("monolora.layer"), f"MonoLora{name}")
    assert issubclass(made, MonoLoraLayer)
    assert made.__name__ == f"MonoLora{name}"
    assert pickle.loads(pickle.dumps(made)) is made
    assert monolora_class(made) is made
    base = next(cls for cls in made.__mro__ if cls.__module__.startswith("peft.") and cls.__name__ == name)
    assert monolora_class(base) is made


def test_other_names_are_not_found() -> None:
    for name in ("MonoLoraNothing", "Linear4bit", "nothing"):
        with pytest.raises(AttributeError, match=name):
            getattr(monolora.layer, name)


def test_a_class_over_a_back_end_that_nobody_predefined() -> None:
    class NewLoraLinear(lora.Linear):
        """As a back end of a later PEFT would bring."""

    made = monolora_class(NewLoraLinear)
    assert made.__mro__[1:3] == (MonoLoraLayer, NewLoraLinear)
    assert monolora_class(NewLoraLinear) is made


@pytest.mark.parametrize("lora_class", [lora_layers.MultiheadAttention, lora_layers.ParamWrapper])
def test_layers_that_merge_at_every_call_are_refused(lora_class: type) -> None:
    with pytest.raises(ValueError, match=f"does not support {lora_class.__name__}"):
        monolora_class(lora_class)
