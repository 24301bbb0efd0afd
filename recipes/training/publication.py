"""The outputs of a finished run: model, card, plot and record, with ``--push-to-hub`` also on the hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, get_token

from monolora import run_record
from monolora.errors import InputError, RunError, in_one_line
from monolora.files import follow_umask
from monolora.recipes.training.arguments import TrainingArguments
from monolora.recipes.training.checkpoints import AtomicCheckpoints
from monolora.recipes.training.model_card import model_card, plot
from monolora.redaction import remember

_T = TypeVar("_T")


def save(trainer: AtomicCheckpoints, record: dict[str, Any], output: Path) -> None:
    """Write everything aside, then move it into the output folder, ``run.json`` last.

    Raises:
        SaveError: if the disk is full or not writable; earlier checkpoints stay intact.
        RunError: if the files, opened again, do not hold every tensor.
    """
    with trainer.staged(output) as staging:
        trainer.save_model(str(staging))
        trainer.accelerator.wait_for_everyone()
        if trainer.args.should_save:
            trainer.check_saved(staging)
            (staging / "training_args.bin").unlink(missing_ok=True)  # a pickle; run.json has the same
            model_card(record).save(staging / "README.md")
            plot(record["history"], staging)
            run_record.write(staging, record)
            follow_umask(staging)
            for file in sorted(staging.iterdir(), key=lambda path: path.name == run_record.FILE):
                file.replace(output / file.name)


def claim(training: TrainingArguments) -> str | None:
    """The hub repository of ``--push-to-hub``, checked before training; the trainer then ignores the flag.

    Raises:
        InputError: if there is no token, or the hub cannot be reached.
    """
    remember(training.hub_token or get_token())
    if not training.push_to_hub:
        return None
    training.push_to_hub = False
    user = _on_the_hub(
        lambda: HfApi(token=training.hub_token).whoami()["name"],
        lambda reason: InputError(f"--push-to-hub cannot log in: {reason} Set HF_TOKEN, or leave the flag out."),
    )
    name = training.hub_model_id or Path(training.output_dir or "").name
    return name if "/" in name else f"{user}/{name}"


def push(output: Path, repo: str, training: TrainingArguments) -> None:
    """Upload the output folder without checkpoints.

    Raises:
        RunError: if the hub does not take it.
    """
    api = HfApi(token=training.hub_token)

    def upload() -> None:
        api.create_repo(repo, private=training.hub_private_repo, exist_ok=True)
        api.upload_folder(folder_path=output, repo_id=repo, ignore_patterns=["checkpoint-*", ".*"])

    fix = f"The model is in {output}; try again with: hf upload {repo} {output}"
    _on_the_hub(upload, lambda reason: RunError(f"Cannot push to {repo}: {reason} {fix}"))


def _on_the_hub(call: Callable[[], _T], trouble: Callable[[str], Exception]) -> _T:
    try:
        return call()
    except Exception as error:  # the hub client raises its own, its HTTP library's and the system's errors
        raise trouble(in_one_line(error)) from error
