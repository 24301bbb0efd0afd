"""From the flags to the judges of a run: what they are told, and which need no process of their own."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from monolora.errors import InputError
from monolora.eval import score
from monolora.eval.judges import Judge, JudgeOptions, make
from monolora.eval.settings import Settings
from monolora.workers import inline_rows
from tests.support.tiny_judges import make_beaverdam

ASKING: dict[str, Any] = {"concurrency": 4, "retries": 2, "timeout_s": 30.0, "api_key_env": "KEY"}
URL = "http://localhost:1/v1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_beaverdam(tmp_path_factory.mktemp("beaverdam"))


def _judge(folder: Path, **flags: Any) -> Judge:
    """As a run with these flags makes it."""
    asking = {"concurrency": 4, "retries": 2, "timeout": 30.0, "api_key_env": "KEY"}
    settings = Settings(judges=(f"beaverdam:{folder}",), judge_tensor_parallel_size=2, **asking | flags)
    judge, refusal = score.make_judges(settings)
    assert refusal.name == "refusal"  # always there
    return judge


def test_each_engine_is_told_what_it_reads(folder: Path) -> None:
    by_server = _judge(folder, judge_engine="server", judge_endpoint=(URL,)).settings
    assert {name: by_server[name] for name in ASKING} == ASKING
    assert by_server["endpoints"] == [URL]
    by_vllm, by_hf = (_judge(folder, judge_engine=engine).settings for engine in ("vllm", "hf"))
    assert by_vllm["tensor_parallel_size"] == 2
    assert not ASKING.keys() & by_vllm.keys()
    assert not {*ASKING, "tensor_parallel_size"} & by_hf.keys()


@pytest.mark.parametrize("engine", ["server", "vllm"])
def test_none_of_it_is_part_of_the_identity(folder: Path, engine: str) -> None:
    endpoints = (URL,) if engine == "server" else ()
    plain = JudgeOptions(engine=engine, endpoints=endpoints)
    other = JudgeOptions(engine=engine, endpoints=endpoints, tensor_parallel_size=2, **ASKING)
    first, second = (make(f"beaverdam:{folder}", options) for options in (plain, other))
    assert first.settings != second.settings
    assert first.identity == second.identity


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concurrency": 0}, "The judges' concurrency must be at least 1, got 0"),
        ({"tensor_parallel_size": 0}, "The judges' tensor parallel size must be at least 1, got 0"),
        ({"retries": -1}, "retries must be 0 or more"),
        ({"timeout_s": 0}, "timeout above 0 s"),
    ],
)
def test_options_that_cannot_be_asked_with(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        JudgeOptions(**options)


def test_only_a_judge_without_a_model_stays_in_this_process(folder: Path) -> None:
    (refusal,) = score.make_judges(Settings(judges=("refusal",)))
    assert refusal.in_process
    assert not _judge(folder, judge_engine="hf").in_process
    assert json.loads(json.dumps(asdict(refusal)))["in_process"] is True
    items = [{"key": "a", "prompt": "Sing!", "response": "I cannot sing."}, {"key": "b", "prompt": "", "response": ""}]
    rows = inline_rows(refusal.target, {"settings": {}, "items": items, "done": ["b"]})
    assert [(row["key"], row["scores"]) for row in rows] == [("a", {"refused": 1.0})]


@pytest.mark.parametrize(
    ("flags", "length"),
    [({}, 512), ({"beaverdam_max_length": 256}, 256), ({"beaverdam_max_length": 256, "judge_max_model_len": 64}, 64)],
)
def test_how_much_beaverdam_reads(folder: Path, flags: dict[str, int], length: int) -> None:
    """512 tokens by its class; 256 are the public protocol's, and another judge by its identity."""
    config = folder / "config.json"
    positions = json.loads(config.read_text())["max_position_embeddings"]
    judge = _judge(folder, **flags)
    assert judge.settings["max_length"] == judge.identity["max_length"] == min(length, positions)
