"""An HTTP server on loopback that answers ``/v1/completions``, or what else it is told to, and fails as it is told to.

It computes nothing: the answer to a prompt is its token ids in words. A body of events is sent as a stream. What it is
for is to see what a client sends, when, and what the client makes of trouble.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple


class Reply(NamedTuple):
    """What is sent back.

    Attributes:
        status: HTTP's.
        body: JSON, or text that is none, or an iterator of events, each JSON or text, sent as they come.
        until: what must hold first; the end of the server ends the wait too.
        after_s: how long to wait then, for what must not happen meanwhile.
    """

    status: int
    body: Any
    until: Callable[[], bool] = lambda: True
    after_s: float = 0.0


def never() -> bool:
    """What a request that hangs waits for."""
    return False


def completion(request: dict[str, Any], finish: str = "stop", **changed: Any) -> Reply:
    """The answer to a request."""
    tokens = len(request["prompt"])
    body = {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1,
        "model": request["model"],
        "choices": [{"index": 0, "text": text_of(request["prompt"], request["model"]), "finish_reason": finish}],
        "usage": {"prompt_tokens": tokens, "completion_tokens": tokens, "total_tokens": 2 * tokens},
    }
    return Reply(200, body | changed)


def chat_events(*pieces: str, finish: str | None = "stop") -> Iterator[Any]:
    """The events of a streamed chat completion; without ``finish`` it breaks off."""
    yield {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    for piece in pieces:
        yield {"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]}
    if finish is not None:
        yield {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}
        yield {"choices": [], "usage": {"total_tokens": 3}}
        yield "[DONE]"


def text_of(token_ids: Sequence[int], served: str) -> str:
    return f"{served} says {' '.join(map(str, token_ids))}"


def refusal(status: int, message: str) -> Reply:
    """An error as vLLM writes it."""
    return Reply(status, {"error": {"message": message, "type": "error", "param": None, "code": status}})


Answerer = Callable[[dict[str, Any], int], Reply]


class CompletionServer:
    """A server; use it in a ``with`` statement.

    Args:
        answer: makes the reply to a request (its JSON), given how often the same was asked before.
        models: what ``/v1/models`` lists; or a text, sent as it is.
        parents: of the models that are adapters, their bases.
        key: refuse requests without it.
        authorization: the header that is asked for, where it is another one than the key's.

    Attributes:
        requests: all but those for ``/v1/models``, as they came.
        headers: of these requests.
        paths: of these requests.
        most_at_once: how many were answered at the same time, at most.
        connections: how many are open.
    """

    def __init__(
        self,
        answer: Answerer = lambda request, before: completion(request),
        models: Sequence[str] | str = ("base",),
        key: str | None = None,
        authorization: str | None = None,
        parents: Mapping[str, str] | None = None,
    ) -> None:
        self.answer, self.models, self.parents = answer, models, parents or {}
        self.authorization = authorization or (key and f"Bearer {key}")
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.most_at_once = self._now = 0
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def connections(self) -> int:
        return len(self._open)

    def start(self) -> None:
        """Listen; after :meth:`stop`, on the same port again."""
        self.stopping.clear()
        owner = self

        class Handler(_Handler):
            server_of = owner

        self._http = _HTTPServer(("127.0.0.1", self._port), Handler)
        self._port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self) -> None:
        """Go down: connections are refused, and those that are open are cut."""
        self.stopping.set()
        self._http.shutdown()
        with self._lock:
            for each in self._open:
                each.shutdown(socket.SHUT_RDWR)
        self._http.server_close()
        self._thread.join()

    def __enter__(self) -> CompletionServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.stopping.is_set():
            self.stop()

    def cards(self) -> Any:
        """The answer of ``/v1/models``."""
        if isinstance(self.models, str):
            return self.models
        cards = [
            {"id": name, "object": "model", "created": 1, "owned_by": "me"}
            | ({"parent": self.parents[name]} if name in self.parents else {})
            for name in self.models
        ]
        return {"object": "list", "data": cards}

    def reply_to(self, path: str, request: dict[str, Any], headers: dict[str, str]) -> Reply:
        """What a request gets, after its time."""
        with self._lock:
            before = self.requests.count(request)
            self.requests.append(request)
            self.headers.append(headers)
            self.paths.append(path)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        reply = self.answer(request, before)
        while not reply.until() and not self.stopping.wait(0.005):
            pass
        self.stopping.wait(reply.after_s)
        with self._lock:
            self._now -= 1
        return reply

    def opened(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.add(connection)

    def closed(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.discard(connection)


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = False  # they are waited for, so that none outlives its test
    request_queue_size = 64  # with the usual 5, the system cuts some of many connections at once

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is gone is no error here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: CompletionServer

    def setup(self) -> None:
        super().setup()
        self.server_of.opened(self.connection)

    def finish(self) -> None:
        self.server_of.closed(self.connection)
        super().finish()

    def do_GET(self) -> None:
        if self.path.partition("?")[0] == "/v1/models" and self._may():
            self._send(Reply(200, self.server_of.cards()))
        else:
            self._send(refusal(401, "Unauthorized") if not self._may() else refusal(404, "Not Found"))

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._send(self.server_of.reply_to(self.path, request, dict(self.headers.items())))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        """Nothing: the tests look at the requests themselves."""

    def _may(self) -> bool:
        return self.server_of.authorization in (None, self.headers["Authorization"])

    def _send(self, reply: Reply) -> None:
        if self.server_of.stopping.is_set():
            self.close_connection = True
            return
        if isinstance(reply.body, Iterator):
            self._send_events(reply)
            return
        content = reply.body.encode() if isinstance(reply.body, str) else json.dumps(reply.body).encode()
        self.send_response(reply.status)
        self.send_header("Content-Type", "text/html" if isinstance(reply.body, str) else "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _send_events(self, reply: Reply) -> None:
        self.close_connection = True  # which ends the stream, as it has no length
        self.send_response(reply.status)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError):  # the client may have heard enough
            for event in reply.body:
                self.wfile.write(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode())
