"""Finetuning on preferences: DPO or KTO with MonoLoRA, LoRA or all weights, measured before and after.

    accelerate launch recipes/dpo.py --dataset pairs.jsonl --adapter monolora
    accelerate launch recipes/dpo.py --dataset pairs.jsonl --method kto --beta 0.2

The reference is the model that training starts from: a new adapter is switched off, and full finetuning and
``--adapter-from`` keep a frozen copy. Reads top to bottom: flags, data, model, checks; what follows is
:mod:`monolora.recipes.training.run`. Bad input ends it with one line and exit status 2 before anything is written.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, cast

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # no warning when a data loader forks

from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel

from monolora.data.chat_template import Split
from monolora.data.preference_tasks import BUILT_IN, load_preferences
from monolora.data.preferences import PAIR_METRICS, LogProbs, Preference, probability_scores, reward_scores
from monolora.data.scoring import Metric
from monolora.data.tasks import Example
from monolora.errors import InputError
from monolora.inference import Inference, adapter_off, evaluating
from monolora.recipes.training import run as training_run
from monolora.recipes.training.arguments import Arguments
from monolora.recipes.training.arguments import parse as parse_flags
from monolora.recipes.training.command import method_of
from monolora.recipes.training.data import Data, read_data
from monolora.recipes.training.data_checks import check_steps, check_training_rows
from monolora.recipes.training.models import load_model, make_trainer
from monolora.recipes.training.preference_arguments import PROGRAMS, PreferenceArguments
from monolora.recipes.training.preference_rows import PreferenceRows, judged_rows, labelled, pair_rows, rendered
from monolora.recipes.training.preference_trainer import JudgedTrainer, PairTrainer
from monolora.recipes.training.run import Inputs, Run, load_base, read_inputs
from monolora.recipes.training.validation import LOSS
from monolora.runs import OutputFolder

Tokens = list[tuple[Split | None, Split | None]]
TEST, VALIDATION = "test", "validation"


@dataclass(frozen=True, kw_only=True)
class PreferenceRun(Run):
    """A run on preferences.

    Attributes:
        data: its preferences.
        held_out: the tokens of those that are scored, by the name of their part.
        reference: log-probabilities of their answers under the reference, once they are measured.
    """

    previewed: ClassVar[int] = 4  # two pairs
    data: Data[Preference]
    held_out: dict[str, Tokens]
    reference: dict[str, list[LogProbs]] = field(default_factory=dict)

    @property
    def reference_name(self) -> str | None:
        return self.arguments.adapter.adapter_from or "base"

    def score_before(self) -> dict[str, Any] | None:
        """Of the reference, which rewards need later; so it is measured again where a run is resumed."""
        is_new = self.inputs.adapter is not None and self.arguments.adapter.adapter_from is None
        if is_new or self.is_at_start():
            inference = self.inference("of the reference")
            with adapter_off(inference.model) if is_new else nullcontext():
                self.reference.update({name: _log_probs(inference, rows) for name, rows in self.held_out.items()})
        return probability_scores(self.reference[TEST]) if TEST in self.reference else None

    def score(self, when: str) -> dict[str, Any] | None:
        scores = self._scores(TEST, self.inference(when))
        return {name: value for name, value in scores.items() if name != "loss"} if scores else None

    @property
    def validation_metrics(self) -> Sequence[Metric]:
        are_pairs = all(row.is_pair for row in self.data.validation)
        metrics = self.data.task.scorer.metrics
        return [LOSS, *(metric for metric in metrics if are_pairs or metric.name not in PAIR_METRICS)]

    def validation_scores(self, inference: Inference) -> dict[str, Any] | None:
        return self._scores(VALIDATION, inference)

    def _scores(self, part: str, inference: Inference) -> dict[str, Any] | None:
        if part not in self.reference:
            return None
        policy = _log_probs(inference, self.held_out[part])
        return reward_scores(policy, self.reference[part], self.arguments.training.beta)

    def prompts(self) -> Sequence[Example]:
        return [preference.chosen for preference in self.data.test]

    def preview_rows(self) -> Iterable[Mapping[str, Any]]:
        return labelled(self.trainer.train_dataset, self.arguments.training.max_length)


def _log_probs(inference: Inference, rows: Tokens) -> list[LogProbs]:
    """Summed over the tokens of each answer, end tokens included."""
    splits = [split for row in rows for split in row if split is not None]
    with evaluating(inference.model):
        sums = iter(inference.answer_log_probs(splits, "preferences"))
    return [LogProbs(*(None if split is None else next(sums) for split in row)) for row in rows]


def run(arguments: Arguments) -> dict[str, Any]:
    """Train and measure one model, as :func:`monolora.recipes.training.run.train`."""
    return training_run.train(arguments, prepare)


def prepare(arguments: Arguments, folder: OutputFolder | None) -> Run:
    """Load and check everything that a run needs; write nothing but the trainer's empty output folder.

    Args:
        arguments: all flags.
        folder: the output folder, in the main process; None with ``--preview``.
    """
    training, flags = arguments.training, arguments.adapter
    inputs, data = read_inputs(arguments, folder, BUILT_IN, partial(read_data, arguments, load_preferences))
    tokenizer = inputs.tokenizer
    trained = _trained(arguments, inputs, data)
    parts = {TEST: [] if flags.skip_eval else data.test, VALIDATION: data.validation}
    held_out = {
        name: list(rendered(part, tokenizer, training.dataset_num_proc)) for name, part in parts.items() if part
    }
    model, keeping = load_base(arguments, inputs, [preference.chosen for preference in data.task.test])
    if keeping.rows(len(trained.rows), training.seed) is not None:
        raise InputError("--keep: a keeper adds rows with one answer, which no preference can be learned from. Use kl.")
    trainer = _make_trainer(arguments, inputs, model, trained.rows, keeping.keepers)
    answers = list(labelled(trained.rows, training.max_length))
    ended = check_training_rows(answers, tokenizer, len(answers), training.max_length)
    check_steps(data.task.name, len(trained.rows), len(trained.rows), False, training, PartialState().num_processes)
    keeping.prepare(trainer, tokenizer, Dataset.from_list(answers), flags, inputs.base, flags.adapter_from is not None)
    return PreferenceRun(
        arguments=arguments,
        inputs=inputs,
        data=data,
        held_out=held_out,
        trainer=trainer,
        keeping=keeping,
        rows={
            "unit": "pairs" if _method(arguments) == "dpo" else "answers",
            "examples": trained.examples,
            "train": len(trained.rows),
            "end_token_trained": ended,
            "test": len(data.test),
            "validation": len(data.validation),
            "dropped": trained.truncation.dropped,
            "truncated": trained.truncation.truncated,
            **(data.task.counts or {}),
        },
    )


def _trained(arguments: Arguments, inputs: Inputs, data: Data[Preference]) -> PreferenceRows:
    training = arguments.training
    made = inputs.tokenizer, training.max_length, training.dataset_num_proc
    if _method(arguments) == "dpo":
        return pair_rows(data.train, *made)
    seed = training.seed if training.data_seed is None else training.data_seed
    return judged_rows(data.train, *made, seed)


def _make_trainer(
    arguments: Arguments, inputs: Inputs, model: PreTrainedModel, rows: Dataset, keepers: Sequence[Any]
) -> Any:
    """TRL's trainer of the method. A model of its own as the reference has full finetuning alone, loaded as it was."""
    kind: Any = PairTrainer if _method(arguments) == "dpo" else JudgedTrainer
    if inputs.adapter is None and not arguments.training.precompute_ref_log_probs:
        kind = partial(kind, ref_model=load_model(inputs.model_folder, arguments))
    return make_trainer(model, inputs.tokenizer, inputs.adapter, rows, arguments, keepers, kind)


def _method(arguments: Arguments) -> str:
    return cast(PreferenceArguments, arguments.adapter).method


def parse(argv: list[str]) -> Arguments:
    """The flags of a command line; ``--method`` decides which there are.

    Raises:
        InputError: for an unknown flag or key, an invalid value, or flags that contradict each other.
    """
    return parse_flags(argv, PROGRAMS[method_of(argv)])


def main(argv: list[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    return training_run.main(argv, method_of, parse, run)


if __name__ == "__main__":
    sys.exit(main())
