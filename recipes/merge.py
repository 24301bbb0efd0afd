"""``monolora merge ADAPTER OUT``: an adapter and its base model in one Hugging Face folder, verified.

``--method linear`` writes a stock checkpoint (or, with ``--as lora``, a stock LoRA adapter) with the best linear map in
place of the ReLU units; ``--method exact`` writes a checkpoint that keeps the ReLU and needs monolora imported. Several
adapters are added up first. The share of the adapter's effect that the merge keeps is measured at the end;
exit status 1 if it is below ``--min-fidelity``. An adapter that was trained with ``--keep`` is
calibrated and verified on its anchors too.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from peft import PeftModel, PeftType
from peft.tuners.tuners_utils import BaseTuner
from transformers import PreTrainedTokenizerBase

from monolora.adapters import attach
from monolora.cli.flags import FlagParser
from monolora.errors import InputError, exit_status, in_one_line
from monolora.files import code_trusted, saving
from monolora.hub import local_path
from monolora.merge import LinearMap, export_dense, export_exact, export_lora, linearize
from monolora.merge.lora import check_readable
from monolora.merge.unload import active_units, dequantized
from monolora.model_files import save_model
from monolora.recipes import merge_report, merge_source
from monolora.recipes.calibration_data import Rows, batches
from monolora.recipes.checkpoint_settings import CALIBRATION_TOKENS, TOKENS_PER_INPUT, Merge
from monolora.recipes.merge_source import MergeSource
from monolora.recipes.verify import anchors_of, task_of, texts_of, verify
from monolora.runs import OutputFolder, claim
from monolora.terminal import Terminal, suggest, track
from monolora.units import input_device

_REMERGE = "Nothing was left there. Free space, then merge again."
WITHOUT_CALIBRATION = (
    "Without calibration text the activation is replaced by its mean slope for standard Gaussian inputs, and real "
    "inputs are not like that."
)


def main(argv: list[str]) -> int:
    """Run from the command line; returns the exit status."""
    return run(FlagParser("monolora merge", __doc__).parse_into(argv, Merge))


def run(settings: Merge) -> int:
    """Merge, write, verify; returns the exit status."""
    with code_trusted(settings.loading.trust_remote_code), claim(settings.out, merge_report.KIND) as folder:
        return _merge(settings, folder)


def _merge(settings: Merge, folder: OutputFolder) -> int:
    out, verification = folder.path, settings.verification
    folder.check(settings.overwrite)
    source = merge_source.from_settings(settings.adapter, settings.loading)
    texts_read = filter(None, (local_path(name) for name in (settings.calibration, verification.verify_on) if name))
    folder.check_apart((*source.adapters, *filter(None, [local_path(source.model)]), *texts_read))
    _check_method(source, settings)
    task = task_of(source, verification)
    anchors = anchors_of(source, task)
    console = Terminal()
    started = time.monotonic()
    with folder.whole() as aside, source.loaded() as (model, tokenizer):
        if settings.form == "lora":
            check_readable(model)
        calibration = _calibration(source, settings, model)
        texts = texts_of(task, calibration, tokenizer, verification, anchors)
        merge = {**source.described(), "method": settings.method, "form": settings.form, "calibration": calibration}
        merge |= _write(source, settings, texts.calibration, model, tokenizer, aside)
        merge["seconds"] = round(time.monotonic() - started, 1)
        del model
        with saving(settings.out, _REMERGE):
            merge_report.write_unverified(aside, merge)
    console.print(f"Wrote {out} in {merge['seconds']:.0f} s. Verifying what was written.")
    status = verify(source, out, merge, task, texts, verification, settings.loading.batch_size)
    if status == 0:
        suggest("monolora", "serve-check", *((source.model,) if settings.form == "lora" else ()), str(out))
    return status


def _check_method(source: MergeSource, settings: Merge) -> None:
    """Raises: InputError, for flags that have no effect on these adapters."""
    calibrates = settings.method == "linear" and source.is_monolora
    values = {"--calibration": settings.calibration, "--calibration-tokens": settings.calibration_tokens}
    values["--affine"] = settings.affine
    for flag, value in values.items():
        if value is not None and not calibrates:
            why = "--method exact" if source.is_monolora else "an adapter that PEFT merges itself"
            raise InputError(f"{flag} has no effect with {why}. Leave it out.")
    if settings.form == "lora" and not source.is_monolora:
        raise InputError(f"{source.adapters[0]} is no MonoLoRA adapter. Leave --as lora out to merge it into its base.")
    if settings.loading.max_memory and not source.is_monolora:
        raise InputError("--max-memory has no effect: PEFT's merge takes the whole model into memory. Leave it out.")


def _calibration(source: MergeSource, settings: Merge, model: PeftModel) -> dict[str, Any] | None:
    """The calibration text of a merge, as the report has it; None if it needs no text."""
    if settings.method == "exact" or not source.is_monolora or settings.calibration == "none":
        return None
    widest = max(units.A.shape[1] for units in active_units(model).values())
    tokens = settings.calibration_tokens or max(CALIBRATION_TOKENS, TOKENS_PER_INPUT * widest)
    return {"dataset": settings.calibration, "tokens": tokens}


def _write(
    source: MergeSource,
    settings: Merge,
    texts: Mapping[str, Rows],
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
) -> dict[str, Any]:
    """Merge the model into the folder ``out``; returns entries of the report."""
    if not source.is_monolora:
        return _with_peft(source, settings, model, tokenizer, out)
    if settings.method == "linear":
        return _linear(settings, texts, model, tokenizer, out)
    try:
        with saving(settings.out, _REMERGE):
            export_exact(model, out, tokenizer, max_shard_size=settings.max_shard_size)
    except ValueError as error:
        raise InputError(in_one_line(error)) from error
    return {}


def _with_peft(
    source: MergeSource, settings: Merge, model: PeftModel, tokenizer: PreTrainedTokenizerBase, out: Path
) -> dict[str, Any]:
    """Merge an adapter of PEFT's own methods with PEFT."""
    kind = PeftType(model.peft_type).value
    if not isinstance(model.base_model, BaseTuner):  # prompt tuning and the like change no weights
        raise InputError(f"Adapters of type {kind} cannot be merged into their base.")
    if source.quantization:  # PEFT would round the merged weights to 4 bits once more
        model = attach(dequantized(model.unload()), source.adapters[0])
    try:
        base = model.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError) as error:
        raise InputError(f"PEFT does not merge this adapter of type {kind}: {in_one_line(error)}") from error
    with saving(settings.out, _REMERGE):
        save_model(base, out, tokenizer, max_shard_size=settings.max_shard_size)
    return {"method": f"PEFT's own, of {kind}"}


def _linear(
    settings: Merge, texts: Mapping[str, Rows], model: PeftModel, tokenizer: PreTrainedTokenizerBase, out: Path
) -> dict[str, Any]:
    rows = [row for part in texts.values() for row in part]
    inputs = (
        batches(rows, cast(int, tokenizer.pad_token_id), settings.loading.batch_size, input_device(model))
        if rows
        else None
    )
    if inputs is None:
        warnings.warn(WITHOUT_CALIBRATION, stacklevel=1)
    affine = False if settings.form == "lora" else settings.affine
    maps = linearize(model, inputs, affine=affine, progress=partial(track, description="Calibrating"))
    _warn_of_ridges(maps)
    with saving(settings.out, _REMERGE):
        if settings.form == "lora":
            export_lora(model, maps, out, tokenizer)
        else:
            export_dense(model, maps, out, tokenizer, max_shard_size=settings.max_shard_size)
    return {
        "texts": {name: {"texts": len(part), "tokens": sum(map(len, part))} for name, part in texts.items()},
        "maps": {name: _described(linear_map) for name, linear_map in maps.items()},
    }


def _warn_of_ridges(maps: Mapping[str, LinearMap]) -> None:
    raised = [name for name, linear_map in maps.items() if linear_map.ridge_raised]
    if raised:
        warnings.warn(
            f"The inputs of {len(raised)} of {len(maps)} modules ({raised[0]}, …) do not vary in all directions on the "
            "calibration text; their smallest ridges were left out.",
            stacklevel=1,
        )


def _described(linear_map: LinearMap) -> dict[str, Any]:
    """The report's entry of a map."""
    return {
        "ridge": linear_map.ridge,
        "ridge_raised": linear_map.ridge_raised,
        "error": linear_map.error,
        "tokens": linear_map.tokens,
        "intercept": linear_map.intercept is not None,
    }


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
