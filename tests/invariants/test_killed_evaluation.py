"""Law 8: an evaluation that was killed at any moment and started again gives the records and the table of one that was
not, and nothing is answered or judged twice.

Run as a program, this file is ``monolora`` without processes of its own, which may kill itself: see :func:`main`.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from monolora import cli
from monolora.eval import store
from monolora.eval.store import Records
from tests.support.evaluated import Evaluated
from tests.support.forks import VLLM
from tests.support.inline import run_inline
from tests.support.limits import HANG_S

# In the program itself each start takes seconds: MONOLORA_KILLS=20 for the whole law.
KILLS_OF_THE_PROGRAM = int(os.environ.get("MONOLORA_KILLS", "2"))
QUIET: dict[str, int] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
FILES = ("responses.jsonl", "scores.jsonl", "measurements.jsonl")


def records(folder: Path) -> dict[str, list[str]]:
    """Lines by file, in the order of their keys; that no key is there twice is checked on the way."""
    found = {}
    for name in FILES:
        lines = (folder / name).read_text().splitlines()
        keys = Counter(json.loads(line)["key"] for line in lines)
        assert set(keys.values()) == {1}
        found[name] = sorted(lines)
    return found


def table(folder: Path) -> tuple[str, dict[str, Any]]:
    results = json.loads((folder / "results.json").read_text())
    del results["run"]
    return (folder / "table.csv").read_text(), results


def progress(folder: Path) -> int:
    return sum((folder / name).read_bytes().count(b"\n") for name in FILES if (folder / name).is_file())


def wait_for(folder: Path, lines: int, alive: Callable[[], bool]) -> None:
    end = time.monotonic() + HANG_S
    while alive() and progress(folder) < lines:
        assert time.monotonic() < end, "the program hangs"
        time.sleep(0.002)


class Kill(NamedTuple):
    """When the program is killed, by itself: a machine's speed decides nothing.

    Attributes:
        folder: of the run.
        lines: how many are in its files by then.
        share: of the next line, which is written first; or None.
        delay_s: without ``share``: how long after that moment.
    """

    folder: str
    lines: int
    share: float | None
    delay_s: float


def arm(kill: Kill) -> None:
    """Let this process kill itself as it adds a record."""
    add = Records.add
    timer = threading.Timer(kill.delay_s, os.kill, (os.getpid(), signal.SIGKILL))

    def add_or_die(self: Records[Any], record: Any) -> None:
        if record.key in self or progress(Path(kill.folder)) < kill.lines:
            add(self, record)
        elif kill.share is None:
            add(self, record)
            if not timer.is_alive():
                timer.start()
        else:
            line = store._line(record).encode()
            with self._path.open("ab") as file:
                file.write(line[: int(kill.share * len(line))])
            os.kill(os.getpid(), signal.SIGKILL)

    Records.add = add_or_die  # type: ignore[method-assign]


def main() -> None:
    """The program, with engines and judges in its process."""
    words, kill = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    run_inline(pytest.MonkeyPatch())
    if kill is not None:
        arm(Kill(*kill))
    status = cli.main(words)
    if kill is not None:
        signal.pause()  # the delay may be longer than what was left
    sys.exit(status)


def start(words: list[str], kill: Kill | None = None) -> int:
    """Run the program; how it ended."""
    return VLLM.Popen([sys.executable, "-P", __file__, json.dumps([words, kill])], **QUIET).wait()


def test_killed_at_random_moments(evaluated: Evaluated, tmp_path: Path) -> None:
    """Thrice within a line, then somewhere after one: among the next lines, or as the results are written."""
    words = ["eval", "run", *evaluated.run_flags(), "--out"]
    assert start([*words, str(tmp_path / "whole")]) == 0
    total, moments = progress(tmp_path / "whole"), random.Random(8)
    for run in range(5):
        folder = tmp_path / f"killed-{run}"
        lines = sorted(moments.randrange(total) for _ in range(4))
        for line, share in zip(lines, [moments.random(), moments.random(), moments.random(), None], strict=True):
            kill = Kill(str(folder), line, share, moments.random() * 0.03)
            assert start([*words, str(folder)], kill) == -signal.SIGKILL
            if share is not None:
                assert progress(folder) == line
        assert start([*words, str(folder)]) == 0
        assert records(folder) == records(tmp_path / "whole")
        assert table(folder) == table(tmp_path / "whole")


@pytest.mark.slow
def test_the_program_killed_at_random_moments(evaluated: Evaluated, tmp_path: Path) -> None:
    """With engines and judges in processes of their own, as users run it; nothing is left running."""
    words = [sys.executable, "-P", "-m", "monolora.cli", "eval", "run", *evaluated.run_flags()]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # as the forks have
    subprocess.run([*words, "--out", str(tmp_path / "whole")], env=one_thread, check=True, capture_output=True)
    total, moments = progress(tmp_path / "whole"), random.Random(0)
    folder, killed = tmp_path / "killed", 0
    targets = sorted(moments.randint(0, total - 1) for _ in range(KILLS_OF_THE_PROGRAM))
    while killed < KILLS_OF_THE_PROGRAM:
        target = targets[killed]
        process = VLLM.Popen([*words, "--out", str(folder)], **QUIET)
        try:
            wait_for(folder, target, lambda process=process: process.poll() is None)
            time.sleep(moments.random() * 0.05)  # longer, and all that is left would be done
        finally:
            process.kill()
        if process.wait() == -signal.SIGKILL:
            killed += 1
        else:  # it was done before: from the start, then
            assert process.returncode == 0
            shutil.rmtree(folder)
            killed = 0
    assert VLLM.Popen([*words, "--out", str(folder)], **QUIET).wait() == 0
    assert records(folder) == records(tmp_path / "whole")
    assert table(folder) == table(tmp_path / "whole")


if __name__ == "__main__":
    main()
