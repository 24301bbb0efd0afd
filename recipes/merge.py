"""``monolora merge ADAPTER OUT``: an adapter and its base model in one Hugging Face folder, verified.

``--method linear`` writes a stock checkpoint (or, with ``--as lora``, a stock LoRA adapter) with the best linear map in
place of the ReLU units; ``--method exact`` writes a checkpoint that keeps the ReLU and needs monolora imported. Several
adapters are added up first. What the merge keeps of the adapter is measured and reported at the end; exit status 1 if
it is less than ``--min-fidelity``.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

from peft import PeftModel, PeftType
from peft.tuners.tuners_utils import BaseTuner
from transformers import PreTrainedTokenizerBase

from monolora.adapters import attach
from monolora.errors import InputError, SaveError, exit_status, in_one_line, is_disk_trouble
from monolora.flags import FlagParser
from monolora.hub import local_path
from monolora.merge import LinearMap, export_dense, export_exact, export_lora, linearize
from monolora.merge.linearize import TOKENS_PER_INPUT
from monolora.merge.lora import check_readable
from monolora.merge.unload import active_units, dequantized
from monolora.model_files import save_model
from monolora.recipes import merge_report
from monolora.recipes import merge_source as subjects
from monolora.recipes.calibration_data import Rows, batches
from monolora.recipes.merge_source import Subject
from monolora.recipes.verify import CALIBRATION_TOKENS, add_flags, check_flags, task_of, texts_of, verify
from monolora.remote_code import code_trusted
from monolora.runs import OutputFolder, claim
from monolora.terminal import Terminal, track
from monolora.units import input_device

WITHOUT_CALIBRATION = (
    "Without calibration text the activation is replaced by its mean slope for Gaussian inputs of mean zero, and real "
    "inputs are not like that."
)


def main(argv: list[str]) -> int:
    """Merge, write, verify; returns the exit status."""
    flags = _parser().parse(argv)
    check_flags(flags)
    with code_trusted(flags.trust_remote_code), claim(flags.out, merge_report.KIND) as folder:
        return _merge(flags, folder)


def _merge(flags: argparse.Namespace, folder: OutputFolder) -> int:
    out = folder.path
    folder.check(flags.overwrite)
    subject = subjects.from_flags(flags.adapter, flags)
    texts_read = filter(None, (local_path(name) for name in (flags.calibration, flags.verify_on) if name))
    folder.check_apart((*subject.adapters, *filter(None, [local_path(subject.model)]), *texts_read))
    _check_method(subject, flags)
    task = task_of(subject, flags)
    console = Terminal()
    started = time.monotonic()
    with folder.whole() as aside, subject.loaded() as (model, tokenizer):
        if flags.form == "lora":
            check_readable(model)
        calibration = _calibration(subject, flags, model)
        texts = texts_of(task, calibration, tokenizer, flags)
        merge = {**subject.described(), "method": flags.method, "form": flags.form, "calibration": calibration}
        merge |= _write(subject, flags, texts.calibration, model, tokenizer, aside)
        merge["seconds"] = round(time.monotonic() - started, 1)
        del model
        with _saving(flags):
            merge_report.write_unverified(aside, merge)
    console.print(f"Wrote {out} in {merge['seconds']:.0f} s. Verifying what was written.")
    return verify(subject, out, merge, task, texts.held_out, flags)


def _parser() -> FlagParser:
    parser = FlagParser("monolora merge", __doc__)
    parser.add_argument("adapter", nargs="+", help="adapter folders; several MonoLoRA adapters are added up")
    parser.add_argument("out", help="the folder to write")
    parser.add_argument("--method", choices=("linear", "exact"), default="linear", help="(default: %(default)s)")
    parser.add_argument(
        "--as",
        dest="form",
        choices=("dense", "lora"),
        default="dense",
        help="what a linear merge writes (default: dense)",
    )
    parser.add_argument(
        "--calibration",
        help="data set that a linear merge is fitted to, or none for the closed form (default: the training prompts of "
        "the adapter's run, and Dolly where MONOLORA_DATA has it)",
    )
    parser.add_argument(
        "--calibration-tokens",
        type=int,
        help=f"(default: {CALIBRATION_TOKENS}, or {2 * TOKENS_PER_INPUT} for each input of the widest layer if more)",
    )
    parser.add_argument(
        "--affine",
        action=argparse.BooleanOptionalAction,
        help="fit an intercept, which becomes a bias (default: where the base layer has one, and --as is dense)",
    )
    parser.add_argument("--max-shard-size", default="5GB", help="of the weight files (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier merge in OUT")
    subjects.add_flags(parser)
    add_flags(parser)
    return parser


def _check_method(subject: Subject, flags: argparse.Namespace) -> None:
    """Raises: InputError, for flags that cannot go together."""
    calibrates = flags.method == "linear" and subject.is_monolora
    given = {"--calibration": flags.calibration, "--calibration-tokens": flags.calibration_tokens}
    given["--affine"] = flags.affine
    for flag, value in given.items():
        if value is not None and not calibrates:
            why = "--method exact" if subject.is_monolora else "an adapter that PEFT merges itself"
            raise InputError(f"{flag} has no effect with {why}. Leave it out.")
    if flags.form == "lora" and flags.method == "exact":
        raise InputError("--as lora is linear; no LoRA adapter keeps the activation. Leave --method exact out.")
    if flags.form == "lora" and not subject.is_monolora:
        raise InputError(
            f"{subject.adapters[0]} is no MonoLoRA adapter. Leave --as lora out to merge it into its base."
        )
    if flags.max_memory and not subject.is_monolora:
        raise InputError("--max-memory has no effect: PEFT's merge takes the whole model into memory. Leave it out.")
    if flags.form == "lora" and flags.affine:
        raise InputError("--affine fits intercepts, for which a LoRA adapter has no place. Leave it or --as lora out.")
    if flags.calibration_tokens is not None and (flags.calibration_tokens < 1 or flags.calibration == "none"):
        raise InputError("--calibration-tokens must be at least 1, and has no effect with --calibration none.")
    if not re.fullmatch(r"[0-9]*[1-9][0-9]*[KMGT]B", flags.max_shard_size):
        raise InputError(f"--max-shard-size {flags.max_shard_size} is no size. Write, for example, 5GB or 500MB.")


def _calibration(subject: Subject, flags: argparse.Namespace, model: PeftModel) -> dict[str, Any] | None:
    """What a merge is fitted to, as the report will say it; None where it needs no text."""
    if flags.method == "exact" or not subject.is_monolora or flags.calibration == "none":
        return None
    widest = max(units.A.shape[1] for units in active_units(model).values())
    tokens = flags.calibration_tokens or max(CALIBRATION_TOKENS, 2 * TOKENS_PER_INPUT * widest)
    return {"dataset": flags.calibration, "tokens": tokens}


def _write(
    subject: Subject,
    flags: argparse.Namespace,
    texts: Mapping[str, Rows],
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
) -> dict[str, Any]:
    """Merge the model into the folder ``out``; returns what the report is to say of it."""
    if not subject.is_monolora:
        return _with_peft(subject, flags, model, tokenizer, out)
    if flags.method == "linear":
        return _linear(flags, texts, model, tokenizer, out)
    try:
        with _saving(flags):
            export_exact(model, out, tokenizer, max_shard_size=flags.max_shard_size)
    except ValueError as error:
        raise InputError(in_one_line(error)) from error
    return {}


def _with_peft(
    subject: Subject, flags: argparse.Namespace, model: PeftModel, tokenizer: PreTrainedTokenizerBase, out: Path
) -> dict[str, Any]:
    """Adapters of PEFT's own methods are merged by PEFT."""
    kind = PeftType(model.peft_type).value
    if not isinstance(model.base_model, BaseTuner):  # prompt tuning and its like put nothing into the weights
        raise InputError(f"Adapters of type {kind} cannot be merged into their base.")
    if subject.quantization:  # PEFT would round the merged weights to 4 bits once more
        model = attach(dequantized(model.unload()), subject.adapters[0])
    try:
        base = model.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError) as error:
        raise InputError(f"PEFT does not merge this adapter of type {kind}: {in_one_line(error)}") from error
    with _saving(flags):
        save_model(base, out, tokenizer, max_shard_size=flags.max_shard_size)
    return {"method": f"PEFT's own, of {kind}"}


def _linear(
    flags: argparse.Namespace,
    texts: Mapping[str, Rows],
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
) -> dict[str, Any]:
    rows = [row for each in texts.values() for row in each]
    made = batches(rows, cast(int, tokenizer.pad_token_id), flags.batch_size, input_device(model)) if rows else None
    if made is None:
        warnings.warn(WITHOUT_CALIBRATION, stacklevel=1)
    affine = False if flags.form == "lora" else flags.affine
    maps = linearize(model, made, affine=affine, progress=partial(track, description="Calibrating"))
    _warn_of_ridges(maps)
    with _saving(flags):
        if flags.form == "lora":
            export_lora(model, maps, out, tokenizer)
        else:
            export_dense(model, maps, out, tokenizer, max_shard_size=flags.max_shard_size)
    return {
        "texts": {name: {"texts": len(each), "tokens": sum(map(len, each))} for name, each in texts.items()},
        "maps": {name: _described(each) for name, each in maps.items()},
    }


def _warn_of_ridges(maps: Mapping[str, LinearMap]) -> None:
    raised = [name for name, each in maps.items() if each.ridge_raised]
    if raised:
        warnings.warn(
            f"The inputs of {len(raised)} of {len(maps)} modules ({raised[0]}, …) do not vary in all directions on the "
            "calibration text; their smallest ridges were left out.",
            stacklevel=1,
        )


def _described(linear_map: LinearMap) -> dict[str, Any]:
    """A map without its numbers."""
    return {
        "ridge": linear_map.ridge,
        "ridge_raised": linear_map.ridge_raised,
        "error": linear_map.error,
        "tokens": linear_map.tokens,
        "intercept": linear_map.intercept is not None,
    }


@contextmanager
def _saving(flags: argparse.Namespace) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if is_disk_trouble(error) and not isinstance(error, InputError):
            raise SaveError.of(flags.out, error, "Nothing was left there. Free space, then merge again.") from error
        raise


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
