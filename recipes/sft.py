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
from monolora.data.scoring import score, validation_loss
from monolora.data.tasks import BUILT_IN, Example, load_task
from monolora.recipes.training import run as training_run
from monolora.recipes.training.arguments import AdapterArguments, Arguments, parse
from monolora.recipes.training.data import Data, read_data
from monolora.recipes.training.data_checks import check_steps, check_training_rows, check_truncation
from monolora.recipes.training.models import make_trainer
from monolora.recipes.training.run import Run, load_base, read_inputs
from monolora.runs import OutputFolder


@dataclass(frozen=True, kw_only=True)
class SftRun(Run):
    """A run of supervised finetuning.

    Attributes:
        data: its examples.
    """

    data: Data[Example]

    def score(self, when: str) -> dict[str, Any] | None:
        if not self.is_scored():
            return None
        answer_length = _own(self.arguments).eval_max_new_tokens or self.data.task.max_new_tokens
        return score(self.inference(when), self.data.task.scorer, self.data.test, answer_length)

    def validation_scores(self) -> dict[str, Any] | None:
        rows, sources = self.data.validation, self.data.validation_sources
        return validation_loss(self.inference("after training"), rows, sources) if rows else None

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
    read = partial(read_data, arguments, load_task, _own(arguments).allow_empty_answers)
    inputs, data = read_inputs(arguments, folder, BUILT_IN, read)
    tokenizer = inputs.tokenizer
    rows = render_all(data.train, tokenizer, training.dataset_num_proc)
    is_wrapped = training.packing and training.packing_strategy == "wrapped"  # it cuts nothing off
    longest = None if is_wrapped else training.max_length
    truncation = check_truncation(rows, longest)
    model, keeping = load_base(arguments, inputs, data.task.test)
    added = keeping.rows(len(rows), training.seed)
    trained = rows if added is None else concatenate_datasets([rows, added.cast(rows.features)])
    trainer = make_trainer(model, tokenizer, inputs.adapter, trained, arguments, keeping.keepers)
    ended = check_training_rows(trainer.train_dataset, tokenizer, len(trained), training.max_length, training.packing)
    train_rows, processes = len(trainer.train_dataset), PartialState().num_processes
    check_steps(data.task.name, len(trained), train_rows, training.packing, training, processes)
    keeping.prepare(trainer, tokenizer, rows, flags, inputs.base, flags.adapter_from is not None)
    return SftRun(
        arguments=arguments,
        inputs=inputs,
        data=data,
        trainer=trainer,
        keeping=keeping,
        rows={
            "examples": len(rows),
            "train": train_rows,  # fewer where truncation leaves nothing to train on, or where packed
            "packed": training.packing,
            "end_token_trained": ended,
            "test": len(data.test),
            "validation": len(data.validation),
            "dropped": truncation.dropped,
            "truncated": truncation.truncated,
            **({"replayed": len(added)} if added is not None else {}),
            **data.counts(rows, longest),
        },
    )


def _own(arguments: Arguments) -> AdapterArguments:
    return cast(AdapterArguments, arguments.adapter)


def main(argv: list[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    return training_run.main(argv, lambda _: "sft", parse, run)


if __name__ == "__main__":
    sys.exit(main())
