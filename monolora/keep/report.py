"""The keeping report: how far a tuned model is from its base on anchors that nothing learned from.

Base and tuned model read the same batches, so that what rounding does to one it does to the other, and a model that is
the base gives the same answers token for token.

Shapes: B rows of a batch, T tokens, R units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from peft import PeftModel
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from monolora.inference import Inference, evaluating
from monolora.keep.anchors import Anchor
from monolora.refusals import refuses
from monolora.stats import Estimate, bootstrap, wilson
from monolora.terminal import track
from monolora.units import adapted_layers, watch


class KeepingReport(NamedTuple):
    """What a set of anchors says of a tuned model; every estimate is over anchors, with a 95 % interval.

    Attributes:
        anchors: their number.
        tokens: of prompts and answers.
        silent: share of tokens on which every unit is zero, so that nothing is added to the base; None without units.
        units_on: share of units that are not zero, over tokens; None without units.
        identical: share of anchors whose greedy answer is the base's, token for token.
        kl: ``KL(base ‖ tuned)`` of the next token along the base's answers, nats per token.
        refused_before, refused_after: share of answers that refuse, by phrases.
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


@torch.inference_mode()
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
    kl, silent, units_on, tokens = _read(pair, base, tuned, answers)
    texts = [tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in (before, after)]
    refused = [np.array([refuses(text) for text in part], dtype=float) for part in texts]
    same = np.array([a == b for a, b in zip(before, after, strict=True)], dtype=float)
    return KeepingReport(
        anchors=len(anchors),
        tokens=int(tokens.sum()),
        silent=None if silent is None else _mean(silent, tokens),
        units_on=None if units_on is None else _mean(units_on, tokens),
        identical=_share(same),
        kl=_mean(kl, np.ones_like(kl)),
        refused_before=_share(refused[0]),
        refused_after=_share(refused[1]),
        still_refused=_share(refused[1][refused[0] == 1]) if refused[0].any() else None,
    )


class _Silence:
    """Of each token of a batch, the share of units that are on."""

    def __init__(self) -> None:
        self.on_BT: torch.Tensor | None = None
        self.units = 0

    def __call__(self, layer: Any, adapter: str, h_BTR: torch.Tensor) -> None:
        on_BT = (h_BTR != 0).sum(-1)
        self.on_BT = on_BT if self.on_BT is None else self.on_BT + on_BT
        self.units += h_BTR.shape[-1]


def _read(
    pair: Pair, base: Inference, tuned: Inference, anchors: Sequence[Anchor]
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None, np.ndarray]:
    """Per anchor: KL along its answer, share of silent tokens, share of units on, number of tokens."""
    layers = list(adapted_layers(pair.tuned)) if isinstance(pair.tuned, PeftModel) else []
    kl, silent, on, tokens = (np.zeros(len(anchors)) for _ in range(4))
    order = sorted(range(len(anchors)), key=lambda index: -len(anchors[index].context) - len(anchors[index].answer))
    batches = [order[start : start + base.batch_size] for start in range(0, len(order), base.batch_size)]
    for batch in track(batches, description="Comparing with the base"):
        rows = [anchors[index].context + anchors[index].answer for index in batch]
        positions = [
            range(len(anchors[i].context) - 1, len(anchors[i].context) + len(anchors[i].answer) - 1) for i in batch
        ]
        with evaluating(pair.base), pair.as_base():
            p = base.log_probs_after(rows, positions)
        seen = _Silence()
        with ExitStack() as stack:
            stack.enter_context(evaluating(pair.tuned))
            for end in watch(layers, seen):
                stack.callback(end)
            q = tuned.log_probs_after(rows, positions)
        for row, index in enumerate(batch):
            kl[index] = float((p[row].exp() * (p[row] - q[row])).sum(-1).mean())
            tokens[index] = len(rows[row])
            if seen.on_BT is not None:
                on_T = seen.on_BT[row, : len(rows[row])]
                silent[index], on[index] = float((on_T == 0).float().mean()), float(on_T.float().mean()) / seen.units
    return kl, silent if layers else None, on if layers else None, tokens


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
