"""Supervised finetuning with MonoLoRA, LoRA or all weights, measured before and after.

    accelerate launch recipes/sft.py --adapter monolora
    accelerate launch recipes/sft.py --config recipes/configs/sst2-smollm2.yaml --adapter lora --seed 1

Reads top to bottom: flags, data, model, checks, score, train, score, save. Bad input ends it with one line and exit
status 2 before anything is written.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # no warning when a data loader forks

from accelerate import PartialState
from datasets import Dataset
from rich.console import Console
from torch import nn
from transformers import PreTrainedTokenizerBase

from monolora.errors import exit_status
from monolora.fingerprints import fingerprint_files, fingerprint_rows
from monolora.hub import resolve_model
from monolora.provenance import provenance
from monolora.recipes import publish, resume, row_cache
from monolora.recipes import record as run_record
from monolora.recipes.adapter_config import peft_config
from monolora.recipes.arguments import Arguments, parse
from monolora.recipes.checks import check_alive, check_finite, check_training_rows, preview
from monolora.recipes.inference import Inference
from monolora.recipes.models import is_sharded, load_model, load_tokenizer, make_trainer
from monolora.recipes.prompts import render_all
from monolora.recipes.report import result_table
from monolora.recipes.resume import Resumed
from monolora.recipes.scoring import prompt_sparsity, score, validation_loss
from monolora.recipes.tasks import Example, Task, load_task
from monolora.recipes.tasks.custom import Source
from monolora.recipes.trainer import SftTrainer
from monolora.remote_code import code_trusted


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that is ready to train: all that its flags name is loaded and checked, and nothing is written yet."""

    arguments: Arguments
    config: dict[str, Any]
    resumed: Resumed | None
    task: Task
    test: list[Example]
    validation: list[Example]
    tokenizer: PreTrainedTokenizerBase
    trainer: SftTrainer
    hub_repo: str | None
    fingerprints: dict[str, str]
    rows: dict[str, Any]

    @property
    def output(self) -> Path:
        """The output folder."""
        return Path(self.arguments.training.output_dir or "")

    def inference(self, when: str) -> Inference:
        """The model as it is now, to be scored; without the autocast that training wraps around it."""
        model = self.trainer.accelerator.unwrap_model(self.trainer.model, keep_fp32_wrapper=False)
        batch_size = self.arguments.training.per_device_eval_batch_size
        return Inference(model=model, tokenizer=self.tokenizer, batch_size=batch_size, when=when)

    def score(self, when: str) -> dict[str, Any] | None:
        """The task's scores, or None where it is not to be scored or the weights are spread over processes."""
        flags = self.arguments.adapter
        if flags.skip_eval or is_sharded(self.trainer):
            return None
        answer_length = flags.eval_max_new_tokens or self.task.max_new_tokens
        return score(self.inference(when), self.task.labels, self.test, answer_length)


def run(arguments: Arguments) -> dict[str, Any]:
    """Train and measure one model.

    Returns:
        What ``run.json`` holds; empty after ``--preview``.

    Raises:
        InputError: for anything in the flags, the model or the data that cannot work; nothing is written then.
        RunError: if training diverged.
        SaveError: if a checkpoint or the result could not be written; earlier checkpoints stay whole.
    """
    started = time.monotonic()
    trusted = code_trusted(arguments.training.trust_remote_code)
    with trusted, run_record.no_empty_folder(Path(arguments.training.output_dir or "")):
        this = prepare(arguments)
        if arguments.adapter.preview:
            if PartialState().is_main_process:
                preview(_rows_of(this.trainer), this.tokenizer, Console())
            return {}
        record = begin(this)
        train_started = time.monotonic()
        this.trainer.train(resume_from_checkpoint=str(this.resumed.checkpoint) if this.resumed else None)
        return finish(this, record, time.monotonic() - train_started, started)


def prepare(arguments: Arguments) -> Run:
    """Load and check everything that a run needs. Writes nothing, but for the trainer's empty output folder."""
    script, training, flags = arguments.script, arguments.training, arguments.adapter
    output = Path(training.output_dir or "")
    config = run_record.resolved_config(arguments)
    resumed = resume.find(training.resume_from_checkpoint, output, config)
    if not flags.preview and not (resumed and resumed.checkpoint.parent.resolve() == output.resolve()):
        run_record.check_output_folder(output, flags.overwrite)
    adapter = peft_config(arguments)
    source = Source(script.dataset_config, script.dataset_train_split, script.dataset_test_split)
    task = load_task(flags.dataset, source)
    train, test = task.chosen(flags.max_train_samples, flags.max_eval_samples)
    validation = task.validation(flags.validation_samples, flags.max_train_samples) if flags.validation_samples else []
    folder = resolve_model(flags.model, arguments.model.model_revision)
    fingerprints = {"model": fingerprint_files(folder)}
    parts = {"train": train, "test": test} | ({"validation": validation} if validation else {})
    fingerprints |= {name: fingerprint_rows(map(str, part)) for name, part in parts.items()}
    if resumed:
        resumed.check_same_inputs(fingerprints)
    tokenizer = load_tokenizer(folder, training)
    hub_repo = publish.claim(training)
    rows = row_cache.on_disk(render_all(train, tokenizer))
    trainer = make_trainer(load_model(folder, arguments), tokenizer, adapter, rows, arguments)
    ended = check_training_rows(trainer.train_dataset, tokenizer, len(rows), training.max_length, training.packing)
    return Run(
        arguments=arguments,
        config=config,
        resumed=resumed,
        task=task,
        test=test,
        validation=validation,
        tokenizer=tokenizer,
        trainer=trainer,
        hub_repo=hub_repo,
        fingerprints=fingerprints,
        rows={
            "examples": len(rows),
            "train": len(_rows_of(trainer)),  # fewer where truncation leaves nothing to train on, or where packed
            "packed": training.packing,
            "end_token_trained": ended,
            "test": len(test),
            "validation": len(validation),
        },
    )


def begin(this: Run) -> dict[str, Any]:
    """Score the model before training and write the first record."""
    training = this.arguments.training
    if PartialState().is_main_process and this.arguments.adapter.overwrite:
        run_record.clear(this.output)
    before = this.resumed.scores_before(this.config) if this.resumed else None
    record: dict[str, Any] = {
        "status": "running",
        "config": this.config,
        "seeds": {"seed": training.seed, "data_seed": training.data_seed},
        **provenance(),
        "fingerprints": this.fingerprints,
        "rows": this.rows,
        "results": {"before": before or this.score("before training"), "after": None},
    }
    if PartialState().is_main_process:
        run_record.write(this.output, record)
    return record


def _rows_of(trainer: SftTrainer) -> Dataset:
    """The tokenized training examples."""
    rows = trainer.train_dataset
    assert isinstance(rows, Dataset)  # never a stream: the recipe's examples are in memory
    return rows


def finish(this: Run, record: dict[str, Any], train_seconds: float, started: float) -> dict[str, Any]:
    """Score the trained model, save it and its record, and push it if asked for."""
    trainer, adapter = this.trainer, this.arguments.adapter.adapter
    model = trainer.model
    assert isinstance(model, nn.Module)
    check_finite(model, trainer.state.log_history)
    after = this.score("after training")
    sparsity = prompt_sparsity(this.inference("after training"), this.test) if after and adapter != "none" else None
    is_validated = this.validation and not is_sharded(trainer)
    if sparsity:
        check_alive(sparsity)
    results = {
        "before": record["results"]["before"],
        "after": after,
        "validation": validation_loss(this.inference("after training"), this.validation) if is_validated else None,
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "sparsity": sparsity._asdict() if sparsity else None,
        "seconds": {"train": train_seconds, "total": time.monotonic() - started},
    }
    record = {**record, "status": "done", "results": results, "history": trainer.state.log_history}
    publish.save(trainer, record, this.output)
    if PartialState().is_main_process and this.hub_repo is not None:
        publish.push(this.output, this.hub_repo, this.arguments.training)
    return record


def main(argv: list[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""

    def program() -> int:
        arguments = parse(argv)
        record = run(arguments)
        if record and PartialState().is_main_process:
            Console().print(result_table([record]))
            print(f"Saved to {arguments.training.output_dir}: the model, README.md, run.json, training.png")
        return 0

    return exit_status(program)


if __name__ == "__main__":
    sys.exit(main())
