"""Chats through a server, over real HTTP."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from monolora.chat.conversation import BASE, TUNED
from monolora.chat.served import ServedSpeaker
from monolora.endpoint import NEUTRAL_SAMPLING
from monolora.errors import InputError, RunError
from tests.support.completion_server import CompletionServer, Reply, chat_events, completion, refusal
from tests.support.limits import HANG_S

MESSAGES = [{"role": "user", "content": "Hello"}]
BODY = {"max_tokens": 9, "temperature": 0.0}


def serving(*pieces: str, finish: str | None = "stop", **options: Any) -> CompletionServer:
    """A server whose every answer has these pieces, after the model's name."""

    def answer(request: dict[str, Any], before: int) -> Reply:
        return Reply(200, chat_events(request["model"], *pieces, finish=finish))

    return CompletionServer(answer, **options)


def test_an_answer_comes_in_pieces() -> None:
    with serving(" é", "\n!", models=["m"]) as server, ServedSpeaker(server.url, None, None, BODY) as speaker:
        pieces: list[str] = []
        assert speaker.answer(MESSAGES, TUNED, pieces.append) == ("m é\n!", "stop")
        assert pieces == ["m", " é", "\n!"]
        assert server.paths == ["/v1/chat/completions"]
        assert server.requests == [NEUTRAL_SAMPLING | BODY | {"model": "m", "messages": MESSAGES, "stream": True}]
        assert speaker.titles == {TUNED: "m"}


@pytest.mark.parametrize(
    ("names", "served", "titles"),
    [
        ((None, None), {"base": None, "mono": "base"}, ["mono", "base"]),
        (("mono", None), {"base": None, "mono": "base", "lora": "base"}, ["mono", "base"]),
        (("base", None), {"base": None, "mono": "base"}, ["base"]),
        (("mono", "other"), {"base": None, "mono": "base", "other": None}, ["mono", "other"]),
        (("mono", None), {"mono": "not-served"}, ["mono"]),
        (("b", "a"), {"a": None, "b": None}, ["b", "a"]),
    ],
)
def test_who_is_the_base(
    names: tuple[str | None, str | None], served: dict[str, str | None], titles: list[str]
) -> None:
    parents = {name: parent for name, parent in served.items() if parent is not None}
    with serving(models=[*served], parents=parents) as server, ServedSpeaker(server.url, *names, BODY) as speaker:
        assert speaker.titles == dict(zip((TUNED, BASE), titles, strict=False))
        assert [speaker.answer(MESSAGES, who, print).text for who in speaker.titles] == titles


def test_names_that_are_not_served() -> None:
    with serving(models=["a", "b"]) as server:
        for names, message in (
            ((None, None), r"serves a, b\. Name one: monolora chat NAME"),
            (("c", None), "Unknown model at .* 'c'"),
            (("a", "aa"), "Unknown model at .* 'aa'"),
        ):
            with pytest.raises(InputError, match=message):
                ServedSpeaker(server.url, *names, BODY)


def _error_event() -> Iterator[Any]:
    yield from list(chat_events("a "))[:2]
    yield {"error": {"message": "the engine died"}}


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (refusal(400, "too long"), r"does not answer: 400 too long\."),
        (Reply(200, _error_event()), r"does not answer: the engine died\."),
        (Reply(200, chat_events("a", finish=None)), r"broke off the answer\. Ask again\."),
        (Reply(200, iter(["no JSON"])), "sent no stream of chat completions"),
        (Reply(200, iter([{"object": "other"}])), "sent no stream of chat completions"),
        (completion({"prompt": [1], "model": "m"}), "broke off the answer"),
    ],
)
def test_what_a_server_does_wrong_is_one_line(reply: Reply, message: str) -> None:
    with (
        CompletionServer(lambda request, before: reply, models=["m"]) as server,
        ServedSpeaker(server.url, None, None, BODY) as speaker,
        pytest.raises(RunError, match=message) as error,
    ):
        speaker.answer(MESSAGES, TUNED, lambda piece: None)
    assert "\n" not in str(error.value)


def test_a_server_that_is_down_or_wants_a_key() -> None:
    with serving(models=["m"], key="sesame-123") as server:
        with pytest.raises(InputError, match=r"refuses the key .* --api-key-env"):
            ServedSpeaker(server.url, None, None, BODY)
        with ServedSpeaker(server.url, None, None, BODY, "sesame-123") as speaker:
            assert speaker.answer(MESSAGES, TUNED, print).text == "m"
            assert server.headers[-1]["authorization"] == "Bearer sesame-123"
    with pytest.raises(RunError, match=r"does not answer: .* Start the server, then try again\."):
        ServedSpeaker(server.url, None, None, BODY)


def test_ctrl_c_ends_the_answer_at_the_server_too() -> None:
    """It is pressed while the server is thinking; the connection is closed, and the next answer comes whole."""
    pressed, left = threading.Event(), threading.Event()

    def thinking() -> Iterator[Any]:
        yield from chat_events("one ", finish=None)
        assert pressed.wait(HANG_S)
        try:
            for _ in range(100_000):  # until the connection is seen to be closed
                yield next(chat_events())
        finally:
            left.set()

    def answer(request: dict[str, Any], before: int) -> Reply:
        return Reply(200, chat_events("whole") if before else thinking())

    def press(piece: str) -> None:
        if not pressed.is_set():
            signal.raise_signal(signal.SIGINT)
            pressed.set()

    with CompletionServer(answer, models=["m"]) as server, ServedSpeaker(server.url, None, None, BODY) as speaker:
        assert speaker.answer(MESSAGES, TUNED, press) == ("one ", "interrupted")
        assert speaker.answer(MESSAGES, TUNED, press) == ("whole", "stop")
        assert left.wait(HANG_S)
