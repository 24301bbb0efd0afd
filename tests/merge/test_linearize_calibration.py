"""The calibration sums up what plain hooks see, and leaves the model as it was."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import OPTConfig, OPTForCausalLM, PreTrainedModel

from monolora.layer import MonoLoraLayer
from monolora.merge.least_squares import InputSums
from monolora.merge.linearize import Batch, Folds, collect
from monolora.merge.unload import active_units
from tests.support.merge_inputs import row_by_row, text, units_of

Make = Callable[..., PreTrainedModel]
Adapt = Callable[..., PeftModel]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]


class Passes:
    """Counts the passes over the text."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        self.count += 1
        return batches


def _collect(model: PeftModel, batches: Sequence[Batch], memory: int | None = None) -> tuple[dict[str, Folds], int]:
    units, passes = active_units(model), Passes()
    layers: dict[str, Any] = {name: model.get_base_model().get_submodule(name) for name in units}
    return collect(model, layers, units, batches, passes, memory), passes.count


@torch.no_grad()
def _inputs(model: PeftModel, name: str, batches: Sequence[Batch]) -> tuple[torch.Tensor, torch.Tensor]:
    """The layer's inputs ``(T, I)`` in float64 and the row that each token is of, by a hook on the whole model."""
    seen: list[torch.Tensor] = []
    layer = model.get_base_model().get_submodule(name)
    handle = layer.register_forward_hook(lambda _, args, __: seen.append(args[0].clone()))
    for batch in batches:
        model(**batch)
    handle.remove()
    mask = torch.cat([batch["attention_mask"] for batch in batches]).bool()
    rows = torch.arange(len(mask))[:, None].expand(mask.shape)
    x = torch.cat([part.reshape(-1, part.shape[-1]) for part in seen])
    return x[mask.flatten()].double(), rows[mask]


def _check_fold(fold: Any, x: torch.Tensor, h: torch.Tensor) -> None:
    n = len(x)
    assert fold.tokens == n
    for found, expected in zip(fold[1:], (x.mean(0), h.mean(0), x.T @ x / n, h.T @ x / n, h.T @ h / n), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def _check(model: PeftModel, found: dict[str, Folds], batches: Sequence[Batch]) -> None:
    units = active_units(model)
    assert set(found) == set(units)
    for name, folds in found.items():
        x, rows = _inputs(model, name, batches)
        h = units_of(x, units[name].A, units[name].activation)
        held_out = rows % 5 == 1
        _check_fold(folds.seen, x[~held_out], h[~held_out])
        _check_fold(folds.held_out, x[held_out], h[held_out])


@pytest.mark.parametrize("activation", ["relu", "softplus", "topk:2"])
def test_moments_are_those_of_the_activations(make_llama: Make, adapt: Adapt, activation: str) -> None:
    model, batches = adapt(make_llama(), target_modules=ALL, activation=activation), text()
    found, passes = _collect(model, batches)
    assert passes == 1
    _check(model, found, batches)


def test_gpt2(make_gpt2: Make, adapt: Adapt) -> None:
    model, batches = adapt(make_gpt2(), target_modules=["c_attn", "c_proj"], fan_in_fan_out=True), text()
    _check(model, _collect(model, batches)[0], batches)


def test_a_bfloat16_base(make_llama: Make, adapt: Adapt) -> None:
    model, batches = adapt(make_llama(dtype=torch.bfloat16)), text(10)
    _check(model, _collect(model, batches)[0], batches)


def _same(one: dict[str, Folds], other: dict[str, Folds], tolerance: float = 0.0) -> None:
    assert list(one) == list(other)
    for name, folds in one.items():
        for fold, of_other in zip(folds, other[name], strict=True):
            assert fold.tokens == of_other.tokens
            for a, b in zip(fold[1:], of_other[1:], strict=True):
                torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("memory", [1, 10_000])
def test_little_memory_takes_more_passes_and_gives_the_same(make_llama: Make, adapt: Adapt, memory: int) -> None:
    model, batches = adapt(make_llama(), target_modules=ALL), text(10)
    whole, _ = _collect(model, batches)
    parts, passes = _collect(model, batches, memory)
    # Three inputs a layer: 17², 17² and 25² numbers of 8 bytes, in two folds: 4,624, 4,624 and 10,000 bytes.
    assert passes == {1: 6, 10_000: 4}[memory]
    _same({name: whole[name] for name in parts}, parts)
    assert set(parts) == set(whole)


def test_layers_that_read_one_tensor_share_its_sums(
    make_llama: Make, adapt: Adapt, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    class Counted(InputSums):
        def __init__(self, width: int, device: torch.device) -> None:
            made.append(width)
            super().__init__(width, device)

    monkeypatch.setattr(
        sys.modules["monolora.merge.linearize"], "InputSums", Counted
    )  # the package has a function of its name
    _collect(adapt(make_llama(), target_modules=ALL), text(10))
    assert made == [16, 16, 16, 16, 24, 24] * 2  # for q, k and v, for o, for down, two folds each; in two layers


def _opt() -> OPTForCausalLM:
    """Its layers flatten their rows in front of fc1 and fc2."""
    sizes = {"vocab_size": 64, "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 24, "num_hidden_layers": 2}
    return OPTForCausalLM(OPTConfig(**sizes, num_attention_heads=2, max_position_embeddings=64, pad_token_id=0)).eval()


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_padding_is_left_out(make_llama: Make, adapt: Adapt, family: str) -> None:
    """Every row by itself, without padding, gives the same."""
    targets = {"llama": ALL, "opt": ["q_proj", "fc1", "fc2"]}[family]
    model = adapt(make_llama() if family == "llama" else _opt(), target_modules=targets)
    padded, alone = (_collect(model, batches)[0] for batches in (text(), row_by_row(text())))
    _same(padded, alone, 1e-5)


def test_without_attention_mask(make_llama: Make, adapt: Adapt) -> None:
    model = adapt(make_llama())
    ids = [batch["input_ids"].clamp(min=3) for batch in text()]
    bare = _collect(model, [{"input_ids": each} for each in ids])[0]
    full = [{"input_ids": each, "attention_mask": torch.ones_like(each)} for each in ids]
    _same(bare, _collect(model, full)[0], 1e-6)
    _check(model, bare, full)


@pytest.mark.parametrize(("targets", "calls"), [(["q_proj"], 0), (["q_proj", "lm_head"], 2 + 1)])
def test_the_vocabulary_is_left_out_unless_it_is_adapted(
    make_llama: Make, adapt: Adapt, targets: list[str], calls: int
) -> None:
    """Two batches, and the look at which layers share their inputs."""
    model, called = adapt(make_llama(), target_modules=targets), []
    model.get_base_model().lm_head.register_forward_hook(lambda *_: called.append(1))
    found, _ = _collect(model, text(8))
    assert len(called) == calls
    assert ("lm_head" in found) == ("lm_head" in targets)


def test_layers_that_no_token_reaches_are_left_out(
    make_llama: Make, adapt: Adapt, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapt(make_llama())
    monkeypatch.setattr(model.get_base_model().model.layers[1], "forward", lambda hidden, *_, **__: hidden)
    found, _ = _collect(model, text(10))
    assert {name.split(".")[2] for name in found} == {"0"}


def test_inputs_that_are_shared_only_at_first_are_refused(make_llama: Make, adapt: Adapt) -> None:
    model = adapt(make_llama(), target_modules=["q_proj", "k_proj"], layers_to_transform=[0])
    calls: list[int] = []

    def copy_later(_: object, args: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
        calls.append(1)
        return (args[0].clone(),) if len(calls) > 1 else None

    model.get_base_model().model.layers[0].self_attn.k_proj.register_forward_pre_hook(copy_later)
    with pytest.raises(RuntimeError, match=r"k_proj read the input of .*q_proj in the first batch"):
        _collect(model, text(8))


def test_the_model_stays_as_it_is(make_llama: Make, adapt: Adapt) -> None:
    model = adapt(make_llama(), target_modules=ALL)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits = model(**text()[0]).logits
    _collect(model, text(), 10_000)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(module._forward_pre_hooks or module._forward_hooks or module.training for module in model.modules())
    assert all(layer.unit_observer is None for layer in model.modules() if isinstance(layer, MonoLoraLayer))
    assert torch.equal(model(**text()[0]).logits, logits)
    assert not any(parameter.is_inference() for parameter in model.parameters())


def test_hooks_are_gone_after_an_error(make_llama: Make, adapt: Adapt) -> None:
    model = adapt(make_llama())
    with pytest.raises(AttributeError):
        _collect(model, [{"input_ids": torch.ones(1, 3).long(), "past_key_values": torch.ones(1)}])
    assert not any(module._forward_pre_hooks for module in model.modules())
