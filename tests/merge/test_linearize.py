"""`linearize` on whole models: which map each module gets, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from monolora import MonoLoraConfig
from monolora.errors import InputError
from monolora.merge import linearize
from monolora.merge.least_squares import fit
from monolora.merge.linearize import collect
from monolora.merge.unload import active_units
from tests.support.merge_inputs import text, units_of
from tests.support.one_layer import adapted, layer_of

Make = Callable[..., PreTrainedModel]
Adapt = Callable[..., PeftModel]


def _never(batches: Any) -> Any:
    raise AssertionError("no text is needed")


@torch.no_grad()
def _inputs(model: PeftModel, name: str) -> torch.Tensor:
    """A layer's inputs at the real tokens of another text."""
    seen: list[torch.Tensor] = []
    handle = model.get_base_model().get_submodule(name).register_forward_hook(lambda _, args, __: seen.append(args[0]))
    batches = text(60, seed=9)
    for batch in batches:
        model(**batch)
    handle.remove()
    return torch.cat([x[batch["attention_mask"].bool()] for x, batch in zip(seen, batches, strict=True)])


@pytest.mark.parametrize("activation", ["relu", "softplus", "topk:2"])
def test_the_maps_beat_the_closed_form_on_another_text(make_llama: Make, adapt: Adapt, activation: str) -> None:
    model = adapt(make_llama(), activation=activation)
    maps, units = linearize(model, text(150)), active_units(model)
    assert set(maps) == set(units)
    for name, (A, B, _, _, kind, _) in units.items():
        x, found = _inputs(model, name), maps[name]
        target = units_of(x, A, kind) @ B.T
        error, naive = ((x @ each.T @ B.T - target).norm() / target.norm() for each in (found.A, A / 2))
        assert found.intercept is None
        assert found.error == pytest.approx(float(error), rel=0.15)
        assert error < naive
        assert found.tokens == sum(int(batch["attention_mask"].sum()) for batch in text(150))


@pytest.mark.parametrize(("affine", "expected"), [(None, True), (True, True), (False, False)])
def test_gpt2_has_biases_for_intercepts(make_gpt2: Make, adapt: Adapt, affine: bool | None, expected: bool) -> None:
    model = adapt(make_gpt2(), target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    maps = linearize(model, text(), affine=affine)
    assert {each.intercept is not None for each in maps.values()} == {expected}
    assert {tuple(each.A.shape) for each in maps.values()} == {(4, 16)}


def test_only_some_layers_have_a_bias(make_llama: Make, adapt: Adapt) -> None:
    model = adapt(make_llama(attention_bias=True))
    assert {name.split(".")[-1]: each.intercept is not None for name, each in linearize(model, text()).items()} == {
        "q_proj": True,
        "down_proj": False,
    }


@pytest.mark.parametrize("activation", ["relu", "softplus", "topk:2"])
def test_embeddings_are_tables(make_llama: Make, adapt: Adapt, activation: str) -> None:
    model = adapt(make_llama(), target_modules=["embed_tokens"], activation=activation)
    ((name, found),) = linearize(model, text(2), progress=_never).items()
    A = active_units(model)[name].A
    assert torch.equal(found.A, units_of(torch.eye(64), A, activation).T)
    assert (found.error, found.tokens, found.intercept) == (None, 0, None)


@pytest.mark.parametrize("batches", [None, text(2)], ids=["closed form", "text"])
def test_linear_adapters_stay_what_they_are(make_gpt2: Make, adapt: Adapt, batches: Any) -> None:
    model = adapt(make_gpt2(), target_modules=["c_attn", "wte"], activation="identity", fan_in_fan_out=True)
    maps, units = linearize(model, batches, progress=_never), active_units(model)
    assert set(maps) == set(units)
    assert all(torch.equal(maps[name].A, units[name].A) and maps[name].intercept is None for name in units)


@pytest.mark.parametrize("activation", ["relu", "softplus"])
def test_without_text_the_matrix_is_halved(make_llama: Make, adapt: Adapt, activation: str) -> None:
    model = adapt(make_llama(), target_modules=["q_proj", "embed_tokens"], activation=activation)
    maps = linearize(model, None)
    for name, units in active_units(model).items():
        expected = units_of(torch.eye(64), units.A, activation).T if "embed" in name else units.A / 2
        assert torch.equal(maps[name].A, expected)


@pytest.mark.parametrize("shift", [0.0, 30.0])
@pytest.mark.parametrize("bias", [False, True])
def test_float32_inputs_that_span_few_directions(bias: bool, shift: float) -> None:
    """Rounding must not show in directions that no input takes: there a unit has its usual slope."""
    model = adapted(nn.Linear(64, 20, bias=bias), r=8)
    basis, _ = torch.linalg.qr(torch.randn(64, 64))
    x = torch.randn(50, 10, 16) @ (basis[:, :16].T * torch.logspace(0, -2, 16)[:, None]) + shift * basis[:, 0]
    batches = [{"input": part} for part in x.split(10)]
    found, units = linearize(model, batches)["0"], active_units(model)["0"]
    assert found.ridge_raised
    unseen, A = found.A @ basis[:, 16:], units.A @ basis[:, 16:]
    slopes = (unseen * A).sum(1) / A.square().sum(1)
    torch.testing.assert_close(unseen, slopes[:, None] * A, rtol=0, atol=1e-3)
    assert slopes.min() > -1e-3
    assert slopes.max() < 1 + 1e-3


def test_linear_units_come_out_of_the_fit_as_they_are() -> None:
    """Although one would not fit them."""
    model = adapted(nn.Linear(64, 20), r=8, activation="identity")
    basis = torch.randn(16, 64)
    batches = [{"input": torch.randn(10, 10, 16) @ basis + 3} for _ in range(3)]
    units, layer = active_units(model), layer_of(model)
    ((seen, held_out),) = collect(model, {"0": layer}, units, batches, list).values()
    for affine in (False, True):
        found = fit(units["0"].A, units["0"].B, seen, held_out, affine)
        torch.testing.assert_close(found.A, units["0"].A, rtol=1e-3, atol=1e-3)


def test_the_model_and_its_adapter_stay_as_they_are(make_llama: Make, adapt: Adapt) -> None:
    model = adapt(make_llama())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for found in linearize(model, text()).values():
        found.A.zero_()
    for found in linearize(model, None).values():
        found.A.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_the_maps_are_no_views_of_the_adapter(make_llama: Make, adapt: Adapt, activation: str) -> None:
    """Of a float32 adapter, `.float()` is itself."""
    model = adapt(make_llama(), activation=activation)
    maps, units = linearize(model, None), active_units(model)
    assert not {each.A.data_ptr() for each in maps.values()} & {each.A.data_ptr() for each in units.values()}


def test_too_little_text(make_llama: Make, adapt: Adapt) -> None:
    """It says how many tokens more there must be, and so many are enough."""
    model = adapt(make_llama(), target_modules=["q_proj"])  # 16 inputs: 64 tokens
    ids = torch.randint(3, 64, (13, 5))
    with pytest.raises(
        InputError, match=r"brings 10 tokens to model\.layers\.0\.self_attn\.q_proj; 54 more are needed"
    ):
        linearize(model, [{"input_ids": ids[:2]}])
    with pytest.raises(InputError, match=r"brings 60 tokens .* 4 more are needed .4 for each of its 16 inputs"):
        linearize(model, [{"input_ids": ids[:12]}])
    assert linearize(model, [{"input_ids": ids[:12]}, {"input_ids": ids[12:, :4]}])


def test_convolutions_are_refused() -> None:
    with pytest.raises(InputError, match="0 is a convolution"):
        linearize(adapted(nn.Conv1d(4, 6, 3)), None)


def test_an_intercept_needs_a_bias(make_llama: Make, adapt: Adapt) -> None:
    with pytest.raises(InputError, match="q_proj has no bias that an intercept could go to"):
        linearize(adapt(make_llama()), text(), affine=True)


def test_topk_needs_text(make_llama: Make, adapt: Adapt) -> None:
    with pytest.raises(InputError, match=r"topk:2 units, for which there is no closed form\. Give calibration text"):
        linearize(adapt(make_llama(), activation="topk:2"), None)


def test_several_active_adapters_are_refused(make_llama: Make, adapt: Adapt) -> None:
    model = adapt(make_llama())
    model.add_adapter("other", MonoLoraConfig(target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(ValueError, match="Several adapters are active: default, other"):
        linearize(model, None)
