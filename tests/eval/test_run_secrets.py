"""A run against an endpoint that asks for a key and repeats it in all it says: no byte that is left holds the key."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from monolora import cli, redaction, workers
from tests.support.completion_server import CompletionServer, Reply, completion, refusal
from tests.support.evaluated import Evaluated
from tests.support.forks import LIBRARIES

KEY = "s3cr3t/Key+of=mine"
PASSWORD, QUERY = "h0rse battery", "qu3ry-value"
BASIC = base64.b64encode(f"bob:{PASSWORD}".encode()).decode()
ECHOES = [
    KEY, quote(KEY, safe=""), json.dumps(KEY), f"{KEY[:6]}***{KEY[-4:]}", KEY[:11],
    base64.b64encode(KEY.encode()).decode(), f"Authorization: Basic {BASIC}", PASSWORD, quote(PASSWORD), QUERY,
    f"http://bob:{quote(PASSWORD)}@host/v1?api_key={QUERY}",
]  # fmt: skip
TRACES = (KEY[:6], KEY[-5:], quote(KEY, safe=""), PASSWORD, quote(PASSWORD), QUERY, BASIC)


def _echoing(request: dict[str, Any], before: int) -> Reply:
    """Refuses most prompts in other words each, and answers some: with the key in the text, or in the finish reason."""
    number = sum(request["prompt"]) % (len(ECHOES) + 2)
    if number == len(ECHOES):
        return completion(request, choices=[{"index": 0, "text": f"It is {KEY}.", "finish_reason": "stop"}])
    if number == len(ECHOES) + 1:
        return completion(request, finish=KEY)
    return refusal(400, f"Who is {ECHOES[number]}? {'word ' * 40} {KEY}")


def _left(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()}


def _run(evaluated: Evaluated, out: Path, server: CompletionServer, *flags: str) -> int:
    server.models = [str(evaluated.base), "lora", "mono"]
    words = ["--suite", str(evaluated.prompts), "--judges", "refusal", "--engine", "server", "--skip-sparsity"]
    return cli.main(
        [
            "eval",
            "run",
            *evaluated.flags(),
            *words,
            "--max-new-tokens",
            "6",
            "--retries",
            "0",
            "--out",
            str(out),
            *flags,
        ]
    )


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_told", {})
    monkeypatch.delenv("MONOLORA_DATA", raising=False)
    monkeypatch.setattr(workers, "subprocess", LIBRARIES)  # has not imported openai, which then reads OPENAI_LOG


@pytest.mark.parametrize("how", ["key", "url"])
def test_a_run_leaves_no_secret(
    evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], how: str
) -> None:
    monkeypatch.setenv("OPENAI_LOG", "debug")  # its client then logs requests with URLs and headers
    if how == "key":
        monkeypatch.setenv("SERVERS_KEY", KEY)
        server, flags = CompletionServer(_echoing, key=KEY), ("--api-key-env", "SERVERS_KEY")
    else:
        server, flags = CompletionServer(_echoing, authorization=f"Basic {BASIC}"), ()
    with server:
        url = server.url if how == "key" else server.url.replace("://", f"://bob:{quote(PASSWORD)}@")
        query = f"?api_key={QUERY}" if how == "url" else ""
        assert _run(evaluated, tmp_path / "out", server, "--endpoint", url + query, *flags) == 0
    assert server.paths
    assert {path.partition("?")[2] for path in server.paths} == {f"api_key={QUERY}" if how == "url" else ""}
    printed = capfd.readouterr()
    left = _left(tmp_path / "out") | {"stdout": printed.out, "stderr": printed.err}
    assert {"run.json", "report.html", "responses.jsonl", "generate.log", "results.json"} <= left.keys()
    assert "HTTP Request: POST" in left["generate.log"]
    traces = TRACES[:3] if how == "key" else TRACES[3:]  # what the server was sent
    assert [(name, trace) for name, text in left.items() for trace in traces if trace in text] == []
    assert json.loads(left["run.json"])["config"]["endpoint"] == [server.url]
    reasons = {json.loads(line)["reason"] for line in left["responses.jsonl"].splitlines()}
    assert any(reason and "Who is" in reason for reason in reasons)


@pytest.mark.parametrize("value", [KEY, "sk-0123456789abcdef", "AKIAIOSFODNN7EXAMPLE", "hushhush"])
def test_a_key_in_place_of_its_variables_name(
    evaluated: Evaluated, tmp_path: Path, capfd: pytest.CaptureFixture[str], value: str
) -> None:
    with CompletionServer() as server:
        assert _run(evaluated, tmp_path / "out", server, "--endpoint", server.url, "--api-key-env", value) == 2
    printed = capfd.readouterr()
    assert value not in printed.out + printed.err
    assert "takes the name of the environment variable" in printed.err
    assert not (tmp_path / "out").exists()


def test_a_variable_that_is_not_set_is_named(
    evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with CompletionServer() as server:
        assert _run(evaluated, tmp_path, server, "--endpoint", server.url, "--api-key-env", "VLLM_API_KEY") == 2
    assert (
        "the environment variable VLLM_API_KEY, which should hold the servers' key, is not set"
        in capfd.readouterr().err
    )


def test_a_refused_key(
    evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SERVERS_KEY", KEY)
    with CompletionServer(key="another") as server:
        url = server.url.replace("://", f"://bob:{quote(PASSWORD)}@") + f"?api_key={QUERY}"
        for flags in (("--endpoint", server.url, "--api-key-env", "SERVERS_KEY"), ("--endpoint", url)):
            assert _run(evaluated, tmp_path / "out", server, *flags) == 2
            assert f"{server.url} refuses the key (401 Unauthorized" in (err := capfd.readouterr().err)
            assert [trace for trace in TRACES if trace in err + str(_left(tmp_path / "out"))] == []


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("endpoint: [http://bob:hush1234@host/v1]", "endpoint"),
        ("endpoint: http://host/v1?api_key=hush1234", "endpoint"),
        ("hub_token: hush1234", "hub_token"),
        ("api_key: hush1234", "api_key"),
    ],
)
def test_a_secret_in_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str], line: str, name: str) -> None:
    config = tmp_path / "eval.yaml"
    config.write_text(f"model: x\n{line}\n")
    assert cli.main(["eval", "run", "--config", str(config), "--out", str(tmp_path / "out")]) == 2
    err = capfd.readouterr().err
    assert f"{name} holds a secret" in err
    assert "hush1234" not in err
