"""Answers by OpenAI-compatible servers, one or many: ``vllm serve`` on as many machines as there are.

All endpoints take requests from one queue, each ``concurrency`` at a time, so the faster ones answer more of them. One
that is down, or too busy after its retries, is left out for a pause that doubles each time, and what it was asked goes
back into the queue. Prompts are sent as token ids: no server can put a second BOS before them.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

from monolora.errors import InputError, RunError
from monolora.eval.engines.client import Endpoint, Reply, Request, UnavailableError
from monolora.eval.records import INVALID, OK, own_seed
from monolora.eval.settings import api_key
from monolora.redaction import redact, redact_content, without_credentials

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
# What a server would otherwise take from the model's generation_config.json, which offline engines leave alone.
_NOTHING_ELSE = {"repetition_penalty": 1.0, "top_k": -1, "min_p": 0.0}
_FINISHES = ("stop", "length")
_LOG = logging.getLogger(__name__)


def answers(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Ask for what is not done yet.

    Args:
        job: ``endpoints``, base URLs; ``models``, the names that models are served under, by the names they have
            here; ``items``, each with ``key``, ``token_ids``, ``model`` (the name here) and ``max_new_tokens``;
            ``done``, keys; ``settings``: ``temperature``, ``top_p``, ``seed``, and those of :func:`replies`.

    Yields:
        An answer an item, as they come.

    Raises:
        InputError, RunError: as :func:`replies`.
    """
    done = set(job["done"])
    items = {item["key"]: item for item in job["items"] if item["key"] not in done}
    sampling = {name: job["settings"][name] for name in ("temperature", "top_p")} | _NOTHING_ELSE
    requests = [
        Request(
            key,
            "completions",
            {
                "model": job["models"][item["model"]],
                "prompt": item["token_ids"],
                "max_tokens": item["max_new_tokens"],
                "seed": own_seed(job["settings"]["seed"], item["token_ids"]),
            }
            | sampling,
        )
        for key, item in items.items()
    ]
    with closing(replies(job["endpoints"], requests, job["settings"])) as found:
        for reply in found:
            yield {"key": reply.key, **_read(reply, items[reply.key]["max_new_tokens"])}


def _read(reply: Reply, most: int) -> dict[str, Any]:
    """The answer in a completion of ``most`` tokens at most."""
    if reply.trouble:
        return _invalid(reply.trouble)
    try:
        completion = json.loads(reply.content)
        choice, usage = completion["choices"][0], completion["usage"]
        text, tokens, finish = str(choice["text"]), int(usage["completion_tokens"]), choice["finish_reason"]
    except (ValueError, LookupError, TypeError):  # of another kind of server, or without its usage
        return _invalid("server: the answer is no completion with text, finish_reason and usage.")
    if finish not in _FINISHES:
        return _invalid(f"server: the answer was ended by {finish!r}.")
    if finish == "length" and tokens < most:  # vLLM lowers the limit to what its context holds
        return _invalid(f"server: its context ended the answer after {tokens} of {most} tokens.")
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
    """Ask the endpoints for all of the requests. Close it, and no task and no connection is left behind.

    Args:
        urls: base URLs, as ``http://host:8000/v1``.
        requests: in the order in which they are to be asked.
        settings: ``concurrency`` (requests at once, for each endpoint), ``retries``, ``timeout_s`` (for a reply),
            ``api_key_env`` (the variable that holds the key, or None).

    Yields:
        A reply a request, as they come.

    Raises:
        InputError: if an endpoint does not serve what it should.
        RunError: if no endpoint answers any more.
    """
    if not requests:
        return
    distinct, key = _distinct(urls), _key(settings["api_key_env"])
    endpoints = [Endpoint(url, settings, key) for url in distinct]
    with asyncio.Runner() as runner:
        worked = _worked(_Desk(endpoints, requests, settings), len(requests))
        try:
            # The loop stands still while the caller has a reply in hand: it stores it, and comes back.
            while (reply := runner.run(_next(worked))) is not None:
                yield reply
        finally:
            runner.run(worked.aclose())


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


def _key(variable: str | None) -> str:
    if variable is None:
        return "none"  # the client wants one; servers that ask for none take no notice
    return api_key(variable)


async def _next(replies: AsyncIterator[Reply]) -> Reply | None:
    return await anext(replies, None)


async def _worked(desk: _Desk, count: int) -> AsyncGenerator[Reply]:
    """:func:`replies` on a running event loop."""
    try:
        await desk.check_all()
        desk.start()
        for _ in range(count):
            yield await desk.result()
    finally:
        await desk.close()


class _Place:
    """An endpoint at work.

    Attributes:
        endpoint: whose place it is.
        is_in: set while it is asked.
        is_out: set while it is not.
        failures: how often it was unavailable since it answered last.
        trouble: why, the last time.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.is_in, self.is_out = asyncio.Event(), asyncio.Event()
        self.is_in.set()
        self.failures, self.trouble = 0, ""

    def leave(self, error: UnavailableError) -> None:
        self.failures += 1
        self.trouble = str(error)
        self.is_in.clear()
        self.is_out.set()

    def come_back(self) -> None:
        self.is_out.clear()
        self.is_in.set()

    def pause_s(self) -> float:
        return float(min(FIRST_PAUSE_S * 2 ** (self.failures - 1), LONGEST_PAUSE_S))


class _Desk:
    """Hands out requests to endpoints and takes in their replies."""

    def __init__(
        self, endpoints: Sequence[Endpoint], requests: Collection[Request], settings: Mapping[str, Any]
    ) -> None:
        self._places = [_Place(endpoint) for endpoint in endpoints]
        self._served = [*dict.fromkeys(request.served for request in requests)]
        self._concurrency, self._retries = settings["concurrency"], settings["retries"]
        self._waiting: asyncio.Queue[Request] = asyncio.Queue()
        for request in requests:
            self._waiting.put_nowait(request)
        self._results: asyncio.Queue[Reply | BaseException] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []

    async def check_all(self) -> None:
        """Before anything is asked, each endpoint is checked; one that is down may come later.

        Raises:
            InputError: if one does not serve what it should.
        """
        checks = (place.endpoint.check(self._served) for place in self._places)
        for place, found in zip(self._places, await asyncio.gather(*checks, return_exceptions=True), strict=True):
            if isinstance(found, UnavailableError):
                self._leave_out(place, found)
            elif found is not None:
                raise found

    def start(self) -> None:
        """Begin to ask."""
        for place in self._places:
            work = [self._ask(place) for _ in range(self._concurrency)]
            self._tasks += [asyncio.create_task(each) for each in (*work, self._bring_back(place))]
        for task in self._tasks:
            task.add_done_callback(self._failed)

    async def result(self) -> Reply:
        """The next reply.

        Raises:
            InputError, RunError: that end the work.
        """
        result = await self._results.get()
        if isinstance(result, BaseException):
            raise result
        return result

    async def close(self) -> None:
        """Stop asking."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for place in self._places:
            await place.endpoint.close()

    def _failed(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._results.put_nowait(error)

    async def _ask(self, place: _Place) -> None:
        """One request after the other, as long as the endpoint is in."""
        while True:
            await place.is_in.wait()
            request = await self._waiting.get()
            if not place.is_in.is_set():  # it went while there was nothing to ask
                self._waiting.put_nowait(request)
                continue
            try:
                reply = await place.endpoint.ask(request)
            except UnavailableError as error:
                self._waiting.put_nowait(request)
                if place.is_in.is_set():  # the first of those that were under way says so for all
                    self._leave_out(place, error)
            else:
                place.failures = 0
                self._results.put_nowait(reply)

    async def _bring_back(self, place: _Place) -> None:
        """Each time the endpoint was left out, check it after a pause until it is there again."""
        while True:
            await place.is_out.wait()
            await asyncio.sleep(place.pause_s())
            try:
                await place.endpoint.check(self._served)
            except UnavailableError as error:
                self._leave_out(place, error)
            else:
                place.come_back()

    def _leave_out(self, place: _Place, error: UnavailableError) -> None:
        place.leave(error)
        _LOG.warning("%s is left out for %g s: %s", place.endpoint.url, place.pause_s(), error)
        if all(each.is_out.is_set() and each.failures > self._retries for each in self._places):
            troubles = "; ".join(f"{each.endpoint.url}: {each.trouble.rstrip('.')}" for each in self._places)
            raise RunError(
                f"No endpoint answers any more ({troubles}). Start them again, then run the same command: "
                "it goes on where it stopped."
            )
