"""``monolora eval run|generate|score|report``: what did finetuning do to a model's alignment, and are we sure?

    monolora eval run --model BASE --adapter lora=PATH --adapter mono=PATH --tasks sst2 --out RUN

run       all stages; given again, it resumes
generate  base and adapters answer the prompts                        RUN/responses.jsonl
score     the judges judge the responses                              RUN/scores.jsonl
report    statistics, the table, and a page to look at                RUN/report.html
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from monolora.cli import run_step
from monolora.errors import InputError, exit_status
from monolora.eval.command_line import REPORT_FLAGS, SCORE_FLAGS, parse
from monolora.files import code_trusted

STAGES = ("run", "generate", "score", "report")
_OF_ONE_CALL = ("keep_going", "retry_invalid", "trust_remote_code", "out")
_READS = {"score": SCORE_FLAGS, "report": REPORT_FLAGS}  # those that go on with a run


def main(argv: list[str]) -> int:
    """Run one stage, or all; returns the exit status."""
    return run_step(argv, "monolora eval", STAGES, __doc__, _run, "stage")


def _run(stage: str, words: list[str]) -> int:
    stored = _stored(words) if stage in _READS else None
    settings = parse(words, f"monolora eval {stage}", stored, read=_READS.get(stage))
    from monolora.eval import run as runs  # with its libraries, now that the flags are right

    program = {"run": runs.run, "generate": runs.generate_stage, "score": runs.score_stage, "report": runs.report_stage}
    with code_trusted(settings.trust_remote_code):
        program[stage](settings)
    return 0


def _stored(words: Sequence[str]) -> dict[str, object] | None:
    """The settings of the run that a stage goes on with; what is only of one call left out."""
    if "--help" in words or "-h" in words:
        return None
    out = parse(words, "monolora eval", whole=False).out
    if not out:
        raise InputError("Which run? Give its folder with --out.")
    if not Path(out).is_dir():
        raise InputError(f"There is no run in {out}. Begin one with: monolora eval run --out {out} …")
    from monolora.eval.run import read

    config = read(Path(out))["config"]
    return {name: value for name, value in config.items() if name not in _OF_ONE_CALL}


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
