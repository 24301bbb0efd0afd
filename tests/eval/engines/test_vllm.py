"""Answers by vLLM: all adapters and the base in one engine, the same words as transformers, the canary first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from monolora import workers
from monolora.errors import InputError
from monolora.eval.engines import hf
from monolora.workers import Task, parallel_rows, worker_rows
from tests.support.engine_jobs import LONGEST, PROMPTS, ending_early, job
from tests.support.evaluated import Evaluated
from tests.support.forks import VLLM
from tests.support.requirements import NEEDS_VLLM

pytestmark = [
    pytest.mark.vllm,
    NEEDS_VLLM,
]
TARGET = "monolora.eval.engines.vllm:answers"
SETTINGS = {
    "max_model_len": 128, "max_num_seqs": 8, "gpu_memory_utilization": 0.1, "tensor_parallel_size": 1,
    "batch_invariant": False, "canary": True,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # no thread is tied to a core: others use the machine too
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "1")
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)


@pytest.fixture
def _forking(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's process is a fork of one that has imported vLLM, not started as the program starts it."""
    monkeypatch.setattr(workers, "subprocess", VLLM)


def rows_of(engine_job: dict[str, Any], log: Path) -> Iterator[dict[str, Any]]:
    return worker_rows(TARGET, engine_job, log)


def test_answers_are_transformers_answers(evaluated: Evaluated, tmp_path: Path) -> None:
    engine_job = job(evaluated, done=("mono-0",), **SETTINGS)
    rows = list(rows_of(engine_job, tmp_path / "log"))
    canaries, answers = [row["canary"] for row in rows[:2]], {row["key"]: row for row in rows[2:]}
    assert [canary["adapter"] for canary in canaries] == ["lora", "mono"]
    for canary in canaries:
        assert canary["unknown"] is None
        assert canary["applied"][0] == pytest.approx(1, abs=0.02)
        assert canary["base_error"] < 1e-3
    assert canaries[0]["activation"] is None
    assert canaries[1]["activation"][0] == pytest.approx(1, abs=0.05)
    assert answers == {row["key"]: row for row in hf.answers(engine_job)}
    assert len(answers) == 3 * len(PROMPTS) - 1
    assert {row["tokens"] for row in answers.values()} <= set(range(1, max(LONGEST) + 1))


@pytest.mark.usefixtures("_forking")
def test_an_adapter_ends_where_its_folder_says(evaluated: Evaluated, tmp_path: Path) -> None:
    """vLLM knows the base's end tokens only; the answers end as transformers' do."""
    engine_job = ending_early(evaluated, tmp_path / "mono")
    engine_job["settings"] |= SETTINGS | {"canary": False}
    answers = {row["key"]: row for row in rows_of(engine_job, tmp_path / "log")}
    assert (answers["mono-0"]["tokens"], answers["mono-0"]["finish"]) == (1, "stop")
    assert answers == {row["key"]: row for row in hf.answers(engine_job)}


@pytest.mark.usefixtures("_forking")
def test_an_adapter_that_does_not_fit(evaluated: Evaluated, tmp_path: Path) -> None:
    """vLLM refuses it with our message, and nothing has been answered by then."""
    engine_job = job(evaluated, **SETTINGS)
    engine_job["adapters"]["mono"] = str(tmp_path)
    with pytest.raises(InputError, match="holds no adapter"):
        list(rows_of(engine_job, tmp_path / "log"))


@pytest.mark.slow
def test_two_engines_share_the_prompts(evaluated: Evaluated, tmp_path: Path) -> None:
    """At the same time, each with an engine of its own, as ``--data-parallel 2`` starts them."""
    engine_job = job(evaluated, **SETTINGS | {"canary": False})
    tasks = [Task(engine_job | {"share": (rank, 2)}, tmp_path / f"log-{rank}") for rank in range(2)]
    answers = list(parallel_rows(TARGET, tasks))
    assert len(answers) == 15
    assert {row["key"]: row for row in answers} == {row["key"]: row for row in hf.answers(engine_job)}
