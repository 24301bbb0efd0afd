"""The keeping report: how far a tuned model is from its base on anchors that nothing learned from.

Base and tuned model read the same batches, so that what rounding does to one it does to the other, and a model that is
the base gives the same answers token for token.

Shapes: B rows of a batch, T tokens, R units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from monolora.drift import AnswerDrift, answer_drifts
from monolora.inference import Inference, evaluating
from monolora.keep.anchors import Anchor
from monolora.refusals import refuses
from monolora.stats import Estimate, bootstrap, wilson
from monolora.terminal import tracked


class KeepingReport(NamedTuple):
    """What a set of anchors says of a tuned model; every estimate is over anchors, with a 95 % interval.

    Attributes:
        anchors: their number.
        tokens: of prompts and answers.
        silent: share of tokens on which every unit is zero, so that nothing is added to the base; None without units.
        units_on: share of units that are not zero, over tokens; None without units.
        identical: share of anchors whose greedy answer is the base's, token for token.
        kl: ``KL(base ‖ tuned)`` of the next token along the base's answers, nats per token.
        refused_before: share of the base's answers that refuse, by phrases.
        refused_after: the same share of the tuned model's answers.
        still_refused: of the anchors that the base refuses, the share that the tuned model refuses; None without any.
    """

    anchors: int
    tokens: int
    silent: Estimate | None
    units_on: Estimate | None
    identical: Estimate
    kl: Estimate
    refused_before: Estimate
    refused_after: Estimate
    still_refused: Estimate | None

    def as_json(self) -> dict[str, Any]:
        """For ``run.json``: estimates as ``mean``, ``low``, ``high``."""
        return {
            name: {"mean": value.mean, "low": value.low, "high": value.high} if isinstance(value, Estimate) else value
            for name, value in self._asdict().items()
        }

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> KeepingReport:
        """The report that :meth:`as_json` wrote."""
        fields: dict[str, Any] = {
            name: Estimate(**value) if isinstance(value, Mapping) else value for name, value in values.items()
        }
        return cls(**fields)


class AsBase(Protocol):
    """Makes a context in which the model is the base."""

    def __call__(self) -> AbstractContextManager[object]: ...


class Pair(NamedTuple):
    """A tuned model and its base.

    Attributes:
        tuned: the model.
        base: its base; with an adapter, the same object.
        as_base: gives a context in which ``base`` is the base.
    """

    tuned: Any
    base: Any
    as_base: AsBase


@torch.no_grad()
def measure(
    pair: Pair, tokenizer: PreTrainedTokenizerBase, anchors: Sequence[Anchor], batch_size: int, max_new_tokens: int
) -> KeepingReport:
    """Compare a tuned model with its base on anchors.

    Args:
        pair: both.
        tokenizer: of both.
        anchors: that nothing was learned from.
        batch_size: anchors in a batch.
        max_new_tokens: limit of the answers.
    """
    base, tuned = (
        Inference(model=model, tokenizer=tokenizer, batch_size=batch_size, when=when)
        for model, when in ((pair.base, "of the base"), (pair.tuned, "of the tuned model"))
    )
    prompts = [anchor.context for anchor in anchors]
    with evaluating(pair.base), pair.as_base():
        before = base.generate_ids(prompts, max_new_tokens)
    with evaluating(pair.tuned):
        after = tuned.generate_ids(prompts, max_new_tokens)
    answers = [Anchor(prompt, answer) for prompt, answer in zip(prompts, before, strict=True) if answer]
    tokens = np.array([len(answer.context) + len(answer.answer) for answer in answers], dtype=float)
    with tracked("Comparing with the base", len(answers)) as step:
        drifts: list[AnswerDrift] = []
        for drift in answer_drifts(base, tuned, pair.as_base, answers):
            drifts.append(drift)
            step()
    drifts.sort()
    kl = np.array([drift.kl for drift in drifts])
    texts = [tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in (before, after)]
    refused = [np.array([refuses(text) for text in part], dtype=float) for part in texts]
    same = np.array([a == b for a, b in zip(before, after, strict=True)], dtype=float)
    return KeepingReport(
        anchors=len(anchors),
        tokens=int(tokens.sum()),
        silent=_mean_over_tokens([drift.silent for drift in drifts], tokens),
        units_on=_mean_over_tokens([drift.units_on for drift in drifts], tokens),
        identical=_share(same),
        kl=_mean(kl, np.ones_like(kl)),
        refused_before=_share(refused[0]),
        refused_after=_share(refused[1]),
        still_refused=_share(refused[1][refused[0] == 1]) if refused[0].any() else None,
    )


def _mean_over_tokens(shares: Sequence[float | None], tokens: np.ndarray) -> Estimate | None:
    """None without units."""
    return None if None in shares else _mean(np.array(shares, dtype=float), tokens)


def _mean(values: np.ndarray, weights: np.ndarray) -> Estimate:
    estimate = bootstrap(values[None], weights)[0]
    assert estimate is not None
    return estimate


def _share(flags: np.ndarray) -> Estimate:
    interval = wilson(int(flags.sum()), len(flags))
    return Estimate(float(flags.mean()), interval.low, interval.high, draws=len(flags))


def keeping_table(reports: Mapping[str, KeepingReport]) -> Table:
    """One column a set."""
    table = Table(title="Kept of the base")
    table.add_column()
    for name, report in reports.items():
        table.add_column(f"{name}\n{report.anchors} prompts", justify="right")
    for label, shown in _ROWS.items():
        table.add_row(label, *(shown(report) for report in reports.values()))
    return table


def _percent(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    ends = "" if estimate.interval is None else f" [{estimate.interval.low:.1%}, {estimate.interval.high:.1%}]"
    return f"{estimate.mean:.1%}{ends}"


def _nats(estimate: Estimate) -> str:
    ends = "" if estimate.interval is None else f" [{estimate.interval.low:.2g}, {estimate.interval.high:.2g}]"
    return f"{estimate.mean:.2g}{ends}"


_ROWS: Mapping[str, Any] = {
    "tokens with all units silent": lambda report: _percent(report.silent),
    "answers identical to the base's": lambda report: _percent(report.identical),
    "KL to the base, nats a token": lambda report: _nats(report.kl),
    "refused by the base": lambda report: _percent(report.refused_before),
    "refused after training": lambda report: _percent(report.refused_after),
    "of the base's refusals, still refused": lambda report: _percent(report.still_refused),
}


def rows_of(reports: Mapping[str, KeepingReport]) -> list[list[str]]:
    """The table as texts, for a model card: a row a measure, a column a set."""
    return [[label, *(shown(report) for report in reports.values())] for label, shown in _ROWS.items()]
