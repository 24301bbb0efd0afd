"""add_weighted_adapter: the exact sum, or a refusal before anything is touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import LlamaForCausalLM

from monolora import MonoLoraConfig, MonoLoraLayer, SparsityMeter


class Net(nn.Module):
    """An embedding, two linear maps and a convolution; maps tokens ``(batch, length)`` to ``(batch, 3, length)``."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.first = nn.Linear(6, 5)
        self.second = nn.Linear(5, 4, bias=False)
        self.conv = nn.Conv1d(4, 3, 3, padding=1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.conv(self.second(self.first(self.embed(tokens))).transpose(1, 2))


EVERYWHERE = ["embed", "first", "second", "conv"]


def _net(*configs: dict[str, Any], dtype: torch.dtype = torch.float64) -> PeftModel:
    """A Net with adapters x, y, z of the given settings, all of them filled."""
    names = "xyz"[: len(configs)]
    adapters = {
        name: MonoLoraConfig(**{"target_modules": EVERYWHERE, "r": 3} | config)
        for name, config in zip(names, configs, strict=True)
    }
    model = get_peft_model(Net().to(dtype), adapters["x"], adapter_name="x")
    for name in names[1:]:
        model.add_adapter(name, adapters[name])
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter, dtype=dtype)
    return model.eval()


def _deltas(model: PeftModel, adapters: list[str], weights: list[float]) -> dict[str, tuple[Any, torch.Tensor]]:
    """Layer by layer, an input and the weighted sum of what the adapters add to the base layer there."""
    inputs = {
        "embed": torch.randint(0, 11, (2, 4)),
        "first": torch.randn(2, 4, 6, dtype=torch.float64),
        "second": torch.randn(2, 4, 5, dtype=torch.float64),
        "conv": torch.randn(2, 4, 4, dtype=torch.float64),
    }
    deltas = {}
    for name, x in inputs.items():
        layer = model.get_submodule(f"base_model.model.{name}")
        if not isinstance(layer, MonoLoraLayer):
            continue
        total = torch.zeros_like(layer.base_layer(x))
        for adapter, weight in zip(adapters, weights, strict=True):
            layer.set_adapter([adapter])
            total += weight * (layer(x) - layer.base_layer(x))
        deltas[name] = x, total
    return deltas


def _assert_exact(model: PeftModel, adapters: list[str], weights: list[float], tolerance: float = 1e-9) -> None:
    model.base_model.add_weighted_adapter(adapters, weights, "sum", "cat")
    for name, (x, expected) in _deltas(model, adapters, weights).items():
        layer = model.get_submodule(f"base_model.model.{name}")
        layer.set_adapter(["sum"])
        torch.testing.assert_close(layer(x) - layer.base_layer(x), expected, rtol=tolerance, atol=tolerance, msg=name)


@settings(max_examples=25, deadline=None)
@given(
    ranks=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    weights=st.lists(st.floats(-3, 3), min_size=3, max_size=3),
    activation=st.sampled_from(["relu", "identity", "softplus"]),
    rslora=st.booleans(),
)
def test_the_sum_is_exact_in_every_layer(ranks: list[int], weights: list[float], activation: str, rslora: bool) -> None:
    configs = [
        {"r": r, "activation": activation, "use_rslora": rslora, "lora_alpha": 5 + i} for i, r in enumerate(ranks)
    ]
    _assert_exact(_net(*configs), list("xyz"[: len(ranks)]), weights[: len(ranks)])


def test_with_patterns_and_targets_that_overlap_only_in_part() -> None:
    model = _net(
        {"rank_pattern": {"first": 5}, "alpha_pattern": {"first": 40}, "target_modules": ["first", "second"]},
        {"target_modules": r".*(second|conv)", "use_rslora": True},
        {"target_modules": "all-linear", "exclude_modules": ["second"]},
    )
    _assert_exact(model, ["x", "y", "z"], [1.5, -0.5, 2.0])
    ranks = {name: module.r["sum"] for name, module in model.named_modules() if isinstance(module, MonoLoraLayer)}
    assert ranks == {"base_model.model.first": 8, "base_model.model.second": 6, "base_model.model.conv": 3}


def test_with_a_bias_of_b() -> None:
    configs = [{"target_modules": ["first", "conv"], "lora_bias": True, "lora_alpha": alpha} for alpha in (4, 9)]
    _assert_exact(_net(*configs), ["x", "y"], [-1.0, 0.5])


def test_one_adapter_twice_and_a_single_topk() -> None:
    _assert_exact(_net({}), ["x", "x"], [0.5, -2.0])
    _assert_exact(_net({"activation": "topk:2"}), ["x"], [-0.7])


def test_in_different_layers_of_a_transformer(make_llama: Callable[..., LlamaForCausalLM], ids: torch.Tensor) -> None:
    config = {"target_modules": ["q_proj"], "init_lora_weights": False, "r": 2}
    model = get_peft_model(make_llama(), MonoLoraConfig(**config, layers_to_transform=[0]), adapter_name="a1")
    model.add_adapter("b1", MonoLoraConfig(**config, layers_to_transform=[1]))
    model.eval()
    model.base_model.set_adapter(["a1", "b1"])
    expected = model(ids).logits
    model.add_weighted_adapter(["a1", "b1"], [1.0, 1.0], "sum")
    model.set_adapter("sum")
    torch.testing.assert_close(model(ids).logits, expected)


def test_over_a_bfloat16_base_the_units_stay_float32(
    make_llama: Callable[..., LlamaForCausalLM], adapt: Callable[..., PeftModel]
) -> None:
    model = adapt(make_llama(dtype=torch.bfloat16))
    model.add_weighted_adapter(["default"], [0.3], "part")
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert torch.equal(layer.lora_A["part"].weight, layer.lora_A["default"].weight)
    assert torch.equal(layer.lora_B["part"].weight, layer.lora_B["default"].weight * (0.3 * layer.scaling["default"]))


def test_the_new_adapter_is_frozen_inactive_and_has_no_idle_units(ids: torch.Tensor) -> None:
    model = _net({"r": 2}, {"r": 4, "target_modules": ["first"]})
    model.base_model.add_weighted_adapter(["x", "y"], [1.0, 2.0], "sum")
    assert model.active_adapters == ["x"]
    assert not [name for name, parameter in model.named_parameters() if ".sum" in name and parameter.requires_grad]
    config = model.peft_config["sum"]
    assert (config.r, config.rank_pattern) == (6, {"embed": 2, "second": 2, "conv": 2})
    model.set_adapter("sum")
    meter = SparsityMeter(model)
    with meter.measuring():
        model(torch.arange(11).expand(4, 11))
    assert meter.result().units == 2 + 6 + 2 + 2


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`", "ignore:Could not identify embedding layer")
def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    model = _net({"r": 2}, {"r": 4, "target_modules": ["first"]}, dtype=torch.float32)
    model.base_model.add_weighted_adapter(["x", "y"], [1.0, -2.0], "sum")
    model.set_adapter("sum")
    model.save_pretrained(str(tmp_path), selected_adapters=["sum"])
    base = Net()
    base.load_state_dict(model.unload().state_dict())
    tokens = torch.randint(0, 11, (2, 4))
    again = PeftModel.from_pretrained(base, str(tmp_path / "sum"))
    layer = again.base_model.model.first
    assert (layer.r["default"], layer.scaling["default"]) == (6, 1.0)
    assert again(tokens).shape == (2, 3, 4)


def test_an_existing_name_is_left_alone() -> None:
    model = _net({}, {})
    before = model.base_model.model.first.lora_A["y"].weight.clone()
    model.base_model.add_weighted_adapter(["x"], [5.0], "y")
    assert torch.equal(model.base_model.model.first.lora_A["y"].weight, before)


REFUSALS: dict[str, tuple[list[dict[str, Any]], dict[str, Any], str]] = {
    "svd": ([{}, {}], {"combination_type": "svd"}, "combination_type='cat'.*'svd'"),
    "linear": ([{}, {}], {"combination_type": "linear"}, "combination_type='cat'.*'linear'"),
    "an argument of svd": ([{}, {}], {"svd_rank": 3}, "without further arguments, got 'cat', svd_rank"),
    "nobody": ([{}], {"adapters": ["x", "w"]}, "Adapter w does not exist"),
    "none": ([{}], {"adapters": [], "weights": []}, "none given"),
    "too few weights": ([{}, {}], {"weights": [1.0]}, "2 adapters and 1 weights"),
    "activations": ([{}, {"activation": "identity"}], {}, "different activations: identity, relu"),
    "topk": ([{"activation": "topk:2"}] * 2, {}, "Cannot combine topk:2 adapters exactly"),
    "lora_bias": ([{"target_modules": ["first"]}, {"target_modules": ["first"], "lora_bias": True}], {}, "lora_bias"),
    "modules_to_save": (
        [{"target_modules": ["first"], "modules_to_save": ["conv"]}, {"target_modules": ["first"]}],
        {},
        "more than A and B: .*modules_to_save",
    ),
    "bias": ([{"bias": "all"}, {}], {}, "bias, modules_to_save or"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_summed_is_refused_before_anything_is_touched(case: str) -> None:
    configs, arguments, message = REFUSALS[case]
    model = _net(*configs)
    adapters, state = dict(model.peft_config), {k: v.clone() for k, v in model.state_dict().items()}
    names = list("xyz"[: len(configs)])
    with pytest.raises(ValueError, match=message):
        model.base_model.add_weighted_adapter(
            **{"adapters": names, "weights": [1.0] * len(names), "adapter_name": "sum"} | arguments
        )
    assert model.peft_config == adapters
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups")
def test_grouped_convolutions_are_refused_by_name() -> None:
    model = get_peft_model(nn.Sequential(nn.Conv1d(4, 4, 1, groups=2)), MonoLoraConfig(target_modules=["0"], r=2))
    with pytest.raises(ValueError, match="grouped convolutions, such as 0"):
        model.base_model.add_weighted_adapter(["default"], [1.0], "sum")
    assert list(model.peft_config) == ["default"]
