"""The same judges through real vLLM: one engine an architecture, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monolora import workers
from monolora.eval.judges import JudgeOptions, make
from monolora.eval.judges.backends import EncodedResponse
from monolora.eval.judges.shieldgemma import ShieldGemmaFormat
from monolora.workers import worker_rows
from tests.support import judge_reference as reference
from tests.support.forks import VLLM
from tests.support.requirements import NEEDS_VLLM
from tests.support.tiny_judges import PAIRS, items, make_beaverdam, make_shieldgemma

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    NEEDS_VLLM,
]

LONG = (PAIRS[-1][0], PAIRS[-1][1] * 20)
ENDLESS = ("Is this long? " * 300, "Yes, quite.")
ALL = (*PAIRS, LONG, ENDLESS)
DONE = ("k1", "k4")


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """``judged(word)``: rows by key, of all pairs but the two that are done."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # others use the machine too
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    monkeypatch.setattr(workers, "subprocess", VLLM)

    def judge(word: str) -> dict[str, Any]:
        judge = make(word, JudgeOptions(engine="vllm", gpu_memory_utilization=0.05))
        job = {"settings": judge.settings, "items": items(ALL), "done": list(DONE)}
        rows = list(worker_rows(judge.target, job, tmp_path / "log"))
        assert sorted(row["key"] for row in rows) == [f"k{i}" for i in range(len(ALL)) if f"k{i}" not in DONE]
        return {row["key"]: row for row in rows}

    return judge


def assert_only_the_endless_one_is_invalid(rows: dict[str, Any]) -> None:
    endless = rows.pop("k7")
    assert endless["status"] == "invalid"
    assert endless["reason"].startswith("prompt too long: ")
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert [key for key, row in rows.items() if row["cut"]] == ["k6"]


def test_shieldgemma(judged: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    folder = make_shieldgemma(tmp_path / "judge")
    rows = judged(f"shieldgemma:{folder}")
    assert_only_the_endless_one_is_invalid(rows)
    (long,) = ShieldGemmaFormat(reference.tokenizer_of(folder), 1023).encode(items([LONG]))
    assert isinstance(long, EncodedResponse)
    assert long.cut
    reference.assert_near(rows.pop("k6")["scores"], reference.yes_of(folder, long.calls))
    for key, row in rows.items():
        reference.assert_near(row["scores"], reference.shieldgemma(folder, *ALL[int(key[1:])]))


@pytest.mark.parametrize("pad", ["<pad>", "</s>"], ids=["pad", "pad is eos"])
def test_beaverdam(judged: Callable[[str], dict[str, Any]], tmp_path: Path, pad: str) -> None:
    folder = make_beaverdam(tmp_path / "judge", pad=pad)
    rows = judged(f"beaverdam:{folder}")
    assert_only_the_endless_one_is_invalid(rows)
    for key, row in rows.items():
        reference.assert_near(row["scores"], reference.beaverdam(folder, *ALL[int(key[1:])]))
