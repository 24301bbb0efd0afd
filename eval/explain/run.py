"""The explanation of one adapter: a pass over each data set, the effects of its units, and the files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from monolora.adapters import adapter_config, load_adapted
from monolora.data.scoring import label_likelihoods
from monolora.data.tasks import BUILT_IN
from monolora.errors import InputError
from monolora.eval.explain.dashboards import write_dashboards
from monolora.eval.explain.effects import ablations, check_ablations, chosen_units, make_panel, unit_logits
from monolora.eval.explain.features import (
    Counted,
    Grouping,
    Side,
    TokenTexts,
    asks_for_answers,
    contrasted,
    dataset_features,
    side,
    usual,
)
from monolora.eval.explain.output import KIND, LOGS, whole_explanation, write
from monolora.eval.explain.records import DatasetFeatures, Explained
from monolora.eval.explain.scores import Scored, score
from monolora.eval.explain.settings import Settings
from monolora.eval.explain.text_sets import TextSet, load, load_kept
from monolora.explain import Layout, collect
from monolora.explain.ablation import why_not_ablated
from monolora.hub import local_path, resolve_model
from monolora.inference import Inference, evaluating
from monolora.prune import read_adapter
from monolora.run_record import fingerprint_files, provenance
from monolora.runs import OutputFolder, claim
from monolora.terminal import STDERR, tracked


class Plan(NamedTuple):
    """The data sets and contrasts, checked before any model is loaded.

    Attributes:
        text_sets: by name.
        contrasts: pairs of groups.
        by_answer: data sets whose right and wrong answers are counted apart.
    """

    text_sets: dict[str, TextSet]
    contrasts: list[tuple[Side, Side]]
    by_answer: frozenset[str]

    def grouping(self, name: str) -> Grouping:
        """The grouping of a data set's texts."""
        return Grouping(self.text_sets[name].labels, name in self.by_answer)


def plan(adapter: str, settings: Settings) -> Plan:
    """Read the data sets.

    Raises:
        InputError: if one is unavailable, a contrast names an unknown group, or a flag has no effect.
    """
    text_sets = {
        name: load(name, settings.max_texts, settings.split, settings.label_column) for name in settings.datasets()
    }
    kept = _kept(adapter, settings)
    if kept is not None:
        text_sets[kept.name] = kept
    if settings.content_note:
        text_sets = {name: replace(text_set, is_safety=True) for name, text_set in text_sets.items()}
    for text_set in text_sets.values():
        if text_set.note:
            STDERR.print(f"{text_set.name}: {text_set.note}")
    if settings.contrast:
        pairs = [(side(a, list(text_sets)), side(b, list(text_sets))) for a, b in settings.contrast]
    else:
        pairs = usual(text_sets)
    by_answer = frozenset(
        name
        for name, text_set in text_sets.items()
        if text_set.task_labels and text_set.part != "answers" and asks_for_answers(pairs, name)
    )
    planned = Plan(text_sets, pairs, by_answer)
    for group in (group for pair in pairs for group in pair):
        planned.grouping(group.dataset).members(group.group, group.dataset)
    _check_ranking(planned, settings)
    return planned


def _kept(adapter: str, settings: Settings) -> TextSet | None:
    """The kept prompts; None, and a line that says so, where those of the adapter's run cannot be read."""
    try:
        return load_kept(adapter, settings.keep_prompts, settings.max_texts)
    except InputError as error:
        if settings.keep_prompts:
            raise
        STDERR.print(f"The silence on kept prompts is not measured, as they cannot be read: {error}")
        return None


def _check_ranking(planned: Plan, settings: Settings) -> None:
    ranked = settings.ablate > 0 and not settings.ablate_units
    if ranked and settings.ablate_by == "information" and not any(texts.labels for texts in planned.text_sets.values()):
        raise InputError("--ablate-by information needs a data set with labels. Name one with --dataset.")
    if ranked and settings.ablate_by == "contrast" and not planned.contrasts:
        raise InputError("--ablate-by contrast needs a contrast. Give one with --contrast.")
    if settings.score and not any(texts.labels for texts in planned.text_sets.values()):
        raise InputError("--score needs a data set with labels. Name one with --dataset.")


def explain(adapter: str, settings: Settings) -> Explained:
    """Measure an adapter's units and write the files of ``settings.out``.

    Raises:
        InputError: for what cannot be read or explained.
        SaveError: if the disk does not take the files.
    """
    with claim(settings.out, KIND) as folder:
        return _explain(adapter, settings, folder)


def check_output(folder: OutputFolder, adapter: str, settings: Settings) -> None:
    """Raises: InputError, where an explanation of an adapter must not go."""
    named = {adapter, *filter(None, [settings.model]), *settings.dataset} - BUILT_IN.keys()
    folder.check_apart(filter(None, map(local_path, named)))
    folder.check(settings.overwrite)


def _explain(adapter: str, settings: Settings, out: OutputFolder) -> Explained:
    check_output(out, adapter, settings)
    config = adapter_config(adapter)
    planned, panel = plan(adapter, settings), make_panel(settings)
    model, tokenizer = load_adapted(adapter, settings.model, dtype=settings.dtype)
    layout, fixed = Layout.of(model), why_not_ablated(model)
    check_ablations(fixed, layout, planned.text_sets, settings)
    inference = Inference(model=model, tokenizer=tokenizer, batch_size=settings.batch_size)
    counted, features = {}, []
    for name, text_set in planned.text_sets.items():
        counted[name], of_dataset = _pass(inference, text_set, planned.grouping(name), settings)
        features.append(of_dataset)
    first = next(iter(planned.text_sets.values()))
    contrasts = [contrasted(pair, counted) for pair in planned.contrasts]
    chosen = chosen_units(layout, fixed, features, contrasts, settings)
    with whole_explanation(out) as folder:
        measured = ablations(inference, layout, fixed, chosen, planned.text_sets, panel, settings, folder / LOGS)
        scored = (
            score(inference, layout, planned.text_sets, features, measured, settings) if settings.score else Scored()
        )
        explained = Explained(
            title=f"The units of {Path(adapter).name}",
            adapter=adapter,
            method="MonoLoRA" if config.peft_type == "MONOLORA" else "LoRA",
            model=model.name_or_path if settings.model is None else settings.model,
            is_signed=layout.signed,
            units=layout.units,
            datasets=list(map(scored.beside, features)),
            logits=unit_logits(inference, layout, fixed, first, counted[first.name], settings),
            ablations=measured,
            contrasts=contrasts,
            is_prunable=_is_prunable(adapter),
            scores=scored.scores,
            origin={
                "settings": asdict(settings),
                "adapter_fingerprint": fingerprint_files(adapter),
                "model_fingerprint": fingerprint_files(
                    resolve_model(settings.model or str(config.base_model_name_or_path))
                ),
                **provenance(),
            },
        )
        write(folder, explained, planned.text_sets, scored.samples)
        if settings.dashboards:
            write_dashboards(folder, explained)
    return explained


def _is_prunable(adapter: str) -> bool:
    """Whether ``monolora prune`` can take units out."""
    try:
        read_adapter(adapter)
    except InputError:
        return False
    return True


def _pass(
    inference: Inference, text_set: TextSet, grouping: Grouping, settings: Settings
) -> tuple[Counted, DatasetFeatures]:
    tokenizer: Any = inference.tokenizer
    with evaluating(inference.model):
        is_right = _right_answers(inference, text_set) if grouping.by_answer else []
        groups = grouping.of_texts(text_set.groups, is_right)
        with tracked(f"Units on {text_set.name}", len(text_set.examples)) as step:
            statistics = collect(
                inference.model,
                text_set.texts(tokenizer, groups),
                groups=grouping.groups,
                pad_token_id=tokenizer.pad_token_id,
                batch_size=settings.batch_size,
                contexts=settings.contexts,
                step=lambda texts: _steps(step, texts),
            )
    features = dataset_features(statistics, text_set, grouping, groups, TokenTexts(tokenizer))
    return Counted(statistics, grouping), features


def _steps(step: Callable[[], None], times: int) -> None:
    for _ in range(times):
        step()


def _right_answers(inference: Inference, text_set: TextSet) -> list[bool]:
    """Whether the likeliest label is the right one, text by text."""
    likelihoods = label_likelihoods(inference, list(text_set.examples), text_set.task_labels)
    return [
        max(of_labels, key=of_labels.__getitem__) == example.response
        for of_labels, example in zip(likelihoods, text_set.examples, strict=True)
    ]
