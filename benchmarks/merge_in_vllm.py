"""Whether stock vLLM gives a merge the log-probabilities that transformers gives it, on a real model.

    python benchmarks/merge_in_vllm.py out out-lora --base smollm2-135m-instruct

`out` and `out-lora` are what `monolora merge` wrote with and without `--as lora` (give both `--dtype float32`, or their
weights are rounded differently). Prints the largest difference in the log-probability of any token that vLLM generates.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from monolora.hub import resolve_model

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.support.vllm_process import Adapter, Engine, largest_difference

TOKENS = 16
LARGEST_RANK = 64
TEXTS = (
    "The soup was cold, and so was the waiter.",
    "Write a short letter to a museum that lost your umbrella, and ask politely for a new one.",
    "A lamp, a map and a bicycle walk into a bakery. Only the lamp had thought of bringing change, as usual.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense")
    parser.add_argument("lora")
    parser.add_argument("--base", default="smollm2-135m-instruct")
    flags = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(flags.dense)
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS]
    base = resolve_model(flags.base)
    with Engine(flags.dense, stock=True) as engine:
        dense = engine.generate(prompts, tokens=TOKENS)
    with Engine(base, stock=True, enable_lora=True, max_loras=1, max_lora_rank=LARGEST_RANK) as engine:
        lora = engine.generate(prompts, [Adapter("merge", 1, flags.lora)] * len(prompts), tokens=TOKENS)
    merged, unmerged = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (flags.dense, base)
    )
    print("largest difference from the dense merge in transformers")
    print(f"  dense merge in vLLM: {largest_difference(dense, merged):.1e}")
    print(f"  LoRA merge in vLLM:  {largest_difference(lora, merged):.1e}")
    print(f"  of the base, the yardstick: {largest_difference(dense, unmerged):.1e}")


if __name__ == "__main__":
    main()
