"""Supervised finetuning with MonoLoRA, LoRA or all weights, measured before and after.

    accelerate launch recipes/sft.py --adapter monolora
    accelerate launch recipes/sft.py --config recipes/configs/sst2-smollm2.yaml --adapter lora --seed 1

Reads top to bottom: flags, data, model, checks; what follows is :mod:`monolora.recipes.training.run`. Bad input ends it
with one line and exit status 2 before anything is written.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # no warning when a data loader forks

from accelerate import PartialState
from datasets import concatenate_datasets

from monolora.data.chat_template import render_all
from monolora.data.conversations import sequences
from monolora.data.scoring import Metric, score, validation_loss
from monolora.data.tasks import BUILT_IN, Example, load_task
from monolora.inference import Inference
from monolora.recipes.training import run as training_run
from monolora.recipes.training.arguments import AdapterArguments, Arguments, parse
from monolora.recipes.training.data import Data, read_data
from monolora.recipes.training.data_checks import check_steps, check_training_rows, check_truncation, packed_lengths
from monolora.recipes.training.models import make_trainer
from monolora.recipes.training.run import Run, load_base, read_inputs
from monolora.recipes.training.sparse_units import add_sparse_units
from monolora.recipes.training.validation import LOSS
from monolora.runs import OutputFolder


@dataclass(frozen=True, kw_only=True)
class SftRun(Run):
    """A run of supervised finetuning.

    Attributes:
        data: its examples.
    """

    data: Data[Example]

    def score(self, when: str) -> dict[str, Any] | None:
        return self._task_scores(self.inference(when), self.data.test) if not self.arguments.adapter.skip_eval else None

    def _task_scores(self, inference: Inference, rows: Sequence[Example]) -> dict[str, Any]:
        answer_length = _own(self.arguments).eval_max_new_tokens or self.data.task.max_new_tokens
        return score(inference, self.data.task.scorer, rows, answer_length)

    @property
    def validation_metrics(self) -> Sequence[Metric]:
        return [LOSS, *(self.data.task.scorer.metrics if _own(self.arguments).eval_task else ())]

    @property
    def needed_for_metrics(self) -> Mapping[str, str]:
        return {**super().needed_for_metrics, **{each.name: "--eval-task" for each in self.data.task.scorer.metrics}}

    def validation_scores(self, inference: Inference) -> dict[str, Any] | None:
        rows = self.data.validation
        if not rows:
            return None
        scores = self._task_scores(inference, rows) if _own(self.arguments).eval_task else {}
        return validation_loss(inference, rows, self.data.validation_sources) | scores

    def prompts(self) -> Sequence[Example]:
        return self.data.test

    def preview_rows(self) -> Sequence[Mapping[str, Any]]:
        return cast(Sequence[Mapping[str, Any]], self.trainer.train_dataset)


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
    own = _own(arguments)
    read = partial(read_data, arguments, load_task, own.allow_empty_answers, own.train_on)
    inputs, data = read_inputs(arguments, folder, BUILT_IN, read)
    tokenizer = inputs.tokenizer
    examples = render_all(data.train, tokenizer, training.dataset_num_proc)
    made = sequences(data.train, examples, tokenizer, own.conversations, training.dataset_num_proc)
    if inputs.resumed:
        inputs.resumed.check_same_inputs(made.fingerprints())
    inputs.fingerprints.update(made.fingerprints())
    rows = made.rows
    is_wrapped = training.packing and training.packing_strategy == "wrapped"  # it cuts nothing off
    longest = None if is_wrapped else training.max_length
    truncation = check_truncation(rows, longest, len(examples))
    model, keeping = load_base(arguments, inputs, data.task.test)
    added = keeping.rows(len(examples), training.seed)
    trained = rows if added is None else concatenate_datasets([rows, added.cast(rows.features)])
    trainer = make_trainer(model, tokenizer, inputs.adapter, trained, arguments, keeping.keepers)
    add_sparse_units(trainer, own, inputs.config["sharding"])
    number = len(examples) + len(trained) - len(rows)
    lengths = packed_lengths(trainer.train_dataset, trained) if training.packing else None
    ended = check_training_rows(trainer.train_dataset, tokenizer, number, training.max_length, lengths, made.is_joined)
    train_rows, processes = len(trainer.train_dataset), PartialState().num_processes
    check_steps(data.task.name, number, train_rows, training.packing, training, processes)
    keeping.prepare(trainer, tokenizer, rows, flags, inputs.base, flags.adapter_from is not None)
    return SftRun(
        arguments=arguments,
        inputs=inputs,
        data=data,
        trainer=trainer,
        keeping=keeping,
        rows={
            "examples": len(examples),
            "train": train_rows,  # fewer where truncation leaves nothing to train on, or where packed
            "packed": training.packing,
            "end_token_trained": ended,
            "test": len(data.test),
            "validation": len(data.validation),
            "dropped": truncation.dropped,
            "truncated": truncation.truncated,
            **({"replayed": len(added)} if added is not None else {}),
            **({"sequences": len(rows)} if made.is_joined else {}),
            **({"in_parts": {"number": len(parts), "first": parts[0]}} if (parts := made.in_parts) else {}),
            **data.counts(made, longest),
        },
    )


def _own(arguments: Arguments) -> AdapterArguments:
    return cast(AdapterArguments, arguments.adapter)


def main(argv: list[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    return training_run.main(argv, lambda _: "sft", parse, run)


if __name__ == "__main__":
    sys.exit(main())
