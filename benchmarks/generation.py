"""What reading the common prefix of a batch once saves when transformers answers or scores, as a ratio of seconds.

    python benchmarks/generation.py --rounds 3

The two sides take turns on the same batches of 32: SST-2's prompts, answered in a few tokens, likelihoods of answers to
them, and requests of a chat, answered in 48 tokens. SST-2 comes from the hub or $MONOLORA_DATA.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rounds import flag_parser, in_turns, machine, save, spread

from monolora import inference, shared_prefix
from monolora.data.chat_template import Split, prompt_ids
from monolora.data.example import Example
from monolora.data.prompt_sets import load
from monolora.data.tasks import BUILT_IN
from monolora.hub import load_causal_lm, load_tokenizer, resolve_model
from monolora.inference import GREEDY, Inference, evaluating, generate

BATCH = 32
WAYS = {"prefix once": inference.SAVED, "whole rows": 2.0}  # from which share of saved tokens the prefix is shared


def main() -> None:
    """Print the ratios."""
    parser = flag_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--rows", type=int, default=64, help="(default: %(default)s)")
    flags = parser.parse_args()
    folder = resolve_model(flags.model)
    model, tokenizer = load_causal_lm(folder).eval(), load_tokenizer(folder)
    results = {}
    for name, examples, tokens in (
        ("sst2", BUILT_IN["sst2"]().test[: flags.rows], 4),
        ("chat", [Example(prompt.instruction, "") for prompt in load("chat", flags.rows).prompts], 48),
    ):
        prompts = sorted((prompt_ids(example, tokenizer) for example in examples), key=len)
        passes = {name: partial(_answer, model, tokenizer.pad_token_id, prompts, tokens)}
        if name == "sst2":
            scoring = Inference(model=model, tokenizer=tokenizer, batch_size=BATCH)
            passes["sst2, likelihoods"] = partial(_score, scoring, prompts)
        for what, work in passes.items():
            with evaluating(model):
                seconds = in_turns({way: partial(_timed, work, saved) for way, saved in WAYS.items()}, flags.rounds)
            ratio = spread([whole / once for once, whole in zip(*seconds.values(), strict=True)])
            smallest, median, largest = ratio["smallest"], ratio["median"], ratio["largest"]
            print(f"{what}: whole rows take {median:.2f} times as long ({smallest:.2f} – {largest:.2f})")
            results[what] = {"seconds": seconds, "ratio": ratio}
    save({**machine("torch", "transformers"), **results}, flags.out)


def _timed(work: Callable[[], None], saved: float) -> float:
    inference.SAVED = shared_prefix.SAVED = saved
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _answer(model: Any, pad: int, prompts: Sequence[list[int]], tokens: int) -> None:
    for first in range(0, len(prompts), BATCH):
        generate(model, prompts[first : first + BATCH], pad, max_new_tokens=tokens, **GREEDY)


def _score(scoring: Inference, prompts: Sequence[list[int]]) -> None:
    """Of answers of two tokens, as SST-2's labels are with their end token."""
    scoring.answer_log_probs([Split(prompt, [10, 11]) for prompt in prompts], "likelihoods")


if __name__ == "__main__":
    main()
