"""Logits of learned tokens only: the model's own loss and gradients, for any output layer that TRL can fuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import (
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from monolora import MonoLoraConfig
from monolora.data.chat_template import IGNORED
from monolora.recipes.training.trainer import labelled_positions

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40}
WIDE = SMALL | {"intermediate_size": 24, "num_key_value_heads": 1}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**WIDE),
    "tied": lambda: LlamaConfig(**WIDE, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**WIDE),
    "softcap": lambda: Gemma2Config(**WIDE, head_dim=8, final_logit_softcapping=2.0),
    "scaled": lambda: GraniteConfig(**WIDE, logits_scaling=3.0),
    "gpt2": lambda: GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, **NO_DROPOUT),
    "opt": lambda: OPTConfig(**SMALL, ffn_dim=24, word_embed_proj_dim=16, dropout=0.0),
}  # fmt: skip


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[request.param](), attn_implementation="eager")


def batch(masked: bool = True) -> dict[str, Any]:
    """Two rows, the second padded; all but the answers are masked."""
    ids = torch.randint(3, 40, (2, 9), generator=torch.Generator().manual_seed(1))
    mask, labels = torch.ones_like(ids), ids.clone()
    mask[1, 6:] = 0
    labels[mask == 0] = IGNORED
    if masked:
        labels[0, :6] = labels[1, :5] = IGNORED
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def gradients(model: nn.Module, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [each for each in model.parameters() if each.requires_grad]))


def same(model: nn.Module, wrapped: nn.Module, inputs: dict[str, Any], learned: int) -> None:
    """The model's own loss over all logits, and its gradients, against those of the learned positions."""
    expected = model(**inputs).loss
    with labelled_positions(wrapped, inputs) as fewer:
        outputs = model(**fewer, fused_lm_head=True)
    assert outputs.log_probs.shape == outputs.entropy.shape == (1, learned)
    loss = -outputs.log_probs.sum() / outputs.label_mask.sum()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    for found, wanted in zip(gradients(model, loss), gradients(model, expected), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("masked", [True, False], ids=["answers", "all"])
def test_loss_and_gradients_are_those_of_all_logits(model: PreTrainedModel, masked: bool) -> None:
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    same(model, model, batch(masked), 4 if masked else 13)


def test_with_an_adapter_and_in_a_wrapper(model: PreTrainedModel) -> None:
    """As the trainer has it: PEFT's model, in that of an accelerator."""
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    is_gpt2 = model.config.model_type == "gpt2"  # its layers are Conv1D
    config = MonoLoraConfig(r=4, target_modules="all-linear", fan_in_fan_out=is_gpt2, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    same(adapted, _Wrapper(adapted), batch(), 4)


class _Wrapper(nn.Module):
    """What DistributedDataParallel is for this."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_the_model_is_left_as_it_was(model: PreTrainedModel) -> None:
    """Also where the step in between fails."""
    before = model(**batch()).logits
    with pytest.raises(RuntimeError, match="in between"), labelled_positions(model, batch()):
        raise RuntimeError("in between")
    assert torch.equal(model(**batch()).logits, before)


def test_a_batch_in_which_nothing_is_learned(model: PreTrainedModel) -> None:
    inputs = batch()
    inputs["labels"].fill_(IGNORED)
    with labelled_positions(model, inputs) as fewer:
        assert fewer.keys() == inputs.keys()
