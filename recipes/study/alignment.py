"""Does MonoLoRA keep alignment, and gain on the task? The paper's table 2 on a real chat model, with error bars.

    python recipes/study/alignment.py --config recipes/study/smollm2.yaml
    python recipes/study/alignment.py --config recipes/study/smollm2.yaml --preset gpu --dry-run

Trains every adapter on every data set at several learning rates, selects the rate on held-out training examples, trains
the other seeds, evaluates base and adapters together, and writes OUT/report/report.md. What is done is not done again:
an interrupted study resumes with the same command, and one whose folder lost a cell makes that one anew.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

from monolora.cli.flags import FlagParser
from monolora.errors import exit_status
from monolora.locks import locked
from monolora.recipes.study import plan
from monolora.recipes.study.cost_estimate import dry_run
from monolora.recipes.study.lr_selection import selected_rates
from monolora.recipes.study.plan import check_commands
from monolora.recipes.study.report import KIND, REPORT, check_records, keep_records, write_report
from monolora.recipes.study.runner import STUDY, Runner
from monolora.recipes.study.settings import Call, Study, load
from monolora.runs import claim
from monolora.terminal import say


def main(argv: list[str]) -> int:
    """Run from the command line; returns the exit status."""
    return run(FlagParser("monolora study", __doc__).parse_into(argv, Call))


def run(call: Call) -> int:
    """Do what is not done, and report; returns the exit status."""
    study = load(Path(call.config[0]), call.preset, call.out)
    check_commands(study)
    if call.dry_run:
        dry_run(study)
        return 0
    with ExitStack() as stack:
        stack.enter_context(locked(study.folder, "--out" if call.out else ""))
        STUDY.is_begun(study.folder, "--out" if call.out else "")
        records = None
        if call.records:
            records = stack.enter_context(claim(call.records, KIND, "--records"))
            check_records(study, records)
        run_cells(study, call.jobs)
        say(write_report(study))
        if records:
            keep_records(study, records)
    say(f"{study.folder / 'report' / REPORT}: the same, with figures and table.csv beside it.")
    return 0


def run_cells(study: Study, jobs: int = 1) -> None:
    """Do all cells that are not done, ``jobs`` at a time."""
    runner = Runner(study.folder, len(plan.all_cells(study)), jobs)
    runner.run_all((cell for dataset in study.datasets for cell in plan.sweep(study, dataset)), may_diverge=True)
    selected = {dataset: selected_rates(study, dataset) for dataset in study.datasets}
    others = (cell for dataset in study.datasets for cell in plan.repetitions(study, dataset, selected[dataset]))
    runner.run_all(chain(plan.judges(study), others))
    runner.run_all(cell for dataset in study.datasets for cell in plan.evaluations(study, dataset, selected[dataset]))


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
