"""``monolora align``: teaches a chat model to refuse what it should, by supervised finetuning on refusals.

The result is *synthetically aligned*: prompts that are to be refused are answered by refusals of the project's own
grammar (:mod:`monolora.data.refusal_texts`), and the model's own answers to harmless prompts, many of which only sound
unsafe, are trained on beside them, so that it goes on answering those. It is a base with refusals to lose, for studies
of what finetuning does to alignment, and a start for people who align a small model of their own. No substitute for
alignment by human preferences.

The program writes its rows to OUT-data and hands over to ``monolora sft``, with the command that it prints.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from monolora.cli.flags import FlagParser
from monolora.data import prompt_sets
from monolora.data.example import Example
from monolora.data.refusal_texts import refusal
from monolora.errors import InputError, exit_status
from monolora.files import saving, write_text
from monolora.keep.anchors import HELD_OUT, read_prompts
from monolora.recipes import sft
from monolora.recipes.settings import Align
from monolora.run_record import SFT
from monolora.runs import claim
from monolora.terminal import say

NOTE = (
    "This model is *synthetically aligned*: it was finetuned to answer {refused} prompts ({sets}) with refusals that a "
    "grammar writes, beside its own answers to {answered} harmless prompts. The refusals are no human preferences, and "
    "what it refuses is what these prompts have in common."
)
MOST_HELD_OUT = 100  # prompts of each kind, for the report
REFUSED, ANSWERED, TO_ANSWER = Path("refused"), Path("answered.jsonl"), Path("held-out-to-answer.jsonl")


def main(argv: list[str]) -> int:
    """Run from the command line; returns the exit status."""
    return run(FlagParser("monolora align", __doc__).parse_into(argv, Align))


def run(settings: Align) -> int:
    """Write the rows and train; returns the exit status."""
    output = Path(settings.output_dir)
    if not settings.resume_from_checkpoint:
        with claim(output, SFT, "--output-dir") as claimed:
            claimed.check(settings.overwrite)
    folder = output.with_name(f"{output.name}-data")
    words = sft_words(settings, folder, *_write_rows(settings, folder))
    say(f"The same as: {shlex.join(['monolora', 'sft', *words])}")
    return sft.main(words)


def _write_rows(settings: Align, folder: Path) -> tuple[int, int]:
    """Write what is trained on and what is measured; the numbers of prompts to refuse and to answer.

    Raises:
        InputError: for sets that are unknown or unavailable, or too small.
    """
    refused = read_prompts(settings.refuse, settings.refuse_samples, flag="--refuse").examples
    answered = read_prompts(settings.answer, settings.answer_samples, refused, flag="--answer").examples
    for flag, examples in (("--refuse", refused), ("--answer", answered)):
        if len(examples) < 2 * HELD_OUT:
            raise InputError(f"{flag} has {len(examples)} prompts; {2 * HELD_OUT} or more are needed. Give other sets.")
    held_out = [examples[::HELD_OUT][:MOST_HELD_OUT] for examples in (refused, answered)]
    refused, answered = (
        [example for example in examples if example not in held]
        for examples, held in zip((refused, answered), held_out, strict=True)
    )
    categories, random = _categories(settings.refuse), Random(settings.seed)
    train, test = (
        [_chat(example, refusal(categories.get(example.instruction, ()), random)) for example in examples]
        for examples in (refused, held_out[0])
    )
    files = {REFUSED / "train.jsonl": train, REFUSED / "test.jsonl": test}
    files |= {ANSWERED: list(map(_chat, answered)), TO_ANSWER: list(map(_chat, held_out[1]))}
    with saving(folder):
        (folder / REFUSED).mkdir(parents=True, exist_ok=True)
        for name, rows in files.items():
            write_text(folder / name, "".join(json.dumps({"messages": row}, ensure_ascii=False) + "\n" for row in rows))
    return len(refused), len(answered)


def _chat(example: Example, answer: str | None = None) -> list[dict[str, Any]]:
    """The messages of a row; without an answer those of a prompt alone."""
    return [*example.messages, *([] if answer is None else [{"role": "assistant", "content": answer}])]


def _categories(words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Of the prompts of named sets, which the grammar knows."""
    known = [word for word in prompt_sets.names(words) if word in prompt_sets.PUBLISHED or word in prompt_sets.EMBEDDED]
    sets = [prompt_sets.load(word, limit=10**9, unsafe_only=word == "beavertails-train") for word in known]
    return {prompt.instruction: prompt.categories for prompts in sets for prompt in prompts.prompts}


def sft_words(settings: Align, folder: Path, refused: int, answered: int) -> list[str]:
    """The flags of ``monolora sft`` for rows in a folder."""
    note = NOTE.format(refused=refused, answered=answered, sets=", ".join(settings.refuse))
    values = {
        "model": settings.model,
        "adapter": settings.adapter,
        "dataset": folder / REFUSED,
        "keep": f"replay:{settings.answer_share:g}",
        "keep-prompts": folder / ANSWERED,
        "keep-samples": answered,
        "keep-answer-tokens": settings.answer_tokens,
        "keep-report": [folder / REFUSED / "test.jsonl", folder / TO_ANSWER],
        "learning-rate": f"{settings.learning_rate:g}",
        "num-train-epochs": f"{settings.epochs:g}",
        "per-device-train-batch-size": settings.batch_size,
        "max-length": settings.max_length,
        "seed": settings.seed,
        "card-note": note,
        "output-dir": settings.output_dir,
    }
    words = [
        word
        for name, value in values.items()
        for word in (f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)]))
    ]
    flags = {"overwrite": settings.overwrite, "resume-from-checkpoint": settings.resume_from_checkpoint}
    return [*words, "--skip-eval", *(f"--{name}" for name, is_set in flags.items() if is_set)]


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
