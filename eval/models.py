"""The models of a run: the base, its adapters, whole finetuned models; each known by its weights, not by its name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time
from functools import partial
from pathlib import Path
from typing import NamedTuple

from transformers.utils import GENERATION_CONFIG_NAME

from monolora import run_record
from monolora.adapters import adapter_config, adapter_tokenizer, check_fits
from monolora.data.chat_template import prompt_ids, set_chat_template
from monolora.data.prompt_sets import PromptSet, content_key
from monolora.data.tasks import Example
from monolora.errors import InputError
from monolora.eval.settings import Settings
from monolora.hub import load_config, resolve_model
from monolora.provenance import fingerprint_files, fingerprint_settings

BASE = "base"


class Subject(NamedTuple):
    """A model that is evaluated.

    Attributes:
        name: in the table.
        kind: ``base``, ``adapter`` (on the base), or ``model`` (whole).
        path: as the user gave it.
        folder: of the model that an engine loads; for an adapter, its base.
        adapter: folder of the adapter, else None.
        identity: hash of all weights and of the configs that go with them.
        step: of training, for checkpoints along one run, else None.
    """

    name: str
    kind: str
    path: str
    folder: str
    adapter: str | None
    identity: str
    step: int | None = None


def subjects(settings: Settings) -> list[Subject]:
    """All models of a run, the base first.

    Raises:
        InputError: if one is not there, is damaged, or was trained on another base.
    """
    if not settings.model:
        raise InputError("Which model? Give the base with --model.")
    if (Path(settings.model) / "adapter_config.json").is_file():
        raise InputError(
            f"{settings.model} is an adapter. Give its base with --model, and --adapter NAME={settings.model}"
        )
    folder = resolve_model(settings.model)
    fingerprint = fingerprint_files(folder)  # read once: it may be many gigabytes
    # "*config.json": generation_config.json too, which says where an answer ends
    weights = fingerprint + fingerprint_files(folder, "config.json")
    base = Subject(BASE, BASE, settings.model, folder, None, content_key("model", weights))
    named = settings.adapters()
    others = [_other(name, path, base, weights, fingerprint) for name, path in named.items()]
    steps = sorted((_step(path), path) for path in settings.checkpoints)
    along = [_other(f"step {step}", path, base, weights, fingerprint)._replace(step=step) for step, path in steps]
    found = [base, *others, *along]
    names = [each.name for each in found]
    twice = next((each for each in found if names.count(each.name) > 1), None)
    if twice is not None:
        raise InputError(
            f"Two models are named {twice.name!r}. Give the checkpoints of one run; others with --adapter NAME=PATH."
        )
    return found


def _other(name: str, path: str, base: Subject, base_weights: str, base_fingerprint: str) -> Subject:
    if not (Path(path) / "adapter_config.json").is_file() and (Path(path) / "config.json").is_file():
        _check_generates(path)
        weights = fingerprint_files(path) + fingerprint_files(path, "config.json")
        return Subject(name, "model", path, path, None, content_key("model", weights))
    adapter_config(path)
    _check_base(path, base, base_fingerprint)
    check_fits(path, base.folder)
    own = fingerprint_files(path) + fingerprint_settings(Path(path) / "adapter_config.json")
    if (Path(path) / GENERATION_CONFIG_NAME).is_file():  # it says where an answer ends
        own += fingerprint_files(path, GENERATION_CONFIG_NAME)
    return Subject(name, "adapter", path, base.folder, path, content_key("adapter", base_weights, own))


def _check_generates(path: str) -> None:
    """A whole model must be one that answers."""
    classes = load_config(path).architectures or []
    if classes and not any(
        kind in each for each in classes for kind in ("CausalLM", "LMHead", "ConditionalGeneration")
    ):
        raise InputError(f"{path} is a {classes[0]}, which does not answer. A classifier is given to --judges.")


def _check_base(path: str, base: Subject, here: str) -> None:
    """An adapter whose run recorded its base's weights must be on these."""
    records = (run_record.read(each, "Remove it.") for each in (Path(path), Path(path).parent))
    run = next((found for found in records if found is not None), None)
    if run is None:
        return
    there = run.get("fingerprints", {}).get("model")
    if here != there:
        raise InputError(
            f"{path} was trained on other weights than those of {base.path} (fingerprint {there}, here {here}). Give "
            f"its own base with --model: {run['config'].get('model')}."
        )


def _step(path: str) -> int:
    found = re.fullmatch(r"checkpoint-(\d+)", Path(path).name)
    if found is None:
        raise InputError(f"--checkpoints {path} is not named checkpoint-STEP. Give others with --adapter NAME=PATH.")
    return int(found.group(1))


def token_ids(
    subject: Subject, prompts: PromptSet, today: date, chat_template_path: str | None = None
) -> list[list[int]]:
    """Each prompt as this model was trained to read it: its own tokenizer's chat template, or the Alpaca format.

    Args:
        subject: the model.
        prompts: what it is asked.
        today: told to a template that asks for the date, at midnight: prompts are the same whenever they are made.
        chat_template_path: of a chat template in place of its own.

    Raises:
        InputError: if it has no tokenizer, or the template does not work.
    """
    tokenizer = adapter_tokenizer(subject.adapter or subject.folder, subject.folder)
    if chat_template_path is not None:
        set_chat_template(tokenizer, chat_template_path)
    midnight = datetime.combine(today, time())
    # A variable of the template hides transformers' function of this name, which asks the clock.
    vars(tokenizer)["apply_chat_template"] = partial(tokenizer.apply_chat_template, strftime_now=midnight.strftime)
    return [prompt_ids(Example(each.instruction, "", context=each.context), tokenizer) for each in prompts.prompts]


def by_engine(models: Sequence[Subject]) -> Mapping[str, list[Subject]]:
    """Which models an engine answers for, by the folder that it loads: the base with its adapters; each other alone."""
    groups: dict[str, list[Subject]] = {}
    for subject in models:
        groups.setdefault(subject.folder, []).append(subject)
    return groups
