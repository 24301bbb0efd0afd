"""New Python processes that import torch and transformers at no cost: forks of one that has done nothing else.

``run`` and ``start`` take a program as ``python -c`` does. It begins in a process that has never imported monolora, and
ends as an interpreter ends. A test that is about the start itself, or about settings that libraries read when they are
imported (``HF_HUB_OFFLINE``), starts an interpreter of its own instead.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

_LOCK = threading.Lock()  # one question at a time
REPOSITORY = Path(__file__).parents[2]

# Reads requests, one a line, and answers them. A fork leaves the loop with its request and runs the program.
_SERVER = """
import json, os, signal, sys
import accelerate, datasets, peft, sklearn.metrics, torch._dynamo, torch.distributed.tensor, transformers, trl
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, Trainer
assert "monolora" not in sys.modules
answers = os.fdopen(os.dup(1), "w", buffering=1)
for line in sys.stdin:
    verb, argument = json.loads(line)
    if verb == "start":
        pid = os.fork()
        if pid == 0:
            break
        print(pid, file=answers)
    else:
        ended, status = os.waitpid(argument, os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if ended else None), file=answers)
else:
    sys.exit()
answers.close()
del answers, line, pid, verb
for number, (name, flags) in enumerate(argument["files"]):
    file = os.open(name, flags)
    os.dup2(file, number)
    os.close(file)
sys.stdin = open(0)
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.clear()
os.environ.update(argument["env"])
os.chdir(argument["cwd"])
sys.path.insert(0, "")
sys.argv = ["-c", *argument["words"]]
code = argument["code"]
del argument, file, flags, name, number
exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
"""


@functools.cache
def _server() -> subprocess.Popen[str]:
    """The process that is forked: one for all tests of this process, until it ends."""
    pipe = subprocess.PIPE
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, "-P", "-c", _SERVER], env=environment, stdin=pipe, stdout=pipe, text=True
    )

    def end() -> None:
        for stream in (server.stdin, server.stdout):
            assert stream is not None
            stream.close()
        server.wait()

    atexit.register(end)
    return server


def _ask(verb: str, argument: Any) -> Any:
    with _LOCK:
        server = _server()
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps([verb, argument]) + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
    assert answer, "the process that is forked has ended"
    return json.loads(answer)


class Fork:
    """A running program.

    Attributes:
        pid: its process.
        returncode: None while it runs; negative for a signal, as in ``subprocess``.
    """

    def __init__(
        self, code: str, *words: str | Path, cwd: Path = REPOSITORY, env: dict[str, str] | None = None, stdin: str = ""
    ) -> None:
        self.returncode: int | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="monolora-fork-")
        streams = [Path(self._folder.name, name) for name in ("stdin", "stdout", "stderr")]
        streams[0].write_text(stdin)
        self._out, self._err = streams[1:]
        modes = (os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_APPEND, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        request = {
            "code": code,
            "words": list(map(str, words)),
            "files": [(str(path), mode) for path, mode in zip(streams, modes, strict=True)],
            "cwd": str(cwd),
            "env": dict(os.environ if env is None else env),
        }
        self.pid: int = _ask("start", request)

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        if self.returncode is None:
            self.returncode = _ask("poll", self.pid)
        return self.returncode

    def wait(self) -> subprocess.CompletedProcess[str]:
        """How it ended, and what it printed."""
        while (status := self.poll()) is None:
            time.sleep(0.02)
        out, err = self._out.read_text(), self._err.read_text()
        self._folder.cleanup()
        return subprocess.CompletedProcess(self.pid, status, out, err)

    def kill(self) -> None:
        """End it, if it still runs, and forget what it printed."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            while self.poll() is None:
                time.sleep(0.02)
        self._folder.cleanup()


def run(code: str, *words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """As ``subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)``."""
    return Fork(code, *words, **options).wait()


def launch(flags: list[str | Path], code: str, *words: str | Path) -> list[subprocess.CompletedProcess[str]]:
    """The processes that ``accelerate launch FLAGS`` starts, with the environment variables that it and torch set."""
    flags = [*flags, "--main_process_port", "0", "program.py"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(list(map(str, flags))))
    environment = os.environ | prepare_multi_gpu_env(arguments)
    count, port = str(arguments.num_processes), arguments.master_port
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    numbers = map(str, range(arguments.num_processes))
    forks = [Fork(code, *words, env=environment | {"RANK": number, "LOCAL_RANK": number}) for number in numbers]
    try:
        return [fork.wait() for fork in forks]
    finally:
        for fork in forks:
            fork.kill()
