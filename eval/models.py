"""The models of a run: the base, its adapters, and whole finetuned models, identified by their weights."""

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
from monolora.run_record import fingerprint_files, fingerprint_settings

BASE = "base"


class EvaluatedModel(NamedTuple):
    """A model of the run; nothing is loaded.

    Attributes:
        name: in the table.
        kind: ``base``, ``adapter`` (on the base), or ``model`` (whole).
        path: as the user gave it.
        folder: of the checkpoint that an engine loads; for an adapter, its base.
        adapter: folder of the adapter, otherwise None.
        identity: hash of all weights and of their configs.
        step: of training, for checkpoints of one run, otherwise None.
    """

    name: str
    kind: str
    path: str
    folder: str
    adapter: str | None
    identity: str
    step: int | None = None


def evaluated_models(settings: Settings) -> list[EvaluatedModel]:
    """All models of a run, the base first.

    Raises:
        InputError: if one is missing or damaged, or was trained on another base.
    """
    if not settings.model:
        raise InputError("Which model? Give the base with --model.")
    if (Path(settings.model) / "adapter_config.json").is_file():
        raise InputError(
            f"{settings.model} is an adapter. Give its base with --model, and --adapter NAME={settings.model}"
        )
    folder = resolve_model(settings.model)
    fingerprint = fingerprint_files(folder)  # read once: it may be many gigabytes
    # All files that end in config.json: generation_config.json too, which determines where an answer ends.
    weights = fingerprint + fingerprint_files(folder, "config.json")
    base = EvaluatedModel(BASE, BASE, settings.model, folder, None, content_key("model", weights))
    finetuned = [_finetuned(name, path, base, weights, fingerprint) for name, path in settings.adapters().items()]
    steps = sorted((_step(path), path) for path in settings.checkpoints)
    checkpoints = [
        _finetuned(f"step {step}", path, base, weights, fingerprint)._replace(step=step) for step, path in steps
    ]
    models = [base, *finetuned, *checkpoints]
    names = [model.name for model in models]
    duplicate = next((name for name in names if names.count(name) > 1), None)
    if duplicate is not None:
        raise InputError(
            f"Two models are named {duplicate!r}. Give the checkpoints of one run; others with --adapter NAME=PATH."
        )
    return models


def _finetuned(name: str, path: str, base: EvaluatedModel, base_weights: str, base_fingerprint: str) -> EvaluatedModel:
    if not (Path(path) / "adapter_config.json").is_file() and (Path(path) / "config.json").is_file():
        _check_generates(path)
        weights = fingerprint_files(path) + fingerprint_files(path, "config.json")
        return EvaluatedModel(name, "model", path, path, None, content_key("model", weights))
    adapter_config(path)
    _check_base(path, base, base_fingerprint)
    check_fits(path, base.folder)
    adapter = fingerprint_files(path) + fingerprint_settings(Path(path) / "adapter_config.json")
    if (Path(path) / GENERATION_CONFIG_NAME).is_file():  # it determines where an answer ends
        adapter += fingerprint_files(path, GENERATION_CONFIG_NAME)
    return EvaluatedModel(name, "adapter", path, base.folder, path, content_key("adapter", base_weights, adapter))


def _check_generates(path: str) -> None:
    """Refuse a whole model that cannot generate text."""
    classes = load_config(path).architectures or []
    if classes and not any(
        suffix in name for name in classes for suffix in ("CausalLM", "LMHead", "ConditionalGeneration")
    ):
        raise InputError(f"{path} is a {classes[0]}, which does not answer. A classifier is given to --judges.")


def _check_base(path: str, base: EvaluatedModel, fingerprint: str) -> None:
    """Refuse an adapter whose training recorded the fingerprint of another base."""
    run = run_record.of_adapter(path)
    if run is None:
        return
    recorded = run.get("fingerprints", {}).get("model")
    if fingerprint != recorded:
        raise InputError(
            f"{path} was trained on other weights than those of {base.path} (fingerprint {recorded}, here "
            f"{fingerprint}). Give its own base with --model: {run['config'].get('model')}."
        )


def _step(path: str) -> int:
    match = re.fullmatch(r"checkpoint-(\d+)", Path(path).name)
    if match is None:
        raise InputError(f"--checkpoints {path} is not named checkpoint-STEP. Give others with --adapter NAME=PATH.")
    return int(match.group(1))


def token_ids(
    model: EvaluatedModel, prompts: PromptSet, today: date, chat_template_path: str | None = None
) -> list[list[int]]:
    """Each prompt as this model was trained to read it: in its tokenizer's chat template, or in the Alpaca format.

    Args:
        model: the model.
        prompts: the prompts.
        today: the date for a template that asks for one; the time is midnight, so that prompts do not depend on when
            they are rendered.
        chat_template_path: of a chat template to use instead of the model's.

    Raises:
        InputError: if the model has no tokenizer, or the template does not work.
    """
    tokenizer = adapter_tokenizer(model.adapter or model.folder, model.folder)
    if chat_template_path is not None:
        set_chat_template(tokenizer, chat_template_path)
    midnight = datetime.combine(today, time())
    # transformers gives templates a function strftime_now that reads the clock; a variable of that name overrides it.
    vars(tokenizer)["apply_chat_template"] = partial(tokenizer.apply_chat_template, strftime_now=midnight.strftime)
    return [
        prompt_ids(Example(prompt.instruction, "", context=prompt.context), tokenizer) for prompt in prompts.prompts
    ]


def group_by_folder(models: Sequence[EvaluatedModel]) -> Mapping[str, list[EvaluatedModel]]:
    """The models that one engine serves, by the folder that it loads: the base with its adapters, or a whole model."""
    groups: dict[str, list[EvaluatedModel]] = {}
    for model in models:
        groups.setdefault(model.folder, []).append(model)
    return groups
