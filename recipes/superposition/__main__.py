"""``monolora superposition run|verify|figures``: the paper's toy model of superposition, and its theory.

monolora superposition run        encoders and noisy classifiers         section 4.2, figure 5
monolora superposition verify     the theory, checked, and what it says  section 4.3, appendix B
monolora superposition figures    from what run has left, and the theory
"""

from __future__ import annotations

import sys

from monolora.cli import run_program, run_step
from monolora.errors import exit_status
from monolora.recipes.superposition.settings import Figures, Run, Verify

STEPS = {"run": Run, "verify": Verify, "figures": Figures}


def main(argv: list[str]) -> int:
    """Run one step; returns the exit status."""
    return run_step(argv, "monolora superposition", STEPS, __doc__, _run)


def _run(step: str, words: list[str]) -> int:
    module = f"monolora.recipes.superposition.{step}"
    return run_program(module, words, f"monolora superposition {step}", STEPS[step])


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
