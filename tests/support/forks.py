"""Python programs in forks of a process that has imported libraries and done nothing else: the imports are paid once.

A :class:`Server` starts them as :mod:`subprocess` does; ``start``, ``run`` and ``launch`` take a program as ``python
-c`` does, and fork a process that has never imported monolora. All end as an interpreter ends. A test that is about the
start itself, or about settings that libraries read when they are imported (``HF_HUB_OFFLINE``), starts an interpreter
of its own instead.
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property, partial, partialmethod
from pathlib import Path
from typing import IO, Any

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

REPOSITORY = Path(__file__).parents[2]
# Not among the packages of the environment: accelerate imports it in every run where it can, which takes seconds.
DEEPSPEED_FOLDER = Path(sys.prefix) / "deepspeed"


class Program:
    """What the tests use of :class:`subprocess.Popen`, for ``[sys.executable, …]`` with code, a module or a file.

    Attributes:
        stdin, stdout: this side's files, where pipes are asked for.
        returncode: None while it runs; negative for a signal.
    """

    def __init__(
        self,
        server: Server,
        command: Sequence[str],
        *,
        stdout: int | IO[Any],
        stderr: int | IO[Any],
        stdin: int | IO[Any] = subprocess.DEVNULL,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        start_new_session: bool = False,
        text: bool = True,
    ) -> None:
        assert command[0] == sys.executable
        self.returncode: int | None = None
        self._printed: Any = stdout, stderr
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.connect(server.address)
        with ExitStack() as ends:
            self.stdin, read = _stream(stdin, "w", ends)
            self.stdout, write = _stream(stdout, "r", ends)
            error = write if stderr == subprocess.STDOUT else _stream(stderr, "r", ends)[1]
            variables = {**(os.environ if env is None else env), **server.environment}
            request = json.dumps([command[1:], variables, str(cwd or Path.cwd()), start_new_session])
            socket.send_fds(self._connection, [request.encode()], [read, write, error])
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

    def completed(self) -> subprocess.CompletedProcess[str]:
        """How it ended, and what it printed into files, once it has."""
        status = self.wait()
        for file in self._printed:
            file.seek(0)
        return subprocess.CompletedProcess(self.pid, status, *(file.read() for file in self._printed))

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    terminate = partialmethod(send_signal, signal.SIGTERM)
    kill = partialmethod(send_signal, signal.SIGKILL)


def _stream(given: int | IO[Any], mode: str, ends: ExitStack) -> tuple[Any, int]:
    """This side's file where a pipe is asked for, and the program's end, closed by ``ends`` if it was opened here."""
    if given == subprocess.PIPE:
        read, write = os.pipe()
        ours, theirs = (write, read) if mode == "w" else (read, write)
        ends.callback(os.close, theirs)
        return open(ours, mode), theirs
    if given == subprocess.DEVNULL:
        given = os.open(os.devnull, os.O_RDWR)
        ends.callback(os.close, given)
    return None, given if isinstance(given, int) else given.fileno()


class Server:
    """The process that is forked: begins with the first program, one for each process of pytest, and ends with that.

    It may stand for the module ``subprocess`` in who starts workers.

    Args:
        name: of the server in this module.
        imports: modules; those that are not installed are left out.
        folders: of further packages.
        environment: every program's too, as libraries read these when they are imported.
    """

    PIPE = subprocess.PIPE

    def __init__(self, name: str, imports: Sequence[str], folders: Sequence[Path] = (), **environment: str) -> None:
        self.environment = environment
        self.Popen = partial(Program, self)
        self._name, self._imports, self._folders = name, imports, folders

    @cached_property
    def address(self) -> bytes:
        """Where forks are asked for."""
        address = b"\0monolora-tests-" + os.urandom(8).hex().encode()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(address)
            listener.listen()
            code = f"from tests.support import forks; forks.{self._name}.serve({listener.fileno()})"
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", code],
                stdin=subprocess.PIPE,
                env=os.environ
                | self.environment
                | {"PYTHONPATH": os.pathsep.join([*sys.path, *map(str, self._folders)])},
                pass_fds=[listener.fileno()],
            )
        atexit.register(process.communicate)  # ends its standard input, and waits
        return address

    def serve(self, listener_fd: int) -> None:
        """Fork for every request until standard input ends; in a fork, be the program."""
        for name in self._imports:
            with suppress(ImportError):  # vLLM may not be installed
                importlib.import_module(name)
        assert ("monolora" in sys.modules) == (self is VLLM)
        gc.collect()
        gc.freeze()  # no fork looks through the imported modules again
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        listener = socket.socket(fileno=listener_fd)
        while select.select([listener, 0], [], [])[0] == [listener]:
            connection, _ = listener.accept()
            request, descriptors, _, _ = socket.recv_fds(connection, 1 << 18, 3)
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                child = os.fork()
                if child == 0:
                    connection.close()
                    self.address = listener.getsockname()
                    listener.close()
                    return self._run(descriptors, *json.loads(request))
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

    def _run(
        self, descriptors: Sequence[int], words: list[str], variables: dict[str, str], folder: str, has_session: bool
    ) -> None:
        if has_session:
            os.setsid()
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(variables)
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        atexit.register(gc.unfreeze)  # else libraries warn of objects that the end of the interpreter leaves
        if self is VLLM:  # whose own processes are forks too, which is its default wherever it has a choice
            sys.modules["monolora.workers"].subprocess = self  # type: ignore[attr-defined]
            fork = multiprocessing.get_context("fork")
            multiprocessing.get_context = lambda method=None: fork  # type: ignore[assignment]
        if words[0] == "-P":
            del words[0]
        else:
            sys.path.insert(0, "")
        if words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            exec(compile(words[1], "<string>", "exec", dont_inherit=True), {"__name__": "__main__"})
        elif words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")


_TRAINING = [
    "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama", "trl.trainer.sft_trainer",  # peft, datasets and more too
]  # fmt: skip
LIBRARIES = Server("LIBRARIES", _TRAINING, OMP_NUM_THREADS="1")  # the models are tiny
DEEPSPEED = Server(
    "DEEPSPEED", ["deepspeed", *_TRAINING], [DEEPSPEED_FOLDER], OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu"
)
VLLM = Server(
    "VLLM",
    [
        "tests.support.evaluated", "tests.support.inline", "transformers.models.bert.modeling_bert",
        "transformers.models.gemma2.modeling_gemma2", "transformers.models.llama.modeling_llama",
        "vllm.entrypoints.llm", "vllm.entrypoints.openai.api_server", "vllm.v1.engine.core",
        "vllm.model_executor.layers.quantization.online.base", "vllm.v1.engine.async_llm", "vllm.v1.worker.cpu_worker",
    ],
    HF_HUB_OFFLINE="1",
    OMP_NUM_THREADS="1",
    TORCHDYNAMO_DISABLE="1",  # else a function of the log-probs is compiled: seconds, and a compiler to have
    VLLM_LOGGING_LEVEL="WARNING",
)  # fmt: skip


@contextmanager
def start(
    code: str, *words: str | Path, server: Server = LIBRARIES, stdin: str = "", cwd: Path = REPOSITORY, **options: Any
) -> Iterator[Program]:
    """As ``python -c``; ``options`` are for :class:`Program`. What still runs in the end is killed."""
    with ExitStack() as stack:
        typed, out, err = (stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(3))
        typed.write(stdin)
        typed.seek(0)
        command = [sys.executable, "-c", code, *map(str, words)]
        program = server.Popen(command, stdin=typed, stdout=out, stderr=err, cwd=cwd, **options)
        stack.callback(program.wait)
        stack.callback(program.kill)
        yield program


def run(code: str, *words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """As ``subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)``."""
    with start(code, *words, **options) as program:
        return program.completed()


def launch(flags: list[str | Path], code: str, *words: str | Path) -> list[subprocess.CompletedProcess[str]]:
    """The processes that ``accelerate launch FLAGS`` starts, with the environment variables that it and torch set."""
    flags = [*flags, "--main_process_port", "0", "program.py"]
    arguments, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(list(map(str, flags))))
    server, environment = LIBRARIES, os.environ.copy()
    if arguments.use_deepspeed:
        server, arguments.deepspeed_fields_from_accelerate_config = DEEPSPEED, ",".join(defaults.deepspeed_config)
        environment |= prepare_deepspeed_cmd_env(arguments)[1]
    else:
        environment |= prepare_multi_gpu_env(arguments)
    count, port = str(arguments.num_processes), arguments.master_port
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    with ExitStack() as stack:
        ranks = [environment | {"RANK": str(n), "LOCAL_RANK": str(n)} for n in range(arguments.num_processes)]
        programs = [stack.enter_context(start(code, *words, env=rank, server=server)) for rank in ranks]
        return [program.completed() for program in programs]
