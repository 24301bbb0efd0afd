"""``monolora repair ADAPTER --task TASK --keep-prompts SET …``: an adapter without the units that do most harm.

Units are chosen by attribution: the first-order effect of taking each out, on how far kept prompts are from the base
(KL, or the refusal margin) and on the task's loss. They are chosen on one half of the prompts and rows and checked on
the other; what is worse there is rolled back. The same table has what simpler ways reach at the same cost to the task:
random units, the whole adapter scaled down, single entries of B. A LoRA adapter's units are the singular directions of
its B A. Written are the adapter, a report (repair.md, repair.json, a figure) and run.json.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, TypeVar

import torch

from monolora import run_record
from monolora.activations import activation_named
from monolora.adapters import load_adapted
from monolora.attribution import AnswerLoss, BaseDrift, Factors, RefusalShortfall, weakened, without
from monolora.cli.flags import FlagParser
from monolora.config import MonoLoraConfig
from monolora.data.chat_template import split_at_answer
from monolora.data.example import Example
from monolora.data.task import SampleLimits, Source
from monolora.data.tasks import load_task
from monolora.errors import InputError, exit_status
from monolora.files import code_trusted, saving, write_json
from monolora.hub import local_path, resolve_model
from monolora.inference import Inference, evaluating
from monolora.keep.anchors import answered, read_prompts
from monolora.prune import Adapter, in_balanced_basis, read_adapter, unit_tensors, without_units
from monolora.recipes import prune, repair_report
from monolora.recipes.repair_report import Checked, Repair
from monolora.recipes.settings import Repair as Settings
from monolora.refusals import refuses
from monolora.repair import Found, Half, Outcome, Way, entries, find_units, random_units, strongest, whole_adapter
from monolora.run_record import fingerprint_files, provenance
from monolora.runs import RUN, Kind, OutputFolder, claim
from monolora.terminal import STDERR, Terminal, say, suggest
from monolora.units import Layout

_LONGEST = 1024  # tokens of a task's row; longer ones are left out
KIND = Kind(
    name="repaired adapter",
    keys=("config.repair", "results.repair"),
    files=(*prune.KIND.files, prune.JSON, r"repair\.(json|md|png|svg)"),
)
_T = TypeVar("_T")


def main(argv: list[str]) -> int:
    """Run from the command line; returns the exit status."""
    return run(FlagParser("monolora repair", __doc__).parse_into(argv, Settings))


def run(settings: Settings) -> int:
    """Find, check, write; returns the exit status."""
    with code_trusted(settings.trust_remote_code), claim(settings.target, KIND, "--out") as folder:
        _repair(settings, folder)
    return 0


class Data(NamedTuple):
    """Kept prompts without answers, and rows of the task."""

    prompts: list[Example]
    rows: list[Example]


def _repair(settings: Settings, folder: OutputFolder) -> None:
    inputs = [settings.adapter, *filter(None, (settings.lora,))]
    folder.check_apart([*inputs, *filter(None, map(local_path, (settings.task, *settings.keep_prompts)))])
    folder.check(settings.overwrite)
    adapters = [read_adapter(path) for path in inputs]
    if settings.lora and not _is_linear(adapters[1]):
        raise InputError(f"--lora {settings.lora} is no LoRA adapter: its units have no ranks. Leave --lora out.")
    data = _data(settings)
    session = Session.opened(settings.adapter, adapters[0], settings, data)
    repair = session.repaired()
    if settings.lora:
        ranks = Session.opened(settings.lora, adapters[1], settings, data, session.base).repaired(has_controls=False)
        repair = replace(repair, lora=ranks)
    with saving(folder.path, "Nothing new was left there. Free space, then repair again."), folder.whole() as aside:
        _write(aside, settings, session, repair)
    Terminal().print(repair_report.table(repair))
    say(repair_report.sentence(repair))
    say(f"Wrote {folder.path}.")
    suggest("monolora", "keep-report", str(folder.path))


def _data(settings: Settings) -> Data:
    limits = SampleLimits(train=settings.task_samples, test=1000)
    task = load_task(settings.task, Source(), limits)
    rows, _ = task.selected(settings.task_samples)
    if len(rows) < 4:
        raise InputError(f"--task {settings.task} has {len(rows)} training rows. Give a task with at least 4.")
    return Data(read_prompts(settings.keep_prompts, settings.keep_samples, task.test).examples, rows)


def _is_linear(adapter: Adapter) -> bool:
    return not isinstance(adapter.config, MonoLoraConfig) or activation_named(adapter.config.activation).is_linear


@dataclass(frozen=True, kw_only=True, eq=False)
class Session:
    """An adapter with its model, and the two halves of the data.

    Attributes:
        adapter: as it is pruned: a linear one in its balanced basis.
        base: the base's name.
        chosen_on: the half that units are chosen on.
        checked_on: the other.
    """

    settings: Settings
    adapter: Adapter
    base: str
    layout: Layout
    chosen_on: Half
    checked_on: Half

    @classmethod
    def opened(cls, folder: str, adapter: Adapter, settings: Settings, data: Data, base: str | None = None) -> Session:
        """Load the adapter, and let its base answer the prompts.

        Raises:
            InputError: if the adapter does not fit its base, or too few prompts or rows are left.
        """
        model, tokenizer = load_adapted(folder, base or settings.model, dtype=settings.dtype)
        layout = Layout.of(model)
        if _is_linear(adapter):
            adapter = in_balanced_basis(adapter)
            _install(adapter, layout)
        inference = Inference(
            model=model, tokenizer=tokenizer, batch_size=settings.batch_size, shows_progress=STDERR.is_terminal
        )

        @contextmanager
        def as_base() -> Iterator[Any]:
            with model.disable_adapter():
                yield model

        anchors = answered(
            data.prompts,
            tokenizer,
            as_base,
            base=fingerprint_files(resolve_model(model.name_or_path)),
            dtype=getattr(torch, settings.dtype),
            max_new_tokens=settings.keep_answer_tokens,
            batch_size=settings.batch_size,
            folder=resolve_model(model.name_or_path),
        )
        splits = [split_at_answer(row, tokenizer) for row in data.rows]
        splits = [split for split in splits if len(split.context) + len(split.answer) <= _LONGEST]
        for flag, rows in (("--keep-prompts", anchors), ("--task", splits)):
            if len(rows) < 2:
                raise InputError(f"{flag}: {len(rows)} is left, and each half needs one. Give others, or more.")
        kind = BaseDrift if settings.restore == "kl" else RefusalShortfall
        parts = [
            Half(kind.from_base(inference, kept, as_base), AnswerLoss(inference=inference, rows=task))
            for kept, task in zip(halves(anchors), halves(splits), strict=True)
        ]
        return cls(
            settings=settings,
            adapter=adapter,
            base=model.name_or_path,
            layout=layout,
            chosen_on=parts[0],
            checked_on=parts[1],
        )

    def repaired(self, has_controls: bool = True) -> Repair:
        """Find units and, with their controls, measure what was found on the other half."""
        layout, limit, steps = self.layout, self.settings.max_task_loss, self.settings.steps
        before = self.chosen_on.measured(layout, {}).means(self.chosen_on)
        units = find_units(layout, self.chosen_on, before, limit, self.settings.rounds, steps)
        controls: dict[str, list[Way]] = {}
        if has_controls:
            orders = [random_units(layout, steps, seed) for seed in range(self.settings.draws)]
            controls = {"random": orders, "scaled": [whole_adapter(layout, steps)], "entries": [entries(layout, steps)]}
        most = before.task + limit
        checked = {
            name: [self._checked(way, strongest(way, layout, self.chosen_on, before, most)) for way in ways]
            for name, ways in controls.items()
        }
        whole = self._measured({})
        return Repair(
            restore=self.settings.restore,
            limit=limit,
            is_linear=_is_linear(self.adapter),
            names=layout.units,
            weights_N=self.checked_on.task.weights,
            refusals=len(self._refusals()),
            before=before,
            found=units,
            whole=Checked(None, [], *whole),
            units=Checked(len(units.units) or None, units.points, *self._measured(without(layout, units.units))),
            controls=checked,
        )

    def _checked(self, way: Way, search: Found) -> Checked:
        """What a search found, on the other half; the adapter as it is where it found nothing."""
        factors = {} if search.best is None else way.factors(search.best.strength)
        return Checked(search.best and search.best.strength, search.points, *self._measured(factors))

    def _measured(self, factors: Factors) -> tuple[Outcome, int]:
        """On the other half: the losses, and how many of the base's refusals are refused still."""
        inference, prompts = self.checked_on.kept.inference, self._refusals()
        outcome = self.checked_on.measured(self.layout, factors)
        with weakened(self.layout, factors), evaluating(inference.model):
            answers = inference.generate(prompts, self.settings.keep_answer_tokens) if prompts else []
        return outcome, sum(map(refuses, answers))

    def _refusals(self) -> list[list[int]]:
        """The prompts of the other half that the base refuses."""
        rows = self.checked_on.kept.rows
        texts = self.checked_on.kept.inference.tokenizer.batch_decode(
            [row.answer for row in rows], skip_special_tokens=True
        )
        return [row.context for row, text in zip(rows, texts, strict=True) if refuses(text)]


def halves(items: Sequence[_T]) -> tuple[list[_T], list[_T]]:
    """In a fixed random order: sets of prompts come in turn."""
    shuffled = Random(0).sample(items, len(items))
    return shuffled[: (len(items) + 1) // 2], shuffled[(len(items) + 1) // 2 :]


@torch.no_grad()
def _install(adapter: Adapter, layout: Layout) -> None:
    """Put the adapter's tensors into the model, which has others of the same shapes."""
    for module, names in unit_tensors(adapter).items():
        for parameter, which in zip(layout.matrices()[module], "AB", strict=True):
            parameter.copy_(adapter.tensors[names[which]])


def _write(folder: Path, settings: Settings, session: Session, repair: Repair) -> None:
    source = Path(settings.adapter)
    adapter = read_adapter(settings.adapter) if repair.rolled_back else session.adapter
    gone = sorted(repair.taken_out)
    note = repair_report.sentence(repair)
    if repair.is_linear and gone:
        note += " Its ranks are the singular directions of each B A, to rounding the same product."
    prune.write(folder, source, adapter, without_units(adapter, gone), gone, f"{note} Nothing was retrained.")
    repair_report.write(folder, repair, settings)
    trained = run_record.of_adapter(source)
    own = {
        "model": session.base,
        "dtype": settings.dtype,
        "dataset": settings.task,
        "dataset_config": None,
        "dataset_train_split": Source().train_split,
        "dataset_test_split": Source().test_split,
        "max_train_samples": None,
        "max_eval_samples": None,
        "per_device_eval_batch_size": settings.batch_size,
    }
    fingerprints = {"adapter": fingerprint_files(source), "model": fingerprint_files(resolve_model(session.base))}
    record = {
        "status": "done",
        "config": {**(trained["config"] if trained else own), "repair": asdict(settings)},
        "fingerprints": {**(trained.get("fingerprints", {}) if trained else {}), **fingerprints},
        "results": {"before": None, "after": None, "repair": repair_report.summary(repair)},
        **provenance(),
    }
    write_json(folder / RUN, record)


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
