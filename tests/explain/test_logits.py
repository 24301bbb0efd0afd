"""What units do to the next token's logits, against runs of the whole model with columns of B at zero."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from accelerate import disk_offload
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BitsAndBytesConfig,
    Gemma2Config,
    GemmaConfig,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    OPTConfig,
    PreTrainedConfig,
    Qwen3Config,
    T5Config,
)

from monolora import MonoLoraConfig
from monolora.explain.logits import TopTokens, ablation_logits, direct_logits
from monolora.units import UnitName

VOCAB = 64
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, "initializer_range": 0.3,
}  # fmt: skip
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 6}
LAST_MLP = "model.layers.1.mlp.down_proj"
T5 = T5Config(vocab_size=VOCAB, d_model=16, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
OPT = SIZES | {"ffn_dim": 24, "word_embed_proj_dim": 16}
V0, O0 = "model.layers.0.self_attn.v_proj", "model.layers.0.self_attn.o_proj"


def made(config: PreTrainedConfig, target: str | list[str], config_class: type = MonoLoraConfig, **options: Any) -> Any:
    """A random adapted model whose norms' weights and biases are not 1 and 0."""
    base = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model = get_peft_model(base, config_class(target_modules=target, r=4, **options)).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name or "norm" in name or "ln_" in name:
            parameter.data += 0.3 * torch.randn(parameter.shape)
    return model


@contextmanager
def taken_out(model: Any, unit: UnitName) -> Iterator[None]:
    B = model.get_base_model().get_submodule(unit.module).lora_B["default"].weight
    column = B.data[:, unit.unit].clone()
    B.data[:, unit.unit] = 0
    yield
    B.data[:, unit.unit] = column


def seen(model: Any, norm: str, module: str, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The final norm's input at the last position, and a module's units at all of them."""
    found: dict[str, torch.Tensor] = {}
    base = model.get_base_model()

    def note(name: str) -> Callable[..., None]:
        return lambda module, args: found.__setitem__(name, args[0].flatten(0, -2))

    handles = [
        base.get_submodule(norm).register_forward_pre_hook(note("stream")),
        base.get_submodule(module).lora_B["default"].register_forward_pre_hook(note("units")),
    ]
    with torch.no_grad():
        model(input_ids=ids)
    for handle in handles:
        handle.remove()
    return found["stream"][-1], found["units"]


def logits_of(model: Any, norm: str, stream: torch.Tensor) -> torch.Tensor:
    """Logits, unembedding's bias left out, times what the final norm divides by, its epsilon left out."""
    base = model.get_base_model()
    final = base.get_submodule(norm)
    is_layer_norm = isinstance(final, nn.LayerNorm)
    size = stream.std(correction=0) if is_layer_norm else stream.square().mean().sqrt()
    with torch.no_grad():
        x = final(stream) - (final.bias if is_layer_norm else 0)
        return (x @ base.get_output_embeddings().weight.T) * size


ENDS = {
    "llama": (LlamaConfig(**SIZES), "model.norm", LAST_MLP),
    "qwen3": (Qwen3Config(**GROUPED), "model.norm", LAST_MLP),
    "gemma": (GemmaConfig(**GROUPED), "model.norm", LAST_MLP),
    "gpt-neox": (GPTNeoXConfig(**SIZES), "gpt_neox.final_layer_norm", "gpt_neox.layers.1.mlp.dense_4h_to_h"),
    "gpt-neox-attention": (GPTNeoXConfig(**SIZES), "gpt_neox.final_layer_norm", "gpt_neox.layers.1.attention.dense"),
    "opt": (
        OPTConfig(**OPT),
        "model.decoder.final_layer_norm",
        "model.decoder.layers.1.fc2",
    ),
}


@pytest.mark.parametrize("config_class", [MonoLoraConfig, LoraConfig])
@pytest.mark.parametrize("name", ENDS)
def test_the_last_block_is_what_the_logits_lose(name: str, config_class: type, ids: torch.Tensor) -> None:
    """Nothing comes after it, so that the whole model, but for the final division, says the same."""
    config, norm, module = ENDS[name]
    model = made(config, [module.rpartition(".")[2]], config_class, lora_alpha=12)
    _check_direct(model, norm, module, ids[:1])


def test_gpt2(make_gpt2: Callable[..., GPT2LMHeadModel], ids: torch.Tensor) -> None:
    model: Any = get_peft_model(make_gpt2(), MonoLoraConfig(target_modules=["c_proj"], r=4, fan_in_fan_out=True))
    for parameter in model.eval().parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape)
    _check_direct(model, "transformer.ln_f", "transformer.h.1.mlp.c_proj", ids[:1])


def _check_direct(model: Any, norm: str, module: str, ids: torch.Tensor, weights: torch.Tensor | None = None) -> None:
    """``weights``: how much of each token's activation comes to the last position; None for the last token's alone."""
    found = direct_logits(model, module, VOCAB)
    assert found is not None
    stream, units_TR = seen(model, norm, module, ids)
    units = units_TR[-1] if weights is None else weights @ units_TR
    checked = 0
    for unit in units.nonzero().flatten().tolist():
        with taken_out(model, UnitName(module, unit)):
            without, _ = seen(model, norm, module, ids)
        expected = (logits_of(model, norm, stream) - logits_of(model, norm, without)) / units[unit]
        _same(found[unit], expected)
        checked += 1
    assert checked


def _dense(found: list[TopTokens] | None) -> torch.Tensor:
    """``(R, V)``, of all tokens."""
    assert found is not None
    values = [dict(each.raised + each.lowered) for each in found]
    return torch.tensor([[each.get(token, 0.0) for token in range(VOCAB)] for each in values])


def _same(found: TopTokens, expected_V: torch.Tensor) -> None:
    assert [value for _, value in found.raised] == sorted((v for _, v in found.raised), reverse=True)
    assert [value for _, value in found.lowered] == sorted(v for _, v in found.lowered)
    (found_V,) = _dense([found])
    # Of the largest: the division that is undone leaves rounding, and an epsilon.
    torch.testing.assert_close(found_V, expected_V, rtol=0, atol=1e-3 * float(expected_V.abs().max()))


@pytest.mark.parametrize("heads", [SIZES, GROUPED], ids=["heads", "grouped heads"])
@pytest.mark.parametrize("targets", [["v_proj"], ["v_proj", "o_proj"]])
def test_values_through_the_attention_of_one_token(heads: dict[str, Any], targets: list[str]) -> None:
    """One token attends wholly to itself; with a MLP that says nothing, the stream is the attention's output."""
    model = made(LlamaConfig(**heads | {"num_hidden_layers": 1}), targets, activation="softplus")
    block = model.get_base_model().model.layers[0]
    block.mlp.down_proj.weight.data.zero_()
    if "o_proj" in targets:
        block.self_attn.o_proj.lora_B["default"].weight.data.zero_()  # it is left out
    _check_direct(model, "model.norm", V0, torch.tensor([[9]]))


def test_values_through_attention_that_is_shared_out(ids: torch.Tensor) -> None:
    """Without queries every head attends alike to all tokens: a unit adds its direction times its mean activation."""
    model = made(LlamaConfig(**GROUPED | {"num_hidden_layers": 1}), ["v_proj"])
    block = model.get_base_model().model.layers[0]
    block.mlp.down_proj.weight.data.zero_()
    block.self_attn.q_proj.weight.data.zero_()
    _check_direct(model, "model.norm", V0, ids[:1], weights=torch.full((6,), 1 / 6))


@pytest.mark.parametrize(
    ("config", "target", "module"),
    [
        (LlamaConfig(**SIZES), "q_proj", "model.layers.0.self_attn.q_proj"),
        (LlamaConfig(**SIZES), "up_proj", "model.layers.0.mlp.up_proj"),
        (LlamaConfig(**SIZES), "lm_head", "lm_head"),
        (Gemma2Config(**GROUPED), "down_proj", LAST_MLP),
        (Gemma2Config(**GROUPED), "v_proj", V0),
        (Olmo2Config(**SIZES), "o_proj", O0),
        (OPTConfig(**OPT, do_layer_norm_before=False), "fc2", "model.decoder.layers.1.fc2"),
        (OPTConfig(**OPT), "v_proj", "model.decoder.layers.1.self_attn.v_proj"),
        (T5, "wo", "decoder.block.0.layer.2.DenseReluDense.wo"),
    ],
)  # fmt: skip
def test_where_there_is_no_direct_path(config: PreTrainedConfig, target: str, module: str) -> None:
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = get_peft_model(auto.from_config(config), MonoLoraConfig(target_modules=[target], r=4))
    assert direct_logits(model, module, 3) is None


def test_bfloat16_and_quantized_values(tmp_path: Path) -> None:
    sizes = SIZES | {"hidden_size": 64, "intermediate_size": 64}
    model = made(LlamaConfig(**sizes), ["v_proj", "down_proj"])
    folders = tmp_path / "base", tmp_path / "adapter"
    model.save_pretrained(folders[1])
    copy.deepcopy(model).unload().save_pretrained(folders[0])
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    for options, error in (({}, 1e-6), ({"dtype": torch.bfloat16}, 0.02), ({"quantization_config": four_bits}, 0.3)):
        loaded = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(folders[0], **options), folders[1])
        for module in (LAST_MLP, V0):
            found, exact = (_dense(direct_logits(each, module, VOCAB)) for each in (loaded, model))
            assert float((found - exact).norm() / exact.norm()) < error


TARGETS = ["q_proj", "up_proj", "down_proj"]
UNITS = [
    UnitName(f"model.layers.{i}.{name}", u)
    for i in range(2)
    for name in ("self_attn.q_proj", "mlp.up_proj")
    for u in range(4)
]


def _contexts(seed: int = 0) -> dict[UnitName, list[list[int]]]:
    """Of many lengths, some shared; some units have none."""
    random = Random(seed)
    pool = [[random.randrange(3, VOCAB) for _ in range(random.randrange(1, 12))] for _ in range(9)]
    return {unit: random.sample(pool, random.randrange(4)) for unit in UNITS}


def _one_by_one(model: Any, unit: UnitName, contexts: list[list[int]]) -> torch.Tensor:
    changes = []
    for context in contexts:
        ids = torch.tensor([context])
        with torch.no_grad():
            adapted = model(input_ids=ids).logits[0, -1]
            with taken_out(model, unit):
                changes.append(adapted - model(input_ids=ids).logits[0, -1])
    return torch.stack(changes).mean(0)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
@pytest.mark.parametrize("config_class", [MonoLoraConfig, LoraConfig])
@pytest.mark.parametrize("config", [LlamaConfig(**GROUPED), Gemma2Config(**GROUPED)], ids=["llama", "gemma2"])
def test_ablation_one_by_one(config: PreTrainedConfig, config_class: type, batch_size: int) -> None:
    model, contexts = made(config, TARGETS, config_class), _contexts()
    found = dict(ablation_logits(model, contexts, VOCAB, batch_size=batch_size))
    assert set(found) == {unit for unit, its in contexts.items() if its}
    for unit, tokens in found.items():
        assert tokens.how == "ablation"
        (found_V,) = _dense([tokens])
        torch.testing.assert_close(found_V, _one_by_one(model, unit, contexts[unit]), atol=2e-5, rtol=1e-4)


def test_learned_positions_are_those_of_the_tokens(make_gpt2: Callable[..., GPT2LMHeadModel]) -> None:
    model: Any = get_peft_model(make_gpt2(), MonoLoraConfig(target_modules=["c_attn"], r=4, fan_in_fan_out=True))
    for parameter in model.eval().parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    unit = UnitName("transformer.h.0.attn.c_attn", 2)
    contexts = {unit: [[5, 6, 7, 8], [9], [10, 11]]}
    ((_, tokens),) = ablation_logits(model, contexts, VOCAB, batch_size=8)
    (found_V,) = _dense([tokens])
    torch.testing.assert_close(found_V, _one_by_one(model, unit, contexts[unit]), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("n", [1, 5])
def test_the_most_changed_tokens(n: int) -> None:
    model = made(LlamaConfig(**SIZES), TARGETS)
    context = [[5, 9, 20]]
    unit = next(unit for unit in UNITS if _one_by_one(model, unit, context).abs().max() > 1e-3)
    expected = _one_by_one(model, unit, context)
    ((_, tokens),) = ablation_logits(model, {unit: context}, n, batch_size=4)
    assert [token for token, _ in tokens.raised] == expected.argsort(descending=True)[:n].tolist()
    assert [token for token, _ in tokens.lowered] == expected.argsort()[:n].tolist()


def test_a_unit_that_does_nothing_changes_no_token(ids: torch.Tensor) -> None:
    """Not even by rounding: both sides of the difference are rows of one batch."""
    model = made(LlamaConfig(**SIZES), TARGETS).to(torch.bfloat16)
    model.get_base_model().get_submodule(UNITS[5].module).lora_B["default"].weight.data[:, UNITS[5].unit] = 0
    found = dict(ablation_logits(model, {unit: ids.tolist() for unit in UNITS}, 3, batch_size=20))
    assert found[UNITS[5]] == TopTokens("ablation", [], [])
    assert found[UNITS[0]].raised


def test_weights_on_disk(ids: torch.Tensor, tmp_path: Path) -> None:
    model, contexts = made(LlamaConfig(**SIZES), TARGETS), {unit: ids.tolist() for unit in UNITS[:3]}
    in_memory = dict(ablation_logits(model, contexts, 3, batch_size=15))
    disk_offload(model.get_base_model(), str(tmp_path))
    assert dict(ablation_logits(model, contexts, 3, batch_size=15)) == in_memory


def test_shared_contexts_are_run_once_a_batch(ids: torch.Tensor) -> None:
    model = made(LlamaConfig(**SIZES), TARGETS)
    rows: list[int] = []
    model.get_base_model().register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    list(ablation_logits(model, {unit: ids.tolist() for unit in UNITS[:5]}, 3, batch_size=15))
    assert rows == [4 * 3 + 3, 3 + 3]
