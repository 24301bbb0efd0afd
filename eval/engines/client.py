"""One OpenAI-compatible endpoint: what it serves, what it replies to a request, and what its errors mean."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import httpx2
import openai

from monolora.errors import InputError, in_one_line, unknown
from monolora.redaction import remember_url, without_credentials

CONNECT_S = 5.0
# These tell of the endpoint, not of the request: no key, not served (any more), too busy, no server behind the gateway.
_NOT_THE_REQUEST = frozenset({401, 403, 404, 429, 502, 503})


class Request(NamedTuple):
    """What an endpoint is asked.

    Attributes:
        key: the asker's own; the reply has it too.
        path: under the base URL, as ``completions``; what begins with ``/`` is beside ``/v1``, as ``/classify``.
        body: JSON; its ``model`` is a name that endpoints serve.
    """

    key: Any
    path: str
    body: Mapping[str, Any]

    @property
    def served(self) -> str:
        """The name that the model is served under."""
        return str(self.body["model"])


class Reply(NamedTuple):
    """What became of a request.

    Attributes:
        key: the request's.
        content: what the server sent.
        trouble: why it had no answer to this request; empty if it had one.
    """

    key: Any
    content: bytes
    trouble: str = ""


class UnavailableError(Exception):
    """The endpoint answers nobody at the moment; the message is the reason."""


class Endpoint:
    """An endpoint. All of its errors that are not about a request are :class:`UnavailableError`.

    Args:
        url: its base URL, as ``http://host:8000/v1``. User and password in it are sent in place of the key, and its
            query with every request; they are never shown.
        settings: ``retries`` (with growing pauses, after timeouts, lost connections and the statuses 408, 409, 429 and
            5xx), ``timeout_s``, ``concurrency`` (connections).
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
            organization="",  # else these two are taken from the environment, and sent to whoever answers here
            project="",
            max_retries=settings["retries"],
            timeout=timeout,
            http_client=httpx2.AsyncClient(
                auth=(unquote(parts.username), unquote(parts.password or "")) if parts.username is not None else None,
                params=httpx2.QueryParams(parts.query),
                timeout=timeout,
                limits=httpx2.Limits(max_connections=settings["concurrency"] + 1),
                trust_env=not _is_this_machine(url),  # no proxy knows this machine's loopback
            ),
        )

    async def check(self, served: Iterable[str]) -> None:
        """Ask once whether the endpoint is there and serves these models.

        Raises:
            UnavailableError: if it cannot say.
            InputError: if it is no such endpoint, refuses the key, or does not serve one of them.
        """
        try:
            listed = await self._client.with_options(max_retries=0, timeout=CONNECT_S).models.with_raw_response.list()
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise InputError(
                f"{self.url} refuses the key ({_said(error)}) Put it into an environment variable and name that with "
                "--api-key-env; a URL's user, password and query are not stored: give the endpoint again."
            ) from error
        except openai.NotFoundError as error:
            raise InputError(f"{self.url} has no /models. Give the base URL, such as http://host:8000/v1.") from error
        except openai.APIError as error:
            raise UnavailableError(_said(error)) from error
        names = self._names(listed.content)
        for name in served:
            if name not in names:
                raise InputError(
                    f"{unknown(f'model at {self.url}', name, names)} To serve it: "
                    f"vllm serve BASE --enable-lora --lora-modules {name}=PATH (the base: --served-model-name {name})"
                )

    async def ask(self, request: Request) -> Reply:
        """The reply to a request; its trouble, if it has any, is this request's own.

        Raises:
            UnavailableError: if another endpoint, or this one later, may well answer.
        """
        path = request.path
        whole = self.url.removesuffix("/v1") + path if path.startswith("/") else path
        try:
            answer = await self._client.post(whole, body=request.body, cast_to=httpx2.Response)
        except openai.APITimeoutError as error:
            if isinstance(error.__cause__, httpx2.ConnectTimeout):
                raise UnavailableError(f"no connection within {CONNECT_S:g} s") from error
            return Reply(request.key, b"", f"server: no answer within {self._timeout_s:g} s.")
        except openai.APIStatusError as error:
            if error.status_code in _NOT_THE_REQUEST:
                raise UnavailableError(_said(error)) from error
            return Reply(request.key, b"", f"server: {_said(error)}")
        except openai.APIError as error:
            raise UnavailableError(_said(error)) from error
        return Reply(request.key, answer.content)

    def _names(self, content: bytes) -> list[str]:
        try:
            return [str(card["id"]) for card in json.loads(content)["data"]]
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(
                f"{self.url} is no OpenAI-compatible endpoint: its /models is no list of models. "
                "Give the base URL, such as http://host:8000/v1."
            ) from error

    async def close(self) -> None:
        """Close its connections."""
        await self._client.close()


def _said(error: openai.APIError) -> str:
    """The status and the server's own words, or what happened to the connection; one line."""
    if isinstance(error, openai.APIStatusError):
        words = error.body.get("message") if isinstance(error.body, dict) else error.body
        return in_one_line(RuntimeError(f"{error.status_code} {words or error.message}"))
    return in_one_line(error.__cause__ or error)


def _is_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"
