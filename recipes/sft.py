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
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # no warning when a data loader forks

from accelerate import PartialState
from rich.console import Console

from monolora.errors import InputError, SaveError
from monolora.hub import fingerprint_files, fingerprint_rows, resolve_model
from monolora.recipes import publish
from monolora.recipes import record as run_record
from monolora.recipes.arguments import Arguments, parse, peft_config
from monolora.recipes.checks import check_finite_parameters, check_training_rows, preview, share_ending
from monolora.recipes.models import is_sharded, load_model, load_tokenizer, make_trainer
from monolora.recipes.prompts import render_all
from monolora.recipes.report import result_table
from monolora.recipes.scoring import prompt_sparsity, score
from monolora.recipes.tasks import load_task
from monolora.recipes.tasks.custom import Source

console = Console()


def run(arguments: Arguments) -> dict[str, Any]:
    """Train and measure one model.

    Returns:
        What ``run.json`` holds; empty after ``--preview``.

    Raises:
        InputError: for anything in the flags, the model or the data that cannot work; nothing is written then.
        SaveError: if a checkpoint or the result could not be written; earlier checkpoints stay whole.
    """
    started = time.monotonic()
    training, flags, script = arguments.training, arguments.adapter, arguments.script
    output = Path(training.output_dir or "")
    config = run_record.resolved_config(arguments)
    run_record.check_output_folder(output, flags.overwrite, bool(training.resume_from_checkpoint) or flags.preview)
    checkpoint = run_record.checkpoint_to_resume(training.resume_from_checkpoint, output, config)

    adapter = peft_config(arguments)
    task = load_task(
        flags.dataset, Source(script.dataset_config, script.dataset_train_split, script.dataset_test_split)
    )
    train, test = task.chosen(flags.max_train_samples, flags.max_eval_samples)
    folder = resolve_model(flags.model, arguments.model.model_revision)
    tokenizer = load_tokenizer(folder, training)
    hub_repo = publish.claim(training)
    rows = render_all(train, tokenizer)
    trainer = make_trainer(load_model(folder, arguments), tokenizer, adapter, rows, arguments)
    check_training_rows(trainer.train_dataset, tokenizer, len(rows), training.max_length)
    if flags.preview:
        preview(trainer.train_dataset, tokenizer, console)
        return {}

    main_process = PartialState().is_main_process
    if main_process and checkpoint is None and flags.overwrite:
        run_record.clear(output)
    scoring = not flags.skip_eval and not is_sharded(trainer)
    batch_size, answer_length = training.per_device_eval_batch_size, flags.eval_max_new_tokens or task.max_new_tokens
    earlier = run_record.read(Path(checkpoint).parent) if checkpoint else None
    before = earlier["results"]["before"] if earlier else None
    if scoring and before is None:
        before = score(trainer.model, tokenizer, task.labels, test, answer_length, batch_size, "before training")
    record: dict[str, Any] = {
        "status": "running",
        "config": config,
        "seeds": {"seed": training.seed, "data_seed": training.data_seed},
        **run_record.provenance(),
        "fingerprints": {
            "model": fingerprint_files(folder),
            "train": fingerprint_rows(map(str, train)),
            "test": fingerprint_rows(map(str, test)),
        },
        "rows": {
            "train": len(trainer.train_dataset),
            "dropped": len(rows) - len(trainer.train_dataset),
            "end_token_trained": share_ending(trainer.train_dataset, tokenizer),
            "test": len(test),
        },
        "results": {"before": before, "after": None},
    }
    if main_process:
        run_record.write(output, record)

    train_started = time.monotonic()
    trainer.train(resume_from_checkpoint=checkpoint)
    train_seconds = time.monotonic() - train_started
    check_finite_parameters(trainer.model)

    after = sparsity = None
    if scoring:
        after = score(trainer.model, tokenizer, task.labels, test, answer_length, batch_size, "after training")
        sparsity = prompt_sparsity(trainer.model, tokenizer, test, batch_size) if adapter else None
    record["status"] = "done"
    record["results"] = {
        "before": before,
        "after": after,
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "sparsity": sparsity._asdict() if sparsity else None,
        "seconds": {"train": train_seconds, "total": time.monotonic() - started},
    }
    record["history"] = trainer.state.log_history
    publish.save(trainer, record, output)
    if main_process and hub_repo is not None:
        publish.push(output, hub_repo, training)
    return record


def main(argv: list[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    try:
        arguments = parse(argv)
        record = run(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SaveError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if record and PartialState().is_main_process:
        console.print(result_table([record]))
        console.print(f"Saved to {arguments.training.output_dir}: the model, README.md, run.json, training.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
