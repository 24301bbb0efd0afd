"""Answers by OpenAI-compatible servers, one or many: ``vllm serve`` on as many machines as there are.

All endpoints take requests from one queue, each up to ``concurrency`` at a time, so the faster ones answer more of
them. An endpoint that is unavailable, or too busy after its retries, is suspended for a pause that doubles each time,
and its requests return to the queue. Warnings say which endpoint is lost, when it answers again, and at the end how
many of its requests others answered. Prompts are sent as token ids, so no server can add a second BOS.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

from monolora.cli.flags import api_key
from monolora.data.prompt_sets import sampling_seed
from monolora.endpoint import NEUTRAL_SAMPLING, NO_KEY, Endpoint, Reply, Request, UnavailableError
from monolora.errors import InputError, RunError
from monolora.eval.store import INVALID, OK
from monolora.redaction import redact, redact_content, without_credentials

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
_FINISH_REASONS = ("stop", "length")
_LOG = logging.getLogger(__name__)


def answers(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Request the answers that are not done yet.

    Args:
        job: ``endpoints``, base URLs; ``models``, the served names by the models' names in the run; ``items``, each
            with ``key``, ``token_ids``, ``model`` (the name in the run) and ``max_new_tokens``; ``done``, keys;
            ``settings``: ``temperature``, ``top_p``, ``seed``, and those of :func:`replies`.

    Yields:
        An answer per item, in the order of their arrival.

    Raises:
        InputError, RunError: as :func:`replies`.
    """
    done = set(job["done"])
    items = {item["key"]: item for item in job["items"] if item["key"] not in done}
    sampling = {name: job["settings"][name] for name in ("temperature", "top_p")} | NEUTRAL_SAMPLING
    requests = [
        Request(
            key,
            "completions",
            {
                "model": job["models"][item["model"]],
                "prompt": item["token_ids"],
                "max_tokens": item["max_new_tokens"],
                "seed": sampling_seed(job["settings"]["seed"], item["token_ids"]),
            }
            | sampling,
        )
        for key, item in items.items()
    ]
    with closing(replies(job["endpoints"], requests, job["settings"])) as server_replies:
        for reply in server_replies:
            yield {"key": reply.key, **_answer(reply, items[reply.key]["max_new_tokens"])}


def _answer(reply: Reply, max_new_tokens: int) -> dict[str, Any]:
    """The answer in a reply to a completion request."""
    if reply.failure:
        return _invalid(reply.failure)
    try:
        completion = json.loads(reply.content)
        choice, usage = completion["choices"][0], completion["usage"]
        text, tokens, finish = str(choice["text"]), int(usage["completion_tokens"]), choice["finish_reason"]
    except (ValueError, LookupError, TypeError):  # from another kind of server, or one that reports no usage
        return _invalid("server: the answer is no completion with text, finish_reason and usage.")
    if finish not in _FINISH_REASONS:
        return _invalid(f"server: the answer was ended by {finish!r}.")
    if finish == "length" and tokens < max_new_tokens:  # vLLM silently lowers the limit to the context that is left
        return _invalid(f"server: its context ended the answer after {tokens} of {max_new_tokens} tokens.")
    return {
        "text": redact_content(text),
        "tokens": tokens,
        "finish": finish,
        "cut": False,
        "status": OK,
        "reason": None,
    }


def _invalid(reason: str) -> dict[str, Any]:
    return {"text": "", "tokens": 0, "finish": "", "cut": False, "status": INVALID, "reason": redact(reason)}


def replies(urls: Sequence[str], requests: Collection[Request], settings: Mapping[str, Any]) -> Generator[Reply]:
    """The replies of the endpoints to all requests. Closing the generator ends its tasks and connections.

    Args:
        urls: base URLs, such as ``http://host:8000/v1``.
        requests: in the order in which they are sent.
        settings: ``concurrency`` (simultaneous requests per endpoint), ``retries``, ``timeout_s`` (for a reply),
            ``api_key_env`` (the variable that holds the key, or None).

    Yields:
        A reply per request, in the order of their arrival.

    Raises:
        InputError: if an endpoint does not serve a requested model.
        RunError: if no endpoint answers any more.
    """
    if not requests:
        return
    variable = settings["api_key_env"]
    distinct_urls, key = _distinct(urls), NO_KEY if variable is None else api_key(variable)
    endpoints = [Endpoint(url, settings, key) for url in distinct_urls]
    with asyncio.Runner() as runner:
        results = _stream(_Dispatcher(endpoints, requests, settings), len(requests))
        try:
            # The event loop runs only while the next reply is awaited, so the caller stores one reply before others
            # arrive. Requests under way continue at the servers meanwhile.
            while (reply := runner.run(_next(results))) is not None:
                yield reply
        finally:
            runner.run(results.aclose())


def _distinct(endpoints: Sequence[str]) -> list[str]:
    urls = list(dict.fromkeys(url.rstrip("/") for url in endpoints))
    if not urls:
        raise InputError("The server engine has no endpoint. Give at least one, such as http://host:8000/v1.")
    for url in urls:
        if not url.startswith(("http://", "https://")):
            raise InputError(
                f"The endpoint {without_credentials(url)!r} is no URL. Give one such as http://host:8000/v1."
            )
    return urls


async def _next(results: AsyncIterator[Reply]) -> Reply | None:
    return await anext(results, None)


async def _stream(dispatcher: _Dispatcher, count: int) -> AsyncGenerator[Reply]:
    """:func:`replies` on a running event loop."""
    try:
        await dispatcher.check_all()
        dispatcher.start()
        for _ in range(count):
            yield await dispatcher.result()
    finally:
        await dispatcher.close()


class _EndpointState:
    """Whether an endpoint takes requests.

    Attributes:
        endpoint: the endpoint.
        available: set while it takes requests.
        suspended: set while it does not.
        failures: how often it was unavailable since its last reply.
        reason: why, the last time.
        moved: how many of its requests another endpoint answered.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.available, self.suspended = asyncio.Event(), asyncio.Event()
        self.available.set()
        self.failures, self.reason, self.moved = 0, "", 0

    def suspend(self, error: UnavailableError) -> None:
        self.failures += 1
        self.reason = str(error)
        self.available.clear()
        self.suspended.set()

    def resume(self) -> None:
        self.suspended.clear()
        self.available.set()

    def pause_s(self) -> float:
        return float(min(FIRST_PAUSE_S * 2 ** (self.failures - 1), LONGEST_PAUSE_S))


class _Dispatcher:
    """Distributes requests among endpoints and collects the replies."""

    def __init__(
        self, endpoints: Sequence[Endpoint], requests: Collection[Request], settings: Mapping[str, Any]
    ) -> None:
        self._states = [_EndpointState(endpoint) for endpoint in endpoints]
        self._served_names = [*dict.fromkeys(request.served_name for request in requests)]
        self._concurrency, self._retries = settings["concurrency"], settings["retries"]
        self._queue: asyncio.Queue[Request] = asyncio.Queue()
        for request in requests:
            self._queue.put_nowait(request)
        self._returned: dict[Any, _EndpointState] = {}  # by the request's key, who did not answer it
        self._results: asyncio.Queue[Reply | BaseException] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []

    async def check_all(self) -> None:
        """Check each endpoint before the first request. One that is unavailable may join later.

        Raises:
            InputError: if one does not serve a requested model.
        """
        checks = (state.endpoint.check(self._served_names) for state in self._states)
        for state, error in zip(self._states, await asyncio.gather(*checks, return_exceptions=True), strict=True):
            if isinstance(error, UnavailableError):
                self._suspend(state, error)
            elif error is not None:
                raise error

    def start(self) -> None:
        """Begin to send requests."""
        for state in self._states:
            senders = [self._send(state) for _ in range(self._concurrency)]
            self._tasks += [asyncio.create_task(work) for work in (*senders, self._resume(state))]
        for task in self._tasks:
            task.add_done_callback(self._report_error)

    async def result(self) -> Reply:
        """The next reply.

        Raises:
            InputError, RunError: if no further reply will come.
        """
        result = await self._results.get()
        if isinstance(result, BaseException):
            raise result
        return result

    async def close(self) -> None:
        """Stop sending requests, and close all connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for state in self._states:
            await state.endpoint.close()
            if state.moved:
                _LOG.warning("Requests moved from %s to other endpoints: %d.", state.endpoint.url, state.moved)

    def _report_error(self, task: asyncio.Task[None]) -> None:
        """Pass what a task raised on to :meth:`result`, which would otherwise wait forever."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._results.put_nowait(error)

    async def _send(self, state: _EndpointState) -> None:
        """Send one request after the other while the endpoint is available."""
        while True:
            await state.available.wait()
            request = await self._queue.get()
            if not state.available.is_set():  # it was suspended while this task waited for a request
                self._queue.put_nowait(request)
                continue
            try:
                reply = await state.endpoint.ask(request)
            except UnavailableError as error:
                self._returned[request.key] = state
                self._queue.put_nowait(request)
                if state.available.is_set():  # only the first of simultaneous failures counts
                    self._suspend(state, error)
            else:
                state.failures = 0
                loser = self._returned.pop(request.key, state)
                loser.moved += loser is not state
                self._results.put_nowait(reply)

    async def _resume(self, state: _EndpointState) -> None:
        """Whenever the endpoint is suspended, check it after each pause until it is available again."""
        while True:
            await state.suspended.wait()
            await asyncio.sleep(state.pause_s())
            try:
                await state.endpoint.check(self._served_names)
            except UnavailableError as error:
                self._suspend(state, error)
            else:
                state.resume()
                _LOG.warning("%s is back.", state.endpoint.url)

    def _suspend(self, state: _EndpointState, error: UnavailableError) -> None:
        level = logging.WARNING if state.available.is_set() else logging.INFO  # not once a pause
        state.suspend(error)
        _LOG.log(level, "%s is unavailable, next try in %g s: %s", state.endpoint.url, state.pause_s(), error)
        # Only when every endpoint has failed more often than a request is retried does the run end.
        if all(other.suspended.is_set() and other.failures > self._retries for other in self._states):
            reasons = "; ".join(f"{other.endpoint.url}: {other.reason.rstrip('.')}" for other in self._states)
            raise RunError(
                f"No endpoint answers any more ({reasons}). Restart them, then run the same command: it resumes where "
                "it stopped."
            )
