"""ROUGE-L against rouge-score itself."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from monolora.eval.measures.rouge import RougeL

SCORER = RougeScorer(["rougeL"], use_stemmer=True)
WORDS = ("running", "runs", "the", "Flies", "generously", "a", "tea-kettle", "42", "café", "…", "\n")
texts = st.one_of(st.text(max_size=30), st.lists(st.sampled_from(WORDS), max_size=40).map(" ".join))


@settings(deadline=None)
@given(answer=texts, reference=texts)
def test_score(answer: str, reference: str) -> None:
    expected = SCORER.score(reference, answer)["rougeL"].fmeasure
    assert RougeL(reference).score(answer) == pytest.approx(expected, abs=1e-12)


def test_long_texts() -> None:
    """Longer than a machine word."""
    answer = " ".join(f"word{(7 * k) % 150}" for k in range(300))
    reference = " ".join(f"word{k % 150}" for k in range(400))
    expected = SCORER.score(reference, answer)["rougeL"].fmeasure
    assert RougeL(reference).score(answer) == pytest.approx(expected, abs=1e-12)
