"""One OpenAI-compatible endpoint: what it serves, and its answer to a prompt of token ids."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai

from monolora.errors import InputError, in_one_line, unknown
from monolora.eval.records import INVALID, OK

CONNECT_S = 5.0
# What a server would otherwise take from the model's generation_config.json, which offline engines leave alone.
_NOTHING_ELSE = {"repetition_penalty": 1.0, "top_k": -1, "min_p": 0.0}
# These tell of the endpoint, not of the prompt: no key, not served (any more), too busy, no server behind the gateway.
_NOT_THE_PROMPT = frozenset({401, 403, 404, 429, 502, 503})
_FINISHES = ("stop", "length")


class UnavailableError(Exception):
    """The endpoint answers nobody at the moment; the message is the reason."""


class Endpoint:
    """An endpoint. All of its errors that are not about a prompt are :class:`UnavailableError`.

    Args:
        url: its base URL, as ``http://host:8000/v1``.
        settings: ``temperature``, ``top_p``, ``seed``, ``retries`` (with growing pauses, after timeouts, lost
            connections and the statuses 408, 409, 429 and 5xx), ``timeout_s``, ``concurrency`` (connections).
        key: sent as the bearer token.
    """

    def __init__(self, url: str, settings: Mapping[str, Any], key: str) -> None:
        self.url = url
        self._settings = settings
        timeout = httpx2.Timeout(settings["timeout_s"], connect=CONNECT_S)
        self._client = openai.AsyncOpenAI(
            base_url=url,
            api_key=key,
            organization="",  # else these two are taken from the environment, and sent to whoever answers here
            project="",
            max_retries=settings["retries"],
            timeout=timeout,
            http_client=httpx2.AsyncClient(
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
                f"{self.url} refuses the key ({_said(error)}) Put it into an environment variable and name that."
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

    async def answer(self, item: Mapping[str, Any], served: str) -> dict[str, Any]:
        """The answer of the model served as ``served`` to ``item``; invalid if this prompt cannot have one.

        Raises:
            UnavailableError: if another endpoint, or this one later, may well answer.
        """
        try:
            completion = await self._client.completions.with_raw_response.create(
                model=served,
                prompt=item["token_ids"],
                max_tokens=item["max_new_tokens"],
                temperature=self._settings["temperature"],
                top_p=self._settings["top_p"],
                seed=self._settings["seed"],
                extra_body=_NOTHING_ELSE,
            )
        except openai.APITimeoutError as error:
            if isinstance(error.__cause__, httpx2.ConnectTimeout):
                raise UnavailableError(f"no connection within {CONNECT_S:g} s") from error
            return _invalid(item, f"no answer within {self._settings['timeout_s']:g} s.")
        except openai.APIStatusError as error:
            if error.status_code in _NOT_THE_PROMPT:
                raise UnavailableError(_said(error)) from error
            return _invalid(item, _said(error))
        except openai.APIError as error:
            raise UnavailableError(_said(error)) from error
        return _read(item, completion.content)

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


def _read(item: Mapping[str, Any], content: bytes) -> dict[str, Any]:
    try:
        completion = json.loads(content)
        choice, usage = completion["choices"][0], completion["usage"]
        text, tokens, finish = str(choice["text"]), int(usage["completion_tokens"]), choice["finish_reason"]
    except (ValueError, LookupError, TypeError):  # of another kind of server, or without its usage
        return _invalid(item, "the answer is no completion with text, finish_reason and usage.")
    if finish not in _FINISHES:
        return _invalid(item, f"the answer was ended by {finish!r}.")
    if finish == "length" and tokens < item["max_new_tokens"]:  # vLLM lowers the limit to what its context holds
        return _invalid(item, f"its context ended the answer after {tokens} of {item['max_new_tokens']} tokens.")
    found = {"text": text, "tokens": tokens, "finish": finish, "cut": False}
    return {"key": item["key"], **found, "status": OK, "reason": None}


def _invalid(item: Mapping[str, Any], reason: str) -> dict[str, Any]:
    nothing = {"text": "", "tokens": 0, "finish": "", "cut": False}
    return {"key": item["key"], **nothing, "status": INVALID, "reason": f"server: {reason}"}


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
