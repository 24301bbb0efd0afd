"""``monolora verify OUT --against ADAPTER``: how much of an adapter's effect a merge keeps.

On held-out text: KL and top-1 agreement with the adapter, for the merge and, as the yardstick, for the base model; the
error of every layer's delta; and the score of the adapter's own task. The result is printed and written to
``merge_report.json`` and ``merge_report.html`` in OUT. Exit status 1 if less is kept than ``--min-fidelity``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from monolora.data.scoring import score_and_answers
from monolora.data.tasks import Task
from monolora.errors import InputError, SaveError, exit_status
from monolora.flags import FlagParser
from monolora.inference import Inference
from monolora.locks import locked
from monolora.merge.verify import Comparison, compare
from monolora.provenance import provenance
from monolora.recipes import merge_report
from monolora.recipes import merge_source as subjects
from monolora.recipes.calibration_data import Rows, Texts, batches, choose, run_task, same_rows, sources
from monolora.recipes.merge_source import Subject
from monolora.remote_code import code_trusted
from monolora.terminal import Terminal, track
from monolora.units import input_device

# Tokens that a merge is verified on, and is fitted to unless its layers are wide.
HELD_OUT_TOKENS = 8192
CALIBRATION_TOKENS = 32_768


def main(argv: list[str]) -> int:
    """Measure, print and write; returns the exit status."""
    parser = FlagParser("monolora verify", __doc__)
    parser.add_argument("out", help="what a merge wrote: a checkpoint or a LoRA adapter")
    parser.add_argument("--against", nargs="+", required=True, metavar="ADAPTER", help="what it was merged from")
    subjects.add_flags(parser)
    add_flags(parser)
    flags = parser.parse(argv)
    check_flags(flags)
    out = Path(flags.out)
    if not any((out / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise InputError(f"{out} holds neither a model nor an adapter. Give the folder that a merge wrote.")
    earlier = merge_report.read(out)
    if earlier and flags.weights is None and len(flags.against) == len(earlier["merge"]["weights"]):
        flags.weights = earlier["merge"]["weights"]
    with code_trusted(flags.trust_remote_code):
        subject = subjects.from_flags(flags.against, flags)
        task = task_of(subject, flags)
        merge = earlier["merge"] if earlier else {"adapters": flags.against, "weights": list(subject.weights)}
        tokenizer = subject.tokenizer()
        texts = texts_of(task, merge.get("calibration"), tokenizer, flags)
        with locked(out):
            return verify(subject, out, merge, task, texts.held_out, flags)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the verification, here and in ``monolora merge``."""
    parser.add_argument("--verify-on", help="data set to verify on (default: held-out text of the calibration's)")
    parser.add_argument("--verify-tokens", type=int, default=HELD_OUT_TOKENS, help="(default: %(default)s)")
    parser.add_argument(
        "--task-samples", type=int, help="rows of the adapter's task to score, 0 for none (default: as in its run)"
    )
    parser.add_argument(
        "--min-fidelity",
        type=float,
        default=0.5,
        help="share of the adapter's effect that must be kept for exit status 0 (default: %(default)s)",
    )


def check_flags(flags: argparse.Namespace) -> None:
    """Raises: InputError, for numbers that cannot be."""
    if flags.verify_tokens < 1 or flags.batch_size < 1:
        raise InputError("--verify-tokens and --batch-size must be at least 1.")
    if flags.task_samples is not None and flags.task_samples < 0:
        raise InputError("--task-samples must be at least 0.")
    if not flags.min_fidelity <= 1:
        raise InputError("--min-fidelity is a share: 1 for a perfect merge, 0 for one no better than the base.")


def verify(
    subject: Subject,
    out: Path,
    merge: Mapping[str, Any],
    task: Task | None,
    texts: Mapping[str, Rows],
    flags: argparse.Namespace,
) -> int:
    """Verify the merge in ``out``, report it, and return the exit status.

    Args:
        subject: what it was merged from.
        out: what was written.
        merge: how it was made, for the report.
        task: what the adapter was trained on.
        texts: what to verify on.
        flags: of :func:`add_flags`.
    """
    started = time.monotonic()
    with subject.loaded(subject.precise_dtype) as (adapted, tokenizer), subject.merged(str(out)) as merged:
        compared = {
            name: _compare(adapted, merged, rows, tokenizer, name, flags.batch_size) for name, rows in texts.items()
        }
        scores = _task_scores(subject, task, adapted, merged, tokenizer, flags.task_samples)
    report = merge_report.make(compared, scores, merge, flags.min_fidelity)
    report |= {"seconds": round(time.monotonic() - started, 1), **provenance()}
    try:
        merge_report.write(out, report)
    except OSError as error:
        raise SaveError.of(out, error, "The merge itself is whole. Free space, then run monolora verify.") from error
    merge_report.show(report, out, Terminal())
    return 0 if report["passed"] else 1


def task_of(subject: Subject, flags: argparse.Namespace) -> Task | None:
    """The task of the run that trained the adapter; None without a record of the run, or where nobody asks for it.

    Raises:
        InputError: if its data set cannot be read any more.
    """
    if subject.run is None or (flags.verify_on and flags.task_samples == 0):
        return None
    try:
        return run_task(subject.run)
    except InputError as error:
        raise InputError(
            f"The data set that {subject.adapters[0]} was trained on cannot be read: {error} To do without it, give "
            "other text with --verify-on (and --calibration), and --task-samples 0."
        ) from error


def texts_of(
    task: Task | None,
    calibration: Mapping[str, Any] | None,
    tokenizer: PreTrainedTokenizerBase,
    flags: argparse.Namespace,
) -> Texts:
    """The texts of a merge: what it is fitted to (nothing without ``calibration``), and what it is verified on.

    Raises:
        InputError: if there are none.
    """
    fitted_to = sources(task, calibration["dataset"]) if calibration else []
    verified_on = sources(task, flags.verify_on) if flags.verify_on else fitted_to or sources(task, None)
    if not verified_on:
        raise InputError(
            "There is no text to verify the merge on: the adapter's folder has no run.json, and Dolly is not in "
            "MONOLORA_DATA. Give a data set with --verify-on."
        )
    tokens = calibration["tokens"] if calibration else 0
    return choose(fitted_to, verified_on, tokenizer, tokens, flags.verify_tokens)


def _compare(
    adapted: PeftModel, merged: Any, rows: Rows, tokenizer: PreTrainedTokenizerBase, name: str, batch_size: int
) -> Comparison:
    progress = partial(track, description=f"Verifying on {Path(name).name}")
    pad = cast(int, tokenizer.pad_token_id)
    return compare(adapted, merged, batches(rows, pad, batch_size, input_device(adapted)), progress)


def _task_scores(
    subject: Subject,
    task: Task | None,
    adapted: PeftModel,
    merged: Any,
    tokenizer: PreTrainedTokenizerBase,
    samples: int | None,
) -> dict[str, Any] | None:
    """Scores of base, adapter and merge on the run's test rows, and how many answers of the merge are the adapter's.

    The base's score is taken from the run's record where it is there: it is only the yardstick. The adapter is scored
    again, since its answers are compared row by row, and they depend a little on threads and hardware.
    """
    if task is None or subject.run is None or samples == 0:
        return None
    recorded = subject.trained
    if samples is None and (recorded is None or recorded["after"] is None):  # the run was not scored either
        return None
    config, rows = subject.run["config"], task.test[:samples]

    def scored(model: Any, who: str) -> tuple[dict[str, Any], list[str]]:
        inference = Inference(
            model=model, tokenizer=tokenizer, batch_size=config["per_device_eval_batch_size"], when=f"({who})"
        )
        answer_length = config["eval_max_new_tokens"] or task.max_new_tokens
        return score_and_answers(inference, task.labels, rows, answer_length)

    of_merged, answers = scored(merged, "merged")
    of_adapter, wanted = scored(adapted, "adapter")
    before = recorded["before"] if recorded is not None else None
    if before is not None and before["n"] == len(rows) and same_rows(subject.run, "test", rows):
        of_base = before
    else:
        with adapted.disable_adapter():
            of_base = scored(adapted, "base")[0]
    same = sum(a == b for a, b in zip(answers, wanted, strict=True))
    scores = {"base": of_base, "adapter": of_adapter, "merged": of_merged}
    return {"name": task.name, "n": len(rows), **scores, "same_answers": same}


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
