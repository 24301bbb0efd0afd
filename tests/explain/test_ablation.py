"""Ablation by rows against models whose columns of B are zero."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import disk_offload
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import BitsAndBytesConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from monolora import MonoLoraConfig, SparsityMeter
from monolora.errors import InputError
from monolora.explain.ablation import ablated, why_not_ablated
from monolora.units import UnitName
from tests.support.tiny_families import tiny_model

Make = Callable[..., LlamaForCausalLM]
Adapt = Callable[..., PeftModel]

LARGE = {"initializer_range": 0.4}  # so that queries matter

Q0, DOWN0, Q1 = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj"
ROWS = ([UnitName(Q0, 1)], [], [UnitName(Q0, 3), UnitName(DOWN0, 0), UnitName(Q1, 2), UnitName(Q1, 0)])


def without(model: nn.Module, units: Collection[UnitName]) -> Any:
    """A copy with these columns of B zero."""
    copied: Any = copy.deepcopy(model)
    for unit in units:
        B = copied.get_base_model().get_submodule(unit.module).lora_B["default"]
        B.weight.data[:, unit.unit] = 0
    return copied


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


@pytest.fixture(params=["relu", "softplus", "topk:2", "identity", "LoRA"])
def model(request: pytest.FixtureRequest, make_llama: Make, adapt: Adapt, fill: Callable[..., Any]) -> PeftModel:
    if request.param != "LoRA":
        return adapt(make_llama(**LARGE), activation=request.param)
    config = LoraConfig(target_modules=["q_proj", "down_proj"], r=4, task_type="CAUSAL_LM")
    return fill(get_peft_model(make_llama(**LARGE), config)).eval()


@torch.no_grad()
def test_each_row_is_the_model_without_its_units(model: PeftModel, ids: torch.Tensor) -> None:
    plain = model(input_ids=ids).logits
    with ablated(model, ROWS):
        found = model(input_ids=ids).logits
    for row, units in enumerate(ROWS):
        expected = without(model, units)(input_ids=ids).logits[row]
        torch.testing.assert_close(found[row], expected, atol=2e-5, rtol=1e-5)
        assert bool(units) == bool((found[row] - plain[row]).abs().max() > 1e-2)
    assert torch.equal(model(input_ids=ids).logits, plain)


@torch.no_grad()
def test_equality_where_the_path_is_the_same(model: PeftModel, ids: torch.Tensor) -> None:
    with ablated(model, ROWS):
        found = model(input_ids=ids).logits
    for row, units in enumerate(ROWS):
        zeroed = without(model, units)
        for module in dict.fromkeys(unit.module for unit in ROWS[0] + ROWS[2]):
            B = zeroed.get_base_model().get_submodule(module).lora_B["default"]
            B.register_forward_pre_hook(lambda module, args: None)
        assert torch.equal(found[row], zeroed(input_ids=ids).logits[row])


@pytest.mark.parametrize("use_cache", [True, False])
def test_generate_with_padding_on_the_left(model: PeftModel, ids: torch.Tensor, use_cache: bool) -> None:
    mask = torch.tensor([[1] * 6, [0] * 2 + [1] * 4, [0] * 4 + [1] * 2])

    def generate(model: Any) -> torch.Tensor:
        output = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0,
            use_cache=use_cache, output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        return torch.stack(output.logits, 1)

    with ablated(model, ROWS):
        found = generate(model)
    assert found.shape[:2] == (3, 5)
    for row, units in enumerate(ROWS):
        torch.testing.assert_close(found[row], generate(without(model, units))[row], atol=2e-5, rtol=1e-5)


@settings(deadline=None, max_examples=10)
@given(data=st.data())
def test_any_rows(data: st.DataObject, make_llama: Make, adapt: Adapt) -> None:
    model = adapt(make_llama(**LARGE))
    units = [UnitName(name, unit) for name in (Q0, DOWN0, Q1) for unit in range(4)]
    rows = data.draw(st.lists(st.sets(st.sampled_from(units)), min_size=1, max_size=4))
    ids = torch.randint(3, 64, (len(rows), 5))
    with torch.no_grad(), ablated(model, rows):
        found = model(input_ids=ids).logits
    for row, missing in enumerate(rows):
        with torch.no_grad():
            expected = without(model, missing)(input_ids=ids).logits[row]
        torch.testing.assert_close(found[row], expected, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_all_units_out_is_the_base(model: PeftModel, make_llama: Make, ids: torch.Tensor) -> None:
    modules = [f"model.layers.{i}.{name}" for i in range(2) for name in ("self_attn.q_proj", "mlp.down_proj")]
    with ablated(model, [[UnitName(name, unit) for name in modules for unit in range(4)]] * 3):
        found = model(input_ids=ids).logits
    torch.testing.assert_close(found, make_llama(**LARGE)(input_ids=ids).logits, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("config_class", [LoraConfig, MonoLoraConfig])
@pytest.mark.parametrize(
    ("base", "shape"),
    [(nn.Conv1d(2, 3, 2), (2, 2, 5)), (nn.Conv2d(2, 3, 2), (2, 2, 4, 5)), (nn.Linear(4, 3), (2, 4))],
    ids=["1d", "2d", "linear"],
)
def test_convolutions_and_plain_layers(base: nn.Module, shape: Any, config_class: type, fill: Callable) -> None:
    model = fill(get_peft_model(nn.Sequential(copy.deepcopy(base)), config_class(target_modules=["0"], r=4)))
    x = torch.randn(shape)
    rows = [[UnitName("0", 1), UnitName("0", 2)], [UnitName("0", 0)]]
    with ablated(model, rows):
        found = model(x)
    for row, units in enumerate(rows):
        torch.testing.assert_close(found[row], without(model, units)(x)[row])


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
@pytest.mark.filterwarnings("ignore::UserWarning")
@torch.no_grad()
def test_quantized(bits: str, make_llama: Make, adapt: Adapt, ids: torch.Tensor, tmp_path: Path) -> None:
    make_llama(hidden_size=64, intermediate_size=64).save_pretrained(tmp_path)
    options: Any = {bits: True, "bnb_4bit_compute_dtype": torch.float32}
    model = adapt(
        LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(**options)),
        target_modules=["q_proj", "down_proj"],
    )
    with ablated(model, ROWS):
        found = model(input_ids=ids).logits
    for row, units in enumerate(ROWS):
        expected = without(model, units)(input_ids=ids).logits[row]
        torch.testing.assert_close(found[row], expected, atol=2e-2, rtol=2e-2)


@torch.no_grad()
def test_weights_on_disk(make_llama: Make, adapt: Adapt, ids: torch.Tensor, tmp_path: Path) -> None:
    model = adapt(make_llama(**LARGE))
    with ablated(model, ROWS):
        in_memory = model(input_ids=ids).logits
    disk_offload(model.get_base_model(), str(tmp_path))
    with ablated(model, ROWS):
        assert torch.equal(model(input_ids=ids).logits, in_memory)


def test_no_hooks_stay_after_exceptions(make_llama: Make, adapt: Adapt, ids: torch.Tensor) -> None:
    model = adapt(make_llama())
    before = hooks(model)
    with pytest.raises(ValueError, match=r"not those of 3 rows"), ablated(model, ROWS):
        model(input_ids=ids[:2])
    with pytest.raises(InputError), ablated(model, [[UnitName(Q0, 0)], [UnitName(Q0, 4)]]):
        pass
    with pytest.raises(KeyError), ablated(model, ROWS):
        raise KeyError
    assert hooks(model) == before


def test_other_modules_keep_the_fused_path(make_llama: Make, adapt: Adapt, ids: torch.Tensor) -> None:
    model = adapt(make_llama())
    hooked = {Q0, DOWN0}
    with ablated(model, [[UnitName(name, 0) for name in hooked]]):
        for name, layer in model.get_base_model().named_modules():
            if name.endswith(("q_proj", "down_proj")):
                assert (layer._dense(torch.zeros(1, 1, 16)) is None) == (name in hooked)


def test_other_adapters_stay(make_llama: Make, adapt: Adapt, fill: Callable[..., Any], ids: torch.Tensor) -> None:
    model = adapt(make_llama(**LARGE))
    model.add_adapter("second", MonoLoraConfig(target_modules=["q_proj"], r=2))
    fill(model, 2, "second")
    model.base_model.set_adapter(["default", "second"])
    rows = [[], [UnitName(Q0, 1)], [UnitName(Q1, 0), UnitName(Q1, 1)]]
    with torch.no_grad(), ablated(model, rows, "second"):
        found = model(input_ids=ids).logits
    for row, units in enumerate(rows):
        zeroed = copy.deepcopy(model)
        for unit in units:
            zeroed.get_base_model().get_submodule(unit.module).lora_B["second"].weight.data[:, unit.unit] = 0
        with torch.no_grad():
            torch.testing.assert_close(found[row], zeroed(input_ids=ids).logits[row], atol=2e-5, rtol=1e-5)
    with pytest.raises(InputError, match="'second' has no unit"), ablated(model, [[UnitName(DOWN0, 0)]], "second"):
        pass


@pytest.mark.parametrize("unit", [UnitName(Q0, 4), UnitName("model.layers.0.self_attn.k_proj", 0), UnitName("no", 0)])
def test_units_that_are_not_there(make_llama: Make, adapt: Adapt, unit: UnitName) -> None:
    with pytest.raises(InputError, match=f"no unit {unit}"), ablated(adapt(make_llama()), [[unit]]):
        pass


def _embedding(make_llama: Make) -> tuple[Any, str]:
    return get_peft_model(make_llama(), MonoLoraConfig(target_modules=["embed_tokens"], r=2)), "model.embed_tokens"


def _dora(make_llama: Make) -> tuple[Any, str]:
    return get_peft_model(make_llama(), LoraConfig(target_modules=["q_proj"], r=2, use_dora=True)), Q0


def _merged(make_llama: Make) -> tuple[Any, str]:
    model = get_peft_model(make_llama(), LoraConfig(target_modules=["q_proj"], r=2))
    model.merge_adapter()
    return model, Q0


def _experts(make_llama: Make) -> tuple[Any, str]:
    name = "model.layers.0.mlp.experts"
    config = LoraConfig(target_modules=[], target_parameters=[f"{name}.down_proj"], r=2)
    return get_peft_model(_mixtral(), config), name


def _mixtral() -> MixtralForCausalLM:
    config = MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2, pad_token_id=0,
    )  # fmt: skip
    return MixtralForCausalLM(config).eval()


@pytest.mark.parametrize(
    ("make", "why"),
    [(_embedding, "an embedding"), (_dora, "a variant"), (_merged, "is merged"), (_experts, "ParamWrapper merges")],
)
def test_layers_whose_units_cannot_be_taken_out(make: Callable[..., Any], why: str, make_llama: Make) -> None:
    model, name = make(make_llama)
    assert why in why_not_ablated(model)[name]
    with pytest.raises(ValueError, match=why), ablated(model, [[UnitName(name, 0)]]):
        pass


def test_only_those_that_cannot_are_named(make_llama: Make, adapt: Adapt) -> None:
    assert why_not_ablated(adapt(make_llama())) == {}
    mixed = adapt(make_llama(), target_modules=["embed_tokens", "q_proj"])
    assert list(why_not_ablated(mixed)) == ["model.embed_tokens"]
    mixed.add_adapter("second", MonoLoraConfig(target_modules=["q_proj"], r=2))
    assert why_not_ablated(mixed, "second") == {}


class _Routed(nn.Module):
    """Stands for an MLP whose expert sees only some of the tokens, flattened: here as many as there are rows."""

    def __init__(self, down_proj: nn.Module) -> None:
        super().__init__()
        self.down_proj = down_proj

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(0, 1)[: len(x)]
        self.down_proj(torch.cat([tokens, tokens[:, :8]], 1))
        return x


def test_routed_tokens_are_no_rows(make_llama: Make, adapt: Adapt, ids: torch.Tensor) -> None:
    model = adapt(make_llama())
    layer = model.get_base_model().model.layers[0]
    layer.mlp = _Routed(layer.mlp.down_proj)
    with ablated(model, [[UnitName(Q0, 0)]] * 3):
        model(input_ids=ids)
    with pytest.raises(ValueError, match=r"shape \(3, 4\)"), ablated(model, [[UnitName(DOWN0, 0)]] * 3):
        model(input_ids=ids)


def test_the_meter_still_sees_all_units(make_llama: Make, adapt: Adapt, ids: torch.Tensor) -> None:
    model = adapt(make_llama(), target_modules=["q_proj"])
    meter = SparsityMeter(model)
    with meter.measuring(), torch.no_grad():
        model(input_ids=ids)
    plain = meter.result().modules[Q0]
    meter.reset()
    with meter.measuring(), torch.no_grad(), ablated(model, [[UnitName(Q0, 0)]] * 3):
        model(input_ids=ids)
    assert meter.result().modules[Q0] == plain


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:all-linear leaves the experts out")
def test_shared_experts_see_the_tokens_of_all_rows(fill: Callable[..., Any]) -> None:
    """One after the other: the rows are told apart by how many tokens the batch has, in generation too."""
    config = MonoLoraConfig(target_modules=["up_proj"], r=4, task_type="CAUSAL_LM")
    model = fill(get_peft_model(tiny_model("qwen3_next"), config)).eval()
    shared = "model.layers.1.mlp.shared_expert.up_proj"
    rows = ([UnitName(shared, 1)], [], [UnitName(shared, 0), UnitName(shared, 3)])
    ids = torch.randint(3, 100, (3, 7), generator=torch.Generator().manual_seed(0))
    with ablated(model, rows):
        found = model(input_ids=ids).logits
        answers = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
    plain = model(input_ids=ids).logits
    for row, units in enumerate(rows):
        alone = without(model, units)
        torch.testing.assert_close(found[row], alone(input_ids=ids).logits[row], rtol=1e-4, atol=1e-5)
        assert torch.equal(answers[row], alone.generate(input_ids=ids, max_new_tokens=4, do_sample=False)[row])
        assert (found[row] - plain[row]).abs().max() > 1e-4 or not units
