"""Which layers and calls take the fused path, and that those which do not give the same.

What each kind of layer computes and refuses is in tests/test_layer_kinds.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

import monolora.layer
from monolora import MonoLoraConfig
from tests.support.one_layer import adapted, expected, layer_of


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Grows by the input of every call that takes the fused path."""
    calls: list[torch.Tensor] = []
    original = monolora.layer.monolora_linear

    def counted(x: torch.Tensor, *args: Any) -> Any:
        calls.append(x)
        return original(x, *args)

    monkeypatch.setattr(monolora.layer, "monolora_linear", counted)
    return calls


# The fused path


@pytest.mark.parametrize("activation", ["relu", "identity"])
@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 4, 5)])
@pytest.mark.parametrize("settings", [{}, {"lora_dropout": 0.3}, {"use_rslora": True}], ids=str)
def test_the_plain_case_is_fused(
    fused_calls: list[torch.Tensor], shape: tuple[int, ...], activation: str, settings: dict[str, Any]
) -> None:
    model = adapted(nn.Linear(5, 4), activation=activation, **settings)
    x = torch.randn(shape)
    torch.testing.assert_close(model(x), expected(model, x))
    assert len(fused_calls) == 1


def test_so_is_training_without_dropout(fused_calls: list[torch.Tensor]) -> None:
    model = adapted(nn.Linear(5, 4)).train()
    model(torch.randn(2, 5, requires_grad=True)).sum().backward()
    assert len(fused_calls) == 1
    assert layer_of(model).lora_A["default"].weight.grad is not None
    assert layer_of(model).base_layer.weight.grad is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=lambda mode: mode.__name__)
def test_so_is_inference(fused_calls: list[torch.Tensor], mode: Callable[[], Any]) -> None:
    model, x = adapted(nn.Linear(5, 4)), torch.randn(2, 5)
    with mode():
        torch.testing.assert_close(model(x), expected(model, x))
    assert len(fused_calls) == 1


def test_so_is_a_bfloat16_base_with_a_float32_adapter(fused_calls: list[torch.Tensor]) -> None:
    model = adapted(nn.Linear(5, 4).bfloat16())
    assert layer_of(model).lora_A["default"].weight.dtype == torch.float32
    assert model(torch.randn(2, 5).bfloat16()).dtype == torch.bfloat16
    assert len(fused_calls) == 1


def test_so_is_autocast_in_the_dtype_of_the_weight(fused_calls: list[torch.Tensor]) -> None:
    model = adapted(nn.Linear(5, 4).bfloat16())
    x = torch.randn(2, 5)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    assert torch.equal(y, model(x.bfloat16()))
    assert [call.dtype for call in fused_calls] == [torch.bfloat16, torch.bfloat16]


def _forward_hook(model: PeftModel, seen: list[str]) -> None:
    layer_of(model).base_layer.register_forward_hook(lambda *args: seen.append("called"))


def _forward_pre_hook(model: PeftModel, seen: list[str]) -> None:
    layer_of(model).base_layer.register_forward_pre_hook(lambda *args: seen.append("called"))


def _backward_hook(model: PeftModel, seen: list[str]) -> None:
    layer_of(model).base_layer.register_full_backward_hook(lambda *args: seen.append("called"))


def _hook_on_a(model: PeftModel, seen: list[str]) -> None:
    layer_of(model).lora_A["default"].register_forward_hook(lambda *args: seen.append("called"))


def _hook_on_b(model: PeftModel, seen: list[str]) -> None:
    layer_of(model).lora_B["default"].register_forward_pre_hook(lambda *args: seen.append("called"))


def _replaced_forward(model: PeftModel, seen: list[str]) -> None:
    base = layer_of(model).base_layer
    original = base.forward

    def forward(x: torch.Tensor) -> torch.Tensor:  # as accelerate's offloading does
        seen.append("called")
        return original(x)

    base.forward = forward


def _parametrized(model: PeftModel, seen: list[str]) -> None:
    class Watched(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            seen.append("called")
            return weight

    nn.utils.parametrize.register_parametrization(layer_of(model).base_layer, "weight", Watched())


def _subclass(model: PeftModel, seen: list[str]) -> None:
    class Watched(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append("called")
            return super().forward(x)

    layer_of(model).base_layer.__class__ = Watched


@pytest.mark.parametrize(
    "watch",
    [
        _forward_hook,
        _forward_pre_hook,
        _backward_hook,
        _hook_on_a,
        _hook_on_b,
        _replaced_forward,
        _parametrized,
        _subclass,
    ],
    ids=lambda watch: watch.__name__[1:],
)
def test_whatever_must_see_the_base_layer_called_does(
    fused_calls: list[torch.Tensor], watch: Callable[[PeftModel, list[str]], None]
) -> None:
    model, seen = adapted(nn.Linear(5, 4)), []
    watch(model, seen)
    seen.clear()
    x = torch.randn(2, 5, requires_grad=True)
    y = model(x)
    y.sum().backward()
    assert seen
    assert fused_calls == []
    torch.testing.assert_close(y, expected(model, x))


@pytest.mark.parametrize("settings", [{"activation": "softplus"}, {"activation": "topk:2"}], ids=str)
def test_other_activations_are_not_fused(fused_calls: list[torch.Tensor], settings: dict[str, Any]) -> None:
    model, x = adapted(nn.Linear(5, 4), **settings), torch.randn(2, 5)
    torch.testing.assert_close(model(x), expected(model, x))
    assert fused_calls == []


def test_nor_is_a_bias_of_b(fused_calls: list[torch.Tensor]) -> None:
    model, x = adapted(nn.Linear(5, 4), lora_bias=True), torch.randn(2, 5)
    layer = layer_of(model)
    bias = layer.lora_B["default"].bias * layer.scaling["default"]
    torch.testing.assert_close(model(x), expected(model, x) + bias)
    assert fused_calls == []


def test_nor_is_active_dropout(fused_calls: list[torch.Tensor]) -> None:
    model, x = adapted(nn.Linear(5, 4), lora_dropout=0.5).train(), torch.randn(2, 5)
    torch.manual_seed(3)
    y = model(x)
    torch.manual_seed(3)
    layer, dropped = layer_of(model), nn.functional.dropout(x, 0.5)
    delta = torch.relu(dropped @ layer.lora_A["default"].weight.T) @ layer.lora_B["default"].weight.T
    torch.testing.assert_close(y, layer.base_layer(x) + layer.scaling["default"] * delta)
    assert fused_calls == []


def test_nor_are_several_adapters_whose_deltas_add_up(fused_calls: list[torch.Tensor]) -> None:
    model, x = adapted(nn.Linear(5, 4)), torch.randn(2, 5)
    model.add_adapter("other", MonoLoraConfig(target_modules=["0"], r=2, activation="softplus", lora_alpha=3))
    layer_of(model).lora_B["other"].weight.data.normal_()
    model.base_model.set_adapter(["default", "other"])
    base = layer_of(model).base_layer(x)
    torch.testing.assert_close(model(x), expected(model, x) + expected(model, x, "other") - base)
    assert fused_calls == []


def test_nor_is_a_scaling_that_is_a_tensor(fused_calls: list[torch.Tensor]) -> None:
    model, x = adapted(nn.Linear(5, 4)), torch.randn(2, 5)
    expected = model(x)
    fused_calls.clear()
    layer_of(model).scaling["default"] = torch.tensor(layer_of(model).scaling["default"])
    torch.testing.assert_close(model(x), expected)
    assert fused_calls == []


def test_nor_is_autocast_over_a_float32_base(fused_calls: list[torch.Tensor]) -> None:
    model, x = adapted(nn.Linear(5, 4)), torch.randn(2, 5)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected(model, x), atol=0.1, rtol=0.05)
    assert fused_calls == []


def test_the_general_path_leaves_the_base_layers_output_alone() -> None:
    """It may be a view of what the base layer keeps."""
    model, x, kept = adapted(nn.Linear(5, 4)), torch.randn(2, 3, 5), []
    layer_of(model).base_layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    y = model(x)
    assert torch.equal(kept[0], nn.functional.linear(x, *layer_of(model).base_layer.parameters()))
    torch.testing.assert_close(y, expected(model, x))


def test_an_input_of_another_dtype_fails_as_it_does_without_an_adapter() -> None:
    with pytest.raises(RuntimeError, match="dtype"):
        adapted(nn.Linear(5, 4))(torch.randn(2, 5).double())


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, on tracing
@pytest.mark.parametrize("settings", [{}, {"activation": "softplus"}, {"activation": "topk:2"}], ids=str)
def test_a_layer_compiles_without_a_break(settings: dict[str, Any]) -> None:
    model, x = adapted(nn.Linear(5, 4), **settings).train(), torch.randn(2, 3, 5, requires_grad=True)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    expected = model(x)
    found = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(found, expected)
    by_output = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad((found * by_output).sum(), [x, *weights]),
        torch.autograd.grad((expected * by_output).sum(), [x, *weights]),
    )
