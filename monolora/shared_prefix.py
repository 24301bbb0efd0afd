"""The common prefix of a batch's rows, computed once.

Chat template, system prompt and instruction are the same tokens in every row. Attention is causal, so their hidden
states are the same too. The model reads the prefix with batch size 1, and its keys and values, expanded to the batch,
serve as the cache for the rest of each row. Outputs, losses and gradients equal those of whole rows up to rounding: the
gradients of all rows add up through the expansion.

Shapes: B rows of a batch, T tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

SAVED = 0.2  # share of a batch's tokens from which sharing is worth its overhead

_reasons: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()  # why prefixes cannot be shared


def bare(model: Any) -> PreTrainedModel:
    """The model in PEFT's or an accelerator's wrapping."""
    while not isinstance(model, PreTrainedModel):
        model = model.get_base_model() if isinstance(model, PeftModel) else model.module
    return model


def backbone(model: Any) -> nn.Module:
    """The model below its output layer, in PEFT's or an accelerator's wrapping or bare."""
    inner = bare(model).base_model
    assert isinstance(inner, nn.Module)
    return inner


def common_prefix(ids_BT: torch.Tensor, most: int) -> int:
    """How many tokens all rows begin with, at most ``most``."""
    differs_T = (ids_BT[:, :most] != ids_BT[:1, :most]).any(0)
    return int(differs_T.int().argmax()) if bool(differs_T.any()) else differs_T.numel()


def common_length(rows: Sequence[list[int]]) -> int:
    """How many tokens all rows begin with."""
    first, last = min(rows), max(rows)  # in lexical order: all others begin with what these two share
    differing = (at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return next(differing, min(len(first), len(last)))


def expanded_cache(inner: Any, ids_1T: torch.Tensor, rows: int) -> DynamicCache:
    """Keys and values of a prefix, read once and expanded to a batch without copies.

    Args:
        inner: the model below its output layer (:func:`backbone`).
        ids_1T: the prefix.
        rows: of the batch.
    """
    cache: DynamicCache = inner.forward(input_ids=ids_1T, use_cache=True).past_key_values
    layers: list[Any] = cache.layers
    for layer in layers:
        layer.keys, layer.values = (x.expand(rows, *x.shape[1:]) for x in (layer.keys, layer.values))
    return cache


def is_sharded(model: Any) -> bool:
    """Whether FSDP2 or ZeRO-3 spreads a model's weights over processes, which it may do at any time."""
    parameter = next(bare(model).parameters())
    return isinstance(parameter, DTensor) or hasattr(parameter, "ds_id")


def unsupported(model: Any) -> str:
    """Why a model's prefixes cannot be shared; empty if they can."""
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        return "its adapter puts virtual tokens in front"
    model = bare(model)
    if model.training:
        if model.is_gradient_checkpointing:
            return "gradient checkpointing leaves no keys and values to be shared"
        if any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
            return "dropout is drawn for each row"
    if is_sharded(model):
        return "its weights are sharded"
    if model not in _reasons:
        _reasons[model] = _reason(model)
    return _reasons[model]


def _reason(model: Any) -> str:
    inner = model.base_model
    arguments = inspect.signature(inner.forward).parameters
    if not {"input_ids", "past_key_values", "use_cache"} <= arguments.keys() or model._is_stateful:
        return "its cache is no plain list of keys and values"
    cache = DynamicCache(config=model.config)
    if not model._supports_default_dynamic_cache() or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return "its cache is no plain list of keys and values"
    return ""


@contextmanager
def shared_prefix(model: Any, ids_BT: torch.Tensor, most: int) -> Iterator[int]:
    """Let the next forward pass of a model read the rows' common prefix once.

    The pass is given the whole rows, padded on the right; its hidden states and logits are of what follows the prefix.

    Args:
        model: a causal language model.
        ids_BT: the rows of that pass.
        most: length of the prefix, at most: before the first position whose output is needed.

    Yields:
        The length of the prefix; 0 where it would save less than :data:`SAVED` of the tokens, or cannot be shared.
    """
    B, T = ids_BT.shape
    length = common_prefix(ids_BT, min(most, T - 1)) if B > 1 and most > 0 else 0
    if (B - 1) * length < SAVED * B * T or unsupported(model):
        yield 0
        return

    def read_once(inner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        ids = args[0] if args else kwargs["input_ids"]
        cache = expanded_cache(inner, ids[:1, :length], B)
        rest = ids[:, length:]
        args = (rest, *args[1:]) if args else ()
        return args, {**kwargs, **({} if args else {"input_ids": rest}), "past_key_values": cache}

    hook = backbone(model).register_forward_pre_hook(read_once, with_kwargs=True)
    try:
        yield length
    finally:
        hook.remove()
