"""What a study was made of, from the records of its trainings, evaluations and judges."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from monolora.errors import InputError
from monolora.eval import run as runs
from monolora.recipes.studies.cells import training
from monolora.recipes.studies.chosen import Chosen
from monolora.recipes.studies.settings import Study
from monolora.run_record import read
from monolora.text_files import read_json

_ALIKE = ("max_train_samples", "num_train_epochs", "per_device_train_batch_size", "max_length", "lora_r")


def about(study: Study, rates: Mapping[str, Mapping[str, Chosen]]) -> str:
    """Sentences for the report.

    Raises:
        InputError: if two adapters of a seed did not see the same examples for the same steps.
    """
    records = {
        (dataset, adapter, seed): _record(training(study, dataset, adapter, each.rate, seed).folder)
        for dataset, of_dataset in rates.items()
        for adapter, each in of_dataset.items()
        for seed in study.seeds
    }
    seeds = f"Seed {study.seeds[0]}" if len(study.seeds) == 1 else f"Seeds {', '.join(map(str, study.seeds))}"
    stages = {
        "trainings": records.values(),
        "evaluations": [runs.read(study.folder / dataset / "eval") for dataset in study.datasets],
    }
    lines = [
        f"{seeds}. Commits: {'; '.join(f'{stage} {_commits(of)}' for stage, of in stages.items())}.",
        *_trainings(study, records),
        "Every adapter saw the same examples in the same order for the same steps, at the learning rate with the "
        "lowest loss on held-out training examples, of those that all had, with the first seed. The rate is taken as "
        "given by everything below, and where rates differ, a difference is theirs too.",
        f"Answers end after {study.eval.get('max_new_tokens', 512)} tokens.",
        *_judges(study),
        "Values are means; in brackets are 95 % intervals, over seeds and prompts at once where there are both (random "
        "effects of both; score intervals of shares). Seeds are the order of the examples and where the training "
        "begins. Nothing is said of other training examples, base models, data sets or judges.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _record(folder: Path) -> dict[str, Any]:
    found = read(folder)
    if found is None:
        raise InputError(f"{folder} has no record. Run the study again.")
    return found


def _commits(records: Iterable[Mapping[str, Any]]) -> str:
    found = set()
    for record in records:
        git = record.get("git")
        changed = " and changes" if git and git["dirty"] else ""
        found.add(f"{git['commit'][:7]}{changed}" if git else "an installed package")
    return ", ".join(sorted(found))


def _trainings(study: Study, records: Mapping[tuple[str, str, int], Mapping[str, Any]]) -> Iterator[str]:
    for dataset in study.datasets:
        for seed in study.seeds:
            of_seed = [_seen(records[dataset, adapter, seed]) for adapter in study.adapters]
            if any(each != of_seed[0] for each in of_seed):
                raise InputError(
                    f"{dataset}, seed {seed}: the adapters did not see the same examples for the same steps. Give them "
                    "the same sft flags, and run the study again."
                )
        record = records[dataset, next(iter(study.adapters)), study.seeds[0]]
        config, rows, steps = record["config"], record["rows"], record["history"][-1]["step"]
        batch = config["per_device_train_batch_size"] * config["gradient_accumulation_steps"]
        yield (
            f"{dataset}: {rows['train']:,} examples, {_counted(config['num_train_epochs'], 'epoch')}, {steps} steps of "
            f"{batch}, rank {config['lora_r']}; the rate chosen on {rows['validation']} training examples that are "
            "neither trained on nor tested."
        )


def _counted(count: float, what: str) -> str:
    return f"{count:g} {what}{'' if count == 1 else 's'}"


def _seen(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """What training examples a run saw, and how often."""
    alike = tuple(record["config"][name] for name in _ALIKE)
    return (*alike, record["fingerprints"]["train"], record["seeds"], record["history"][-1]["step"])


def _judges(study: Study) -> Iterator[str]:
    """How good the judges are that the study trained, of which all their flags hang."""
    for name in study.judges:
        path = study.folder / name / "run.json"
        if not path.is_file():
            continue
        found = read_json(path, "Delete the folder, and give the same command again.")["results"]["test"]
        yield (
            f"[{name}](../{name}/run.json) was trained for the study: AUC {found['auc']:.3f}, precision "
            f"{found['precision']:.2f} and recall {found['recall']:.2f} of unsafe on {found['rows']:,} rows of "
            "BeaverTails that it never saw, which are not answers of these models."
        )
