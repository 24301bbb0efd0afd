"""The effects of units: the tokens that they make likelier, and what changes when they are taken out.

As in :mod:`monolora.eval.explain.ablations`, a response under an ablation is compared with one with all units that
was generated in the same batch. Shapes: N rows of a batch, T tokens; K ablations, P prompts, E ends of a change.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from monolora.data.prompt_sets import Prompt
from monolora.errors import InputError
from monolora.eval import judges
from monolora.eval.explain.ablations import (
    Ablation,
    Effect,
    ScoredPrompt,
    batches_of,
    next_token_effects,
    scored_prompt,
    summarised,
)
from monolora.eval.explain.features import Counted, TokenTexts, merged_contexts
from monolora.eval.explain.records import Ablations, Contrast, DatasetFeatures, Floats, UnitLogits
from monolora.eval.explain.settings import Settings
from monolora.eval.explain.text_sets import TextSet, spread
from monolora.eval.judges import Judge, JudgeOptions
from monolora.eval.score import question
from monolora.eval.store import OK
from monolora.explain.ablation import ablated
from monolora.explain.logits import TopTokens, ablation_logits, direct_logits
from monolora.inference import GREEDY, Inference, evaluating, padded
from monolora.terminal import STDERR, tracked
from monolora.units import Layout, UnitName, find_units, input_device
from monolora.workers import inline_rows, worker_rows

LOGITS = 10  # tokens that are raised, and lowered


def check_ablations(
    fixed: Mapping[str, str], layout: Layout, text_sets: Mapping[str, TextSet], settings: Settings
) -> None:
    """Check the requested units before anything is measured; print what will be left out.

    Args:
        fixed: by module, why its units cannot be taken out.
        layout: of the units.
        text_sets: the data sets.
        settings: which units, on how many contexts.

    Raises:
        InputError: for an unknown unit, or one that cannot be taken out.
    """
    for unit in sorted(find_units(settings.ablate_units, layout.ranks)):
        if unit.module in fixed:
            raise InputError(f"{unit} cannot be ablated: {fixed[unit.module]}. Name others with --ablate-units.")
    if not (settings.ablate or settings.ablate_units):
        return
    for module, reason in fixed.items():
        STDERR.print(f"The units of {module} are not ablated: {reason}.")
    for name, text_set in text_sets.items():
        if text_set.part != "text":
            STDERR.print(f"Nothing is ablated on {name}: that is measured on whole prompts. Read those too for it.")


def unit_logits(
    inference: Inference,
    layout: Layout,
    fixed: Mapping[str, str],
    text_set: TextSet,
    counted: Counted,
    settings: Settings,
) -> list[UnitLogits | None]:
    """The next tokens that each unit raises and lowers: by its direct output where that reaches them, else by ablation.

    Args:
        inference: the adapted model.
        layout: of its units.
        fixed: modules whose units cannot be taken out.
        text_set: whose strongest contexts are taken.
        counted: of the pass over it.
        settings: how many contexts; none leaves the ablations out.
    """
    logits: dict[UnitName, TopTokens] = {}
    for module in layout.layers:
        direct = direct_logits(inference.model, module, LOGITS, layout.adapter)
        logits |= {UnitName(module, unit): top for unit, top in enumerate(direct or [])}
    ids = cache(lambda number: text_set.ids(number, inference.tokenizer))
    contexts = {
        unit: [ids(number)[:end] for number, end in prefixes]
        for unit, prefixes in zip(
            layout.units, merged_contexts(counted.statistics.contexts, settings.logit_contexts), strict=True
        )
        if unit not in logits and unit.module not in fixed and settings.logit_contexts and prefixes
    }
    stream = ablation_logits(
        inference.model, contexts, LOGITS, batch_size=4 * inference.batch_size, adapter=layout.adapter
    )
    with evaluating(inference.model), tracked("Logits by ablation", len(contexts)) as step:
        for unit, top in stream:
            logits[unit] = top
            step()
    tokens = TokenTexts(inference.tokenizer)
    return [_named(logits[unit], tokens) if unit in logits else None for unit in layout.units]


def _named(top: TopTokens, tokens: TokenTexts) -> UnitLogits:
    raised, lowered = ([(tokens.of(i), value) for i, value in side] for side in (top.raised, top.lowered))
    return UnitLogits(top.how, raised, lowered)


def make_panel(settings: Settings) -> list[Judge]:
    """The judges of ablated answers, ``refusal`` always among them.

    Raises:
        InputError: if one is unavailable.
    """
    names = dict.fromkeys((*settings.judges, judges.REFUSAL))
    return [judges.make(name, JudgeOptions()) for name in names]


def chosen_units(
    layout: Layout,
    fixed: Mapping[str, str],
    features: Sequence[DatasetFeatures],
    contrasts: Sequence[Contrast],
    settings: Settings,
) -> list[int]:
    """Indices of the units to ablate: those named, or the first by ``--ablate-by``; none in a module of ``fixed``."""
    if settings.ablate_units:
        unit_index = layout.indices()
        return sorted(unit_index[unit] for unit in find_units(settings.ablate_units, layout.ranks))
    columns = {
        "effect": [dataset.effect for dataset in features],
        "information": [np.nan_to_num(dataset.information) for dataset in features],
        "contrast": [np.nan_to_num(np.abs(contrast.auc - 0.5)) for contrast in contrasts],
    }
    strength_U = np.max(columns[settings.ablate_by], axis=0)
    ranked = [int(index) for index in np.argsort(-strength_U, kind="stable")]
    return [index for index in ranked if layout.module_of(index) not in fixed][: settings.ablate]


def ablations(
    inference: Inference,
    layout: Layout,
    fixed: Mapping[str, str],
    indices: Sequence[int],
    text_sets: Mapping[str, TextSet],
    panel: Sequence[Judge],
    settings: Settings,
    logs: Path,
) -> Ablations:
    """Changes of the measures without each of some units, and without all of the adapter's.

    Args:
        inference: the adapted model.
        layout: of its units.
        fixed: modules whose units cannot be taken out; if any, all units together are left out.
        indices: of the units that are taken out one at a time; if empty, nothing is measured.
        text_sets: the data sets.
        panel: judges of answers to safety prompts.
        settings: how many prompts.
        logs: folder for what model judges print.
    """
    if not indices:
        return Ablations()
    every = [unit for unit in layout.units if unit.module not in fixed]
    taken_out: list[Ablation] = [*([layout.units[index]] for index in indices), every]
    effects: list[Effect] = []
    kl: dict[str, Floats] = {}
    for text_set in text_sets.values():
        if text_set.part != "text":
            continue
        of_next_token = _next_token(inference, layout, text_set, taken_out, settings)
        effects += of_next_token
        kl[text_set.name] = of_next_token[0].changes_KP[:-1]
        if text_set.is_safety and settings.safety_prompts:
            effects += _responses(inference, layout, text_set, taken_out, panel, settings, logs)
    summary = summarised(effects, indices) if effects else Ablations()
    return replace(summary, everything=[] if fixed else summary.everything, kl=kl)


def _next_token(
    inference: Inference, layout: Layout, text_set: TextSet, taken_out: Sequence[Ablation], settings: Settings
) -> list[Effect]:
    chosen = spread(len(text_set.examples), settings.ablation_prompts)
    if text_set.task_labels:
        prompts = [
            scored_prompt(text_set.examples[number], text_set.task_labels, inference.tokenizer) for number in chosen
        ]
    else:
        prompts = [ScoredPrompt(text_set.ids(number, inference.tokenizer)) for number in chosen]
    return next_token_effects(
        inference.model, text_set.name, prompts, taken_out, batch_size=4 * inference.batch_size, adapter=layout.adapter
    )


def _responses(
    inference: Inference,
    layout: Layout,
    text_set: TextSet,
    taken_out: Sequence[Ablation],
    panel: Sequence[Judge],
    settings: Settings,
    logs: Path,
) -> list[Effect]:
    chosen = spread(len(text_set.examples), settings.safety_prompts)
    examples = [text_set.examples[number] for number in chosen]
    responses = ablated_responses(
        inference.model,
        inference.tokenizer,
        text_set.name,
        [question(Prompt("", example.instruction, example.context)) for example in examples],
        [text_set.ids(number, inference.tokenizer) for number in chosen],
        taken_out,
        max_new_tokens=settings.max_new_tokens,
        batch_size=4 * inference.batch_size,
        adapter=layout.adapter,
    )
    return judged_effects(responses, panel, logs)


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
            ids = [prompts[index] for index in batch.prompts for _ in rows]
            with ablated(model, rows * len(batch.prompts), adapter):
                texts = iter(_generate(model, tokenizer, ids, max_new_tokens))
            for index in batch.prompts:
                adapted = next(texts)
                for of_ablation in pairs[batch.ablations]:
                    of_ablation[index] = (adapted, next(texts))
            step()
    return Responses(name=name, questions=list(questions), pairs=pairs)


@torch.inference_mode()
def _generate(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: Sequence[list[int]], max_new_tokens: int
) -> list[str]:
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    ids_NT, mask_NT = (tensor.to(input_device(model)) for tensor in padded(rows, pad, left=True))
    output_NT = model.generate(
        input_ids=ids_NT, attention_mask=mask_NT, max_new_tokens=max_new_tokens, pad_token_id=pad, **GREEDY
    )
    return [str(text) for text in tokenizer.batch_decode(output_NT[:, ids_NT.shape[1] :], skip_special_tokens=True)]


def judged_effects(responses: Responses, panel: Sequence[Judge], logs: Path) -> list[Effect]:
    """How the share of responses that each judge flags (refused, or harmful) changes, in pp.

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
