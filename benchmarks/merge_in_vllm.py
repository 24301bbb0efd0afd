"""Whether stock vLLM gives a merge the log-probabilities that transformers gives it, on a real model.

    python benchmarks/merge_in_vllm.py out out-lora --base smollm2-135m-instruct

`out` and `out-lora` are what `monolora merge` wrote with and without `--as lora` (give both `--dtype float32`, or their
weights are rounded differently). Prints the largest difference in the log-probability of any prompt token.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from monolora.hub import resolve_model

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from vllm_engine import prompt_log_probs

TEXTS = (
    "The soup was cold, and so was the waiter.",
    "Write a short letter to a museum that lost your umbrella, and ask politely for a new one.",
    "A lamp, a map and a bicycle walk into a bakery. Only the lamp had thought of bringing change, as usual.",
)


@torch.no_grad()
def by_transformers(folder: str, prompts: list[list[int]]) -> list[list[float]]:
    """For each prompt, the log-probability of every token but the first, in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for ids in prompts:
        log_probs = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        found.append(log_probs.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist())
    return found


def largest_difference(ours: list[list[float]], theirs: list[list[float]]) -> float:
    """Over all tokens of all prompts."""
    return max(abs(a - b) for row, other in zip(ours, theirs, strict=True) for a, b in zip(row, other, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense")
    parser.add_argument("lora")
    parser.add_argument("--base", default="smollm2-135m-instruct")
    flags = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(flags.dense)
    prompts = [tokenizer(text)["input_ids"] for text in TEXTS]
    base = resolve_model(flags.base)
    dense = by_transformers(flags.dense, prompts)
    served = prompt_log_probs(Path(flags.dense), prompts)
    served_lora = prompt_log_probs(Path(base), prompts, lora_folder=Path(flags.lora))
    print("largest difference from the dense merge in transformers")
    print(f"  dense merge in vLLM: {largest_difference(served, dense):.1e}")
    print(f"  LoRA merge in vLLM:  {largest_difference(served_lora, dense):.1e}")
    print(f"  base, the yardstick: {largest_difference(by_transformers(base, prompts), dense):.1e}")


if __name__ == "__main__":
    main()
