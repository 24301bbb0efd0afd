"""The cost of reading an adapter's units: a pass that counts them ÷ a plain forward over the same tokens, in one run.

    python benchmarks/explain.py runs/sst2-monolora --out explain.json      (MONOLORA_DATA or the hub for SST-2)

Both sides run the same batches through the same adapted model and compute the logits of the last position only. Sides
take turns, in a random order; printed are the median ratio and the smallest and largest of fifths of the rounds. With
``--memory`` also: resident memory at its highest after N texts and after eight times as many.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator, Sequence
from itertools import chain, cycle, islice
from typing import Any

import torch
from rounds import flag_parser, in_turns, machine, of_groups, save, spread

from monolora.adapters import load_adapted
from monolora.eval.explain.text_sets import load
from monolora.explain import Text, collector
from monolora.explain.collector import padded_batch, windows
from monolora.inference import evaluating


def main() -> None:
    parser = flag_parser(__doc__)
    parser.add_argument("adapter", help="an adapter folder")
    parser.add_argument("--dataset", default="sst2", help="as for monolora explain (default: %(default)s)")
    parser.add_argument("--texts", type=int, default=128, help="texts a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="(default: %(default)s)")
    parser.add_argument("--dtype", default="bfloat16", help="(default: %(default)s)")
    parser.add_argument("--memory", action="store_true", help="measure memory after N and 8 N texts too")
    flags = parser.parse_args()
    model, tokenizer = load_adapted(flags.adapter, dtype=flags.dtype)
    text_set = load(flags.dataset, flags.texts)
    texts = list(text_set.texts(tokenizer, text_set.groups))
    options: dict[str, Any] = {"pad_token_id": tokenizer.pad_token_id, "batch_size": flags.batch_size}

    def counting() -> None:
        collector(model, texts, groups=len(text_set.labels), **options)

    with evaluating(model):
        seconds = in_turns({"plain": lambda: plain(model, texts, **options), "counting": counting}, flags.rounds)
        report = {
            "machine": machine("transformers", "peft"),
            "flags": vars(flags),
            "tokens": sum(len(text.ids) for text in texts),
            "seconds": {name: spread(values) for name, values in seconds.items()},
            "ratio": of_groups(seconds, lambda each: each["counting"] / each["plain"]),
        }
        if flags.memory:
            report["peak_mb"] = peaks(model, texts, len(text_set.labels), options)
    print(json.dumps(report, indent=2))
    save(report, flags.out)


@torch.inference_mode()
def plain(model: Any, texts: Sequence[Text], pad_token_id: int, batch_size: int) -> None:
    """The forwards of a pass, with nothing watching."""
    for batch in chain.from_iterable(windows(texts, batch_size)):
        ids_BL, length_B = padded_batch(batch, pad_token_id, model.device)
        mask_BL = torch.arange(ids_BL.shape[1], device=ids_BL.device) < length_B[:, None]
        model(input_ids=ids_BL, attention_mask=mask_BL.long(), logits_to_keep=1, use_cache=False)


def peaks(model: Any, texts: Sequence[Text], groups: int, options: dict[str, Any]) -> dict[str, float]:
    """Resident memory at its highest so far: after the first pass, and after one over eight times as many texts."""
    found = {}
    for times in (1, 8):
        collector(model, repeated(texts, times), groups=groups, **options)
        found[f"{times * len(texts)} texts"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def repeated(texts: Sequence[Text], times: int) -> Iterator[Text]:
    """The texts again and again, under new numbers."""
    for number, text in enumerate(islice(cycle(texts), times * len(texts))):
        yield text._replace(number=number)


if __name__ == "__main__":
    main()
