"""How far a model is from its base along answers of the base, as the evaluation and the keeping report measure it.

Shapes: B rows of a batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import NamedTuple

import torch

from monolora.data.chat_template import Split
from monolora.inference import Inference, answer_batches, evaluating
from monolora.sparsity import UnitsOn
from monolora.units import adapted_layers, watch


class AnswerDrift(NamedTuple):
    """What is measured along an answer.

    Attributes:
        number: of the answer, from 0.
        kl: ``KL(base ‖ tuned)`` of the next token, the mean over the answer's tokens in nats.
        silent: share of the tokens, the prompt's too, on which every unit is zero; None without units.
        units_on: share of units that are not zero, over these tokens; None without units.
    """

    number: int
    kl: float
    silent: float | None
    units_on: float | None


def mean_kl(base_TV: torch.Tensor, tuned_TV: torch.Tensor) -> torch.Tensor:
    """``KL(base ‖ tuned)`` of log-probabilities, the mean over the tokens in nats; a scalar."""
    return (base_TV.exp() * (base_TV - tuned_TV)).sum(-1).mean()


@torch.no_grad()
def answer_drifts(
    base: Inference, tuned: Inference, as_base: Callable[[], AbstractContextManager[object]], splits: Sequence[Split]
) -> Iterator[AnswerDrift]:
    """Compare two models along answers, both in the same batches; the longest first, so that there is little padding.

    Args:
        base: the base; with an adapter, the same model as ``tuned``.
        tuned: the other model.
        as_base: gives a context in which the first is the base.
        splits: prompts and answers, none of them empty.
    """
    layers = list(adapted_layers(tuned.model))
    for indices in answer_batches(splits, base.batch_size):
        batch = [splits[index] for index in indices]
        with evaluating(base.model), as_base():
            base_log_probs = base.answer_distributions(batch)
        units = UnitsOn()
        with evaluating(tuned.model), ExitStack() as stack:
            for end in watch(layers, units):
                stack.callback(end)
            log_probs = tuned.answer_distributions(batch)
        for row, (index, p_TV, q_TV) in enumerate(zip(indices, base_log_probs, log_probs, strict=True)):
            silent = on = None
            if units.on_BT is not None:
                on_T = units.on_BT[row, : len(batch[row].context) + len(batch[row].answer)]
                silent, on = float((on_T == 0).float().mean()), float(on_T.float().mean()) / units.units
            yield AnswerDrift(index, float(mean_kl(p_TV, q_TV)), silent, on)
