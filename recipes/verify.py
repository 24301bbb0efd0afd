"""``monolora verify OUT --against ADAPTER``: how much of an adapter's effect a merge keeps.

On held-out text: KL and top-1 agreement with the adapter, for the merge and, as the yardstick, for the base model; the
error of every layer's delta; and the score of the adapter's own task. Where the adapter's run kept its base's behaviour
(``monolora sft --keep``), also how far the merge is from the adapter on held-out anchors. The result is printed and
written to ``merge_report.json`` and ``merge_report.html`` in OUT. Exit status 1 if it keeps less than
``--min-fidelity``.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from monolora.cli.flags import FlagParser
from monolora.data.scoring import score_and_answers
from monolora.data.tasks import Example, Task
from monolora.errors import InputError, exit_status
from monolora.files import code_trusted, saving
from monolora.hub import resolve_model
from monolora.inference import Inference
from monolora.keep.anchors import DEFAULT_PROMPTS, Anchors, answered, base_key, divided, is_quantized, read_prompts
from monolora.locks import locked
from monolora.merge.quantizer import dtype_named
from monolora.merge.verify import Comparison, compare
from monolora.recipes import merge_report, merge_source
from monolora.recipes.calibration_data import (
    ANCHORS,
    Rows,
    RunTask,
    Texts,
    batches,
    choose,
    run_task,
    same_rows,
    sources,
)
from monolora.recipes.checkpoint_settings import Verification, Verify
from monolora.recipes.merge_source import MergeSource
from monolora.run_record import fingerprint_rows, provenance
from monolora.terminal import Terminal, track
from monolora.units import input_device


def main(argv: list[str]) -> int:
    """Run from the command line; returns the exit status."""
    return run(FlagParser("monolora verify", __doc__).parse_into(argv, Verify))


def run(settings: Verify) -> int:
    """Measure, print and write; returns the exit status."""
    out, loading = Path(settings.out), settings.loading
    if not any((out / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise InputError(f"{out} holds neither a model nor an adapter. Give the folder that a merge wrote.")
    earlier = merge_report.read(out)
    if earlier and not loading.weights and len(settings.against) == len(earlier["merge"]["weights"]):
        loading = replace(loading, weights=tuple(earlier["merge"]["weights"]))
    with code_trusted(loading.trust_remote_code):
        source = merge_source.from_settings(settings.against, loading)
        task = task_of(source, settings.verification)
        inputs = {"adapters": list(settings.against), "weights": list(source.weights)}
        merge: Mapping[str, Any] = earlier["merge"] if earlier else inputs
        tokenizer = source.tokenizer()
        anchors = anchors_of(source, task)
        texts = texts_of(task, merge.get("calibration"), tokenizer, settings.verification, anchors)
        with locked(out):
            return verify(source, out, merge, task, texts, settings.verification, loading.batch_size)


def verify(
    source: MergeSource,
    out: Path,
    merge: Mapping[str, Any],
    task: Task | None,
    texts: Texts,
    verification: Verification,
    batch_size: int,
) -> int:
    """Verify the merge in ``out``, report it, and return the exit status.

    Args:
        source: of the merge.
        out: folder of the merge.
        merge: its settings, for the report.
        task: of the adapter's training.
        texts: to verify on; those of the calibration are not read.
        verification: the settings.
        batch_size: texts in a batch.
    """
    started = time.monotonic()
    with source.loaded(source.precise_dtype) as (adapted, tokenizer), source.merged(str(out)) as merged:
        compare_on = partial(_compare, adapted, merged, tokenizer, batch_size)
        compared = {name: compare_on(rows, name) for name, rows in texts.held_out.items()}
        on_anchors = compare_on(texts.anchors, ANCHORS) if texts.anchors else None
        scores = _task_scores(source, task, adapted, merged, tokenizer, verification.task_samples)
    report = merge_report.make(compared, scores, merge, verification.min_fidelity, on_anchors)
    report |= {"seconds": round(time.monotonic() - started, 1), **provenance()}
    with saving(out, "The merge itself is whole. Free space, then run monolora verify."):
        merge_report.write(out, report)
    merge_report.show(report, out, Terminal())
    if merge_report.drifts(report):
        warnings.warn(
            "On held-out anchors the merge is further from the adapter than the adapter is from its base, so part of "
            "what --keep kept is lost.",
            stacklevel=1,
        )
    return 0 if report["passed"] else 1


def task_of(source: MergeSource, verification: Verification) -> RunTask | None:
    """The task of the run that trained the adapter; None without a record or without use for it.

    Raises:
        InputError: if its data set can no longer be read.
    """
    if source.run is None or (verification.verify_on and verification.task_samples == 0):
        return None
    try:
        return run_task(source.run)
    except InputError as error:
        raise InputError(
            f"The data set that {source.adapters[0]} was trained on cannot be read: {error} To do without it, give "
            "other text with --verify-on (and --calibration), and --task-samples 0."
        ) from error


def anchors_of(source: MergeSource, task: RunTask | None) -> Anchors | None:
    """The anchors of the run that trained the adapter; None, with a warning, where they cannot be read.

    The base is loaded only if the cache has no answers of it.

    Args:
        source: of the merge.
        task: of the run; without it, rows of its test may be among the anchors.
    """
    run = source.run
    if run is None or not run["config"].get("keep"):
        return None
    try:
        if all(word == "none" for word in run["config"]["keep"] or ()):
            return None
        anchors = _read_anchors(source, run, () if task is None else task.tested)
    except InputError as error:
        warnings.warn(
            f"The anchors of {source.adapters[0]} cannot be read, so whether the merge keeps what --keep kept is not "
            f"measured: {error}",
            stacklevel=2,
        )
        return None
    if run.get("fingerprints", {}).get("anchors") not in (None, fingerprint_rows(map(str, anchors.train))):
        warnings.warn(
            f"The anchors of {source.adapters[0]} are not all as in its run: the prompts have changed, or its base "
            "answers some of them otherwise here. It may have learned from what is held out here.",
            stacklevel=2,
        )
    return anchors


def _read_anchors(source: MergeSource, run: Mapping[str, Any], tested: Sequence[Example]) -> Anchors:
    config = run["config"]
    if missing := [name for name in ("keep_samples", "keep_answer_tokens") if name not in config]:
        raise InputError(f"its run.json has no {missing[0]}. Copy the run's folder again.")
    prompts = read_prompts(config.get("keep_prompts") or DEFAULT_PROMPTS, config["keep_samples"], tested)
    answers = answered(
        prompts.examples,
        source.tokenizer(),
        source.trained_base,
        base=base_key(source.fingerprint, config),
        dtype=dtype_named(source.trained_dtype),
        max_new_tokens=config["keep_answer_tokens"],
        batch_size=config["per_device_eval_batch_size"],
        folder=None if is_quantized(config) else resolve_model(source.model),
    )
    return divided(answers, prompts.evaluated)


def texts_of(
    task: Task | None,
    calibration: Mapping[str, Any] | None,
    tokenizer: PreTrainedTokenizerBase,
    verification: Verification,
    anchors: Anchors | None,
) -> Texts:
    """The texts that a merge is fitted to (none without ``calibration``), and those that it is verified on.

    Raises:
        InputError: if there are none.
    """
    fitted_to = sources(task, calibration["dataset"]) if calibration else []
    verified_on = sources(task, verification.verify_on) if verification.verify_on else fitted_to or sources(task, None)
    if not verified_on:
        raise InputError(
            "There is no text to verify the merge on: the adapter's folder has no run.json, and Dolly is not in "
            "MONOLORA_DATA. Give a data set with --verify-on."
        )
    tokens = calibration["tokens"] if calibration else 0
    return choose(fitted_to, verified_on, tokenizer, tokens, verification.verify_tokens, anchors)


def _compare(
    adapted: PeftModel, merged: Any, tokenizer: PreTrainedTokenizerBase, batch_size: int, rows: Rows, name: str
) -> Comparison:
    progress = partial(track, description=f"Verifying on {Path(name).name}")
    pad = cast(int, tokenizer.pad_token_id)
    return compare(adapted, merged, batches(rows, pad, batch_size, input_device(adapted)), progress)


def _task_scores(
    source: MergeSource,
    task: Task | None,
    adapted: PeftModel,
    merged: Any,
    tokenizer: PreTrainedTokenizerBase,
    samples: int | None,
) -> dict[str, Any] | None:
    """Scores of base, adapter and merge on the run's test rows, and the number of answers that merge and adapter share.

    The base's score, only a yardstick, is taken from the run's record if it has one. The adapter is scored
    again, since its answers are compared row by row, and they depend a little on threads and hardware.
    """
    if task is None or source.run is None or samples == 0 or not task.scorer.reads_answers:
        return None
    recorded = source.trained
    if samples is None and (recorded is None or recorded["after"] is None):  # the run was not scored either
        return None
    config, rows = source.run["config"], task.test[:samples]

    def scored(model: Any, who: str) -> tuple[dict[str, Any], list[str]]:
        inference = Inference(
            model=model, tokenizer=tokenizer, batch_size=config["per_device_eval_batch_size"], when=f"({who})"
        )
        answer_length = config.get("eval_max_new_tokens") or task.max_new_tokens
        return score_and_answers(inference, task.scorer, rows, answer_length)

    of_merged, answers = scored(merged, "merged")
    of_adapter, wanted = scored(adapted, "adapter")
    before = recorded["before"] if recorded is not None else None
    if before is not None and before["n"] == len(rows) and same_rows(source.run, "test", rows):
        of_base = before
    else:
        with adapted.disable_adapter():
            of_base = scored(adapted, "base")[0]
    same = sum(a == b for a, b in zip(answers, wanted, strict=True))
    scores = {"base": of_base, "adapter": of_adapter, "merged": of_merged}
    return {"name": task.name, "n": len(rows), **scores, "same_answers": same}


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
