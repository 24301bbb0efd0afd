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
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # no warning when a data loader forks

from accelerate import PartialState
from datasets import Dataset, concatenate_datasets
from torch import nn
from transformers import PreTrainedTokenizerBase

from monolora import run_record
from monolora.data.chat_template import render_all
from monolora.data.scoring import prompt_sparsity, score, validation_loss
from monolora.data.tasks import BUILT_IN, Example, Task
from monolora.errors import exit_status, on_main_process
from monolora.files import code_trusted
from monolora.hub import check_vocabulary, local_path, resolve_model
from monolora.inference import Inference
from monolora.keep.anchors import base_key, is_quantized
from monolora.keep.report import KeepingReport, keeping_table
from monolora.locks import no_empty_folder
from monolora.recipes.training import checkpoints, publication
from monolora.recipes.training.arguments import Arguments, parse, resolved_config
from monolora.recipes.training.checkpoints import Resumed
from monolora.recipes.training.command import answer, read_copy
from monolora.recipes.training.data_checks import (
    check_alive,
    check_finite,
    check_steps,
    check_training_rows,
    check_truncation,
    preview,
)
from monolora.recipes.training.keeping import Keeping, make_keeping
from monolora.recipes.training.model_card import result_table, rows_line
from monolora.recipes.training.models import is_sharded, load_model, load_tokenizer, make_trainer, peft_config
from monolora.recipes.training.progress import training_progress
from monolora.recipes.training.trainer import SftTrainer
from monolora.recipes.training.training_data import dataset_names, read_data
from monolora.run_record import fingerprint_files, provenance
from monolora.runs import OutputFolder, claim
from monolora.terminal import Terminal, say, suggest, unfailing_output


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that is ready to train: everything is loaded and checked, and nothing is written yet."""

    arguments: Arguments
    config: dict[str, Any]
    folder: OutputFolder | None  # of the main process
    resumed: Resumed | None
    task: Task
    test: list[Example]
    validation: list[Example]
    validation_sources: list[str] | None
    model_folder: str
    tokenizer: PreTrainedTokenizerBase
    trainer: SftTrainer
    keeping: Keeping
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
        return score(self.inference(when), self.task.scorer, self.test, answer_length)

    def keeping_record(self) -> dict[str, Any] | None:
        """What was kept of the base, and how; None where nothing was to be kept or measured."""
        inference = self.inference("after training")
        base = partial(load_model, self.model_folder, self.arguments)
        flags = self.arguments.adapter
        return self.keeping.record(inference, base, flags, with_held_out=not flags.skip_eval)


def run(arguments: Arguments) -> dict[str, Any]:
    """Train and measure one model.

    Returns:
        The content of ``run.json``; empty after ``--preview``.

    Raises:
        InputError: for anything in the flags, the model or the data that cannot work; nothing is written then.
        RunError: if training diverged.
        SaveError: if a checkpoint or the result could not be written; earlier checkpoints stay intact.
    """
    started = time.monotonic()
    output = Path(arguments.training.output_dir or "")
    with ExitStack() as stack:
        stack.enter_context(code_trusted(arguments.training.trust_remote_code))
        stack.enter_context(no_empty_folder(output))
        folder = None
        if not arguments.adapter.preview:
            folder = on_main_process(lambda: stack.enter_context(claim(output, run_record.SFT, "--output-dir")))
        this = prepare(arguments, folder)
        with unfailing_output():
            if PartialState().is_main_process:
                say(rows_line(this.rows))
        if arguments.adapter.preview:
            if PartialState().is_main_process:
                preview(_rows_of(this.trainer), this.tokenizer, Terminal())
            return {}
        record = begin(this)
        train_started = time.monotonic()
        with unfailing_output(), training_progress(this.trainer):
            this.trainer.train(resume_from_checkpoint=str(this.resumed.checkpoint) if this.resumed else None)
        return finish(this, record, time.monotonic() - train_started, started)


def prepare(arguments: Arguments, folder: OutputFolder | None) -> Run:
    """Load and check everything that a run needs; write nothing but the trainer's empty output folder.

    Args:
        arguments: all flags.
        folder: the output folder, in the main process; None with ``--preview``.
    """
    training, flags = arguments.training, arguments.adapter
    output = Path(training.output_dir or "")
    config = resolved_config(arguments)
    resumed = checkpoints.find(training.resume_from_checkpoint, output, config)
    if not flags.preview and not (resumed and resumed.checkpoint.parent.resolve() == output.resolve()):
        on_main_process(lambda: _check(folder, arguments))
    adapter = peft_config(arguments)
    data = read_data(arguments)
    model_folder = resolve_model(flags.model, arguments.model.model_revision)
    fingerprints = {"model": fingerprint_files(model_folder)} | data.fingerprints()
    if resumed:
        resumed.check_same_inputs(fingerprints)
    tokenizer = load_tokenizer(model_folder, training)
    hub_repo = publication.claim(training)
    rows = render_all(data.train, tokenizer, training.dataset_num_proc)
    is_wrapped = training.packing and training.packing_strategy == "wrapped"  # it cuts nothing off
    longest = None if is_wrapped else training.max_length
    truncation = check_truncation(rows, longest)
    model = load_model(model_folder, arguments)
    check_vocabulary(model, tokenizer, flags.model)
    base = base_key(fingerprints["model"], config)
    keeping = Keeping(keepers=[])
    if not flags.preview:
        folder_of_base = None if is_quantized(config) else model_folder
        batch_size = training.per_device_eval_batch_size
        keeping = make_keeping(flags, data.task.test, model, tokenizer, base, folder_of_base, batch_size)
        if resumed:
            resumed.check_same_inputs(keeping.fingerprints())
        fingerprints |= keeping.fingerprints()
    added = keeping.rows(len(rows), training.seed)
    trained = rows if added is None else concatenate_datasets([rows, added.cast(rows.features)])
    trainer = make_trainer(model, tokenizer, adapter, trained, arguments, keeping.keepers)
    ended = check_training_rows(trainer.train_dataset, tokenizer, len(trained), training.max_length, training.packing)
    train_rows, processes = len(_rows_of(trainer)), PartialState().num_processes
    check_steps(data.task.name, len(trained), train_rows, training.packing, training, processes)
    keeping.prepare(trainer, tokenizer, rows, flags, base)
    return Run(
        arguments=arguments,
        config=config,
        folder=folder,
        resumed=resumed,
        task=data.task,
        test=data.test,
        validation=data.validation,
        validation_sources=data.validation_sources,
        model_folder=model_folder,
        tokenizer=tokenizer,
        trainer=trainer,
        keeping=keeping,
        hub_repo=hub_repo,
        fingerprints=fingerprints,
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


def _check(folder: OutputFolder | None, arguments: Arguments) -> None:
    """Raises: InputError, where an earlier result is in the way, or something that the run reads is in its folder."""
    assert folder is not None  # it is the main process, and no preview
    training, flags = arguments.training, arguments.adapter
    folder.check(flags.overwrite)
    names = [flags.model, *(name for name in dataset_names(flags) if name not in BUILT_IN)]
    files = (
        training.resume_from_checkpoint,
        training.chat_template_path,
        training.deepspeed,
        training.fsdp_config,
        training.accelerator_config,
    )
    folder.check_apart([*filter(None, map(local_path, names)), *(file for file in files if isinstance(file, str))])


def begin(this: Run) -> dict[str, Any]:
    """Score the model before training and write the first record."""
    training = this.arguments.training
    if this.folder is not None:
        this.folder.clear()
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
    """Score the trained model, save it and its record, and push it with ``--push-to-hub``."""
    trainer, adapter = this.trainer, this.arguments.adapter.adapter
    model = trainer.model
    assert isinstance(model, nn.Module)
    check_finite(model, trainer.state.log_history)
    after = this.score("after training")
    sparsity = prompt_sparsity(this.inference("after training"), this.test) if after and adapter != "none" else None
    losses = None
    if this.validation and not is_sharded(trainer):
        losses = validation_loss(this.inference("after training"), this.validation, this.validation_sources)
    if sparsity:
        check_alive(sparsity)
    results = {
        "before": record["results"]["before"],
        "after": after,
        "validation": losses,
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "sparsity": sparsity._asdict() if sparsity else None,
        "keeping": None if is_sharded(trainer) else this.keeping_record(),
        "seconds": {"train": train_seconds, "total": time.monotonic() - started},
    }
    record = {**record, "status": "done", "results": results, "history": trainer.state.log_history}
    publication.save(trainer, record, this.output)
    if PartialState().is_main_process and this.hub_repo is not None:
        publication.push(this.output, this.hub_repo, this.arguments.training)
    return record


def _next(record: dict[str, Any], output: str) -> Sequence[str]:
    """The words of a command: what did the run do to its base? Where that is measured, a merge."""
    if record["config"]["adapter"] == "none":
        return "eval", "run", "--model", output, "--judges", "refusal", "--out", f"{output}-eval"
    return ("merge", output, f"{output}-merged") if record["results"]["keeping"] else ("keep-report", output)


def main(argv: list[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""

    def program() -> int:
        words = sys.argv[1:] if argv is None else argv
        answer(words, read_copy())
        arguments = parse(words)
        record = run(arguments)
        if record and PartialState().is_main_process:
            Terminal().print(result_table([record]))
            if sets := (record["results"]["keeping"] or {}).get("sets"):
                Terminal().print(keeping_table({name: KeepingReport.of(values) for name, values in sets.items()}))
            output = str(arguments.training.output_dir)
            say(f"Saved to {output}: the model, README.md, run.json, training.png")
            suggest("monolora", *_next(record, output))
        return 0

    return exit_status(program)


if __name__ == "__main__":
    sys.exit(main())
