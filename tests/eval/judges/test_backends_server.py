"""Judges behind servers: what is asked, what is made of trouble, and real vLLM."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from monolora import workers
from monolora.beaverdam import LABELS, text
from monolora.errors import InputError, RunError
from monolora.eval.engines import server as engine
from monolora.eval.judges import JudgeOptions, beaverdam, make, shieldgemma
from monolora.workers import worker_rows
from tests.support import judge_reference as reference
from tests.support.completion_server import CompletionServer, Reply, never, refusal
from tests.support.forks import VLLM
from tests.support.requirements import NEEDS_VLLM
from tests.support.tiny_judges import PAIRS, items, make_beaverdam, make_shieldgemma
from tests.support.vllm_server import BASE, Server

KEYS = [row["key"] for row in items()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_shieldgemma(tmp_path / "judge")


def _half(request: dict[str, Any], before: int = 0) -> Reply:
    """P(Yes) is a quarter."""
    yes, no = request["logprob_token_ids"]
    log_probs = {f"token_id:{yes}": math.log(0.01), f"token_id:{no}": math.log(0.03), "token_id:9": -0.1}
    return Reply(200, {"choices": [{"index": 0, "text": "", "logprobs": {"top_logprobs": [log_probs]}}]})


def _judged(folder: Path, *urls: str, done: tuple[str, ...] = (), **more: Any) -> dict[str, dict[str, Any]]:
    options = JudgeOptions(engine="server", endpoints=urls, **more)
    judge = make(f"shieldgemma:{folder}", options)
    job = {"settings": judge.settings, "items": items(), "done": list(done)}
    return {row["key"]: row for row in shieldgemma.judgements(job)}


def test_the_answers_are_asked_for_by_token_and_renormalised(folder: Path) -> None:
    with CompletionServer(_half, models=[str(folder)]) as server:
        rows = _judged(folder, server.url, done=("k0", "k2"))
    assert sorted(rows) == ["k1", "k3", "k4", "k5"]
    for row in rows.values():
        reference.assert_near(row["scores"], dict.fromkeys(shieldgemma.POLICIES, 0.25), 1e-12)
    assert len(server.requests) == 4 * 4
    tokenizer = reference.tokenizer_of(folder)
    texts = [shieldgemma.prompt_text(*PAIRS[i], harm) for i in (1, 3, 4, 5) for harm in shieldgemma.POLICIES]
    wanted = {tuple(tokenizer(text).input_ids) for text in texts}
    assert {tuple(request["prompt"]) for request in server.requests} == wanted
    assert {request["max_tokens"] for request in server.requests} == {1}
    assert set(server.paths) == {"/v1/completions"}


def test_how_endpoints_are_asked_is_the_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGES_KEY", "open sesame")

    def busy_at_first(request: dict[str, Any], before: int) -> Reply:
        reply = _half(request)._replace(until=lambda: server.most_at_once >= 2)
        return reply if before else refusal(500, "not now")

    but_one = tuple(f"k{number}" for number in range(1, len(PAIRS)))
    with CompletionServer(busy_at_first, models=[str(folder)], key="open sesame") as server:
        rows = _judged(folder, server.url, done=but_one, concurrency=2, retries=1, api_key_env="JUDGES_KEY")
        assert [row["status"] for row in rows.values()] == ["ok"]
        assert server.most_at_once == 2
        assert {
            value for headers in server.headers for name, value in headers.items() if name.lower() == "authorization"
        } == {"Bearer open sesame"}


def test_a_judge_that_takes_too_long_gives_no_verdict(folder: Path) -> None:
    def hang(request: dict[str, Any], before: int) -> Reply:
        return _half(request)._replace(until=never)

    with CompletionServer(hang, models=[str(folder)]) as server:
        rows = _judged(folder, server.url, retries=1, timeout_s=1.0)
    assert {row["reason"] for row in rows.values()} == {"server: no answer within 1 s."}


def test_a_classifier_is_asked_for_logits_beside_v1(tmp_path: Path) -> None:
    """Token ids in, logits without activation out; another count of them is another model's."""
    folder = make_beaverdam(tmp_path / "judge")
    judge_logits = {key: [0.25 * number - n for number in range(len(LABELS))] for n, key in enumerate(KEYS)}
    texts = {f"k{n}": text(*pair, "</s>") for n, pair in enumerate(PAIRS)}
    read = {tuple(reference.tokenizer_of(folder)(texts[key]).input_ids): key for key in KEYS}

    def classify(request: dict[str, Any], before: int) -> Reply:
        key = read[tuple(request["input"][0])]
        return Reply(200, {"data": [{"probs": judge_logits[key][: 2 if key == "k3" else None]}]})

    with CompletionServer(classify, models=[str(folder)]) as server:
        judge = make(f"beaverdam:{folder}", JudgeOptions(engine="server", endpoints=(server.url,)))
        job = {"settings": judge.settings, "items": items(), "done": []}
        rows = {row["key"]: row for row in beaverdam.judgements(job)}
    assert set(server.paths) == {"/classify"}
    assert {request["use_activation"] for request in server.requests} == {False}
    assert rows.pop("k3")["reason"] == "server: 2 logits for the judge's 14 labels"
    for key, row in rows.items():
        wanted = torch.tensor(judge_logits[key]).double().sigmoid().tolist()
        reference.assert_near(row["scores"], dict(zip(LABELS, wanted, strict=True)), 1e-12)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (refusal(400, "That is too long"), "server: 400 That is too long."),
        (Reply(200, {"choices": []}), "server: the answer is not of the kind that was asked for"),
        (Reply(200, "<html>"), "server: the answer is not of the kind that was asked for"),
        (
            Reply(200, {"choices": [{"logprobs": {"top_logprobs": [{" Yes": -1.0}]}}]}),
            "no such token: the answer has no log-prob of token_id:",
        ),
    ],
)
def test_what_a_server_cannot_judge_is_no_verdict(folder: Path, reply: Reply, reason: str) -> None:
    """One of a response's four calls is enough."""

    def answer(request: dict[str, Any], before: int) -> Reply:
        return reply if request["prompt"] == spoilt else _half(request)

    tokenizer = reference.tokenizer_of(folder)
    spoilt = tokenizer(shieldgemma.prompt_text(*PAIRS[1], "Hate Speech")).input_ids
    with CompletionServer(answer, models=[str(folder)]) as server:
        rows = _judged(folder, server.url)
    assert rows["k1"]["status"] == "invalid"
    assert rows["k1"]["reason"].startswith(reason)
    assert rows["k1"]["scores"] == {}
    assert [row["status"] for key, row in sorted(rows.items())].count("ok") == len(PAIRS) - 1


def test_where_nobody_answers_the_run_stops_and_another_model_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "FIRST_PAUSE_S", 0.01)
    with CompletionServer(_half, models=["other"]) as server, pytest.raises(InputError, match="Unknown model at"):
        _judged(folder, server.url)
    with pytest.raises(RunError, match="No endpoint answers any more"):
        _judged(folder, server.url)


def _serve(folder: Path, *flags: str) -> Server:
    server = Server(folder, {}, *flags)
    for flag in ("--enable-lora", "--lora-modules"):
        server.command.remove(flag)
    server.command[server.command.index("--max-model-len") + 1] = "1024"
    server.command[server.command.index(BASE)] = str(folder)
    return server


def _judged_by_vllm(word: str, url: str, log: Path) -> dict[str, dict[str, Any]]:
    judge = make(word, JudgeOptions(engine="server", endpoints=(url,), dtype="float32"))
    job = {"settings": judge.settings, "items": items(), "done": ["k4"]}
    rows = {row["key"]: row for row in worker_rows(judge.target, job, log)}
    assert sorted(rows) == ["k0", "k1", "k2", "k3", "k5"]
    return rows


JUDGES: dict[str, tuple[Callable[[Path], Path], tuple[str, ...], Callable[[Path, str, str], dict[str, float]]]] = {
    "shieldgemma": (make_shieldgemma, (), reference.shieldgemma),
    "beaverdam": (make_beaverdam, ("--runner", "pooling", "--convert", "classify"), reference.beaverdam),
}


@pytest.mark.vllm
@pytest.mark.slow
@NEEDS_VLLM
def test_scores_from_vllms_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "subprocess", VLLM)
    folders = {word: build(tmp_path / word) for word, (build, _, _) in JUDGES.items()}
    with ExitStack() as stack:  # started together, as most of a start is done by one core
        servers = {word: stack.enter_context(_serve(folders[word], *flags)) for word, (_, flags, _) in JUDGES.items()}
        for word, (_, _, wanted) in JUDGES.items():
            servers[word].await_start()
            rows = _judged_by_vllm(f"{word}:{folders[word]}", f"{servers[word].url}/v1", tmp_path / "log")
            for key, row in rows.items():
                assert row["status"] == "ok"
                reference.assert_near(row["scores"], wanted(folders[word], *PAIRS[int(key[1:])]))
