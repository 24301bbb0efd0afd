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

from monolora.errors import InputError, exit_status, unknown

STEPS = ("run", "verify", "figures")


def main(argv: list[str]) -> int:
    """Run one step; returns the exit status."""
    if not argv or argv[0] in ("-h", "--help"):
        print(f"{__doc__}\nFlags: monolora superposition STEP --help")
        return 0 if argv else 2
    step, *words = argv
    if step.startswith("-"):
        raise InputError(f"Which step? It comes before the flags: monolora superposition {' | '.join(STEPS)}.")
    if step not in STEPS:
        raise unknown("step", step, STEPS)
    module = importlib.import_module(f"monolora.recipes.superposition.{step}")
    return cast(Callable[[list[str]], int], module.main)(words)


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
