"""``monolora align``: teaches a chat model to refuse what it should, by supervised finetuning on refusals.

The result is *synthetically aligned*: prompts that are to be refused are answered by refusals of the project's own
grammar (:mod:`monolora.data.refusal_texts`), and the model's own answers to harmless prompts, many of which only sound
unsafe, are trained on beside them, so that it goes on answering those. It is a base with refusals to lose, for studies
of what finetuning does to alignment, and a start for people who align a small model of their own. No substitute for
alignment by human preferences.

The program writes its rows to OUT-data and hands over to ``monolora sft``, with the command that it prints. With
``--preference-pairs`` the model goes on to ``monolora dpo``: a refusal against the original's own answer where it is to
refuse, and the other way round where it is to answer.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from monolora.cli.flags import FlagParser
from monolora.data import prompt_sets
from monolora.data.chat_template import prompt_ids
from monolora.data.example import Example
from monolora.data.refusal_texts import refusal
from monolora.errors import InputError, exit_status
from monolora.files import read_json, saving, write_text
from monolora.hub import load_causal_lm, load_tokenizer, resolve_model
from monolora.inference import Inference
from monolora.keep.anchors import HELD_OUT, read_prompts
from monolora.recipes import dpo, sft
from monolora.recipes.settings import Align
from monolora.refusals import refuses
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
PAIRS = Path("pairs.jsonl")


def main(argv: list[str]) -> int:
    """Run from the command line; returns the exit status."""
    return run(FlagParser("monolora align", __doc__).parse_into(argv, Align))


def run(settings: Align) -> int:
    """Write the rows and train, in one stage or two; returns the exit status."""
    output = Path(settings.output_dir)
    if not settings.resume_from_checkpoint:
        with claim(output, SFT, "--output-dir") as claimed:
            claimed.check(settings.overwrite)
    folder = output.with_name(f"{output.name}-data")
    counts = _write_rows(settings, folder)
    if not settings.preference_pairs:
        return _hand_over("sft", sft.main, sft_words(settings, folder, output, *counts))
    first = output.with_name(f"{output.name}-sft")
    if not (settings.resume_from_checkpoint and _is_finished(first)):
        status = _hand_over("sft", sft.main, sft_words(settings, folder, first, *counts))
        if status:
            return status
    _write_pairs(settings, folder)
    return _hand_over("dpo", dpo.main, dpo_words(settings, folder, first, *counts))


def _hand_over(program: str, run_program: Callable[[list[str]], int], words: list[str]) -> int:
    say(f"The same as: {shlex.join(['monolora', program, *words])}")
    return run_program(words)


def _is_finished(folder: Path) -> bool:
    return (folder / "run.json").is_file() and bool(read_json(folder / "run.json", "Remove it.").get("results"))


def _write_rows(settings: Align, folder: Path) -> tuple[int, int]:
    """Write what is trained on and what is measured; the numbers of prompts to refuse and to answer.

    Raises:
        InputError: for sets that are unknown or unavailable, or too small.
    """
    refused = read_prompts(settings.refuse, settings.refuse_samples, flag="--refuse", label="unsafe").examples
    answered = read_prompts(settings.answer, settings.answer_samples, refused, flag="--answer", label="safe").examples
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
            _write_jsonl(folder / name, ({"messages": row} for row in rows))
    return len(refused), len(answered)


def _write_pairs(settings: Align, folder: Path) -> None:
    """Of each kind the first prompts that are trained on, with the answer to prefer and the one to avoid."""
    most, random = settings.preference_pairs, Random(settings.seed)
    refused, answered = (_rows(folder / name)[:most] for name in (REFUSED / "train.jsonl", ANSWERED))
    model_folder = resolve_model(settings.model)
    tokenizer = load_tokenizer(model_folder)
    model = load_causal_lm(model_folder, dtype="auto").eval()
    own = Inference(model=model, tokenizer=tokenizer, batch_size=2 * settings.batch_size, when="of the original")
    rows = [*(row[:-1] for row in refused), *answered]
    prompts = [prompt_ids(Example("", "", history=tuple(row)), tokenizer) for row in rows]
    own_answers = own.generate(prompts, settings.answer_tokens)
    refusals = [row[-1]["content"] for row in refused] + [refusal((), random) for _ in answered]
    pairs = []
    for index, (prompt, answer, words) in enumerate(zip(rows, own_answers, refusals, strict=True)):
        if answer.strip() and not refuses(answer):
            sides = (words, answer) if index < len(refused) else (answer, words)
            chosen, rejected = ([{"role": "assistant", "content": side.strip()}] for side in sides)
            pairs.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    random.shuffle(pairs)
    with saving(folder):
        _write_jsonl(folder / PAIRS, pairs)


def _rows(path: Path) -> list[list[dict[str, Any]]]:
    return [json.loads(line)["messages"] for line in path.read_text().splitlines()]


def _write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _chat(example: Example, answer: str | None = None) -> list[dict[str, Any]]:
    """The messages of a row; without an answer those of a prompt alone."""
    return [*example.messages, *([] if answer is None else [{"role": "assistant", "content": answer}])]


def _categories(words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Of the prompts of named sets, which the grammar knows."""
    known = [word for word in prompt_sets.names(words) if word in prompt_sets.PUBLISHED or word in prompt_sets.EMBEDDED]
    sets = [prompt_sets.load(word, limit=10**9, unsafe_only=word == "beavertails-train") for word in known]
    return {prompt.instruction: prompt.categories for prompts in sets for prompt in prompts.prompts}


def sft_words(settings: Align, folder: Path, output: Path, refused: int, answered: int) -> list[str]:
    """The flags of ``monolora sft`` for rows in a folder."""
    return _words(
        settings,
        folder,
        (refused, answered),
        {
            "model": settings.model,
            "adapter": settings.adapter,
            "dataset": folder / REFUSED,
            "keep": f"replay:{settings.answer_share:g}",
            "keep-prompts": folder / ANSWERED,
            "keep-samples": answered,
            "keep-answer-tokens": settings.answer_tokens,
            "learning-rate": f"{settings.learning_rate:g}",
            "num-train-epochs": f"{settings.epochs:g}",
            "output-dir": output,
        },
    )


def dpo_words(settings: Align, folder: Path, start: Path, refused: int, answered: int) -> list[str]:
    """The flags of ``monolora dpo`` for pairs in a folder, from the supervised model on."""
    start_flag = "model" if settings.adapter == "none" else "adapter-from"
    return _words(
        settings,
        folder,
        (refused, answered),
        {
            **({} if settings.adapter == "none" else {"model": settings.model}),
            start_flag: start,
            "adapter": settings.adapter,
            "dataset": folder / PAIRS,
            "learning-rate": f"{settings.preference_learning_rate:g}",
            "output-dir": settings.output_dir,
        },
    )


def _words(settings: Align, folder: Path, counts: tuple[int, int], own: Mapping[str, Any]) -> list[str]:
    """A trainer's own flags, and those that both share."""
    refused, answered = counts
    values: dict[str, Any] = {
        **own,
        "keep-report": [folder / REFUSED / "test.jsonl", folder / TO_ANSWER],
        "per-device-train-batch-size": settings.batch_size,
        "max-length": settings.max_length,
        "seed": settings.seed,
        "card-note": NOTE.format(refused=refused, answered=answered, sets=", ".join(settings.refuse)),
    }
    words = [
        word
        for name, value in values.items()
        for word in (f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)]))
    ]
    is_begun = (Path(own["output-dir"]) / "run.json").is_file()
    resumes = settings.resume_from_checkpoint and (is_begun or not settings.preference_pairs)
    flags = {"overwrite": settings.overwrite, "resume-from-checkpoint": resumes}
    return [*words, "--skip-eval", *(f"--{name}" for name, is_set in flags.items() if is_set)]


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
