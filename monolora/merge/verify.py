"""How much of an adapter's effect a merge keeps, measured token by token on text.

The base model is the yardstick: a useless merge differs from the adapter as much as the base does.

Shapes: T tokens, V vocabulary, O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from monolora.merge.deltas import Delta, adapter_deltas, merged_deltas
from monolora.merge.linearize import Batch, Progress, hooked

# Log-probabilities of so many tokens are held at a time: with a vocabulary of 150,000, three times 300 MB.
TOKENS_AT_A_TIME = 512


class Spread(NamedTuple):
    """Mean, median and 99th percentile over tokens, in nats."""

    mean: float
    p50: float
    p99: float


class Fidelity(NamedTuple):
    """The summary of a comparison.

    Attributes:
        tokens: tokens compared.
        kl_merged: ``KL(adapter ‖ merged)`` of the next-token distributions.
        kl_base: ``KL(adapter ‖ base)``.
        top1_merged: share of the tokens with the same likeliest next token in adapter and merged model.
        top1_base: the same for adapter and base.
        retained: ``1 - KL(adapter ‖ merged) / KL(adapter ‖ base)``, of the means: 1 for a perfect merge, 0 for one no
            better than the base, negative for one that is worse.
        modules: for each adapted module ``‖delta_merged(x) - delta(x)‖ / ‖delta(x)‖`` over the tokens, at the inputs
            that the module has in the adapted model.
    """

    tokens: int
    kl_merged: Spread
    kl_base: Spread
    top1_merged: float
    top1_base: float
    retained: float
    modules: dict[str, float]


class TokenComparison(NamedTuple):
    """One value a token, each of shape ``(T,)``: the two KLs, and whether the likeliest next token is the adapter's."""

    kl_merged: torch.Tensor
    kl_base: torch.Tensor
    same_merged: torch.Tensor
    same_base: torch.Tensor


class Comparison(NamedTuple):
    """The result of :func:`compare`, which can be pooled with that of other texts.

    Attributes:
        tokens: one value a token.
        missed: by module, the sum of ``‖delta_merged(x) - delta(x)‖²``.
        size: by module, the sum of ``‖delta(x)‖²``.
    """

    tokens: TokenComparison
    missed: dict[str, float]
    size: dict[str, float]

    def pooled(self, other: Comparison) -> Comparison:
        """Over the tokens of both."""
        tokens = TokenComparison(*map(torch.cat, zip(self.tokens, other.tokens, strict=True)))
        missed = {name: missed + other.missed[name] for name, missed in self.missed.items()}
        size = {name: size + other.size[name] for name, size in self.size.items()}
        return Comparison(tokens, missed, size)

    def fidelity(self) -> Fidelity:
        """The summary over all tokens."""
        merged, base = _spread(self.tokens.kl_merged), _spread(self.tokens.kl_base)
        return Fidelity(
            tokens=len(self.tokens.kl_base),
            kl_merged=merged,
            kl_base=base,
            top1_merged=float(self.tokens.same_merged.double().mean()),
            top1_base=float(self.tokens.same_base.double().mean()),
            retained=1 - _ratio(merged.mean, base.mean),
            modules={name: _ratio(self.missed[name], size) ** 0.5 for name, size in self.size.items()},
        )


def verify(
    adapted: PeftModel,
    merged: PreTrainedModel | PeftModel,
    batches: Sequence[Batch],
    progress: Progress = lambda batches: batches,
) -> Fidelity:
    """Compare a merged model with the adapter it was made of, on text that the calibration did not see.

    Args:
        adapted: the adapted model, in evaluation mode, with one active adapter (MonoLoRA, or LoRA).
        merged: a dense or exact checkpoint, or a LoRA adapter on the base, loaded and in evaluation mode.
        batches: arguments of the models' forward; tokens that ``attention_mask`` marks with 0 are left out.
        progress: goes around the batches.
    """
    return compare(adapted, merged, batches, progress).fidelity()


@torch.inference_mode()
def compare(
    adapted: PeftModel,
    merged: PreTrainedModel | PeftModel,
    batches: Sequence[Batch],
    progress: Progress = lambda batches: batches,
) -> Comparison:
    """As :func:`verify`, without the summary."""
    ours = adapter_deltas(adapted)
    modules = _ModuleErrors(ours, merged_deltas(merged, adapted, ours))
    layers = {name: layer for name, layer in adapted.get_base_model().named_modules() if name in ours}
    parts: list[TokenComparison] = []
    for batch in progress(batches):
        modules.mask = batch["attention_mask"].bool()
        with hooked(layers, modules.observe):
            adapter_TV = _logits(adapted, batch)
        with adapted.disable_adapter():
            base_TV = _logits(adapted, batch)
        parts += _compare_tokens(adapter_TV, base_TV, _logits(merged, batch))
    tokens = TokenComparison(*map(torch.cat, zip(*parts, strict=True)))
    return Comparison(tokens, modules.missed, modules.size)


def _logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Logits at all tokens but padding, ``(T, V)``."""
    return model(**batch).logits[batch["attention_mask"].bool()]


def _compare_tokens(
    adapter_TV: torch.Tensor, base_TV: torch.Tensor, merged_TV: torch.Tensor
) -> Iterator[TokenComparison]:
    """Compare next-token logits, some tokens at a time."""
    split = (logits_TV.split(TOKENS_AT_A_TIME) for logits_TV in (adapter_TV, base_TV, merged_TV))
    for adapter, base, merged in zip(*split, strict=True):
        p, likeliest = F.log_softmax(adapter.float(), -1), adapter.argmax(-1)
        yield TokenComparison(
            _kl(p, merged).cpu(),
            _kl(p, base).cpu(),
            (merged.argmax(-1) == likeliest).cpu(),
            (base.argmax(-1) == likeliest).cpu(),
        )


def _kl(p_TV: torch.Tensor, logits_TV: torch.Tensor) -> torch.Tensor:
    """``KL(p ‖ q)``, p as log-probabilities; rounding could make it slightly negative, ``(T,)``."""
    q_TV = F.log_softmax(logits_TV.float(), -1)
    return F.kl_div(q_TV, p_TV, reduction="none", log_target=True).sum(-1).clamp(min=0)


class _ModuleErrors:
    """Sums by layer the error of the merged delta at the adapter's inputs."""

    def __init__(self, ours: dict[str, Delta], theirs: dict[str, Delta]) -> None:
        self._ours, self._theirs = ours, theirs
        self.mask: torch.Tensor | None = None
        self.missed = dict.fromkeys(ours, 0.0)
        self.size = dict.fromkeys(ours, 0.0)

    def observe(self, name: str, x: torch.Tensor) -> None:
        if self.mask is not None:
            x = _without_padding(x, self.mask)
        ours = self._ours[name](x)
        self.size[name] += float(ours.square().sum(dtype=torch.float64))
        self.missed[name] += float((self._theirs[name](x) - ours).square().sum(dtype=torch.float64))


def _without_padding(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The inputs at real tokens, of rows that the model may have flattened (as OPT does)."""
    if x.shape[: mask.dim()] == mask.shape:
        return x[mask]
    return x[mask.flatten()] if len(x) == mask.numel() else x


def _spread(values: torch.Tensor) -> Spread:
    ordered = values.double().quantile(torch.tensor([0.5, 0.99], dtype=torch.float64))
    return Spread(float(values.double().mean()), *ordered.tolist())


def _ratio(part: float, whole: float) -> float:
    """``part / whole``, with 0 / 0 = 0."""
    return part / whole if whole else (0.0 if part == 0 else float("inf"))
