"""The output layer at the positions that are learned, and not at prompts and padding: most logits are never made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from monolora.data.chat_template import IGNORED


@contextmanager
def labelled_positions(model: nn.Module, inputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Inputs for TRL's fused head, whose model then gives hidden states only where the next token is learned.

    The loss, its gradients and TRL's metrics are those of all positions, up to the order of sums.

    Args:
        model: a causal language model, in PEFT's or an accelerator's wrapping or bare.
        inputs: a batch with ``labels``, shape ``(batch, tokens)``.

    Yields:
        The batch with ``shift_labels``, shape ``(1, learned tokens)``, for ``labels``; as it was if nothing is learned
        in it.
    """
    learned = inputs["labels"][:, 1:] != IGNORED
    if not learned.any():
        yield dict(inputs)
        return

    def gather(module: nn.Module, args: Any, output: ModelOutput) -> ModelOutput:
        hidden = output["last_hidden_state"]
        output["last_hidden_state"] = hidden[:, :-1][learned.to(hidden.device)][None]
        return output

    hook = _backbone(model).register_forward_hook(gather)
    try:
        rest = {name: value for name, value in inputs.items() if name != "labels"}
        yield rest | {"shift_labels": inputs["labels"][:, 1:][learned][None]}
    finally:
        hook.remove()


def _backbone(model: nn.Module) -> nn.Module:
    """The model below its output layer."""
    while not isinstance(model, PreTrainedModel):
        inner = model.get_base_model() if isinstance(model, PeftModel) else model.module
        assert isinstance(inner, nn.Module)
        model = inner
    assert isinstance(model.base_model, nn.Module)
    return model.base_model
