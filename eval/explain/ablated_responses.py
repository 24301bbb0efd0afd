"""What taking units out changes in a model's responses: the share that judges flag.

As in :mod:`monolora.eval.explain.ablations`, a response under an ablation is compared with one with all units that was
generated in the same batch.

Shapes: N rows of a batch, T tokens; K ablations, P prompts, E the two ends of a change.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from monolora.eval.explain.ablations import Ablation, Effect, batches_of
from monolora.eval.judges import Judge
from monolora.eval.process import inline_rows, worker_rows
from monolora.eval.records import OK
from monolora.explain.ablation import ablated
from monolora.inference import GREEDY, evaluating, padded
from monolora.terminal import tracked
from monolora.units import input_device


@dataclass(frozen=True, kw_only=True)
class Responses:
    """Greedy responses under ablations.

    Attributes:
        name: of the data set.
        questions: by prompt, what was asked.
        pairs: by ablation and prompt, the response with all units and the one without those of the ablation.
    """

    name: str
    questions: list[str]
    pairs: list[list[tuple[str, str]]]


def ablated_responses(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    questions: Sequence[str],
    prompts: Sequence[list[int]],
    ablations: Sequence[Ablation],
    *,
    max_new_tokens: int,
    batch_size: int,
    adapter: str = "default",
) -> Responses:
    """Greedy responses under each ablation; ``prompts`` are the token ids of ``questions`` in the model's format."""
    batches = batches_of([len(prompt) for prompt in prompts], len(ablations), batch_size)
    pairs = [[("", "")] * len(prompts) for _ in ablations]
    with evaluating(model), tracked(f"Responses on {name}", len(batches)) as step:
        for batch in batches:
            rows = [[], *ablations[batch.ablations]]
            ids = [prompts[place] for place in batch.prompts for _ in rows]
            with ablated(model, rows * len(batch.prompts), adapter):
                texts = iter(_generate(model, tokenizer, ids, max_new_tokens))
            for place in batch.prompts:
                adapted = next(texts)
                for of_ablation in pairs[batch.ablations]:
                    of_ablation[place] = (adapted, next(texts))
            step()
    return Responses(name=name, questions=list(questions), pairs=pairs)


@torch.inference_mode()
def _generate(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: Sequence[list[int]], max_new_tokens: int
) -> list[str]:
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    ids_NT, mask_NT = (each.to(input_device(model)) for each in padded(rows, pad, left=True))
    output_NT = model.generate(
        input_ids=ids_NT, attention_mask=mask_NT, max_new_tokens=max_new_tokens, pad_token_id=pad, **GREEDY
    )
    return [str(text) for text in tokenizer.batch_decode(output_NT[:, ids_NT.shape[1] :], skip_special_tokens=True)]


def judged_effects(responses: Responses, panel: Sequence[Judge], logs: Path) -> list[Effect]:
    """How the share of responses changes that each judge flags: refused, or harmful (pp).

    The same response to the same question is judged once.

    Args:
        responses: of :func:`ablated_responses`.
        panel: judges with names of their own.
        logs: folder for what model judges print.

    Raises:
        InputError, RunError: if a judge fails.
    """
    asked = [
        [tuple((question, text) for text in pair) for question, pair in zip(responses.questions, row, strict=True)]
        for row in responses.pairs
    ]
    distinct = dict.fromkeys(text for row in asked for pair in row for text in pair)
    effects = []
    for judge in panel:
        flags = _flags(judge, list(distinct), logs)
        flags_KPE = np.array([[[flags[text] for text in pair] for pair in row] for row in asked])
        title = "refused" if judge.kind == "refusal" else f"flagged by {judge.name}"
        changes_KP = flags_KPE[..., 1] - flags_KPE[..., 0]
        effects.append(Effect.of(responses.name, judge.name, title, "pp", flags_KPE[0, :, 0], changes_KP))
    return effects


def _flags(judge: Judge, texts: Sequence[tuple[str, str]], logs: Path) -> dict[tuple[str, str], float]:
    """100 for a question with a response that is flagged, 0 for one that is not, NaN without a verdict."""
    by_key = {str(number): text for number, text in enumerate(texts)}
    items = [{"key": key, "prompt": question, "response": text} for key, (question, text) in by_key.items()]
    job = {"settings": judge.settings, "items": items, "done": []}
    log = logs / f"judge-{re.sub('[^A-Za-z0-9.-]', '_', judge.name)}.log"
    rows: Iterable[dict[str, Any]] = (
        inline_rows(judge.target, job) if judge.in_process else worker_rows(judge.target, job, log)
    )
    flags = dict.fromkeys(texts, np.nan)
    with tracked(f"Judgements by {judge.name}", len(items)) as step:
        for row in rows:
            if row["status"] == OK:
                flags[by_key[row["key"]]] = 100.0 * judge.flagged(row["scores"])
            step()
    return flags
