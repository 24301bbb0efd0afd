"""SparsityMeter against counting by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from monolora import MonoLoraConfig, MonoLoraLayer, SparsityMeter
from monolora.sparsity import Sparsity, real_tokens

Make = Callable[..., LlamaForCausalLM]
Adapt = Callable[..., PeftModel]


@pytest.fixture
def model(make_llama: Make, adapt: Adapt) -> PeftModel:
    return adapt(make_llama(), r=5)


def _by_hand(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> Sparsity:
    """Recomputes every unit from the input of its layer, and counts token by token where the mask is 1."""
    counts: dict[str, list[list[float]]] = {}
    handles = []
    for name, layer in model.named_modules():
        if isinstance(layer, MonoLoraLayer):

            def hook(module: Any, args: Any, output: Any, name: str = name) -> None:
                h = torch.clamp(args[0] @ module.lora_A["default"].weight.T, min=0)
                counts[name] = [
                    h[row, token].tolist()
                    for row in range(h.shape[0])
                    for token in range(h.shape[1])
                    if mask[row, token] == 1
                ]

            handles.append(layer.register_forward_hook(hook))
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
    for handle in handles:
        handle.remove()
    modules = {
        name.removeprefix("base_model.model."): sum(unit == 0 for token in tokens for unit in token) / (len(tokens) * 5)
        for name, tokens in counts.items()
    }
    dead = sum(all(token[unit] == 0 for token in tokens) for tokens in counts.values() for unit in range(5))
    tokens = int(mask.sum())
    return Sparsity(sum(modules.values()) / len(modules), dead, 5 * len(modules), tokens, modules)


def _measure(model: nn.Module, *args: Any, **kwargs: Any) -> Sparsity:
    meter = SparsityMeter(model)
    with meter.measuring(), torch.no_grad():
        model(*args, **kwargs)
    return meter.result()


def _same(found: Sparsity, expected: Sparsity) -> None:
    assert found.zeros == pytest.approx(expected.zeros)
    assert found[1:4] == expected[1:4]
    assert found.modules == pytest.approx(expected.modules)


MASKS = {
    "none": [[1] * 6] * 3,
    "right": [[1] * 6, [1] * 4 + [0] * 2, [1] + [0] * 5],
    "left": [[1] * 6, [0] * 2 + [1] * 4, [0] * 5 + [1]],
}


@pytest.mark.parametrize("padding", MASKS)
def test_counts_with_padding_left_out(model: PeftModel, ids: torch.Tensor, padding: str) -> None:
    mask = torch.tensor(MASKS[padding])
    expected = _by_hand(model, ids, mask)
    assert 0.2 < expected.zeros < 0.8
    _same(_measure(model, input_ids=ids, attention_mask=mask), expected)
    _same(_measure(model.get_base_model(), ids, mask), expected)  # unwrapped, and by position


def test_without_a_mask_every_token_counts(model: PeftModel, ids: torch.Tensor) -> None:
    _same(_measure(model, input_ids=ids), _by_hand(model, ids, torch.ones_like(ids)))


def test_counts_add_up_until_they_are_reset(model: PeftModel, ids: torch.Tensor) -> None:
    mask = torch.tensor(MASKS["right"])
    meter = SparsityMeter(model)
    assert not meter.has_counts
    with meter.measuring(), torch.no_grad():
        for row in range(3):
            model(input_ids=ids[row : row + 1], attention_mask=mask[row : row + 1])
    _same(meter.result(), _by_hand(model, ids, mask))
    model(input_ids=ids)  # not attached any more
    _same(meter.result(), _by_hand(model, ids, mask))
    assert meter.has_counts
    meter.reset()
    assert not meter.has_counts
    with pytest.raises(RuntimeError, match="No adapted module was run"):
        meter.result()


@pytest.mark.parametrize("use_cache", [True, False])
def test_generate_counts_what_it_runs(model: PeftModel, ids: torch.Tensor, use_cache: bool) -> None:
    """With a cache: every token of the prompt and of the answer once, but for the last, which is never run."""
    mask = torch.tensor(MASKS["left"])
    meter = SparsityMeter(model)
    with meter.measuring():
        full = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=4,
            min_new_tokens=4,
            do_sample=False,
            pad_token_id=0,
            use_cache=use_cache,
        )
    found = meter.result()
    if use_cache:
        extended = torch.cat([mask, torch.ones(3, 3, dtype=mask.dtype)], 1)
        _same(found, _by_hand(model, full[:, :-1], extended))
    else:
        assert found.tokens == sum(int(mask.sum()) + 3 * new for new in range(4))


def test_dead_units_are_those_that_never_fire(make_llama: Make, adapt: Adapt, ids: torch.Tensor) -> None:
    model = adapt(make_llama(), target_modules=["q_proj"], r=5)
    for layer in model.base_model.model.model.layers:
        layer.self_attn.q_proj.lora_A["default"].weight.data[:2] = 0
    result = _measure(model, input_ids=ids)
    assert result.dead_units == 4
    assert result.units == 10
    assert result.zeros >= 0.4


def test_plain_lora_is_measured_alike_and_has_no_zeros(make_llama: Make, fill: Callable, ids: torch.Tensor) -> None:
    config = LoraConfig(target_modules=["q_proj", "down_proj", "embed_tokens"], r=5)
    model = fill(get_peft_model(make_llama(), config)).eval()
    mask = torch.tensor(MASKS["left"])
    result = _measure(model, input_ids=ids, attention_mask=mask)
    assert result[:4] == (0.0, 0, 25, int(mask.sum()))
    with model.disable_adapter(), pytest.raises(RuntimeError, match="is the adapter active"):
        _measure(model, input_ids=ids)


@pytest.mark.parametrize("config_class", [LoraConfig, MonoLoraConfig])
def test_embeddings(make_llama: Make, ids: torch.Tensor, config_class: type[LoraConfig]) -> None:
    model = get_peft_model(make_llama(), config_class(target_modules=["embed_tokens"], r=4))
    A = model.base_model.model.model.embed_tokens.lora_embedding_A["default"]
    A.data.normal_()
    A.data[1] = 0
    mask = torch.tensor(MASKS["right"])
    units = torch.stack([A[:, token] for token in ids[mask.bool()]])
    zeros = units <= 0 if config_class is MonoLoraConfig else units == 0
    result = _measure(model, input_ids=ids, attention_mask=mask)
    assert result.zeros == pytest.approx(zeros.double().mean().item())
    assert result.dead_units == int(zeros.all(0).sum()) >= 1
    assert result.tokens == int(mask.sum())


@pytest.mark.parametrize("config_class", [LoraConfig, MonoLoraConfig])
@pytest.mark.parametrize(
    ("base", "shape"), [(nn.Conv1d(2, 3, 2), (2, 2, 5)), (nn.Conv2d(2, 3, 2), (2, 2, 4, 5))], ids=["1d", "2d"]
)
def test_the_units_of_a_convolution_are_its_channels(
    base: nn.Module, shape: tuple[int, ...], config_class: type[LoraConfig]
) -> None:
    model = get_peft_model(nn.Sequential(base), config_class(target_modules=["0"], r=4))
    A = model.base_model.model[0].lora_A["default"]
    A.weight.data[0] = 0
    x = torch.randn(shape)
    z = A(x)
    zeros = (z <= 0 if config_class is MonoLoraConfig else z == 0).transpose(0, 1).flatten(1)
    result = _measure(model, x)
    assert result.zeros == pytest.approx(zeros.double().mean().item())
    assert result[1:4] == (int(zeros.all(1).sum()), 4, zeros.shape[1])


def test_several_active_adapters_count_each(model: PeftModel, ids: torch.Tensor, fill: Callable) -> None:
    alone = _measure(model, input_ids=ids)
    config = MonoLoraConfig(target_modules=["q_proj"], r=5, activation="identity")
    model.add_adapter("second", config)
    fill(model, 2, "second")
    model.base_model.set_adapter(["default", "second"])
    both = _measure(model, input_ids=ids)
    assert both.units == alone.units + 10
    name = "model.layers.0.self_attn.q_proj"  # the same input as alone; its second half has no zeros
    assert both.modules[name] == pytest.approx(alone.modules[name] / 2)


def test_mixed_batches_are_measured_without_padding_only(model: PeftModel, ids: torch.Tensor) -> None:
    names = ["default", "__base__", "default"]
    assert _measure(model, input_ids=ids, adapter_names=names).tokens == 12
    with pytest.raises(ValueError, match="measure them one at a time"):
        _measure(model, input_ids=ids, attention_mask=torch.tensor(MASKS["left"]), adapter_names=names)


def test_training_only_passes_over_evaluation_and_references(model: PeftModel, ids: torch.Tensor) -> None:
    meter = SparsityMeter(model, training_only=True)
    with meter.measuring():
        model(input_ids=ids)
        with torch.no_grad():  # of a reference
            model.train()(input_ids=ids)
        assert not meter.has_counts
        model(input_ids=ids[:1])
    assert meter.result().tokens == 6


def test_an_encoder_decoder_is_refused() -> None:
    config = T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    model = get_peft_model(T5ForConditionalGeneration(config), MonoLoraConfig(target_modules=["q"]))
    with pytest.raises(ValueError, match="not encoder-decoder"):
        SparsityMeter(model)


def test_padding_by_masks_and_by_positions() -> None:
    ids = torch.zeros(1, 6, dtype=torch.long)
    positions = torch.tensor([[0, 1, 0, 1, 0, 0]])
    assert real_tokens({"input_ids": ids, "position_ids": positions}).tolist() == [[True] * 4 + [False] * 2]  # type: ignore[union-attr]
    mask = torch.tensor([[1, 1, 1, 0, 0, 0]])
    found = real_tokens({"input_ids": ids, "position_ids": positions, "attention_mask": mask})
    assert torch.equal(found, mask.bool())  # type: ignore[arg-type]
    assert real_tokens({"input_ids": ids}) is None
    assert real_tokens({"position_ids": positions}) is None
    assert real_tokens({"input_ids": ids[:, :1], "position_ids": positions[:, :1]}) is None
    assert real_tokens({"input_ids": ids, "attention_mask": mask[:, None, None]}) is None
