"""A chat through an OpenAI-compatible server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from monolora.chat.conversation import BASE, TUNED, Answer, Say
from monolora.endpoint import NEUTRAL_SAMPLING, NO_KEY, Endpoint, ServedModel, UnavailableError
from monolora.errors import InputError, RunError

_CLIENT = {"retries": 2, "timeout_s": 600.0, "concurrency": 1}


class ServedSpeaker:
    """Answers by a server, with the server's own chat template; use it in a ``with`` statement.

    Args:
        url: of the endpoint.
        model: name of the served model; None for its only one, or its only adapter.
        base: name of the model's base there; None for that which the server says.
        body: what else is in each request: ``max_tokens``, ``temperature``, ``top_p``, ``seed``.
        key: of the endpoint, or None.

    Attributes:
        titles: as in :class:`monolora.chat.conversation.Speaker`.

    Raises:
        InputError: if the server serves no such model.
        RunError: if it does not answer.
    """

    def __init__(
        self, url: str, model: str | None, base: str | None, body: dict[str, Any], key: str | None = None
    ) -> None:
        self._body = NEUTRAL_SAMPLING | body
        self._endpoint = Endpoint(url, _CLIENT, key or NO_KEY)
        self._runner = asyncio.Runner()
        try:
            self.titles = self._titles(model, base)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> ServedSpeaker:
        return self

    def __exit__(self, *error: object) -> None:
        self._runner.run(self._endpoint.close())
        self._runner.close()

    def check(self, messages: list[dict[str, str]]) -> None:
        """Nothing: the template is the server's."""

    def answer(self, messages: list[dict[str, str]], who: str, say: Say) -> Answer:
        """As :meth:`monolora.chat.conversation.Speaker.answer`; Ctrl-C ends it, at the server too."""
        pieces: list[str] = []
        body = self._body | {"model": self.titles[who], "messages": messages}
        try:
            end = self._runner.run(self._stream(body, pieces, say))
        except KeyboardInterrupt:
            end = "interrupted"
        return Answer("".join(pieces), end)

    async def _stream(self, body: dict[str, Any], pieces: list[str], say: Say) -> str:
        end = None
        async with aclosing(self._endpoint.chat(body)) as choices:
            async for choice in choices:
                piece = (choice.get("delta") or {}).get("content")
                if piece:
                    pieces.append(piece)
                    say(piece)
                end = choice.get("finish_reason") or end
        if end is None:
            raise RunError(f"{self._endpoint.url} broke off the answer. Ask again.")
        return str(end)

    def _titles(self, name: str | None, base: str | None) -> dict[str, str]:
        try:
            models = self._runner.run(self._endpoint.models())
        except UnavailableError as error:
            raise RunError(
                f"{self._endpoint.url} does not answer: {error} Start the server, then try again."
            ) from error
        for given in filter(None, (name, base)):
            self._endpoint.check_serves(given, models)
        model = self._only(models) if name is None else next(model for model in models if model.name == name)
        parent = base or model.parent
        if parent is None or parent not in [other.name for other in models if other != model]:
            return {TUNED: model.name}
        return {TUNED: model.name, BASE: parent}

    def _only(self, models: Sequence[ServedModel]) -> ServedModel:
        """Raises: InputError, if it is not clear which model is meant."""
        adapters = [model for model in models if model.parent is not None]
        meant = adapters if len(adapters) == 1 else models
        if len(meant) != 1:
            names = ", ".join(model.name for model in models)
            raise InputError(
                f"{self._endpoint.url} serves {names or 'no model'}. Name one: monolora chat NAME --endpoint …"
            )
        return meant[0]
