"""Secrets in text: every spelling of them is taken out, and nothing else."""

from __future__ import annotations

import base64
import io
import json
import sys
from urllib.parse import quote, quote_plus

import pytest

from monolora import redaction
from monolora.redaction import (
    has_credentials,
    is_secret_name,
    redact,
    redact_content,
    redacted_stderr,
    remember,
    remember_url,
    secret_setting,
    without_credentials,
)

KEY = 'Tr0ub4dor&3/"zyx+W=q'


@pytest.fixture(autouse=True)
def _told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins with no secret but those of the environment."""
    monkeypatch.setattr(redaction, "_told", {})


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://user:pw@host:8000/v1?api_key=abc#part", "http://host:8000/v1"),
        ("https://token@host/v1", "https://host/v1"),
        ("http://user:p/w@host/v1", "http://host/v1"),
        ("http://user:p@ss@host/v1", "http://host/v1"),
        ("http://[::1]:8000/v1?x", "http://[::1]:8000/v1"),
        ("user:pw@host/v1?key=1", "host/v1"),
        ("http://host:8000/v1", "http://host:8000/v1"),
    ],
)
def test_a_url_as_it_is_shown(url: str, shown: str) -> None:
    assert without_credentials(url) == shown
    assert has_credentials(url) == (shown != url and "://" in url and url != "http://[::1]:8000/v1?x")


@pytest.mark.parametrize(
    "spelling",
    [
        KEY, KEY.lower(), quote(KEY), quote(KEY, safe=""), quote_plus(KEY), quote(KEY, safe="").lower(),
        json.dumps(KEY), json.dumps(KEY).replace("/", r"\/"), repr(KEY), base64.b64encode(KEY.encode()).decode(),
        KEY.replace("&", "&amp;").replace('"', "&quot;"), KEY[:12], KEY[-10:], f"{KEY[:4]}***{KEY[-3:]}",
        f"{KEY[:3]}...", f"…{KEY[-4:]}",
    ],
)  # fmt: skip
def test_every_spelling_of_a_key(spelling: str) -> None:
    remember(KEY)
    shown = redact(f"401 Incorrect API key provided: {spelling}. Find yours in the settings.")
    assert "***" in shown
    assert KEY[:6].casefold() not in shown.casefold()
    assert KEY[-5:].casefold() not in shown.casefold()
    assert shown.startswith("401 Incorrect API key provided: ")
    assert shown.endswith("Find yours in the settings.")


def test_the_secrets_of_a_url() -> None:
    remember_url("http://bob:p%40ss@host/v1?api_key=q9&page=2")
    basic = base64.b64encode(b"bob:p@ss").decode()
    assert redact(f"sent p@ss, p%40ss, q9 and Basic {basic}") == "sent ***, ***, *** and Basic ***"
    assert redact("page 2 of bob, spass") == "page 2 of bob, spass"  # neither names nor parts of other words


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("https_proxy", "http://me:hush-hush@proxy:3128")
    monkeypatch.setenv("SSL_KEY", "/etc/ssl/private.pem")
    assert redact("key 0123456789abcdef by hush-hush from /etc/ssl/private.pem") == (
        "key *** by *** from /etc/ssl/private.pem"
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET http://me:secret@host/v1?api_key=abc&page=1", "GET http://***@host/v1?api_key=***&page=1"),
        ("{'Authorization': 'Bearer abc123def'}", "{'Authorization': 'Bearer ***'}"),
        ("token hf_abcdefghijklmnopqrst", "token ***"),
        ("remote https://x-access-token:ghp_0123456789abcdefghij@github.com/a/b", "remote https://***@github.com/a/b"),
        ("a bearer token is required; see https://host/a@b", "a bearer token is required; see https://host/a@b"),
        ("loss 0.25 ... step 3 of 10", "loss 0.25 ... step 3 of 10"),
    ],
)
def test_what_looks_like_a_credential(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_answers_keep_the_words_that_a_password_may_be() -> None:
    remember("password", "pw", "sk-0123456789")
    assert redact_content("The password is pw; sk-0123456789.") == "The password is pw; ***."
    assert redact("The password is pw; sk-0123456789.") == "The *** is ***; ***."


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hub_token", True), ("HF_TOKEN", True), ("WANDB_API_KEY", True), ("hub-token", True), ("password", True),
        ("AWS_SECRET_ACCESS_KEY", True), ("apikey", True), ("eos_token", False), ("pad-token", False),
        ("api_key_env", False), ("max_new_tokens", False), ("TOKENIZERS_PARALLELISM", False), ("monkey", False),
    ],
)  # fmt: skip
def test_names_of_secrets(name: str, expected: bool) -> None:
    assert is_secret_name(name) is expected


@pytest.mark.parametrize(
    ("loaded", "name"),
    [
        ({"hub_token": "hf_x"}, "hub_token"),
        ({"env": {"HF_TOKEN": "x"}}, "env.HF_TOKEN"),
        ({"sft": {"model_init_kwargs": [{"token": 123}]}}, "sft.model_init_kwargs.token"),
        ({"eval": {"endpoint": ["http://a:b@host/v1"]}}, "eval.endpoint"),
        ({"endpoint": "http://host/v1?api_key=1"}, "endpoint"),
        ({"hub_token": None, "eos_token": "</s>", "api_key_env": "KEY", "endpoint": "http://host/v1?version=1"}, None),
    ],
)
def test_secrets_in_nested_settings(loaded: dict[str, object], name: str | None) -> None:
    assert secret_setting(loaded) == name


def test_what_a_program_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    remember(KEY)
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    with redacted_stderr():
        print("said", KEY, file=sys.stderr)
        sys.stderr.writelines([f"{KEY}\n"])
        assert sys.stderr.isatty() is False
    assert shown.getvalue() == "said ***\n***\n"
