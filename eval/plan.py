"""``plan.json``: what a run asks of whom. With it and the records, scores and reports need no model and no data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from monolora.data.prompt_sets import Prompt, PromptSet
from monolora.data.scoring import Classification, FreeText, Scorer
from monolora.errors import InputError, in_one_line
from monolora.files import read_json, saving, type_problem, write_json

FILE = "plan.json"

_Model = TypeVar("_Model")


class PlannedModel(NamedTuple):
    """A model of the run, as the table has it.

    Attributes:
        name: in the table.
        kind: ``base``, ``adapter`` or ``model``.
        path: as the user gave it.
        identity: hash of its weights.
        step: of training, for checkpoints along one run, else None.
    """

    name: str
    kind: str
    path: str
    identity: str
    step: int | None


class Plan(NamedTuple):
    """The work of a run: prompts, models, and the keys of responses and measurements.

    Attributes:
        sets: the prompts.
        models: the base first.
        keys: of the responses, by set and model, in the order of the set's prompts.
        sparsity: keys of the measurements, by set and model.
        drift: likewise, of the finetuned models; none where it is not measured.
        margin, coherence: likewise, of all models.
        today: the date that chat templates are told, ISO 8601; None in plans of versions that told them the clock's.
    """

    sets: list[PromptSet]
    models: list[PlannedModel]
    keys: dict[str, dict[str, list[str]]]
    sparsity: dict[str, dict[str, str]]
    drift: dict[str, dict[str, str]]
    today: str | None
    margin: dict[str, dict[str, str]] = {}  # noqa: RUF012 (never changed)
    coherence: dict[str, dict[str, str]] = {}  # noqa: RUF012

    def responses(self) -> Iterator[tuple[PromptSet, PlannedModel, Prompt, str]]:
        """Every response that there should be: its set, model, prompt and key."""
        for prompts in self.sets:
            for model in asked(prompts, self.models):
                for prompt, key in zip(prompts.prompts, self.keys[prompts.name][model.name], strict=True):
                    yield prompts, model, prompt, key


def asked(prompts: PromptSet, models: Sequence[_Model]) -> Sequence[_Model]:
    """The models that answer a set: all, or only the base, the first, where drift is all that is measured."""
    return models[:1] if prompts.purpose == "drift" else models


def write(folder: Path, plan: Plan) -> None:
    """Write ``plan.json``.

    Raises:
        SaveError: if the disk does not take it.
    """
    content = {
        "sets": [_as_json(each) for each in plan.sets],
        "models": [each._asdict() for each in plan.models],
        "keys": plan.keys,
        "sparsity": plan.sparsity,
        "drift": plan.drift,
        "today": plan.today,
        "margin": plan.margin,
        "coherence": plan.coherence,
    }
    with saving(folder):
        write_json(folder / FILE, content)


def read(folder: Path) -> Plan:
    """The plan in a run folder.

    Raises:
        InputError: if there is none, or it is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        raise InputError(
            f"{folder} holds no evaluation: {FILE} is missing. Begin one with: monolora eval run --out {folder}"
        )
    try:
        stored = read_json(path, "")
        sets = [_set(each) for each in stored["sets"]]
        plan = Plan(
            sets,
            [PlannedModel(**each) for each in stored["models"]],
            stored["keys"],
            stored["sparsity"],
            _drift(stored["drift"], sets),
            stored.get("today"),
            stored.get("margin", {}),
            stored.get("coherence", {}),
        )
        if problem := type_problem(plan, Plan):
            raise ValueError(problem)
        list(plan.responses())  # each has a key
        return plan
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is damaged: {in_one_line(error)} Write it again with: monolora eval generate --out {folder} …"
        ) from error


def today(folder: Path) -> date:
    """The date that chat templates are told: that of the plan in a run folder, else the clock's."""
    try:
        return date.fromisoformat(read_json(folder / FILE, "")["today"])
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or one that is written anew
        return date.today()


def _as_json(prompts: PromptSet) -> dict[str, Any]:
    scorer = None if prompts.scorer is None else prompts.scorer.stored()
    return vars(prompts) | {"prompts": [each._asdict() for each in prompts.prompts], "scorer": scorer}


def _set(stored: dict[str, Any]) -> PromptSet:
    prompts = tuple(Prompt(**each | {"categories": tuple(each["categories"])}) for each in stored["prompts"])
    scorer = _scorer(stored)
    return PromptSet(**stored | {"prompts": prompts, "scorer": scorer})


def _drift(stored: dict[str, Any], sets: Sequence[PromptSet]) -> dict[str, dict[str, str]]:
    if not any(isinstance(key, str) for key in stored.values()):
        return stored
    safety = next(prompts.name for prompts in sets if prompts.purpose == "safety")
    return {safety: stored}  # by an earlier version, which measured it on this set alone


def _scorer(stored: dict[str, Any]) -> Scorer | None:
    if "labels" in stored:  # by an earlier version, which had two scorers and no name for them
        labels = tuple(stored.pop("labels"))
        return None if stored["purpose"] != "task" else Classification(labels) if labels else FreeText()
    return None if stored["scorer"] is None else Scorer.restored(stored["scorer"])
