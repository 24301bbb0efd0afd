"""What `verify` finds equals what numpy and scipy find in the logits, and the layers' own outputs."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from scipy.special import log_softmax, rel_entr
from torch import nn
from transformers import AutoModelForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedModel

from monolora.errors import InputError
from monolora.merge import Fidelity, export_dense, export_exact, export_lora, linearize, verify
from monolora.merge.verify import Comparison, compare
from tests.support.merge_inputs import row_by_row, text

Make = Callable[..., PreTrainedModel]
Adapt = Callable[..., PeftModel]
Batches = list[dict[str, torch.Tensor]]

TIED = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
SETTINGS: dict[str, dict[str, Any]] = {
    "llama": {"target_modules": ["q_proj", "down_proj", "lm_head"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "gpt2": {"target_modules": ["c_attn", "c_fc", "wte"], "fan_in_fan_out": True},
}


@pytest.fixture
def pair(make_llama: Make, make_gpt2: Make, adapt: Adapt, tmp_path: Path) -> Callable[..., tuple[PeftModel, Any]]:
    """``pair(settings, kind)``: an adapted model, and its merge, loaded."""

    def make(settings: str = "llama", kind: str = "dense", batches: Batches | None = None) -> tuple[PeftModel, Any]:
        base = make_gpt2 if settings == "gpt2" else make_llama
        adapted, again = (adapt(base(), **SETTINGS[settings]) for _ in range(2))
        if kind == "exact":
            export_exact(again, tmp_path / kind)
            return adapted, AutoModelForCausalLM.from_pretrained(tmp_path / kind)
        maps = linearize(again, batches, affine=False if kind == "lora" else None)
        if kind == "dense":
            export_dense(again, maps, tmp_path / kind)
            return adapted, AutoModelForCausalLM.from_pretrained(tmp_path / kind)
        export_lora(again, maps, tmp_path / kind)
        return adapted, PeftModel.from_pretrained(base(), tmp_path / kind).eval()

    return make


@torch.no_grad()
def _logits(model: nn.Module, batches: Batches) -> np.ndarray:
    """At the real tokens, ``(T, V)``, float64."""
    found = [model(**batch).logits[batch["attention_mask"].bool()] for batch in batches]
    return torch.cat(found).double().numpy()


def _outputs(model: nn.Module, names: list[str], batches: Batches, run: nn.Module) -> dict[str, list[Any]]:
    """Inputs and outputs of layers at the real tokens while ``run`` runs."""
    found: dict[str, list[Any]] = {name: [] for name in names}

    def keep(name: str) -> Any:
        return lambda _, args, output: found[name].append((args[0], output))

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    _logits(run, batches)
    for handle in handles:
        handle.remove()
    return found


@torch.no_grad()
def _module_errors(adapted: PeftModel, merged: Any, plain: nn.Module, batches: Batches) -> dict[str, float]:
    """From the outputs of whole layers: of the adapted, the merged and the plain base model."""
    layers = merged.get_base_model() if isinstance(merged, PeftModel) else merged
    body = adapted.get_base_model()
    names = [name for name, module in body.named_modules() if "lora_A" in dict(module.named_children())]
    errors = {}
    for name, calls in _outputs(body, names, batches, adapted).items():
        missed = size = 0.0
        for (x, adapters), batch in zip(calls, batches, strict=True):
            mask = batch["attention_mask"].bool()
            missed += float((layers.get_submodule(name)(x) - adapters)[mask].double().square().sum())
            size += float((adapters - plain.get_submodule(name)(x))[mask].double().square().sum())
        errors[name] = (missed / size) ** 0.5
    return errors


def _check(found: Fidelity, adapted: PeftModel, merged: nn.Module, batches: Batches) -> None:
    """Against scipy."""
    ours, theirs = _logits(adapted, batches), _logits(merged, batches)
    with adapted.disable_adapter():
        base = _logits(adapted, batches)
    assert found.tokens == len(ours) == sum(int(batch["attention_mask"].sum()) for batch in batches)
    p = np.exp(log_softmax(ours, -1))
    kls = {}
    for name, other in {"kl_merged": theirs, "kl_base": base}.items():
        kl = rel_entr(p, np.exp(log_softmax(other, -1))).sum(-1)
        expected = (kl.mean(), np.median(kl), np.percentile(kl, 99))
        assert tuple(getattr(found, name)) == pytest.approx(expected, rel=1e-3, abs=1e-6)
        kls[name] = kl.mean()
    assert found.retained == pytest.approx(1 - kls["kl_merged"] / kls["kl_base"], abs=1e-3)
    assert found.top1_merged == np.mean(ours.argmax(-1) == theirs.argmax(-1))
    assert found.top1_base == np.mean(ours.argmax(-1) == base.argmax(-1))


@TIED
@pytest.mark.parametrize("kind", ["dense", "lora", "exact"])
@pytest.mark.parametrize("settings", ["llama", "embedding", "gpt2"])
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_it_is_what_scipy_finds(pair: Callable, make_llama: Make, make_gpt2: Make, settings: str, kind: str) -> None:
    adapted, merged = pair(settings, kind, text(80))
    found = verify(adapted, merged, text(seed=5))
    _check(found, adapted, merged, text(seed=5))
    plain = make_gpt2() if settings == "gpt2" else make_llama()
    expected = _module_errors(adapted, merged, plain, text(seed=5))
    if settings != "llama":  # embeddings are exact
        embedding = "transformer.wte" if settings == "gpt2" else "model.embed_tokens"
        assert found.modules[embedding] == pytest.approx(0, abs=1e-5)
        expected.pop(embedding)
    assert {name: found.modules[name] for name in expected} == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert found.kl_base.mean > 0.001
    assert 0.0 < found.top1_base < 1.0


@TIED
@pytest.mark.parametrize("settings", ["llama", "embedding", "gpt2"])
def test_an_exact_merge_keeps_all(pair: Callable, settings: str) -> None:
    found = verify(*pair(settings, "exact"), text(8))
    assert (found.retained, found.top1_merged) == (1.0, 1.0)
    assert found.kl_merged == (0.0, 0.0, 0.0)
    assert set(found.modules.values()) == {0.0}


def test_the_base_keeps_nothing(make_llama: Make, adapt: Adapt) -> None:
    adapted = adapt(make_llama())
    found = verify(adapted, make_llama(), text(8))
    assert found.retained == 0.0
    assert found.kl_merged == found.kl_base
    assert found.top1_merged == found.top1_base
    assert set(found.modules.values()) == {1.0}


def test_a_merge_that_is_worse_than_the_base(make_llama: Make, adapt: Adapt, tmp_path: Path) -> None:
    adapted, again = (adapt(make_llama()) for _ in range(2))
    opposite = {name: each._replace(A=-2 * each.A) for name, each in linearize(again, text()).items()}
    export_dense(again, opposite, tmp_path)
    found = verify(adapted, AutoModelForCausalLM.from_pretrained(tmp_path), text(8))
    assert found.retained < 0
    assert min(found.modules.values()) > 1


def test_an_adapter_that_does_nothing(make_llama: Make, adapt: Adapt, tmp_path: Path) -> None:
    adapted = adapt(make_llama())
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    found = verify(adapted, make_llama(), text(8))
    assert (found.retained, found.top1_merged, found.kl_base.mean) == (1.0, 1.0, 0.0)
    assert set(found.modules.values()) == {0.0}
    assert verify(adapted, make_llama(seed=3), text(8)).retained == float("-inf")


def test_lora_and_pefts_own_merge(make_llama: Make, fill: Callable) -> None:
    def lora() -> PeftModel:
        return fill(get_peft_model(make_llama(), LoraConfig(target_modules=["q_proj", "embed_tokens"]))).eval()

    adapted, merged = lora(), lora().merge_and_unload()
    found = verify(adapted, merged, text(8))
    _check(found, adapted, merged, text(8))
    assert found.retained == pytest.approx(1, abs=1e-4)
    assert compare(adapted, merged, text(8)).tokens.kl_merged.min() >= 0  # rounding alone would go below
    assert max(found.modules.values()) < 1e-5
    assert len(found.modules) == 3


def _same(one: Comparison, other: Comparison) -> None:
    for a, b in zip(one.tokens, other.tokens, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
    assert one.missed == pytest.approx(other.missed, rel=1e-4)
    assert one.size == pytest.approx(other.size, rel=1e-4)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_padding_changes_nothing(pair: Callable, adapt: Adapt, family: str) -> None:
    """Every row by itself gives the same; OPT flattens its rows."""
    if family == "llama":
        adapted, merged = pair()
    else:
        sizes = {"vocab_size": 64, "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 24}
        torch.manual_seed(1)
        merged = OPTForCausalLM(OPTConfig(**sizes, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0)).eval()
        torch.manual_seed(1)
        base = OPTForCausalLM(merged.config).eval()
        adapted = adapt(base, target_modules=["q_proj", "fc1", "fc2"])
        merged.model.decoder.layers[0].fc1.weight.data += 0.1
    _same(compare(adapted, merged, text()), compare(adapted, merged, row_by_row(text())))


def test_texts_can_be_pooled(pair: Callable) -> None:
    adapted, merged = pair()
    batches = text()
    pooled = compare(adapted, merged, batches[:3]).pooled(compare(adapted, merged, batches[3:]))
    whole = compare(adapted, merged, batches)
    assert all(torch.equal(a, b) for a, b in zip(pooled.tokens, whole.tokens, strict=True))
    assert pooled.missed == pytest.approx(whole.missed)
    assert pooled.size == pytest.approx(whole.size)
    assert pooled.fidelity().kl_merged == whole.fidelity().kl_merged


def test_many_tokens_go_a_few_at_a_time(pair: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted, merged = pair()
    whole = compare(adapted, merged, text())
    monkeypatch.setattr(import_module("monolora.merge.verify"), "TOKENS_AT_A_TIME", 7)
    _same(whole, compare(adapted, merged, text()))


def test_progress_and_the_model_afterwards(pair: Callable) -> None:
    adapted, merged = pair()
    before, seen = adapted(**text()[0]).logits, []
    verify(adapted, merged, text(8), lambda batches: [seen.append(1) or batch for batch in batches])
    assert len(seen) == 2
    assert torch.equal(adapted(**text()[0]).logits, before)
    assert not any(module._forward_pre_hooks for module in adapted.modules())


def test_a_merge_of_something_else(make_llama: Make, make_gpt2: Make, adapt: Adapt) -> None:
    with pytest.raises(InputError, match="it is a merge of something else"):
        verify(adapt(make_llama()), make_gpt2(), text(4))


def test_no_divergence_is_negative() -> None:
    """The same distribution, with logits a constant apart: rounding alone would go below zero."""
    logits = 5 * torch.randn(500, 64)
    p, q = logits.log_softmax(-1), (logits + 3.3).log_softmax(-1)
    assert nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1).min() < 0
    found = import_module("monolora.merge.verify")._kl(p, logits + 3.3)
    assert found.min() == 0
    assert found.max() < 1e-5
