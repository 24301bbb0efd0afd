"""Baked layers one by one: bits, classes, copies."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding
from transformers.pytorch_utils import Conv1D

from monolora import MonoLoraConfig
from monolora.merge.baked import BakedConv1D, BakedEmbedding, BakedLinear, bake, baked_class
from monolora.merge.unload import Units
from tests.support import forks

UNPICKLE = """
import pickle, sys, torch
with open(sys.argv[1], "rb") as file:
    layer, x, expected = pickle.load(file)
assert torch.equal(layer(x), expected)
print(type(layer).__name__, type(layer).__mro__[1].__name__)
"""


class Doubled(nn.Linear):
    """A model's own kind of linear layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


class Scaled(nn.Embedding):
    """Scales by a plain number, as some of transformers' do."""

    embed_scale = 3.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.embed_scale


def _gemma() -> nn.Module:
    layer = Gemma3TextScaledWordEmbedding(11, 6, padding_idx=0, embed_scale=4.0)
    layer.embed_scale.fill_(4.0)
    return layer


LAYERS: dict[str, tuple[Any, type, str]] = {
    "linear": (lambda: nn.Linear(5, 6), BakedLinear, "BakedLinear"),
    "no bias": (lambda: nn.Linear(5, 6, bias=False), BakedLinear, "BakedLinear"),
    "subclass": (lambda: Doubled(5, 6), BakedLinear, "BakedDoubled"),
    "conv1d": (lambda: Conv1D(6, 5), BakedConv1D, "BakedConv1D"),
    "embedding": (lambda: nn.Embedding(11, 6), BakedEmbedding, "BakedEmbedding"),
    "gemma": (_gemma, BakedEmbedding, "BakedGemma3TextScaledWordEmbedding"),
    "number": (lambda: Scaled(11, 6), BakedEmbedding, "BakedScaled"),
}


def _inputs(layer: nn.Module, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randint(0, 11, (3, 4)) if isinstance(layer, nn.Embedding) else torch.randn(3, 4, 5, dtype=dtype)


def _pair(kind: str, dtype: torch.dtype = torch.float32, **settings: Any) -> tuple[nn.Module, nn.Module]:
    """The same layer twice: adapted by PEFT, and baked."""
    layer = LAYERS[kind][0]().to(dtype)
    plain = nn.Sequential(copy.deepcopy(layer))
    config = MonoLoraConfig(target_modules=["0"], r=3, fan_in_fan_out=isinstance(layer, Conv1D), **settings)
    adapted = get_peft_model(nn.Sequential(layer), config).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_()
    with_units = adapted.base_model.model[0]
    if isinstance(layer, nn.Embedding):
        A, B, bias = with_units.lora_embedding_A["default"].data, with_units.lora_embedding_B["default"].data, None
    else:
        A, B = with_units.lora_A["default"].weight.data, with_units.lora_B["default"].weight.data
        bias = with_units.lora_B["default"].bias
    scaling, activation = with_units.scaling["default"], with_units.activation["default"]
    bake(plain, {"0": Units(A, B, None if bias is None else bias.data, scaling, activation)})
    return adapted, plain[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", ["relu", "identity", "softplus", "topk:2"])
@pytest.mark.parametrize("kind", LAYERS)
def test_the_same_bits_as_the_adapted_layer(kind: str, activation: str, dtype: torch.dtype) -> None:
    adapted, baked = _pair(kind, dtype, activation=activation)
    x = _inputs(baked, dtype)
    assert torch.equal(baked(x), adapted(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(baked(x), adapted(x))


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_a_bias_of_b(kind: str) -> None:
    adapted, baked = _pair(kind, lora_bias=True)
    x = _inputs(baked)
    assert torch.equal(baked(x), adapted(x))


@pytest.mark.parametrize("kind", LAYERS)
def test_it_is_still_what_it_was(kind: str) -> None:
    _, baked = _pair(kind)
    make, mixin, name = LAYERS[kind]
    original = make()
    assert isinstance(baked, (mixin, type(original)))
    assert type(baked) is baked_class(type(original))
    assert type(baked).__name__ == name
    assert set(dict(baked.named_parameters())) - set(dict(original.named_parameters())) == {"monolora_A", "monolora_B"}


def test_gradients_reach_base_and_units() -> None:
    adapted, baked = _pair("linear")
    x = torch.randn(3, 4, 5, requires_grad=True)
    baked(x).square().sum().backward()
    layer = adapted.base_model.model[0]
    y = x.detach().requires_grad_()
    adapted(y).square().sum().backward()
    assert torch.equal(x.grad, y.grad)
    assert torch.equal(baked.monolora_A.grad, layer.lora_A["default"].weight.grad)
    assert torch.equal(baked.monolora_B.grad, layer.lora_B["default"].weight.grad)
    assert baked.weight.grad is not None


def test_hooks_are_called() -> None:
    _, baked = _pair("linear")
    seen = []
    baked.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    baked(_inputs(baked))
    assert seen == [(3, 4, 6)]


@pytest.mark.parametrize("kind", ["linear", "gemma"])
def test_deep_copies_and_pickles(kind: str, tmp_path: Path) -> None:
    _, baked = _pair(kind)
    x = _inputs(baked)
    expected = baked(x).detach()
    copied = copy.deepcopy(baked)
    assert type(copied) is type(baked)
    assert torch.equal(copied(x), expected)
    baked.monolora_B.data.zero_()
    assert torch.equal(copied(x), expected)
    (tmp_path / "layer.pkl").write_bytes(pickle.dumps((copied, x, expected)))
    run = forks.run(UNPICKLE, tmp_path / "layer.pkl")
    assert run.returncode == 0, run.stderr
    assert run.stdout.split()[0] == LAYERS[kind][2]


def test_it_shows_what_it_keeps() -> None:
    _, baked = _pair("linear")
    assert repr(baked) == ("BakedLinear(in_features=5, out_features=6, bias=True, monolora_r=3, activation='relu')")


@pytest.mark.parametrize("layer", [nn.Conv1d(2, 3, 1), nn.Conv2d(2, 3, 1), nn.LayerNorm(3)], ids=repr)
def test_other_layers_are_refused_by_name(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(2, 2), layer)
    units = Units(torch.zeros(1, 2), torch.zeros(2, 1), None, 1.0, "relu")
    with pytest.raises(ValueError, match=rf"into 1: it is a {type(layer).__name__}, .* train one without"):
        bake(model, {"0": units, "1": units})
    assert type(model[0]) is nn.Linear
