"""The client of one OpenAI-compatible endpoint: which models it serves, its replies, and what its errors mean."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterable, Mapping
from ipaddress import ip_address
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import httpx2
import openai

from monolora.errors import InputError, RunError, in_one_line, unknown
from monolora.redaction import remember_url, without_credentials

CONNECT_S = 5.0
# Statuses that concern the endpoint, not the request: key refused, model not served (any more), too busy, no server
# behind the gateway. Another endpoint may answer the same request, so the request is not at fault.
_ENDPOINT_STATUSES = frozenset({401, 403, 404, 429, 502, 503})
NO_KEY = "none"  # the openai client requires a key; servers without authentication ignore it
# vllm serve would otherwise take these from the model's generation_config.json, which transformers here ignores too.
NEUTRAL_SAMPLING = {"repetition_penalty": 1.0, "top_k": -1, "min_p": 0.0}


class Request(NamedTuple):
    """A request to any endpoint.

    Attributes:
        key: identifies the request to its sender; the reply has the same key.
        path: relative to the base URL, such as ``completions``, or to its parent, such as ``/classify`` beside ``/v1``.
        body: JSON; its ``model`` is a served name.
    """

    key: Any
    path: str
    body: Mapping[str, Any]

    @property
    def served_name(self) -> str:
        """The name under which the model is served."""
        return str(self.body["model"])


class Reply(NamedTuple):
    """The outcome of a request.

    Attributes:
        key: of the request.
        content: the body that the server sent.
        failure: why the server did not answer this request; empty if it did.
    """

    key: Any
    content: bytes
    failure: str = ""


class ServedModel(NamedTuple):
    """A model of an endpoint.

    Attributes:
        name: in requests.
        parent: name of its base, where it is an adapter and the server says so.
    """

    name: str
    parent: str | None


class UnavailableError(Exception):
    """The endpoint cannot answer any request at the moment; the message is the reason."""


class Endpoint:
    """An endpoint. Errors that do not concern a single request are raised as :class:`UnavailableError`.

    Args:
        url: its base URL, such as ``http://host:8000/v1``. A user and password in it are sent instead of the key, and
            its query with every request; none of these is ever shown.
        settings: ``retries`` (of the openai client: with growing pauses, after timeouts, lost connections and the
            statuses 408, 409, 429 and 5xx), ``timeout_s``, ``concurrency`` (connections).
        key: sent as the bearer token.

    Attributes:
        url: without user, password and query.
    """

    def __init__(self, url: str, settings: Mapping[str, Any], key: str) -> None:
        remember_url(url)
        self.url = without_credentials(url).rstrip("/")
        parts = urlsplit(url)
        self._timeout_s = settings["timeout_s"]
        timeout = httpx2.Timeout(self._timeout_s, connect=CONNECT_S)
        self._client = openai.AsyncOpenAI(
            base_url=self.url,
            api_key=key,
            organization="",  # otherwise these two are read from the environment and sent to any server
            project="",
            max_retries=settings["retries"],
            timeout=timeout,
            http_client=httpx2.AsyncClient(
                auth=(unquote(parts.username), unquote(parts.password or "")) if parts.username is not None else None,
                params=httpx2.QueryParams(parts.query),
                timeout=timeout,
                limits=httpx2.Limits(max_connections=settings["concurrency"] + 1),  # one more for check()
                trust_env=not _is_loopback(url),  # a proxy cannot reach this machine's loopback
            ),
        )

    async def models(self) -> list[ServedModel]:
        """Ask once, without retries, which models the endpoint serves.

        Raises:
            UnavailableError: if it does not answer.
            InputError: if it is not OpenAI-compatible, or refuses the key.
        """
        try:
            response = await self._client.with_options(max_retries=0, timeout=CONNECT_S).models.with_raw_response.list()
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise InputError(
                f"{self.url} refuses the key ({_reason(error)}) Put it into an environment variable and name that with "
                "--api-key-env; a URL's user, password and query are not stored: give the endpoint again."
            ) from error
        except openai.NotFoundError as error:
            raise InputError(f"{self.url} has no /models. Give the base URL, such as http://host:8000/v1.") from error
        except openai.APIError as error:
            raise UnavailableError(_reason(error)) from error
        try:
            cards = json.loads(response.content)["data"]
            return [ServedModel(str(card["id"]), card.get("parent")) for card in cards]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise InputError(
                f"{self.url} is no OpenAI-compatible endpoint: its /models is no list of models. "
                "Give the base URL, such as http://host:8000/v1."
            ) from error

    async def check(self, served_names: Iterable[str]) -> None:
        """Check, as :meth:`models`, that the endpoint is available and serves these models.

        Raises:
            UnavailableError: if it does not answer.
            InputError: if it is not OpenAI-compatible, refuses the key, or does not serve one of the models.
        """
        models = await self.models()
        for name in served_names:
            self.check_serves(name, models)

    def check_serves(self, name: str, models: Iterable[ServedModel]) -> None:
        """Raises: InputError, if a name is none of the endpoint's models."""
        names = [model.name for model in models]
        if name not in names:
            raise InputError(
                f"{unknown(f'model at {self.url}', name, names)} To serve it: "
                f"vllm serve BASE --enable-lora --lora-modules {name}=PATH (the base: --served-model-name {name})"
            )

    async def ask(self, request: Request) -> Reply:
        """The reply to a request. A failure in it is due to the request itself.

        Raises:
            UnavailableError: if another endpoint, or this one later, may answer the request.
        """
        path = request.path
        url = self.url.removesuffix("/v1") + path if path.startswith("/") else path
        try:
            response = await self._client.post(url, body=request.body, cast_to=httpx2.Response)
        except openai.APITimeoutError as error:
            # No connection: the endpoint is down. No answer after connecting: the request may be what takes so long.
            if isinstance(error.__cause__, httpx2.ConnectTimeout):
                raise UnavailableError(f"no connection within {CONNECT_S:g} s") from error
            return Reply(request.key, b"", f"server: no answer within {self._timeout_s:g} s.")
        except openai.APIStatusError as error:
            if error.status_code in _ENDPOINT_STATUSES:
                raise UnavailableError(_reason(error)) from error
            return Reply(request.key, b"", f"server: {_reason(error)}")
        except openai.APIError as error:
            raise UnavailableError(_reason(error)) from error
        return Reply(request.key, response.content)

    async def chat(self, body: Mapping[str, Any]) -> AsyncGenerator[Mapping[str, Any]]:
        """The choices in the events of ``/chat/completions``, as they come: ``delta``, ``finish_reason``.

        Args:
            body: JSON, without ``stream``.

        Raises:
            RunError: if the answer does not begin, or breaks off.
        """
        options: Any = {"cast_to": object, "stream": True, "stream_cls": openai.AsyncStream[Any]}
        try:
            async with await self._client.post("chat/completions", body={**body, "stream": True}, **options) as events:
                async for event in events:
                    for choice in event["choices"][:1]:  # the last event may have the usage alone
                        yield choice
        except openai.APITimeoutError as error:
            raise RunError(f"{self.url} has not answered within {self._timeout_s:g} s. Ask again.") from error
        except openai.APIError as error:
            raise RunError(f"{self.url} does not answer: {_reason(error)}") from error
        except (ValueError, LookupError, TypeError) as error:
            raise RunError(f"{self.url} sent no stream of chat completions. Give the URL of such a server.") from error

    async def close(self) -> None:
        """Close its connections."""
        await self._client.close()


def _reason(error: openai.APIError) -> str:
    """One line: the status and the server's message, or what happened to the connection."""
    if isinstance(error, openai.APIStatusError):
        message = error.body.get("message") if isinstance(error.body, dict) else error.body
        return in_one_line(RuntimeError(f"{error.status_code} {message or error.message}"))
    return in_one_line(error.__cause__ or error)


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"
