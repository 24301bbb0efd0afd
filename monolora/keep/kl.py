"""KL to the base on the anchors' answers.

Along each answer of the base, ``KL(base ‖ tuned)`` of the next token is added to the task's loss. The base's
distributions are computed before the first step, when the model is the base still, and cached on the disk for later
runs: the :data:`TOP` largest log-probabilities of each token, and what they leave over as one more outcome. So the loss
is a lower bound of the KL over the whole vocabulary, tight where the base is sure.

Shapes: T tokens of an answer, K largest outcomes, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from accelerate import PartialState

from monolora.inference import Inference, adapter_off, answer_batches, evaluating
from monolora.keep.anchors import Anchor
from monolora.keep.cache import Tensors, cached
from monolora.keep.keeper import Keeper, Preparation
from monolora.terminal import track

TOP = 64
ANCHORS_A_STEP = 4  # of all processes together, and one of each at least


class BaseKl(Keeper):
    """Adds a loss. The weight is of the mean KL a token, in nats."""

    name = "kl"
    default_weight = 3.0

    def __init__(self, weight: float) -> None:
        super().__init__(weight)
        self._anchors: list[Anchor] = []
        self._top: list[tuple[torch.Tensor, torch.Tensor]] = []  # log-probabilities and tokens, both (T, K)
        self._inference: Inference | None = None

    def prepare(self, preparation: Preparation) -> None:
        """Compute the base's distributions, or read them from the cache."""
        p = preparation
        self._anchors = [Anchor(a.context, a.answer[: p.first_tokens]) for a in p.anchors.train]
        self._inference = Inference(model=p.model, tokenizer=p.tokenizer, batch_size=p.batch_size)
        key = [p.base, str(p.model.dtype), self._anchors, TOP, "adapter off"]
        top = cached("distributions", key, "cpu", self._distributions).tensors
        lengths = [len(anchor.answer) for anchor in self._anchors]
        self._top = list(zip(top["log_probs"].split(lengths), top["tokens"].split(lengths), strict=True))

    @torch.no_grad()
    def _distributions(self) -> Tensors:
        """The largest log-probabilities along all answers, and the tokens that they are of."""
        assert self._inference is not None  # by now
        top: list[Any] = [None] * len(self._anchors)
        with evaluating(self._inference.model), adapter_off(self._inference.model):
            batches = answer_batches(self._anchors, self._inference.batch_size)
            for batch in track(list(batches), description="Reading the base's distributions"):
                rows = self._inference.answer_distributions([self._anchors[index] for index in batch])
                for index, log_probs_TV in zip(batch, rows, strict=True):
                    top[index] = log_probs_TV.topk(min(TOP, log_probs_TV.shape[-1] - 1))
        return Tensors(
            {
                "log_probs": torch.cat([of_anchor.values.cpu() for of_anchor in top]),
                "tokens": torch.cat([of_anchor.indices.to(torch.int32).cpu() for of_anchor in top]),
            },
            None,
        )

    def loss(self, model: Any, step: int) -> torch.Tensor | None:
        """The mean KL over the tokens of the step's anchors, which the processes share."""
        state = PartialState()
        number = state.num_processes * -(-ANCHORS_A_STEP // state.num_processes)
        indices = [index % len(self._anchors) for index in range(step * number, (step + 1) * number)]
        tokens = sum(len(self._anchors[index].answer) for index in indices)
        assert self._inference is not None  # prepared
        inference = replace(self._inference, model=model)
        mine = indices[state.process_index :: state.num_processes]
        rows = inference.answer_distributions([self._anchors[index] for index in mine])
        kl = sum(top_kl(row_TV, *self._top[index]).sum() for index, row_TV in zip(mine, rows, strict=True))
        return self.weight * kl * state.num_processes / tokens  # DDP and FSDP take the mean over processes

    def report(self) -> dict[str, Any]:
        return {"answer_tokens": sum(len(anchor.answer) for anchor in self._anchors)}


def top_kl(log_probs_TV: torch.Tensor, top_TK: torch.Tensor, tokens_TK: torch.Tensor) -> torch.Tensor:
    """KL of distributions over the K given tokens and all others together, ``(T,)`` in nats.

    Args:
        log_probs_TV: of the tuned model.
        top_TK: log-probabilities of the base.
        tokens_TK: the tokens that they are of.
    """
    p_TK = top_TK.to(log_probs_TV.device)
    q_TK = log_probs_TV.gather(-1, tokens_TK.to(log_probs_TV.device, torch.long))
    p_rest_T, q_rest_T = (log_rest(x_TK) for x_TK in (p_TK, q_TK))
    return (p_TK.exp() * (p_TK - q_TK)).sum(-1) + p_rest_T.exp() * (p_rest_T - q_rest_T)


def log_rest(log_probs_TK: torch.Tensor) -> torch.Tensor:
    """``log(1 − Σ p)``, with a floor where rounding leaves nothing; ``(T,)``."""
    return torch.log1p(-log_probs_TK.exp().sum(-1).clamp(max=1 - 1e-6))
