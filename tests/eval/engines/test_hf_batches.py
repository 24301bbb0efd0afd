"""Batches that do not depend on what is done already."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from monolora.eval.engines.hf import fixed_batches


@given(lengths=st.lists(st.integers(1, 9), max_size=30), size=st.integers(1, 7), seed=st.randoms())
@settings(deadline=None)
def test_batches(lengths: list[int], size: int, seed) -> None:
    rows = [{"key": f"k{number}", "length": length} for number, length in enumerate(lengths)]
    whole = fixed_batches(rows, set(), size, lambda row: row["length"])
    # every row once, in batches of the size, the longest first
    assert sorted(row["key"] for batch in whole for row in batch.rows) == sorted(row["key"] for row in rows)
    assert all(len(batch.rows) == size for batch in whole[:-1])
    flat = [row["length"] for batch in whole for row in batch.rows]
    assert flat == sorted(flat, reverse=True)
    # what is done changes what is wanted, and never who is beside whom; nor does the order of the rows
    done = {row["key"] for row in rows if seed.random() < 0.5}
    shuffled = seed.sample(rows, len(rows))
    rest = fixed_batches(shuffled, done, size, lambda row: row["length"])
    assert [batch.rows for batch in rest] == [batch.rows for batch in whole if batch.wanted - done]
    assert {key for batch in rest for key in batch.wanted} == {row["key"] for row in rows} - done
