"""What taking units out changes on prompts: the next token, and the answers of a classification task.

Ablations are lists of units that are taken out together. Every batch holds some prompts under some of the ablations,
and each of these prompts with all units too: both sides of a difference are rows of one batch, with the same padding
and the same kernels, so that the rounding of bfloat16 does not look like an effect.

Shapes: N rows of a batch, S distinct sequences of it, A ablations of it and one row of all units before them; T tokens,
V vocabulary; K ablations, P prompts, L labels.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase

from monolora.eval.explain.records import Ablations, Change, Floats, Measure
from monolora.eval.measures.bootstrap import bootstrap
from monolora.eval.progress import tracked
from monolora.explain.ablation import ablated
from monolora.recipes.inference import evaluating, input_device, padded
from monolora.recipes.prompts import split_at_answer
from monolora.recipes.tasks.base import Example
from monolora.units import UnitName

Ablation = Collection[UnitName]


class ScoredPrompt(NamedTuple):
    """A prompt after which the next token is looked at.

    Attributes:
        prompt: token ids.
        answers: of a classification task, token ids of each of its labels after the prompt; else empty.
        truth: place of the right one among them.
    """

    prompt: list[int]
    answers: Sequence[list[int]] = ()
    truth: int = 0


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One measure under every ablation.

    Attributes:
        measure: what it is.
        changes_KP: ablated minus adapted, by ablation and prompt; NaN where one of the two could not be measured.
    """

    measure: Measure
    changes_KP: Floats

    @staticmethod
    def of(dataset: str, key: str, title: str, unit: str, adapted_P: Floats, changes_KP: Floats) -> Effect:
        """From values by prompt; what could not be measured is counted in a warning.

        Args:
            dataset: its name.
            key: the measure's in it.
            title, unit: of the measure.
            adapted_P: of the adapted model with all its units.
            changes_KP: as above.
        """
        missing = int(np.isnan(changes_KP).sum())
        if missing:
            warnings.warn(
                f"{missing:,} of {changes_KP.size:,} changes of {dataset}.{key} could not be measured and are out.",
                stacklevel=3,
            )
        there_P = adapted_P[~np.isnan(adapted_P)]
        prompts = int((~np.isnan(changes_KP)).any(0).sum())
        mean = float(there_P.mean()) if there_P.size else np.nan
        return Effect(measure=Measure(f"{dataset}.{key}", title, unit, dataset, prompts, mean), changes_KP=changes_KP)


def scored_prompt(example: Example, labels: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> ScoredPrompt:
    """An example of a classification task, divided as :func:`monolora.recipes.scoring.label_likelihoods` does it.

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
    """How the next token changes.

    Args:
        model: a causal language model with LoRA or MonoLoRA layers.
        name: of the data set.
        prompts: at least one; all with answers (two or more), or none.
        ablations: at least one.
        batch_size: rows at a time; at least one ablation of one prompt is.
        adapter: whose units.

    Returns:
        KL(adapted || ablated) of the next token after the prompt (nats); where there are answers, accuracy by label
        likelihood (pp) and margin, log p(right answer) - max log p(other answer) (nats).
    """
    sequences = [_sequences(prompt) for prompt in prompts]
    batches = batches_of(
        [max(map(len, each)) for each in sequences], len(ablations), batch_size, max(map(len, sequences))
    )
    kl_KP, *changes_KP = np.full((3, len(ablations), len(prompts)), np.nan)
    adapted_P = np.full((2, len(prompts)), np.nan)
    with evaluating(model), tracked(f"Ablations on {name}", len(batches)) as step:
        for batch in batches:
            rows = [[], *ablations[batch.ablations]]
            scores = _scores(model, [prompts[place] for place in batch.prompts], rows, adapter)
            for place, (kl, accuracy, margin) in zip(batch.prompts, scores, strict=True):
                kl_KP[batch.ablations, place] = kl[1:]
                for k, values in enumerate((accuracy, margin)):
                    adapted_P[k, place] = values[0]
                    changes_KP[k][batch.ablations, place] = values[1:] - values[0]
            step()
    effects = [Effect.of(name, "kl", "KL", "nats", np.full(len(prompts), np.nan), kl_KP)]
    if prompts[0].answers:
        effects.append(Effect.of(name, "accuracy", "accuracy", "pp", adapted_P[0], changes_KP[0]))
        effects.append(Effect.of(name, "margin", "margin", "nats", adapted_P[1], changes_KP[1]))
    return effects


class Batch(NamedTuple):
    """Places of prompts, and those of the ablations under which they are run."""

    prompts: list[int]
    ablations: slice


def batches_of(lengths: Sequence[int], ablations: int, batch_size: int, sequences: int = 1) -> list[Batch]:
    """Prompts by length, each under as many ablations as a batch takes beside the row with all units."""
    width = min(ablations, max(1, batch_size // sequences - 1))
    at_once = max(1, batch_size // ((width + 1) * sequences))
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    return [
        Batch(order[first : first + at_once], slice(start, min(start + width, ablations)))
        for first in range(0, len(order), at_once)
        for start in range(0, ablations, width)
    ]


def _sequences(prompt: ScoredPrompt) -> list[tuple[int, ...]]:
    """What has to be run for the next token and the answers: the prompt alone where these are single tokens."""
    beginnings = dict.fromkeys(tuple(answer[:-1]) for answer in prompt.answers) or [()]
    return [(*prompt.prompt, *beginning) for beginning in beginnings]


@torch.inference_mode()
def _scores(
    model: Any, prompts: Sequence[ScoredPrompt], ablations: Sequence[Ablation], adapter: str
) -> list[tuple[Floats, Floats, Floats]]:
    """For each prompt KL to the first row, accuracy in percent and margin of every row; NaN where not to be had."""
    sequences = [each for prompt in prompts for each in _sequences(prompt)]
    kept = max([1, *(len(answer) for prompt in prompts for answer in prompt.answers)])
    ids_NT, mask_NT = padded([list(each) for each in sequences for _ in ablations], 0, left=True)
    device = input_device(model)
    with ablated(model, list(ablations) * len(sequences), adapter):
        logits = model(
            input_ids=ids_NT.to(device),
            attention_mask=mask_NT.to(device),
            position_ids=(mask_NT.cumsum(1) - 1).clamp(min=0).to(device),
            logits_to_keep=kept,
            use_cache=False,
        ).logits
    logits_SATV = logits.unflatten(0, (len(sequences), len(ablations)))
    place = {sequence: s for s, sequence in enumerate(sequences)}
    return [_of_prompt(prompt, place, logits_SATV) for prompt in prompts]


def _of_prompt(
    prompt: ScoredPrompt, place: Mapping[tuple[int, ...], int], logits_SATV: torch.Tensor
) -> tuple[Floats, Floats, Floats]:
    log_p_ATV = {
        sequence[len(prompt.prompt) :]: F.log_softmax(
            logits_SATV[place[sequence], :, len(prompt.prompt) - len(sequence) - 1 :].double(), -1
        )
        for sequence in _sequences(prompt)
    }
    kl_A = _kl(next(iter(log_p_ATV.values()))[:, 0])  # every answer begins where the prompt ends
    if not prompt.answers:
        nothing_A = np.full(len(kl_A), np.nan)
        return kl_A, nothing_A, nothing_A
    found = [log_p_ATV[tuple(answer[:-1])][:, range(len(answer)), answer].sum(-1) for answer in prompt.answers]
    log_p_AL = torch.stack(found, -1).cpu().numpy()
    with np.errstate(invalid="ignore"):
        margin_A = log_p_AL[:, prompt.truth] - np.delete(log_p_AL, prompt.truth, 1).max(1)
    margin_A = np.where(np.isfinite(margin_A), margin_A, np.nan)
    right_A = 100.0 * (log_p_AL.argmax(1) == prompt.truth)
    return kl_A, np.where(np.isnan(margin_A), np.nan, right_A), margin_A


def _kl(log_p_AV: torch.Tensor) -> Floats:
    """KL of each row to the first, which is p; NaN where it is not finite."""
    p_V = log_p_AV[0].exp()
    terms_AV = torch.where(p_V == 0, 0.0, p_V * (log_p_AV[0] - log_p_AV))
    kl_A = terms_AV.sum(-1).cpu().numpy()
    return np.where(np.isfinite(kl_A), kl_A, np.nan)


def summarised(effects: Sequence[Effect], places: Sequence[int]) -> Ablations:
    """Mean changes with 95 % intervals of the bootstrap over prompts, all of which weigh 1.

    Args:
        effects: of the same ablations: one for each of ``places``, and last all units together.
        places: in ``Explained.units``, of the units that were taken out alone.
    """
    by_measure = [_changes(effect.changes_KP) for effect in effects]
    by_ablation = [list(changes) for changes in zip(*by_measure, strict=True)]
    *alone, everything = by_ablation
    return Ablations(
        measures=[effect.measure for effect in effects],
        changes=dict(zip(places, alone, strict=True)),
        everything=everything,
    )


def _changes(changes_KP: Floats) -> list[Change]:
    found = bootstrap(changes_KP, np.ones(changes_KP.shape[1]))
    return [Change(*each) for each in zip(*(values.tolist() for values in found[:3]), strict=True)]
