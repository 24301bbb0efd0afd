"""What units do: the tokens that they make likelier, and what is lost without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from monolora.data.prompt_sets import Prompt
from monolora.errors import InputError
from monolora.eval import judges
from monolora.eval.explain.ablated_responses import ablated_responses, judged_effects
from monolora.eval.explain.ablations import (
    Ablation,
    Effect,
    ScoredPrompt,
    next_token_effects,
    scored_prompt,
    summarised,
)
from monolora.eval.explain.contrasts import Counted
from monolora.eval.explain.features import TokenTexts, merged_contexts
from monolora.eval.explain.records import Ablations, Contrast, DatasetFeatures, UnitLogits
from monolora.eval.explain.settings import Settings
from monolora.eval.explain.text_sets import TextSet
from monolora.eval.judges import Judge, JudgeOptions
from monolora.eval.score import question
from monolora.explain.layout import Layout
from monolora.explain.logits import TopTokens, ablation_logits, direct_logits
from monolora.inference import Inference, evaluating
from monolora.terminal import STDERR, tracked
from monolora.units import UnitName, find_units

LOGITS = 10  # tokens that are raised, and lowered


def check_ablations(
    fixed: Mapping[str, str], layout: Layout, text_sets: Mapping[str, TextSet], settings: Settings
) -> None:
    """Look at what is asked for before anything is measured; say what will be left out.

    Args:
        fixed: why the units of a module cannot be taken out, by its name.
        layout: of the units.
        text_sets: the data sets.
        settings: which units, on how many contexts.

    Raises:
        InputError: for a unit that is none, or cannot be taken out.
    """
    for unit in sorted(find_units(settings.ablate_units, layout.ranks)):
        if unit.module in fixed:
            raise InputError(f"{unit} cannot be ablated: {fixed[unit.module]}. Name others with --ablate-units.")
    if not (settings.ablate or settings.ablate_units):
        return
    for module, reason in fixed.items():
        _say(f"The units of {module} are not ablated: {reason}.")
    for name, text_set in text_sets.items():
        if text_set.part != "text":
            _say(f"Nothing is ablated on {name}: that is measured on whole prompts. Read those too for it.")


def _say(note: str) -> None:
    STDERR.print(note)


def unit_logits(
    inference: Inference,
    layout: Layout,
    fixed: Mapping[str, str],
    text_set: TextSet,
    counted: Counted,
    settings: Settings,
) -> list[UnitLogits | None]:
    """The next tokens that each unit raises and lowers: directly where its output reaches them so, else by ablation.

    Args:
        inference: the adapted model.
        layout: of its units.
        fixed: modules whose units cannot be taken out.
        text_set: whose strongest contexts are taken.
        counted: what the pass over it found.
        settings: how many contexts; none leaves the ablations out.
    """
    found: dict[UnitName, TopTokens] = {}
    for module in layout.layers:
        direct = direct_logits(inference.model, module, LOGITS, layout.adapter)
        found |= {UnitName(module, unit): each for unit, each in enumerate(direct or [])}
    ids = cache(lambda number: text_set.ids(number, inference.tokenizer))
    contexts = {
        unit: [ids(number)[:end] for number, end in places]
        for unit, places in zip(
            layout.units, merged_contexts(counted.found.contexts, settings.logit_contexts), strict=True
        )
        if unit not in found and unit.module not in fixed and settings.logit_contexts and places
    }
    stream = ablation_logits(
        inference.model, contexts, LOGITS, batch_size=4 * inference.batch_size, adapter=layout.adapter
    )
    with evaluating(inference.model), tracked("Logits by ablation", len(contexts)) as step:
        for unit, top in stream:
            found[unit] = top
            step()
    tokens = TokenTexts(inference.tokenizer)
    return [_named(found[unit], tokens) if unit in found else None for unit in layout.units]


def _named(top: TopTokens, tokens: TokenTexts) -> UnitLogits:
    raised, lowered = ([(tokens.of(i), value) for i, value in side] for side in (top.raised, top.lowered))
    return UnitLogits(top.how, raised, lowered)


def make_panel(settings: Settings) -> list[Judge]:
    """The judges of ablated answers; ``refusal`` is always there.

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
    """Places of the units that are ablated: those named, or the first by the ranking that was asked for.

    Units of the modules in ``fixed`` cannot be, and those that the ranking does not reach are none of the first.
    """
    if settings.ablate_units:
        places = layout.places()
        return sorted(places[unit] for unit in find_units(settings.ablate_units, layout.ranks))
    columns = {
        "effect": [each.effect for each in features],
        "information": [np.nan_to_num(each.information) for each in features],
        "contrast": [np.nan_to_num(np.abs(each.auc - 0.5)) for each in contrasts],
    }
    strength_U = np.max(columns[settings.ablate_by], axis=0)
    first = [int(place) for place in np.argsort(-strength_U, kind="stable")]
    return [place for place in first if layout.module_of(place) not in fixed][: settings.ablate]


def ablations(
    inference: Inference,
    layout: Layout,
    fixed: Mapping[str, str],
    places: Sequence[int],
    text_sets: Mapping[str, TextSet],
    panel: Sequence[Judge],
    settings: Settings,
    logs: Path,
) -> Ablations:
    """What is lost without each of some units, and without all of the adapter's.

    Args:
        inference: the adapted model.
        layout: of its units.
        fixed: modules whose units cannot be taken out; where there are any, nothing is said of all units together.
        places: of the units that are taken out one at a time; of none, nothing is measured.
        text_sets: the data sets.
        panel: judges of answers to safety prompts.
        settings: how many prompts.
        logs: folder for what model judges print.
    """
    if not places:
        return Ablations()
    every = [unit for unit in layout.units if unit.module not in fixed]
    taken_out: list[Ablation] = [*([layout.units[place]] for place in places), every]
    effects: list[Effect] = []
    for text_set in text_sets.values():
        if text_set.part != "text":
            continue
        effects += _next_token(inference, layout, text_set, taken_out, settings)
        if text_set.is_safety and settings.safety_prompts:
            effects += _responses(inference, layout, text_set, taken_out, panel, settings, logs)
    found = summarised(effects, places) if effects else Ablations()
    return replace(found, everything=[]) if fixed else found


def _next_token(
    inference: Inference, layout: Layout, text_set: TextSet, taken_out: Sequence[Ablation], settings: Settings
) -> list[Effect]:
    chosen = _spread(len(text_set.examples), settings.ablation_prompts)
    if text_set.task_labels:
        prompts = [
            scored_prompt(text_set.examples[number], text_set.task_labels, inference.tokenizer) for number in chosen
        ]
    else:
        prompts = [ScoredPrompt(text_set.ids(number, inference.tokenizer)) for number in chosen]
    return next_token_effects(
        inference.model,
        text_set.name,
        prompts,
        taken_out,
        batch_size=4 * inference.batch_size,
        adapter=layout.adapter,
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
    chosen = _spread(len(text_set.examples), settings.safety_prompts)
    examples = [text_set.examples[number] for number in chosen]
    responses = ablated_responses(
        inference.model,
        inference.tokenizer,
        text_set.name,
        [question(Prompt("", each.instruction, each.context)) for each in examples],
        [text_set.ids(number, inference.tokenizer) for number in chosen],
        taken_out,
        max_new_tokens=settings.max_new_tokens,
        batch_size=4 * inference.batch_size,
        adapter=layout.adapter,
    )
    return judged_effects(responses, panel, logs)


def _spread(texts: int, most: int) -> list[int]:
    """Places of texts, evenly over all of them: data sets are often sorted."""
    return np.unique(np.linspace(0, texts - 1, min(most, texts)).round().astype(int)).tolist()
