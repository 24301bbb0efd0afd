"""What each unit of an adapter does to a loss, to first order, and the losses that a repair weighs against each other.

A unit is taken out by setting its column of B to 0. To first order the loss then changes by ``-B[:, j] · ∂L/∂B[:, j]``,
which is gradient times activation, summed over tokens. One backward pass gives it for all units.

Shapes: N rows, T tokens of an answer, V vocabulary, U units in the order of ``Layout.units``, R units of a module.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from monolora.data.chat_template import Split
from monolora.drift import mean_kl
from monolora.inference import Inference, answer_batches, evaluating
from monolora.refusals import REFUSING, opening_ids
from monolora.stats import Floats
from monolora.terminal import track
from monolora.units import Layout, UnitName

AsBase = Callable[[], AbstractContextManager[object]]  # gives a context in which the model is its base
Factors = Mapping[str, torch.Tensor]  # of B, by module


@dataclass(frozen=True, kw_only=True, eq=False)
class Loss(ABC):
    """A number for each of some rows, in nats, that is better small.

    Attributes:
        inference: the model.
        rows: prompts with answers.
    """

    inference: Inference
    rows: Sequence[Split]

    @property
    def weights(self) -> Floats:
        """What each row counts in the mean."""
        return np.ones(len(self.rows))

    @abstractmethod
    def of(self, indices: Sequence[int]) -> torch.Tensor:
        """The loss of the rows with these indices, one number each, with its graph."""

    def mean(self, values_N: Floats) -> float:
        """The weighted mean of values of all rows."""
        return float(np.average(values_N, weights=self.weights))

    def batches(self, description: str) -> Iterable[list[int]]:
        """Indices of rows of similar length, with a progress bar that does not stay."""
        batches = list(answer_batches(self.rows, self.inference.batch_size))
        return track(batches, description, disable=not self.inference.shows_progress, transient=True)


class AnswerLoss(Loss):
    """The cross-entropy of right answers, nats per token, end tokens included; the mean is over tokens."""

    @property
    def weights(self) -> Floats:
        return np.array([len(row.answer) for row in self.rows], dtype=np.float64)

    def of(self, indices: Sequence[int]) -> torch.Tensor:
        rows = [self.rows[index] for index in indices]
        return torch.stack(
            [
                -log_probs_TV.gather(-1, torch.tensor(row.answer, device=log_probs_TV.device)[:, None]).mean()
                for row, log_probs_TV in zip(rows, self.inference.answer_distributions(rows), strict=True)
            ]
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class BaseDrift(Loss):
    """``KL(base ‖ model)`` of the next token along answers of the base, nats per token.

    Attributes:
        base: log-probabilities of the base along each answer, ``(T, V)``, in float32 in memory.
    """

    base: Sequence[torch.Tensor]

    @classmethod
    def from_base(cls, inference: Inference, rows: Sequence[Split], as_base: AsBase) -> BaseDrift:
        """The drift from a base, which is run once, in the same batches."""
        base: dict[int, torch.Tensor] = {}
        with torch.no_grad(), evaluating(inference.model), as_base():
            for indices in answer_batches(rows, inference.batch_size):
                base |= zip(indices, inference.answer_distributions([rows[index] for index in indices]), strict=True)
        return cls(inference=inference, rows=rows, base=[base[index] for index in range(len(rows))])

    def of(self, indices: Sequence[int]) -> torch.Tensor:
        tuned = self.inference.answer_distributions([self.rows[index] for index in indices])
        return torch.stack(
            [mean_kl(self.base[index], log_probs_TV) for index, log_probs_TV in zip(indices, tuned, strict=True)]
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class RefusalShortfall(Loss):
    """How far the refusal margin of a prompt is below the base's (:func:`monolora.refusals.margin`), nats; 0 above it.

    Attributes:
        openings: token ids of the openings of refusals, then of compliant answers.
        base_N: margins of the base.
    """

    openings: Sequence[list[int]]
    base_N: torch.Tensor

    @classmethod
    def from_base(cls, inference: Inference, rows: Sequence[Split], as_base: AsBase) -> RefusalShortfall:
        """The shortfall from a base, whose margins are measured."""
        openings = opening_ids(inference.tokenizer)
        loss = cls(inference=inference, rows=rows, openings=openings, base_N=torch.full((len(rows),), torch.inf))
        with torch.no_grad(), evaluating(inference.model), as_base():
            base_N = torch.stack([loss.margin(row.context) for row in rows])
        return cls(inference=inference, rows=rows, openings=openings, base_N=base_N)

    def margin(self, prompt: list[int]) -> torch.Tensor:
        """The refusal margin of a prompt, a scalar."""
        rows = [Split(prompt, opening) for opening in self.openings]
        log_probs = torch.stack(
            [
                log_probs_TV.gather(-1, torch.tensor(row.answer, device=log_probs_TV.device)[:, None]).sum()
                for row, log_probs_TV in zip(rows, self.inference.answer_distributions(rows), strict=True)
            ]
        )
        return log_probs[: len(REFUSING)].logsumexp(0) - log_probs[len(REFUSING) :].logsumexp(0)

    def of(self, indices: Sequence[int]) -> torch.Tensor:
        return torch.stack([(self.base_N[index] - self.margin(self.rows[index].context)).relu() for index in indices])


def measured(loss: Loss, description: str = "Measuring") -> Floats:
    """The loss of every row, float64 ``(N,)``."""
    values_N = np.empty(len(loss.rows))
    with torch.no_grad(), evaluating(loss.inference.model):
        for indices in loss.batches(description):
            values_N[indices] = loss.of(indices).double().cpu().numpy()
    return values_N


def attribute(loss: Loss, layout: Layout, description: str = "Attributing") -> Floats:
    """By how much the mean loss changes, to first order, when each unit alone is taken out; float64 ``(U,)``, nats.

    Args:
        loss: of the model that ``layout`` is of.
        layout: the units.
        description: for the progress bar.
    """
    weights_N = loss.weights / loss.weights.sum()
    columns = [B for _, B in layout.matrices().values()]
    changes = [torch.zeros(rank, dtype=torch.float64) for rank in layout.ranks.values()]
    with evaluating(loss.inference.model), _only_requiring_grad(loss.inference.model, columns), torch.enable_grad():
        for indices in loss.batches(description):
            values = loss.of(indices)
            mean = (values * torch.from_numpy(weights_N[indices]).to(values)).sum()
            gradients = torch.autograd.grad(mean, columns, allow_unused=True)
            for change_R, B, gradient in zip(changes, columns, gradients, strict=True):
                if gradient is not None:
                    change_R -= (B.detach() * gradient).double().movedim(1, 0).flatten(1).sum(1).cpu()
    return torch.cat(changes).numpy()


@contextmanager
def _only_requiring_grad(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    required = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        model.requires_grad_(False)
        for parameter in required:
            parameter.requires_grad_(True)


@contextmanager
def weakened(layout: Layout, factors: Factors) -> Iterator[None]:
    """During it, each module's B is multiplied by its factor; modules without one stay as they are.

    Args:
        layout: the units.
        factors: broadcast to B ``(out, R, …)``.
    """
    columns = {name: layout.matrices()[name].B for name in factors}
    before = {name: B.detach().clone() for name, B in columns.items()}
    try:
        with torch.no_grad():
            for name, B in columns.items():
                B.mul_(factors[name].to(B))
        yield
    finally:
        with torch.no_grad():
            for name, B in columns.items():
                B.copy_(before[name])


def without(layout: Layout, units: Iterable[UnitName]) -> dict[str, torch.Tensor]:
    """The factors that take units out: 0 for their columns, 1 for the others."""
    factors: dict[str, Any] = {}
    for module, unit in units:
        B = layout.matrices()[module].B
        factors.setdefault(module, torch.ones(1, *B.shape[1:]))[:, unit] = 0
    return factors
