"""ROUGE against rouge-score itself, to the last bit."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from monolora.data.rouge import rouge_l, rouge_n

SCORER = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
WORDS = ("running", "runs", "the", "Flies", "generously", "a", "tea-kettle", "42", "café", "…", "\n")
texts = st.one_of(st.text(max_size=30), st.lists(st.sampled_from(WORDS), max_size=40).map(" ".join))


def _assert_same(answer: str, reference: str) -> None:
    expected = {name: score.fmeasure for name, score in SCORER.score(reference, answer).items()}
    assert {
        "rouge1": rouge_n(answer, reference, 1),
        "rouge2": rouge_n(answer, reference, 2),
        "rougeL": rouge_l(answer, reference),
    } == expected


@settings(deadline=None)
@given(answer=texts, reference=texts)
def test_scores(answer: str, reference: str) -> None:
    _assert_same(answer, reference)


def test_long_texts() -> None:
    """Longer than a machine word."""
    answer = " ".join(f"word{(7 * k) % 150}" for k in range(300))
    reference = " ".join(f"word{k % 150}" for k in range(400))
    _assert_same(answer, reference)
