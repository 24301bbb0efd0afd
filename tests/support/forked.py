"""Python programs in forks of one process that has imported vLLM and done nothing else.

The imports are most of what a start of vLLM costs, seven seconds of a core, and are paid once here. vLLM's own
processes are forks too, which is its default wherever it has a choice.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import multiprocessing
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from types import SimpleNamespace
from typing import IO, Any

from monolora.eval import process

IMPORTED = [
    "pytest",
    "monolora.cli",
    "monolora.eval.generate",
    "monolora.eval.measurements",
    "monolora.eval.score",
    "monolora.eval.engines.hf",
    "monolora.eval.engines.vllm",
    "monolora.eval.judges.backends",
    "tests.support.evaluated",
    "tests.support.inline",
    "transformers.models.bert.modeling_bert",
    "transformers.models.gemma2.modeling_gemma2",
    "transformers.models.llama.modeling_llama",
    "vllm.entrypoints.llm",
    "vllm.entrypoints.openai.api_server",
    "vllm.lora.worker_manager",
    "vllm.model_executor.layers.quantization.online.base",
    "vllm.model_executor.models.llama",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
]
# Every program's, as libraries read these when they are imported.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",  # the models are tiny
    "TORCHDYNAMO_DISABLE": "1",  # else a function of the log-probs is compiled: seconds, and a compiler to have
    "VLLM_LOGGING_LEVEL": "WARNING",
}
_FORK = multiprocessing.get_context("fork")


class Program:
    """What the tests use of :class:`subprocess.Popen`, for ``[sys.executable, "-P", …]`` with a module or a file."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        stdout: int | IO[Any],
        stderr: int | IO[Any],
        stdin: int | IO[Any] = subprocess.DEVNULL,
        env: Mapping[str, str] | None = None,
        start_new_session: bool = False,
        text: bool = True,
    ) -> None:
        assert command[:2] == [sys.executable, "-P"]
        ends: list[int] = []
        self.stdin, read = _stream(stdin, "w", ends)
        self.stdout, write = _stream(stdout, "r", ends)
        error = write if stderr == subprocess.STDOUT else _stream(stderr, "r", ends)[1]
        self.returncode: int | None = None
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.connect(_address())
        with tempfile.NamedTemporaryFile("w+") as request:
            words, variables = list(command[2:]), dict(os.environ if env is None else env) | ENVIRONMENT
            json.dump([words, variables, os.getcwd(), start_new_session], request)
            request.flush()
            socket.send_fds(self._connection, [b"?"], [read, write, error, request.fileno()])
        for end in ends:
            os.close(end)
        self.pid = int(self._connection.recv(16))

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a program", timeout or 0)
            self.returncode = int(self._connection.recv(16))
            self._connection.close()
        return self.returncode

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


FORKING: Any = SimpleNamespace(Popen=Program, PIPE=subprocess.PIPE)  # instead of the module, in who starts workers


def _stream(given: int | IO[Any], mode: str, ends: list[int]) -> tuple[Any, int]:
    """This side's file where a pipe is asked for, and the program's end; ``ends`` gets what is to be closed here."""
    if given == subprocess.PIPE:
        read, write = os.pipe()
        ours, theirs = (write, read) if mode == "w" else (read, write)
        ends.append(theirs)
        return open(ours, mode), theirs
    if given == subprocess.DEVNULL:
        ends.append(os.open(os.devnull, os.O_RDWR))
        return None, ends[-1]
    return None, given if isinstance(given, int) else given.fileno()


@cache
def _address() -> bytes:
    """Where forks are asked for. The process that forks lives as long as this one."""
    address = b"\0monolora-tests-" + os.urandom(8).hex().encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen()
        forking = subprocess.Popen(
            [sys.executable, "-c", f"from tests.support.forked import serve; serve({listener.fileno()})"],
            stdin=subprocess.PIPE,
            env=os.environ | ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(sys.path)},
            pass_fds=[listener.fileno()],
        )
    atexit.register(forking.communicate)  # ends its standard input, and waits
    return address


def serve(listener_fd: int) -> None:
    """Fork for every request until standard input ends; in a fork, be the program."""
    global _address
    for name in IMPORTED:
        with suppress(ImportError):  # vLLM may not be installed
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # no fork looks through the imported modules again
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(fileno=listener_fd)
    while select.select([listener, 0], [], [])[0] == [listener]:
        connection, _ = listener.accept()
        _, descriptors, _, _ = socket.recv_fds(connection, 1, 4)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            child = os.fork()
            if child == 0:
                connection.close()
                _address = cache(partial(bytes, listener.getsockname()))
                listener.close()
                return _run(*descriptors)
            for number in (0, 1, 2, *descriptors):  # whoever reads a pipe waits for the program only
                os.close(number)
            connection.send(str(child).encode())
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            with suppress(BrokenPipeError):
                connection.send(str(status).encode())
            os._exit(0)
        connection.close()
        for descriptor in descriptors:
            os.close(descriptor)
    os._exit(0)


def _run(stdin: int, stdout: int, stderr: int, request_fd: int) -> None:
    with open(request_fd) as file:
        file.seek(0)
        words, variables, folder, has_session = json.load(file)
    if has_session:
        os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    for number, descriptor in enumerate((stdin, stdout, stderr)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    process.subprocess = FORKING
    multiprocessing.get_context = lambda method=None: _FORK  # type: ignore[assignment]
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
