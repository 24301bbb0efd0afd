"""Keys, tokens and passwords, which are never stored or shown.

What others say (a server's error, a library's warning, a traceback) may repeat a secret that they were sent:
URL-encoded, escaped for JSON, in base64, cut off or half masked. :func:`redact` takes out every secret that this
process knows: those it was told of (:func:`remember`), those in the environment, and what looks like a credential.
"""

from __future__ import annotations

import base64
import html
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any, TextIO, cast
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

MASK = "***"
_NAMES = r"(?:token|secret|password|passwd|api[_-]?key|access[_-]?key|private[_-]?key|credentials?)"
# Names of variables and settings whose values are secrets; the tokens of a vocabulary are not.
_SECRET_NAME = re.compile(rf"(?:^|.*[_-]){_NAMES}|.*[_-]key|.*[_-]pass|key", re.IGNORECASE)
_VOCABULARY = re.compile(r"(?:eos|pad|bos|unk|sep|cls|mask|image|audio|video|stop|end|start|decoder_start)_token", re.I)
_CREDENTIALS = (
    (re.compile(r"(?<=://)[^/\s@\"'<>]+(?=@)"), MASK),
    (re.compile(rf"([?&](?:{_NAMES}|key|sig|signature|auth)=)[^&\s\"'<>]+", re.IGNORECASE), rf"\1{MASK}"),
    (re.compile(r"\b(Bearer\s+)(?=\S*\d)[\w.~+/=-]{6,}", re.IGNORECASE), rf"\1{MASK}"),
    (re.compile(r"\b(?:hf_|sk-|gh[pousr]_|github_pat_|glpat-|xox[abprs]-)[\w-]{16,}|\bAKIA[0-9A-Z]{16}\b"), MASK),
)
_MASKED = re.compile(r"([\w./+=%~:-]*?)((?:[*•●#]{2,}|x{3,}|\.{3,}|…)+)([\w/+=%~:-]*)", re.IGNORECASE)
_PART = 8  # characters of a secret's beginning or end that are taken for it
_told: dict[str, None] = {}


def remember(*secrets: str | None) -> None:
    """Tell of secrets that this process uses."""
    _told.update(dict.fromkeys(secret for secret in secrets if secret and len(secret) > 1))


def remember_url(url: str) -> None:
    """Tell of the secrets in a URL: its password, or its user where there is none, and the values of its query."""
    parts = _split(url)
    user, colon, password = parts.netloc.rpartition("@")[0].partition(":")
    remember(*{password or user, unquote(password or user)})
    if colon:
        remember(base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode())
    for name, value in parse_qsl(parts.query):
        remember(value if is_secret_name(name) or len(value) >= _PART else None)


def without_credentials(url: str) -> str:
    """A URL as it is stored and shown: without user, password, query and fragment."""
    bare = re.split(r"[?#]", url, maxsplit=1)[0]
    scheme, separator, rest = bare.rpartition("://")
    host, slash, path = rest.partition("/")
    if "@" in path:  # of a password with an unescaped slash
        host, slash, path = path.rpartition("@")[2].partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


def has_credentials(url: str) -> bool:
    """Whether a text is a URL with a user, or with a secret in its query."""
    bare = re.split(r"[?#]", url, maxsplit=1)[0]
    in_query = any(is_secret_name(name) for name, _ in parse_qsl(_split(url).query))
    return "://" in url and (in_query or without_credentials(bare) != bare)


def is_secret_name(name: str) -> bool:
    """Whether a variable or a setting of this name holds a secret."""
    return bool(_SECRET_NAME.fullmatch(name)) and not _VOCABULARY.fullmatch(name.replace("-", "_"))


def secret_setting(settings: Any, path: str = "") -> str | None:
    """The dotted name of the first secret in nested mappings and lists, as a YAML file holds them; None without one."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            name = f"{path}.{key}" if path else str(key)
            is_given = isinstance(value, (str, int, float)) and not isinstance(value, bool) and value != ""
            if is_given and is_secret_name(str(key)):
                return name
            if (inner := secret_setting(value, name)) is not None:
                return inner
    if isinstance(settings, list):
        return next((inner for item in settings if (inner := secret_setting(item, path)) is not None), None)
    return path if isinstance(settings, str) and has_credentials(settings) else None


def redact(text: str) -> str:
    """Text that may be shown and stored: what is a secret, or a recognisable part of one, is masked."""
    secrets = sorted({*_told, *_of_environment()}, key=len, reverse=True)
    for secret in secrets:
        for spelling in _spellings(secret):
            if spelling.casefold() in text.casefold():
                text = _pattern(spelling).sub(MASK, text)
    for secret in secrets:
        if len(secret) > _PART:
            text = _MASKED.sub(lambda match, secret=secret: _unmasked(match, secret), text)  # type: ignore[misc]
            text = _without_parts(text, secret)
    for pattern, mask in _CREDENTIALS:
        text = pattern.sub(mask, text)
    return text


def redact_content(content: str) -> str:
    """A model's answer or a record without known secrets; of words that others use too, nothing is taken out."""
    for secret in sorted({*_told, *_of_environment()}, key=len, reverse=True):
        if len(secret) >= _PART and not secret.isalpha():
            for spelling in _spellings(secret):
                content = content.replace(spelling, MASK)
    return content


class RedactedStream:
    """A text stream to which nothing is written before :func:`redact`.

    Args:
        stream: where it goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """As of any text stream."""
        self._stream.write(redact(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """As of any text stream."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)  # encoding, isatty, flush …: all else is the stream's own


@contextmanager
def redacted_stderr() -> Iterator[None]:
    """Errors, warnings, logs and tracebacks go through :func:`redact`."""
    with redirect_stderr(cast(TextIO, RedactedStream(sys.stderr))):
        yield


def _of_environment() -> Iterator[str]:
    """Values of variables that are named as secrets, and the passwords in URLs, as of proxies and mirrors."""
    for name, value in os.environ.items():
        if len(value) >= _PART and not value.startswith(("/", ".", "~")) and is_secret_name(name):
            yield value
        if "@" in value and "://" in value:
            password = _split(value).netloc.rpartition("@")[0].partition(":")[2]
            if len(password) > 1:
                yield password


def _split(url: str) -> Any:
    try:
        return urlsplit(url)
    except ValueError:  # a bracket that is no IPv6 address's
        return urlsplit(url.replace("[", "").replace("]", ""))


def _spellings(secret: str) -> list[str]:
    """Encodings of the secret; the longest first, as it may contain others."""
    encoded = base64.b64encode(secret.encode()).decode()
    spellings = {
        secret, quote(secret), quote(secret, safe=""), quote_plus(secret), quote(quote(secret, safe=""), safe=""),
        json.dumps(secret)[1:-1], json.dumps(secret).replace("/", r"\/")[1:-1], repr(secret)[1:-1], html.escape(secret),
    }  # fmt: skip
    if len(secret) >= _PART:
        spellings |= {encoded, encoded.rstrip("="), encoded.translate(str.maketrans("+/", "-_"))}
    return sorted(spellings, key=len, reverse=True)


def _pattern(spelling: str) -> re.Pattern[str]:
    """A short secret is matched as a whole word only: others contain it by chance."""
    pattern = re.escape(spelling)
    if len(spelling) < _PART:
        pattern = rf"(?<![A-Za-z0-9]){pattern}(?![A-Za-z0-9])"
    return re.compile(pattern, re.IGNORECASE)


def _unmasked(match: re.Match[str], secret: str) -> str:
    """A masked word without what it still shows of the secret, as in ``sk-ab***yz``."""
    before, _, after = match.groups()
    start = next((n for n in range(len(secret) - 1, 1, -1) if before.endswith(secret[:n])), 0)
    end = next((n for n in range(len(secret) - 1, 1, -1) if after.startswith(secret[-n:])), 0)
    if not start and not end:
        return match.group()
    return f"{before[: len(before) - start]}{MASK}{after[end:]}"


def _without_parts(text: str, secret: str) -> str:
    """Without a beginning or an end of the secret that was cut off; a word that others use too is left."""
    for size in range(len(secret) - 1, _PART - 1, -1):
        for part in (secret[:size], secret[-size:]):
            if not part.isalpha():
                text = text.replace(part, MASK)
    return text
