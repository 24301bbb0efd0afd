"""Run PEFT's own tests against MonoLoRA and say how many hold: ``python -m tests.peft_suite``.

Needs pytest, and a package index once for each version of PEFT (see ``sdist``). Exit status 1 on any failure, and on
fewer passes than ``expected`` pins.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from . import hub
from .expected import GROUPS
from .sdist import NoTestsError, fetch

COLUMNS = ("passed", "must raise", "waived", "skipped", "failed")


class Result(NamedTuple):
    """What became of a group: outcomes by column, waived tests by reason, pytest's status and output, duration."""

    outcomes: Counter[str]
    waived: Counter[str]
    status: int
    output: str
    seconds: float


def main() -> int:
    try:
        tests = fetch(version("peft"))
    except NoTestsError as error:
        print(error, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as scratch:
        hub.build(Path(scratch) / "hub")
        # The plugin's package by itself: whatever else lies beside it must not shadow an installed package.
        (Path(scratch) / "path").mkdir()
        (Path(scratch) / "path" / "peft_suite").symlink_to(Path(__file__).parent, target_is_directory=True)
        with ThreadPoolExecutor(max_workers=2) as pool:
            results = dict(zip(GROUPS, pool.map(partial(run_group, tests, Path(scratch)), GROUPS), strict=True))
    return report(results)


def run_group(tests: Path, scratch: Path, name: str) -> Result:
    """Run one group of test files in a process of its own, on the CPU, offline."""
    junit = scratch / f"{name}.xml"
    command = [sys.executable, "-m", "pytest", "-p", "peft_suite.plugin", f"--junitxml={junit}", "--quiet"]
    # A configuration of its own; no cache folder beside the tests; a native traceback, because pytest's own parses
    # the whole test file anew for every expected failure, which takes longer than all tests together.
    command += ["-c", os.devnull, f"--rootdir={tests}", "-p", "no:cacheprovider", "--tb=native"]
    command += [f"tests/{file}" for file in GROUPS[name].files]
    environment = os.environ | {
        "PYTHONPATH": str(scratch / "path"),
        "HF_HUB_CACHE": str(scratch / "hub"),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    start = time.monotonic()
    done = subprocess.run(
        command, cwd=tests, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    outcomes, waived = read_outcomes(junit)
    return Result(outcomes, waived, done.returncode, done.stdout, time.monotonic() - start)


def read_outcomes(junit: Path) -> tuple[Counter[str], Counter[str]]:
    """Outcomes by column, and waived tests by reason, from pytest's JUnit report."""
    outcomes: Counter[str] = Counter()
    waived: Counter[str] = Counter()
    for case in ElementTree.parse(junit).iter("testcase") if junit.exists() else ():
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            outcomes["failed"] += 1
        elif skipped is None:
            outcomes["passed"] += 1
        elif skipped.get("type") != "pytest.xfail":
            outcomes["skipped"] += 1
        else:
            kind, _, reason = skipped.get("message", "").partition(": ")
            outcomes[kind] += 1
            if kind == "waived":
                waived[reason] += 1
    return outcomes, waived


def report(results: dict[str, Result]) -> int:
    """Print the outcomes, with pytest's output where something is wrong; return the exit status."""
    shortfalls = []
    for name, result in results.items():
        least = GROUPS[name].least
        for column, fewest in {"passed": least.passed, "must raise": least.must_raise}.items():
            if result.outcomes[column] < fewest:
                shortfalls.append(f"{name}: {column} {result.outcomes[column]}, expected at least {fewest}")
        if result.status:
            print(result.output)
    print(f"PEFT {version('peft')}'s tests of LoRA, run against MonoLoRA")
    print(f"{'':20}" + "".join(f"{column:>12}" for column in (*COLUMNS, "seconds")))
    for name, result in results.items():
        counts = "".join(f"{result.outcomes[column]:12}" for column in COLUMNS)
        print(f"{name:20}{counts}{result.seconds:12.0f}")
    for reason, count in sum((result.waived for result in results.values()), Counter()).items():
        print(f"waived {count}: {reason}")
    for shortfall in shortfalls:
        print(shortfall)
    wrong = shortfalls or any(result.status for result in results.values())
    print("FAILED" if wrong else "All hold.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
