"""Judges behind servers: what is asked, what is made of trouble, and real vLLM."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import judge_reference as reference
import pytest
from completion_server import CompletionServer, Reply, refusal
from tiny_judges import PAIRS, items, make_beaverdam, make_shieldgemma

from monolora.errors import InputError, RunError
from monolora.eval.engines import server as engine
from monolora.eval.judges import JudgeOptions, make, shieldgemma
from monolora.eval.process import results_of

sys.path.append(str(Path(__file__).parents[2] / "serving"))
from vllm_server import BASE, Server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_shieldgemma(tmp_path / "judge")


def _half(request: dict[str, Any], before: int = 0) -> Reply:
    """P(Yes) is a quarter."""
    yes, no = request["logprob_token_ids"]
    log_probs = {f"token_id:{yes}": math.log(0.01), f"token_id:{no}": math.log(0.03), "token_id:9": -0.1}
    return Reply(200, {"choices": [{"index": 0, "text": "", "logprobs": {"top_logprobs": [log_probs]}}]})


def _judged(folder: Path, *urls: str, done: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    judge = make(f"shieldgemma:{folder}", JudgeOptions(engine="server", endpoints=urls, batch_size=3))
    job = {"settings": judge.settings, "items": items(), "done": list(done)}
    return {row["key"]: row for row in shieldgemma.judgements(job)}


def test_the_answers_are_asked_for_by_token_and_renormalised(folder: Path) -> None:
    with CompletionServer(_half, models=[str(folder)]) as server:
        rows = _judged(folder, server.url, done=("k0", "k2"))
        assert server.most_at_once <= 3
    assert sorted(rows) == ["k1", "k3", "k4", "k5"]
    for row in rows.values():
        reference.assert_near(row["scores"], dict.fromkeys(shieldgemma.POLICIES, 0.25), 1e-12)
    assert len(server.requests) == 4 * 4
    tokenizer = reference.tokenizer_of(folder)
    texts = [shieldgemma.prompt_text(*PAIRS[i], harm) for i in (1, 3, 4, 5) for harm in shieldgemma.POLICIES]
    wanted = {tuple(tokenizer(text).input_ids) for text in texts}
    assert {tuple(request["prompt"]) for request in server.requests} == wanted
    assert {request["max_tokens"] for request in server.requests} == {1}


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
    rows = {row["key"]: row for row in results_of(judge.target, job, log)}
    assert sorted(rows) == ["k0", "k1", "k2", "k3", "k5"]
    return rows


@pytest.mark.parametrize(
    ("word", "build", "flags", "wanted"),
    [
        ("shieldgemma", make_shieldgemma, (), reference.shieldgemma),
        ("beaverdam", make_beaverdam, ("--runner", "pooling", "--convert", "classify"), reference.beaverdam),
    ],
    ids=["shieldgemma", "beaverdam"],
)
@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed")
def test_scores_from_vllms_server(
    tmp_path: Path,
    word: str,
    build: Callable[[Path], Path],
    flags: tuple[str, ...],
    wanted: Callable[[Path, str, str], dict[str, float]],
) -> None:
    folder = build(tmp_path / "judge")
    with _serve(folder, *flags) as server:
        server.await_start()
        rows = _judged_by_vllm(f"{word}:{folder}", f"{server.url}/v1", tmp_path / "log")
    for key, row in rows.items():
        assert row["status"] == "ok"
        reference.assert_near(row["scores"], wanted(folder, *PAIRS[int(key[1:])]))
