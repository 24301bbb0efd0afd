"""Answers by OpenAI-compatible servers, one or many: ``vllm serve`` on as many machines as there are.

All endpoints take prompts from one queue, each ``concurrency`` at a time, so the faster ones answer more of them. One
that is down, or too busy after its retries, is left out for a pause that doubles each time, and what it was asked goes
back into the queue. Prompts are sent as token ids: no server can put a second BOS before them.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator, Mapping, Sequence
from typing import Any

from monolora.errors import InputError, RunError
from monolora.eval.engines.client import Endpoint, UnavailableError

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
_LOG = logging.getLogger(__name__)


def answers(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Ask for what is not done yet.

    Args:
        job: ``endpoints``, base URLs; ``models``, the names that models are served under, by the names they have
            here; ``items``, each with ``key``, ``token_ids``, ``model`` (the name here) and ``max_new_tokens``;
            ``done``, keys; ``settings``: ``temperature``, ``top_p``, ``seed``, ``concurrency`` (requests at once, for
            each endpoint), ``retries``, ``timeout_s`` (for an answer), ``api_key_env`` (the variable that holds the
            key, or None).

    Yields:
        An answer an item, as they come.

    Raises:
        InputError: if an endpoint does not serve what it should.
        RunError: if no endpoint answers any more.
    """
    done = set(job["done"])
    items = [item for item in job["items"] if item["key"] not in done]
    if not items:
        return
    urls, key = _urls(job["endpoints"]), _key(job["settings"]["api_key_env"])
    with asyncio.Runner() as runner:
        asked = _asked([Endpoint(url, job["settings"], key) for url in urls], job, items)
        try:
            # The loop stands still while the caller has an answer in hand: it stores it, and comes back.
            while (answer := runner.run(_next(asked))) is not None:
                yield answer
        finally:
            runner.run(asked.aclose())


def _urls(endpoints: Sequence[str]) -> list[str]:
    urls = list(dict.fromkeys(url.rstrip("/") for url in endpoints))
    if not urls:
        raise InputError("The server engine has no endpoint. Give at least one, such as http://host:8000/v1.")
    for url in urls:
        if not url.startswith(("http://", "https://")):
            raise InputError(f"The endpoint {url!r} is no URL. Give one such as http://host:8000/v1.")
    return urls


def _key(variable: str | None) -> str:
    if variable is None:
        return "none"  # the client wants one; servers that ask for none take no notice
    if not os.environ.get(variable):
        raise InputError(f"The environment variable {variable}, which should hold the servers' key, is not set.")
    return os.environ[variable]


async def _next(rows: AsyncIterator[dict[str, Any]]) -> dict[str, Any] | None:
    return await anext(rows, None)


async def _asked(
    endpoints: Sequence[Endpoint], job: Mapping[str, Any], items: Collection[Mapping[str, Any]]
) -> AsyncGenerator[dict[str, Any]]:
    """:func:`answers` on a running event loop; leaves no task and no connection behind."""
    desk = _Desk(endpoints, job["models"], items, job["settings"])
    try:
        await desk.check_all()
        desk.start()
        for _ in items:
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
    """Hands out items to endpoints and takes in their answers."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        models: Mapping[str, str],
        items: Collection[Mapping[str, Any]],
        settings: Mapping[str, Any],
    ) -> None:
        self._places = [_Place(endpoint) for endpoint in endpoints]
        self._served = {item["model"]: models[item["model"]] for item in items}
        self._concurrency, self._retries = settings["concurrency"], settings["retries"]
        self._waiting: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
        for item in items:
            self._waiting.put_nowait(item)
        self._results: asyncio.Queue[dict[str, Any] | BaseException] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []

    async def check_all(self) -> None:
        """Before anything is asked, each endpoint is checked; one that is down may come later.

        Raises:
            InputError: if one does not serve what it should.
        """
        checks = (place.endpoint.check(self._served.values()) for place in self._places)
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

    async def result(self) -> dict[str, Any]:
        """The next answer.

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
        """One item after the other, as long as the endpoint is in."""
        while True:
            await place.is_in.wait()
            item = await self._waiting.get()
            if not place.is_in.is_set():  # it went while there was nothing to ask
                self._waiting.put_nowait(item)
                continue
            try:
                answer = await place.endpoint.answer(item, self._served[item["model"]])
            except UnavailableError as error:
                self._waiting.put_nowait(item)
                if place.is_in.is_set():  # the first of those that were under way says so for all
                    self._leave_out(place, error)
            else:
                place.failures = 0
                self._results.put_nowait(answer)

    async def _bring_back(self, place: _Place) -> None:
        """Each time the endpoint was left out, check it after a pause until it is there again."""
        while True:
            await place.is_out.wait()
            await asyncio.sleep(place.pause_s())
            try:
                await place.endpoint.check(self._served.values())
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
