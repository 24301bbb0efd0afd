"""The client of OpenAI-compatible servers, over real HTTP: what it sends, and what it does about trouble."""

from __future__ import annotations

import gc
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from monolora.data.prompt_sets import sampling_seed
from monolora.endpoint import Reply as Answered
from monolora.endpoint import Request
from monolora.errors import InputError, RunError
from monolora.eval.engines.server import answers, replies
from tests.support.completion_server import CompletionServer, Reply, completion, never, refusal, text_of
from tests.support.limits import HANG_S

MODELS = {"base": "base"}


def job(
    *servers: CompletionServer | str, rows: int = 12, done: tuple[str, ...] = (), models: Any = MODELS, **settings: Any
) -> dict[str, Any]:
    """Prompts for every model in turn."""
    names = list(models)
    items = [
        {"key": f"k{n}", "token_ids": [n, 7, 9], "model": names[n % len(names)], "max_new_tokens": 4 + n}
        for n in range(rows)
    ]
    usual = {"temperature": 0.0, "top_p": 1.0, "seed": 0, "concurrency": 3, "retries": 1, "timeout_s": HANG_S}
    return {
        "endpoints": [server if isinstance(server, str) else server.url for server in servers],
        "models": models,
        "items": items,
        "done": list(done),
        "settings": usual | {"api_key_env": None} | settings,
    }


def ok(number: int, served: str = "base") -> dict[str, Any]:
    """The answer that the server gives to a prompt."""
    text = text_of([number, 7, 9], served)
    return {
        "key": f"k{number}",
        "text": text,
        "tokens": 3,
        "finish": "stop",
        "cut": False,
        "status": "ok",
        "reason": None,
    }


def by_number(rows: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """All of them, in the order of the prompts."""
    return sorted(rows, key=lambda row: int(row["key"][1:]))


def request_counts(*servers: CompletionServer) -> Counter[int]:
    """How often each prompt was asked for."""
    return Counter(request["prompt"][0] for server in servers for request in server.requests)


def test_every_row_is_answered_once() -> None:
    with CompletionServer() as server:
        assert by_number(answers(job(server))) == [ok(number) for number in range(12)]
        assert request_counts(server) == dict.fromkeys(range(12), 1)


def test_what_is_sent() -> None:
    """Token ids, the served name, and all that a server could else take from the model's own generation config."""
    with CompletionServer(models=["meta/Base", "mono"]) as server:
        rows = by_number(
            answers(job(server, rows=2, models={"base": "meta/Base", "my adapter": "mono"}, seed=3, top_p=0.5))
        )
        first, second = sorted(server.requests, key=lambda request: request["max_tokens"])
    assert rows == [ok(0, "meta/Base"), ok(1, "mono")]
    assert server.paths == ["/v1/completions"] * 2
    assert first == {
        "model": "meta/Base", "prompt": [0, 7, 9], "max_tokens": 4, "temperature": 0.0, "top_p": 0.5,
        "seed": sampling_seed(3, [0, 7, 9]),
        "repetition_penalty": 1.0, "top_k": -1, "min_p": 0.0,
    }  # fmt: skip
    other = {"prompt": [1, 7, 9], "seed": sampling_seed(3, [1, 7, 9])}
    assert second == first | {"model": "mono", "max_tokens": 5} | other


def test_what_is_done_is_not_asked() -> None:
    with CompletionServer() as server:
        assert by_number(answers(job(server, rows=4, done=("k0", "k2")))) == [ok(1), ok(3)]
        assert request_counts(server) == {1: 1, 3: 1}
    assert list(answers(job(server, rows=2, done=("k0", "k1")))) == []  # the server is gone by now


def test_concurrency_is_bounded_and_used() -> None:
    def together(request: dict[str, Any], before: int) -> Reply:
        return completion(request)._replace(until=lambda: min(one.most_at_once, two.most_at_once) >= 4, after_s=0.05)

    with CompletionServer(together) as one, CompletionServer(together) as two:
        assert len(list(answers(job(one, two, rows=24, concurrency=4)))) == 24
        assert (one.most_at_once, two.most_at_once) == (4, 4)
        assert request_counts(one, two) == dict.fromkeys(range(24), 1)


def test_the_faster_endpoint_answers_more() -> None:
    """All but what the other has begun, with a concurrency of 3."""

    def at_last(request: dict[str, Any], before: int) -> Reply:
        return completion(request)._replace(until=lambda: len(fast.requests) >= 37)

    with CompletionServer(at_last) as slow, CompletionServer() as fast:
        assert by_number(answers(job(slow, fast, rows=40))) == [ok(number) for number in range(40)]
        assert (len(slow.requests), len(fast.requests)) == (3, 37)


def test_answers_come_as_they_finish() -> None:
    others_came = threading.Event()

    def first_late(request: dict[str, Any], before: int) -> Reply:
        reply = completion(request)
        return reply._replace(until=others_came.is_set) if request["prompt"][0] == 0 else reply

    with CompletionServer(first_late) as server:
        rows = answers(job(server))
        assert sorted(next(rows)["key"] for _ in range(11)) == sorted(f"k{number}" for number in range(1, 12))
        others_came.set()
        assert [row["key"] for row in rows] == ["k0"]


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_request_is_tried_again(status: int) -> None:
    def at_first_not(request: dict[str, Any], before: int) -> Reply:
        return completion(request) if before else refusal(status, "not now")

    with CompletionServer(at_first_not) as server:
        assert by_number(answers(job(server, rows=3))) == [ok(number) for number in range(3)]
        assert request_counts(server) == dict.fromkeys(range(3), 2)


def test_one_row_that_the_server_cannot_answer_is_invalid() -> None:
    def not_the_second(request: dict[str, Any], before: int) -> Reply:
        return refusal(500, "out of\nluck") if request["prompt"][0] == 1 else completion(request)

    with CompletionServer(not_the_second) as server:
        rows = by_number(answers(job(server, rows=3)))
        assert request_counts(server) == {0: 1, 1: 2, 2: 1}  # with one retry
    assert [rows[0], rows[2]] == [ok(0), ok(2)]
    nothing = {"key": "k1", "text": "", "tokens": 0, "finish": "", "cut": False}
    assert rows[1] == nothing | {"status": "invalid", "reason": "server: 500 out of luck."}


def test_one_row_that_the_server_refuses_is_invalid_at_once() -> None:
    def not_the_second(request: dict[str, Any], before: int) -> Reply:
        return refusal(400, "The prompt has 9 tokens.") if request["prompt"][0] == 1 else completion(request)

    with CompletionServer(not_the_second) as server:
        rows = by_number(answers(job(server, rows=3)))
        assert request_counts(server) == {0: 1, 1: 1, 2: 1}
    assert [row["status"] for row in rows] == ["ok", "invalid", "ok"]
    assert rows[1]["reason"] == "server: 400 The prompt has 9 tokens."


def test_one_row_that_hangs_is_invalid() -> None:
    def not_the_second(request: dict[str, Any], before: int) -> Reply:
        reply = completion(request)
        return reply._replace(until=never) if request["prompt"][0] == 1 else reply

    with CompletionServer() as server:  # what the rows take that do not hang, on this machine
        start = time.perf_counter()
        assert len(list(answers(job(server, rows=3)))) == 3
        timeout_s = max(0.4, 10 * (time.perf_counter() - start))
    with CompletionServer(not_the_second) as server:
        rows = by_number(answers(job(server, rows=3, timeout_s=timeout_s)))
        assert request_counts(server) == {0: 1, 1: 2, 2: 1}
    assert [row["reason"] for row in rows] == [None, f"server: no answer within {timeout_s:g} s.", None]


def test_any_request_goes_through_the_queue() -> None:
    """Under the base URL or beside it; content or trouble comes back under the asker's own key."""

    def echo(request: dict[str, Any], before: int) -> Reply:
        return refusal(400, "Not that.") if request["input"] == [9] else Reply(200, f"got {request['input']}")

    settings = {"concurrency": 2, "retries": 0, "timeout_s": HANG_S, "api_key_env": None}
    bodies = {number: {"model": "base", "input": [number]} for number in (7, 8, 9)}
    requests = [Request(("a", number), "/v2/rank" if number == 8 else "score", body) for number, body in bodies.items()]
    with CompletionServer(echo) as server:
        answered = set(replies([server.url], requests, settings))
        assert sorted(zip(server.paths, (request["input"][0] for request in server.requests), strict=True)) == [
            ("/v1/score", 7), ("/v1/score", 9), ("/v2/rank", 8),
        ]  # fmt: skip
    assert answered == {
        Answered(("a", 7), b"got [7]", ""),
        Answered(("a", 8), b"got [8]", ""),
        Answered(("a", 9), b"", "server: 400 Not that."),
    }
    assert list(replies([server.url], [], settings)) == []  # the server is gone by now


NO_COMPLETION = "server: the answer is no completion with text, finish_reason and usage."


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"usage": None}, NO_COMPLETION),
        ({"choices": []}, NO_COMPLETION),
        ({"choices": [{"index": 0, "text": "", "finish_reason": "abort"}]}, "server: the answer was ended by 'abort'."),
        ([], NO_COMPLETION),
        ("<html>Welcome</html>", NO_COMPLETION),
    ],
)
def test_an_answer_that_is_none_is_invalid(body: Any, reason: str) -> None:
    def strangely(request: dict[str, Any], before: int) -> Reply:
        return completion(request, **body) if isinstance(body, dict) else Reply(200, body)

    with CompletionServer(strangely) as server:
        (row,) = answers(job(server, rows=1))
    assert (row["status"], row["reason"]) == ("invalid", reason)


@pytest.mark.parametrize(
    ("tokens", "status", "reason"),
    [(4, "ok", None), (3, "invalid", "server: its context ended the answer after 3 of 4 tokens.")],
)
def test_an_answer_as_long_as_it_may_be(tokens: int, status: str, reason: str | None) -> None:
    """One that is shorter, and was not ended by the model, had no room: it is no answer of the model."""

    def long(request: dict[str, Any], before: int) -> Reply:
        return completion(request, "length", usage={"completion_tokens": tokens})

    with CompletionServer(long) as server:
        (row,) = answers(job(server, rows=1))
    assert (row["status"], row["reason"]) == (status, reason)
    assert (row["finish"], row["tokens"]) == (("length", 4) if status == "ok" else ("", 0))


def test_when_one_endpoint_goes_down_the_other_takes_over(caplog: pytest.LogCaptureFixture) -> None:
    with CompletionServer() as one, CompletionServer() as two:
        rows = answers(job(one, two, rows=40))
        rows_so_far = [next(rows) for _ in range(6)]
        one.stop()
        rows_so_far += rows
    assert by_number(iter(rows_so_far)) == [ok(number) for number in range(40)]
    assert set(request_counts(one, two)) == set(range(40))
    assert f"{one.url} is unavailable, next try in 0.5 s:" in caplog.text


def test_an_endpoint_that_is_down_at_the_start_is_left_out() -> None:
    with CompletionServer() as gone, CompletionServer() as server:
        gone.stop()
        assert by_number(answers(job(gone, server))) == [ok(number) for number in range(12)]


def test_an_endpoint_that_comes_back_is_asked_again() -> None:
    with CompletionServer() as server:
        rows = answers(job(server, rows=30, retries=5))
        rows_so_far = [next(rows)]
        server.stop()
        threading.Timer(1.0, server.start).start()
        rows_so_far += rows
    assert by_number(iter(rows_so_far)) == [ok(number) for number in range(30)]


def test_when_all_are_down_what_was_answered_is_kept() -> None:
    with CompletionServer() as one, CompletionServer() as two:
        rows, rows_so_far = answers(job(one, two, rows=60)), []
        rows_so_far += [next(rows), next(rows)]
        one.stop()
        two.stop()
        with pytest.raises(RunError) as caught:
            rows_so_far += rows
    message = str(caught.value)
    assert one.url in message
    assert two.url in message
    assert "connection attempts failed" in message.lower()
    assert message.endswith("Restart them, then run the same command: it resumes where it stopped.")
    assert "\n" not in message
    assert len({row["key"] for row in rows_so_far}) == len(rows_so_far)


def test_an_endpoint_that_answers_nobody_ends_the_run() -> None:
    """It lists its models and is too busy for anything else: no row of that is invalid, none was answered."""
    with CompletionServer(lambda request, before: refusal(503, "overloaded")) as server:
        rows: list[dict[str, Any]] = []
        with pytest.raises(RunError, match="503 overloaded"):
            rows += answers(job(server))
    assert rows == []


def test_a_model_that_is_not_served() -> None:
    with CompletionServer(models=["base", "lora-a", "mono"]) as server:
        with pytest.raises(InputError) as caught:
            list(answers(job(server, models=MODELS | {"lora": "lora-b"})))
        assert server.requests == []
    assert str(caught.value) == (
        f"Unknown model at {server.url} 'lora-b'; choose one of base, lora-a, mono. Did you mean lora-a? To serve it: "
        "vllm serve BASE --enable-lora --lora-modules lora-b=PATH (the base: --served-model-name lora-b)"
    )


def test_a_model_that_only_one_endpoint_serves() -> None:
    with CompletionServer(models=["base", "mono"]) as one, CompletionServer() as two:
        with pytest.raises(InputError, match=f"Unknown model at {two.url} 'mono'"):
            list(answers(job(one, two, models=MODELS | {"mono": "mono"})))
        assert one.requests == two.requests == []


def test_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVERS_KEY", "open sesame")
    with CompletionServer(key="open sesame") as server:
        assert by_number(answers(job(server, rows=2, api_key_env="SERVERS_KEY"))) == [ok(0), ok(1)]
        monkeypatch.setenv("SERVERS_KEY", "please")
        with pytest.raises(InputError, match=f"{server.url} refuses the key \\(401 Unauthorized"):
            list(answers(job(server, api_key_env="SERVERS_KEY")))
        monkeypatch.delenv("SERVERS_KEY")
        with pytest.raises(InputError, match="variable SERVERS_KEY, which should hold the servers' key, is not set"):
            list(answers(job(server, api_key_env="SERVERS_KEY")))


def test_nothing_of_the_environment_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what is meant for OpenAI's own servers, nor by way of a proxy, which knows nothing of this machine."""
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "private")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with CompletionServer() as server:
        assert len(list(answers(job(server, rows=1)))) == 1
        assert "private" not in str(server.headers)


@pytest.mark.parametrize(
    ("endpoints", "message"),
    [
        ((), "The server engine has no endpoint. Give at least one"),
        (("127.0.0.1:8000/v1",), "The endpoint '127.0.0.1:8000/v1' is no URL"),
    ],
)
def test_bad_endpoints(endpoints: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(answers(job(*endpoints)))


def test_an_address_without_models() -> None:
    with (
        CompletionServer() as server,
        pytest.raises(InputError, match=r"has no /models\. Give the base URL, such as http://host:8000/v1\."),
    ):
        list(answers(job(server.url.removesuffix("/v1"))))


def test_an_endpoint_given_twice_is_one() -> None:
    with CompletionServer() as server:
        assert len(list(answers(job(server.url, server.url + "/")))) == 12
        assert server.most_at_once <= 3


def test_something_else_than_an_endpoint() -> None:
    with (
        CompletionServer(models="<html>Welcome</html>") as server,
        pytest.raises(InputError, match=f"{server.url} is no OpenAI-compatible endpoint: its /models is no list"),
    ):
        list(answers(job(server)))


@pytest.mark.parametrize("count", [1, 5])
def test_closed_in_the_middle_leaves_nothing_behind(count: int, caplog: pytest.LogCaptureFixture) -> None:
    """No task is left pending (asyncio would log it), no connection unclosed (warnings are errors here)."""

    def the_first_five(request: dict[str, Any], before: int) -> Reply:
        reply = completion(request)
        return reply if request["prompt"][0] < 5 else reply._replace(until=never)

    with CompletionServer(the_first_five) as server:
        rows = answers(job(server, rows=30))
        for _ in range(count):
            next(rows)
        rows.close()  # type: ignore[attr-defined]
        del rows
        gc.collect()
        asked_by_then = len(server.requests)
        server.stop()  # lets go of those that hang
        assert server.connections == 0
        assert len(server.requests) == asked_by_then < 30
    assert not [record for record in caplog.records if record.name == "asyncio"]
