"""``monolora superposition run|verify|figures``: the paper's toy model of superposition, and its theory.

monolora superposition run        encoders and noisy classifiers         section 4.2, figure 5
monolora superposition verify     the theory, checked, and what it says  section 4.3, appendix B
monolora superposition figures    from what run has left, and the theory
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import cast

from monolora.errors import exit_status
from monolora.steps import run_step

STEPS = ("run", "verify", "figures")


def main(argv: list[str]) -> int:
    """Run one step; returns the exit status."""
    return run_step(argv, "monolora superposition", STEPS, __doc__, _run)


def _run(step: str, words: list[str]) -> int:
    module = importlib.import_module(f"monolora.recipes.superposition.{step}")
    return cast(Callable[[list[str]], int], module.main)(words)


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
