"""Recorded activations: against the inputs that modules are given one sequence at a time; and what fits into memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model

from monolora import MonoLoraConfig
from monolora.data.chat_template import IGNORED
from monolora.errors import InputError
from monolora.keep import activations
from monolora.keep.activations import choose_tokens, plan_store, record
from monolora.units import adapted_layers
from tests.support.keeping import tiny_llama

Rows = st.lists(st.lists(st.integers(3, 60), min_size=3, max_size=7), min_size=1, max_size=40)


@given(Rows, st.integers(1, 300), st.integers(0, 3))
def test_tokens_are_random_but_for_the_shared_prefix(rows: list[list[int]], most: int, first: int) -> None:
    """As many as asked for or as there are; the prefix of every sixteenth sequence alone, or of none."""
    for with_prefix in (True, False):
        chosen = choose_tokens(rows, first, 10**6, 0, with_prefix)
        prefixes = -(-len(rows) // 16) * first if with_prefix else 0
        assert chosen.number == sum(len(row) - first for row in rows) + prefixes
        assert choose_tokens(rows, first, most, 0, with_prefix).number == min(most, chosen.number)
    assert choose_tokens(rows, first, most, 1).number == choose_tokens(rows, first, most, 2).number


def _model(targets: Any = "all-linear") -> Any:
    return get_peft_model(tiny_llama(), MonoLoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM"))


def test_recorded_inputs_are_those_of_each_module() -> None:
    """Rows of all modules in one order, in batches with padding, against one unpadded sequence at a time."""
    model = _model()
    layers = adapted_layers(model)
    rows = [torch.randint(3, 64, (length,)).tolist() for length in (4, 9, 6, 7, 5)]
    tokens = choose_tokens(rows, 0, 20, seed=1)
    recorded = record(model, layers, tokens, 0, 2, "cpu", seed=3)
    expected: dict[str, list[torch.Tensor]] = {name: [] for name in layers.values()}
    at: list[torch.Tensor] = [torch.empty(0)]
    hooks = [
        layer.register_forward_pre_hook(lambda module, args: expected[layers[module]].append(args[0][0][at[0]]))
        for layer in layers
    ]
    with torch.no_grad():
        for ids, positions in zip(tokens.sequences, tokens.positions, strict=True):
            at[0] = positions
            model(input_ids=torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    wanted = {name: torch.cat(parts) for name, parts in expected.items()}
    one = list(wanted)[-1]  # no two tokens have the same inputs there
    order = torch.cdist(recorded.of(one), wanted[one]).argmin(1)
    assert sorted(order.tolist()) == list(range(20))
    for name, inputs in wanted.items():
        torch.testing.assert_close(recorded.of(name), inputs[order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_the_labels_loss(checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the outputs of each module, of summed cross-entropies, against one unpadded sequence at a time."""
    monkeypatch.setattr(activations, "MAX_POSITIONS", 16)  # batches of one and of two
    model = _model()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    layers = adapted_layers(model)
    rows = [torch.randint(3, 64, (length,)).tolist() for length in (4, 9, 6, 7, 5)]
    labels = [[IGNORED] * 2 + row[2:-1] + [IGNORED] for row in rows]
    tokens = choose_tokens(rows, 0, 20, seed=1, labels=labels)
    recorded = record(model.train(), layers, tokens, 0, 2, "cpu", seed=3)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()
    expected: dict[str, list[torch.Tensor]] = {name: [] for name in layers.values()}
    outputs: dict[str, torch.Tensor] = {}
    inputs: list[torch.Tensor] = []

    def keep(module: Any, args: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        outputs[layers[module]] = output
        if layers[module] == one:
            inputs.append(args[0].detach()[0])

    one = list(expected)[-1]
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    for ids, positions, wanted in zip(tokens.sequences, tokens.positions, tokens.labels or (), strict=True):
        logits = model(input_ids=torch.tensor([ids])).logits[0]
        torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(wanted[1:]), reduction="sum").backward()
        inputs[-1] = inputs[-1][positions]
        for name, output in outputs.items():
            assert output.grad is not None
            expected[name].append(output.grad[0, positions].norm(dim=-1))
    for hook in hooks:
        hook.remove()
    order = torch.cdist(recorded.of(one), torch.cat(inputs)).argmin(1)
    for name, parts in expected.items():
        torch.testing.assert_close(recorded.gradients[name], torch.cat(parts)[order], rtol=1e-4, atol=1e-6)
    assert record(model, layers, choose_tokens(rows, 0, 20, seed=1), 0, 2, "cpu").gradients == {}
    nothing = choose_tokens(rows, 0, 20, seed=1, labels=[[IGNORED] * len(row) for row in rows])
    assert not any(norms.any() for norms in record(model, layers, nothing, 0, 2, "cpu").gradients.values())


def test_modules_that_read_the_same_share_their_inputs() -> None:
    """q, k and v; gate and up: four inputs a layer, not seven."""
    model = _model()
    recorded = record(model, adapted_layers(model), choose_tokens([[3, 4, 5]], 0, 9, 0), 0, 2, "cpu")
    assert len(recorded.source) == 3 * 7
    assert len(recorded.inputs) == 3 * 4
    assert recorded.source["model.layers.1.self_attn.v_proj"] == "model.layers.1.self_attn.q_proj"
    assert recorded.source["model.layers.1.mlp.down_proj"] == "model.layers.1.mlp.down_proj"


def test_a_module_that_is_not_over_tokens_is_named() -> None:
    """An embedding reads token ids."""
    model = _model(["embed_tokens", "q_proj"])
    with pytest.raises(InputError, match="embed_tokens is no linear layer over tokens"):
        record(model, adapted_layers(model), choose_tokens([[3, 4]], 0, 9, 0), 0, 2, "cpu")


def test_the_store_fits_into_half_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer tokens where they do not fit; and a line with bytes and the fix where too few do."""
    layers = adapted_layers(_model(["q_proj", "down_proj"]))
    of_token = 3 * (32 + 48) * 2

    def free(size: int) -> None:
        monkeypatch.setattr(activations.psutil, "virtual_memory", lambda: type("", (), {"available": size}))

    free(10**9)
    store = plan_store(layers, torch.bfloat16, 9000, torch.device("cpu"))
    assert store == (9000, 9000 * of_token, torch.device("cpu"))
    free(2 * 1000 * of_token)
    assert plan_store(layers, torch.bfloat16, 9000, torch.device("cpu")).tokens == 1000
    free(2 * 100 * of_token)
    with pytest.raises(InputError, match=rf"{of_token} bytes a token.*holds 100 tokens; 512 are needed. Adapt fewer"):
        plan_store(layers, torch.bfloat16, 9000, torch.device("cpu"))
    assert plan_store(layers, torch.bfloat16, 90, torch.device("cpu")).tokens == 90


@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=60), st.integers(1, 40))
def test_batches_are_bounded(lengths: list[int], batch_size: int) -> None:
    """Every sequence once; only one that is longer than a batch by itself is in a larger one, alone."""
    batches = activations._batches(lengths, batch_size, 16_384)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= batch_size
        longest = max(lengths[index] for index in batch)
        assert longest * len(batch) <= 16_384 or len(batch) == 1
