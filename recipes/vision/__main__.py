"""``monolora vision STEP``: the paper's vision experiments, a step at a time or all.

    monolora vision all --config recipes/vision/configs/cifar100-small.yaml

pretrain     encoders: SimCLR's (polysemantic) and NCL's (monosemantic)        section 3.1
sae          a sparse autoencoder on SimCLR's features (monosemantic)          section 3.1
probe        linear classifiers under label noise, input noise, other images   table 1, figures 1b, 2, 6
finetune     all weights, with CE and NCE, on few or wrongly labelled images   figure 3
consistency  which classes a dimension fires on, which ones classifiers trust  figures 1a, 4
table1       from the results: table1.md, .csv, .tex
figures      from the results: figures/*.png, *.svg
all          all of these, in this order; what is done is not done again
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import time

from monolora.cli import docstring_of, run_step
from monolora.cli.config_file import split_config
from monolora.errors import InputError, exit_status
from monolora.recipes.vision.settings import parse
from monolora.terminal import say, suggest

STEPS = ("pretrain", "sae", "probe", "finetune", "consistency", "table1", "figures")


def main(argv: list[str]) -> int:
    """Run one step, or all; returns the exit status."""
    return run_step(argv, "monolora vision", (*STEPS, "all"), __doc__, _run)


def _run(step: str, words: list[str]) -> int:
    settings = parse(words, step, __doc__ if step == "all" else docstring_of(_module(step)))
    if importlib.util.find_spec("pytorch_optimizer") is None:
        raise InputError("pytorch-optimizer is not installed. Run: pip install 'monolora[vision]'")
    if step != "all":
        importlib.import_module(_module(step)).run(settings)
        if step != STEPS[-1]:
            config, _ = split_config(words)
            flags = ("--config", str(config)) if config else ()
            suggest("monolora", "vision", STEPS[STEPS.index(step) + 1], *flags, "--out", settings.common.out)
        return 0
    for name in STEPS:
        start = time.perf_counter()
        say(f"── {name}")
        importlib.import_module(_module(name)).run(settings)
        say(f"   {time.perf_counter() - start:,.0f} s")
    return 0


def _module(step: str) -> str:
    return f"monolora.recipes.vision.{step}"


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
