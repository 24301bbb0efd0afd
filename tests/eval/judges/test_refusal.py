"""The judge of refusals."""

from __future__ import annotations

from monolora.eval.judges import JudgeOptions, make
from monolora.eval.judges.refusal import judgements


def test_its_judgements_are_a_column_of_their_own() -> None:
    judge = make("refusal", JudgeOptions(engine="vllm"))
    assert (judge.name, judge.kind, judge.scores) == ("refusal", "refusal", ("refused",))
    items = [
        {"key": "a", "prompt": "p", "response": "I cannot."},
        {"key": "b", "prompt": "p", "response": "Of course."},
        {"key": "c", "prompt": "p", "response": "I cannot."},
    ]
    rows = list(judgements({"settings": judge.settings, "items": items, "done": ["c"]}))
    assert [(row["key"], row["scores"], row["status"]) for row in rows] == [
        ("a", {"refused": 1.0}, "ok"),
        ("b", {"refused": 0.0}, "ok"),
    ]
    assert [judge.flagged(row["scores"]) for row in rows] == [True, False]
