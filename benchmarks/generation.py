"""What reading the common prefix of a batch once saves when transformers answers prompts, as a ratio of seconds.

    python benchmarks/generation.py --rounds 3

The two sides take turns on the same batches of 32: SST-2's prompts, answered in a few tokens, and requests of a chat,
answered in 48. SST-2 comes from the hub or $MONOLORA_DATA.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from rounds import flag_parser, in_turns, machine, save, spread

from monolora import inference
from monolora.data.chat_template import prompt_ids
from monolora.data.example import Example
from monolora.data.prompt_sets import load
from monolora.data.tasks import BUILT_IN
from monolora.hub import load_causal_lm, load_tokenizer, resolve_model
from monolora.inference import GREEDY, evaluating, generate

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
        answer = partial(_answer, model, tokenizer.pad_token_id, prompts, tokens)
        with evaluating(model):
            seconds = in_turns({way: partial(answer, saved) for way, saved in WAYS.items()}, flags.rounds)
        ratio = spread([whole / once for once, whole in zip(*seconds.values(), strict=True)])
        smallest, median, largest = ratio["smallest"], ratio["median"], ratio["largest"]
        print(f"{name}: whole rows take {median:.2f} times as long ({smallest:.2f} – {largest:.2f})")
        results[name] = {"seconds": seconds, "ratio": ratio}
    save({**machine("torch", "transformers"), **results}, flags.out)


def _answer(model: Any, pad: int, prompts: Sequence[list[int]], tokens: int, saved: float) -> float:
    inference.SAVED = saved
    start = time.perf_counter()
    for first in range(0, len(prompts), BATCH):
        generate(model, prompts[first : first + BATCH], pad, max_new_tokens=tokens, **GREEDY)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
