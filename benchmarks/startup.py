"""How long the command line takes to answer help and misspelt flags, as a ratio to importing torch.

    python benchmarks/startup.py --rounds 5

Each side is a process of its own; they take turns, in another order in every round.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from functools import partial

from rounds import in_turns, save, spread

PEER = "import torch"
SIDES = {
    "monolora --help (target ≤ 0.2)": ["--help"],
    "monolora docter (target ≤ 0.2)": ["docter"],
    "monolora sft --help (target ≤ 1.5)": ["sft", "--help"],
    "monolora sft --lora-rank 4 (target ≤ 1.5)": ["sft", "--lora-rank", "4"],
    "monolora eval run --limt 3 (target ≤ 1.5)": ["eval", "run", "--limt", "3"],
    "monolora merge --help (target ≤ 1.5)": ["merge", "--help"],
}


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--out", help="write all numbers here, in JSON")
    flags = parser.parse_args()
    commands = {name: ["-m", "monolora.cli", *words] for name, words in SIDES.items()} | {PEER: ["-c", PEER]}
    seconds = in_turns({name: partial(_run, words) for name, words in commands.items()}, flags.rounds)
    ratios = {
        name: spread([own / peer for own, peer in zip(seconds[name], seconds[PEER], strict=True)]) for name in SIDES
    }
    print(f"{PEER}: {spread(seconds[PEER])['median']:.2f} s")
    for name, ratio in ratios.items():
        print(f"{name}: {ratio['median']:.2f} ({ratio['smallest']:.2f} – {ratio['largest']:.2f})")
    save({"seconds": seconds, "ratios": ratios}, flags.out)


def _run(words: list[str]) -> None:
    subprocess.run([sys.executable, *words], capture_output=True, check=False)


if __name__ == "__main__":
    main()
