"""Explaining one adapter: a pass over each data set, then what its units do, then the files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from monolora.adapters import adapter_config, load_adapted
from monolora.errors import SaveError
from monolora.eval.explain.contrasts import Counted, Side, asks_for_answers, contrasted, side, usual
from monolora.eval.explain.effects import ablations, chosen_units, make_panel, unit_logits
from monolora.eval.explain.features import TokenTexts, dataset_features
from monolora.eval.explain.grouping import Grouping
from monolora.eval.explain.page.explorer import explorer_page
from monolora.eval.explain.parquet import write_parquet
from monolora.eval.explain.records import DatasetFeatures, Explained
from monolora.eval.explain.settings import Settings
from monolora.eval.explain.text_sets import TextSet, load
from monolora.eval.progress import NOTES, tracked
from monolora.explain import Layout, collect
from monolora.fingerprints import fingerprint_files
from monolora.provenance import provenance, write_json
from monolora.recipes.inference import Inference, evaluating
from monolora.recipes.scoring import label_likelihoods
from monolora.units import find_units

FEATURES, PAGE, RUN = "features.parquet", "explorer.html", "run.json"


class Plan(NamedTuple):
    """What is read and compared; made before any model is loaded.

    Attributes:
        text_sets: by name.
        contrasts: pairs of groups.
        by_answer: data sets of which right and wrong answers are told apart.
    """

    text_sets: dict[str, TextSet]
    contrasts: list[tuple[Side, Side]]
    by_answer: frozenset[str]

    def grouping(self, name: str) -> Grouping:
        """How the texts of a data set are counted apart."""
        return Grouping(self.text_sets[name].labels, name in self.by_answer)


def plan(settings: Settings) -> Plan:
    """Read the data sets.

    Raises:
        InputError: if one cannot be had, or a contrast names what is not there.
    """
    text_sets = {
        name: load(name, settings.max_texts, settings.split, settings.label_column) for name in settings.datasets()
    }
    for text_set in text_sets.values():
        if text_set.note:
            NOTES.print(f"{text_set.name}: {text_set.note}", markup=False, highlight=False)
    if settings.contrast:
        pairs = [(side(a, list(text_sets)), side(b, list(text_sets))) for a, b in settings.contrast]
    else:
        pairs = usual({name: text_set.labels for name, text_set in text_sets.items()})
    by_answer = frozenset(
        name
        for name, text_set in text_sets.items()
        if text_set.task_labels and text_set.part != "answers" and asks_for_answers(pairs, name)
    )
    found = Plan(text_sets, pairs, by_answer)
    for each in (each for pair in pairs for each in pair):
        found.grouping(each.dataset).members(each.group, each.dataset)
    return found


def explain(adapter: str, settings: Settings) -> Explained:
    """Measure an adapter's units and write the files of ``settings.out``.

    Raises:
        InputError: for what cannot be read or explained.
        SaveError: if the disk does not take the files.
    """
    config = adapter_config(adapter)
    planned, panel = plan(settings), make_panel(settings)
    model, tokenizer = load_adapted(adapter, settings.model, dtype=settings.dtype)
    layout = Layout.of(model)
    find_units(settings.ablate_units, layout.ranks)  # a wrong name is said before anything is measured
    inference = Inference(model=model, tokenizer=tokenizer, batch_size=settings.batch_size)
    counted, features = {}, []
    for name, text_set in planned.text_sets.items():
        counted[name], of_dataset = _pass(inference, text_set, planned.grouping(name), settings)
        features.append(of_dataset)
    first = next(iter(planned.text_sets.values()))
    contrasts = [contrasted(pair, counted) for pair in planned.contrasts]
    places = chosen_units(layout, features, contrasts, settings)
    explained = Explained(
        title=f"The units of {Path(adapter).name}",
        adapter=adapter,
        method="MonoLoRA" if config.peft_type == "MONOLORA" else "LoRA",
        model=model.name_or_path if settings.model is None else settings.model,
        is_signed=layout.signed,
        units=layout.units,
        datasets=features,
        logits=unit_logits(inference, layout, first, counted[first.name], settings),
        ablations=ablations(inference, layout, places, planned.text_sets, panel, settings),
        contrasts=contrasts,
        made={"settings": asdict(settings), "adapter_fingerprint": fingerprint_files(adapter), **provenance()},
    )
    write(Path(settings.out), explained, planned.text_sets)
    return explained


def _pass(
    inference: Inference, text_set: TextSet, grouping: Grouping, settings: Settings
) -> tuple[Counted, DatasetFeatures]:
    tokenizer: Any = inference.tokenizer
    with evaluating(inference.model):
        is_right = _right_answers(inference, text_set) if grouping.by_answer else []
        groups = grouping.of_texts(text_set.groups, is_right)
        with tracked(f"Units on {text_set.name}", len(text_set.examples)) as step:
            found = collect(
                inference.model,
                text_set.texts(tokenizer, groups),
                groups=grouping.groups,
                pad_token_id=tokenizer.pad_token_id,
                batch_size=settings.batch_size,
                contexts=settings.contexts,
                step=lambda texts: _steps(step, texts),
            )
    features = dataset_features(found, text_set, grouping, groups, TokenTexts(tokenizer))
    return Counted(found, grouping), features


def _steps(step: Callable[[], None], times: int) -> None:
    for _ in range(times):
        step()


def _right_answers(inference: Inference, text_set: TextSet) -> list[bool]:
    """Whether the label that the model finds likeliest is the right one."""
    likelihoods = label_likelihoods(inference, list(text_set.examples), text_set.task_labels)
    return [
        max(of_labels, key=of_labels.__getitem__) == example.response
        for of_labels, example in zip(likelihoods, text_set.examples, strict=True)
    ]


def write(folder: Path, explained: Explained, text_sets: Mapping[str, TextSet]) -> None:
    """Write ``features.parquet``, ``explorer.html`` and ``run.json``, each whole or not at all.

    Raises:
        SaveError: if the disk does not take them.
    """
    aside = folder / f".{PAGE}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_parquet(folder / FEATURES, explained)
        # half a surrogate pair, as a cut token may be, has no UTF-8
        aside.write_text(explorer_page(explained), encoding="utf-8", errors="replace", newline="\n")
        aside.replace(folder / PAGE)
        write_json(folder / RUN, record(explained, list(text_sets.values())))
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise SaveError.of(folder, error, "Free space or give another folder with --out, and run it again.") from error


def record(explained: Explained, text_sets: Sequence[TextSet]) -> dict[str, Any]:
    """What ``run.json`` holds."""
    return {
        "adapter": explained.adapter,
        "method": explained.method,
        "model": explained.model,
        "units": len(explained.units),
        "datasets": [
            {
                "name": found.name,
                "fingerprint": text_set.fingerprint(),
                "texts": found.texts,
                "tokens": found.tokens,
                "labels": found.labels,
                "unlabelled": found.unlabelled,
                "chance": found.chance,
                "strongest": found.strongest,
                "note": found.note,
            }
            for found, text_set in zip(explained.datasets, text_sets, strict=True)
        ],
        "made": dict(explained.made),
    }
