"""The flags of the programs that make a checkpoint of an adapter, and check or export it: each field is a flag.

They stand apart from the programs, as :mod:`monolora.recipes.settings` does, and for the same reason.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass

from monolora.cli.flags import REQUIRED, Flags, group, setting
from monolora.errors import InputError
from monolora.files import TRUST_HELP

HELD_OUT_TOKENS = 8192  # that a merge is verified on
CALIBRATION_TOKENS = 32_768  # that it is fitted to, unless its layers are wide
TOKENS_PER_INPUT = 8  # of the widest layer; twice what is needed


@dataclass(frozen=True, kw_only=True)
class Loading(Flags):
    """The loading of adapters and their base, in ``monolora merge`` and ``monolora verify``."""

    weights: tuple[float, ...] = setting(
        (), "one factor an adapter, of any sign (default: 1 each)", type=float, nargs="+"
    )
    model: str | None = setting(None, "the base model, if not the one that the adapter names")
    dtype: str | None = setting(
        None,
        "dtype of the base (default: as trained; its own without a record of the run)",
        choices=("float32", "bfloat16", "float16"),
    )
    load_in_4bit: bool = setting(False, "base quantized as in QLoRA (default: as trained)")
    max_memory: tuple[str, ...] = setting(
        (),
        "memory of each device, e.g. 0=20GiB cpu=30GiB; the rest is read from disk layer by layer",
        nargs="+",
        metavar="DEVICE=SIZE",
    )
    trust_remote_code: bool = setting(False, TRUST_HELP)
    batch_size: int = setting(16, "texts in a batch", type=int, at_least=1)


@dataclass(frozen=True, kw_only=True)
class Verification(Flags):
    """The verification of a merge, in ``monolora merge`` and ``monolora verify``."""

    verify_on: str | None = setting(
        None, "data set to verify on, beside held-out anchors (default: held-out text of the calibration's)"
    )
    verify_tokens: int = setting(HELD_OUT_TOKENS, "tokens to verify on, without those of anchors", type=int, at_least=1)
    task_samples: int | None = setting(
        None, "rows of the adapter's task to score, 0 for none (default: as in its run)", type=int, at_least=0
    )
    min_fidelity: float = setting(
        0.5,
        "share of the adapter's effect that must be kept for exit status 0: 1 for a perfect merge, 0 for one no better "
        "than the base",
        type=float,
        at_most=1,
    )


@dataclass(frozen=True, kw_only=True)
class Merge(Flags):
    """A merge, and its verification."""

    adapter: tuple[str, ...] = setting(
        REQUIRED, "adapter folders; several MonoLoRA adapters are added up", positional=True, nargs="+"
    )
    out: str = setting(REQUIRED, "folder to write", positional=True)
    method: str = setting("linear", "method of the merge", choices=("linear", "exact"))
    form: str = setting("dense", "form of a linear merge", flag="--as", choices=("dense", "lora"))
    calibration: str | None = setting(
        None,
        "data set that a linear merge is fitted to, beside the anchors of a run with --keep, or none for the closed "
        "form (default: the training prompts of the adapter's run, and Dolly where MONOLORA_DATA has it)",
    )
    calibration_tokens: int | None = setting(
        None,
        f"tokens of that text (default: {CALIBRATION_TOKENS}, or {TOKENS_PER_INPUT} for each input of the "
        "widest layer if more)",
        type=int,
        at_least=1,
    )
    affine: bool | None = setting(
        None,
        "intercept in the fit, which becomes a bias (default: where the base layer has one, and --as is dense)",
        action=argparse.BooleanOptionalAction,
    )
    max_shard_size: str = setting("5GB", "maximum size of a weight file")
    overwrite: bool = setting(False, "replacement of an earlier merge in OUT")
    loading: Loading = group(Loading)
    verification: Verification = group(Verification)

    def check(self) -> None:
        """As for all settings; and flags that exclude each other, as far as that can be told without the adapter."""
        super().check()
        if self.form == "lora" and self.method == "exact":
            raise InputError("--as lora is linear; no LoRA adapter keeps the activation. Leave --method exact out.")
        if self.form == "lora" and self.affine:
            raise InputError(
                "--affine fits intercepts, for which a LoRA adapter has no place. Leave it or --as lora out."
            )
        if self.calibration_tokens is not None and self.calibration == "none":
            raise InputError("--calibration-tokens has no effect with --calibration none. Leave it out.")
        if not re.fullmatch(r"[0-9]*[1-9][0-9]*[KMGT]B", self.max_shard_size):
            raise InputError(f"--max-shard-size {self.max_shard_size} is no size. Write, for example, 5GB or 500MB.")


@dataclass(frozen=True, kw_only=True)
class Export(Flags):
    """A checkpoint or an adapter, the files to make of it, and the prompts on which they are compared."""

    checkpoint: str = setting(
        REQUIRED, "folder of a dense checkpoint, such as a linear merge; with --as lora, of an adapter", positional=True
    )
    out: str = setting(REQUIRED, "folder to write", positional=True)
    form: str = setting("dense", "form of the files", flag="--as", choices=("dense", "lora"))
    types: tuple[str, ...] | None = setting(
        None,
        "types of the weights, a file each; the Modelfile takes the last (default: f16 q8_0, or f16 for --as lora)",
        nargs="+",
        choices=("f32", "f16", "bf16", "q8_0"),
    )
    prompts: tuple[str, ...] = setting(
        ("refusals", "chat"),
        "sets of prompts to compare on, as for monolora keep-report",
        nargs="+",
        metavar="SET",
    )
    max_samples: int = setting(40, "number of prompts of each set", type=int, at_least=1)
    max_new_tokens: int = setting(48, "limit of an answer, in tokens", type=int, at_least=1)
    batch_size: int = setting(16, "prompts in a batch", type=int, at_least=1)
    overwrite: bool = setting(False, "replacement of an earlier export in OUT")
    trust_remote_code: bool = setting(False, TRUST_HELP)


@dataclass(frozen=True, kw_only=True)
class Verify(Flags):
    """The verification of a merge that was written earlier."""

    out: str = setting(REQUIRED, "output of a merge: a checkpoint or a LoRA adapter", positional=True)
    against: tuple[str, ...] = setting(REQUIRED, "adapters that it was merged from", nargs="+", metavar="ADAPTER")
    loading: Loading = group(Loading)
    verification: Verification = group(Verification)
