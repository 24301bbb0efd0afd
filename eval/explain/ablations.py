"""The effects of taking units out on the next token, and on the answers of a classification task.

Ablations are lists of units that are taken out together. Every batch holds some prompts under some of the ablations,
and each of these prompts with all units too: both sides of a difference are rows of one batch, with the same padding
and the same kernels, so that the rounding of bfloat16 does not look like an effect.

Shapes: N rows of a batch, S distinct sequences of it, A ablations of it and one row of all units before them; T tokens,
V vocabulary, H hidden size, C vocabulary at a time; K ablations, P prompts, L labels, M measures.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedTokenizerBase

from monolora.data.chat_template import split_at_answer
from monolora.data.example import Example
from monolora.eval.explain.records import Ablations, Change, Floats, Measure
from monolora.explain.ablation import ablated
from monolora.inference import evaluating, padded
from monolora.stats import bootstrap, false_discovery_rate
from monolora.terminal import tracked
from monolora.units import UnitName, input_device

Ablation = Collection[UnitName]

_MEASURES = (("kl", "KL", "nats"), ("accuracy", "accuracy", "pp"), ("margin", "margin", "nats"))
_AT_A_TIME = 16_384  # of the vocabulary, in float32


class ScoredPrompt(NamedTuple):
    """A prompt whose next token is scored.

    Attributes:
        prompt: token ids.
        answers: of a classification task, token ids of each of its labels after the prompt; else empty.
        truth: index of the right one among them.
    """

    prompt: list[int]
    answers: Sequence[list[int]] = ()
    truth: int = 0


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One measure under every ablation.

    Attributes:
        measure: which one.
        changes_KP: ablated minus adapted, by ablation and prompt; NaN where one of the two could not be measured.
    """

    measure: Measure
    changes_KP: Floats

    @staticmethod
    def of(
        dataset: str, key: str, title: str, unit: str, adapted_P: Floats, changes_KP: Floats, is_tested: bool = True
    ) -> Effect:
        """From values by prompt; a warning counts what could not be measured.

        Args:
            dataset: its name.
            key: the measure's in it.
            title, unit: of the measure.
            adapted_P: of the adapted model with all its units.
            changes_KP: as in :class:`Effect`.
            is_tested: whether "no change on average" can be.
        """
        missing = int(np.isnan(changes_KP).sum())
        if missing:
            warnings.warn(
                f"{missing:,} of {changes_KP.size:,} changes of {dataset}.{key} could not be measured; left out.",
                stacklevel=3,
            )
        measured_P = adapted_P[~np.isnan(adapted_P)]
        prompts = int((~np.isnan(changes_KP)).any(0).sum())
        mean = float(measured_P.mean()) if measured_P.size else np.nan
        measure = Measure(f"{dataset}.{key}", title, unit, dataset, prompts, mean, is_tested)
        return Effect(measure=measure, changes_KP=changes_KP)


def scored_prompt(example: Example, labels: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> ScoredPrompt:
    """An example of a classification task, divided as :func:`monolora.data.scoring.label_likelihoods` does it.

    Where tokens merge over the end of the prompt with some label, they count as the answers'.
    """
    splits = [split_at_answer(example._replace(response=label), tokenizer) for label in labels]
    prompt = min((split.context for split in splits), key=len)
    wholes = [split.context + split.answer for split in splits]
    end = tokenizer.eos_token_id
    answers = [whole[len(prompt) :] for whole in wholes]
    return ScoredPrompt(
        prompt,
        [answer[: answer.index(end)] if end in answer else answer for answer in answers],
        labels.index(example.response),
    )


def next_token_effects(
    model: Any,
    name: str,
    prompts: Sequence[ScoredPrompt],
    ablations: Sequence[Ablation],
    *,
    batch_size: int,
    adapter: str = "default",
) -> list[Effect]:
    """The changes of the next token.

    Args:
        model: a causal language model with LoRA or MonoLoRA layers.
        name: of the data set.
        prompts: at least one; all with answers (two or more), or none.
        ablations: at least one.
        batch_size: rows in a batch, which has one ablation of one prompt at least.
        adapter: name of the adapter.

    Returns:
        KL(adapted || ablated) of the next token after the prompt (nats); where there are answers, accuracy by label
        likelihood (pp) and margin, log p(right answer) - max log p(other answer) (nats).
    """
    sequences = [_sequences(prompt) for prompt in prompts]
    batches = batches_of(
        [max(map(len, beginnings)) for beginnings in sequences], len(ablations), batch_size, max(map(len, sequences))
    )
    adapted_MP = np.full((len(_MEASURES), len(prompts)), np.nan)
    changes_MKP = np.full((len(_MEASURES), len(ablations), len(prompts)), np.nan)
    with evaluating(model), _precise_logits(model), tracked(f"Ablations on {name}", len(batches)) as step:
        for batch in batches:
            rows = [[], *ablations[batch.ablations]]
            scores = _scores(model, [prompts[index] for index in batch.prompts], rows, adapter)
            for index, scores_MA in zip(batch.prompts, scores, strict=True):
                adapted_MP[:, index] = scores_MA[:, 0]
                changes_MKP[:, batch.ablations, index] = scores_MA[:, 1:] - scores_MA[:, :1]
            step()
    adapted_MP[0] = np.nan  # KL is a difference already
    return [
        Effect.of(name, *_MEASURES[m], adapted_MP[m], changes_MKP[m], is_tested=m > 0)
        for m in range(len(_MEASURES) if prompts[0].answers else 1)
    ]


@contextmanager
def _precise_logits(model: Any) -> Iterator[None]:
    """Logits in float32: bfloat16 has 8 bits for a logit, which hide the small changes of single units.

    The output layer is recomputed; what a model does to logits after it (caps, scales) applies to these. A layer that
    is not plain and in memory (quantized, adapted, offloaded) is left as it is.
    """
    head = model.get_output_embeddings()
    is_plain = type(head) is nn.Linear and not head.weight.is_meta
    if not is_plain or head.weight.dtype not in (torch.bfloat16, torch.float16):
        yield
        return

    def precise(head: nn.Linear, args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        x_NTH = args[0].to(output.device, torch.float32)
        logits = torch.cat([F.linear(x_NTH, weight_CH.float()) for weight_CH in head.weight.split(_AT_A_TIME)], -1)
        return logits if head.bias is None else logits + head.bias.float()

    handle = head.register_forward_hook(precise)
    try:
        yield
    finally:
        handle.remove()


class Batch(NamedTuple):
    """Indices of prompts, and the slice of the ablations under which they are run."""

    prompts: list[int]
    ablations: slice


def batches_of(lengths: Sequence[int], ablations: int, batch_size: int, sequences: int = 1) -> list[Batch]:
    """Prompts by length, each under as many ablations as a batch takes beside the row with all units."""
    width = min(ablations, max(1, batch_size // sequences - 1))
    at_once = max(1, batch_size // ((width + 1) * sequences))
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [
        Batch(order[first : first + at_once], slice(start, min(start + width, ablations)))
        for first in range(0, len(order), at_once)
        for start in range(0, ablations, width)
    ]


def _sequences(prompt: ScoredPrompt) -> list[tuple[int, ...]]:
    """The sequences to run for the next token and the answers: the prompt alone if these are single tokens."""
    beginnings = dict.fromkeys(tuple(answer[:-1]) for answer in prompt.answers) or [()]
    return [(*prompt.prompt, *beginning) for beginning in beginnings]


@torch.inference_mode()
def _scores(model: Any, prompts: Sequence[ScoredPrompt], ablations: Sequence[Ablation], adapter: str) -> list[Floats]:
    """For each prompt KL to the first row, accuracy in percent and margin of every row; NaN where unavailable.

    Returns:
        shape ``(M, A)`` each.
    """
    sequences = [sequence for prompt in prompts for sequence in _sequences(prompt)]
    longest = max([1, *(len(answer) for prompt in prompts for answer in prompt.answers)])
    ids_NT, mask_NT = padded([list(sequence) for sequence in sequences for _ in ablations], 0, left=True)
    device = input_device(model)
    with ablated(model, list(ablations) * len(sequences), adapter):
        logits = model(
            input_ids=ids_NT.to(device),
            attention_mask=mask_NT.to(device),
            position_ids=(mask_NT.cumsum(1) - 1).clamp(min=0).to(device),
            logits_to_keep=longest,
            use_cache=False,
        ).logits
    logits_SATV = logits.unflatten(0, (len(sequences), len(ablations)))
    row_index = {sequence: s for s, sequence in enumerate(sequences)}
    return [_of_prompt(prompt, row_index, logits_SATV) for prompt in prompts]


def _of_prompt(prompt: ScoredPrompt, row_index: Mapping[tuple[int, ...], int], logits_SATV: torch.Tensor) -> Floats:
    log_p_ATV = {
        sequence[len(prompt.prompt) :]: F.log_softmax(
            logits_SATV[row_index[sequence], :, len(prompt.prompt) - len(sequence) - 1 :].double(), -1
        )
        for sequence in _sequences(prompt)
    }
    kl_A = _kl(next(iter(log_p_ATV.values()))[:, 0])  # every answer begins where the prompt ends
    if not prompt.answers:
        nothing_A = np.full(len(kl_A), np.nan)
        return np.stack([kl_A, nothing_A, nothing_A])
    by_answer = [log_p_ATV[tuple(answer[:-1])][:, range(len(answer)), answer].sum(-1) for answer in prompt.answers]
    log_p_AL = torch.stack(by_answer, -1).cpu().numpy()
    with np.errstate(invalid="ignore"):
        margin_A = log_p_AL[:, prompt.truth] - np.delete(log_p_AL, prompt.truth, 1).max(1)
    margin_A = np.where(np.isfinite(margin_A), margin_A, np.nan)
    right_A = 100.0 * (log_p_AL.argmax(1) == prompt.truth)
    return np.stack([kl_A, np.where(np.isnan(margin_A), np.nan, right_A), margin_A])


def _kl(log_p_AV: torch.Tensor) -> Floats:
    """KL of each row to the first, which is p; NaN where it is not finite."""
    p_V = log_p_AV[0].exp()
    terms_AV = torch.where(p_V == 0, 0.0, p_V * (log_p_AV[0] - log_p_AV))
    kl_A = terms_AV.sum(-1).cpu().numpy()
    return np.where(np.isfinite(kl_A), kl_A, np.nan)


def summarised(effects: Sequence[Effect], indices: Sequence[int]) -> Ablations:
    """Mean changes with 95 % intervals and p-values of the bootstrap over prompts, all of which weigh 1.

    The false discovery rates are, measure by measure, over the units that were taken out alone.

    Args:
        effects: of the same ablations: one for each of ``indices``, and last all units together.
        indices: in ``Explained.units``, of the units that were taken out alone.
    """
    *alone, everything = (list(changes) for changes in zip(*map(_changes, effects), strict=True))
    return Ablations(
        measures=[effect.measure for effect in effects],
        changes=dict(zip(indices, alone, strict=True)),
        everything=everything,
    )


def _changes(effect: Effect) -> list[Change]:
    estimates = bootstrap(effect.changes_KP, np.ones(effect.changes_KP.shape[1]))
    rows = [(None,) * 4 if estimate is None else estimate[:4] for estimate in estimates]  # mean, low, high, p
    numbers_K4 = np.array(rows, np.float64)  # NaN for None
    if not effect.measure.is_tested:
        numbers_K4[:, 3] = np.nan
    q_K = np.append(false_discovery_rate(numbers_K4[:-1, 3]), np.nan)
    numbers = zip(numbers_K4.tolist(), q_K.tolist(), strict=True)
    return [Change(mean, low, high, p, q) for (mean, low, high, p), q in numbers]
