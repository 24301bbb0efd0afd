"""The histogram that is shown: half octaves, of what a pass counted in quarters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monolora.eval.explain.features import shown_histogram
from monolora.explain.histograms import Bins
from monolora.explain.unit_statistics import BITS

SIZES = st.floats(2.0**-20, 1e6, width=32)


def _counts(values: list[float], signed: bool) -> np.ndarray:
    bins = Bins(signed, BITS)
    places = bins.of(torch.tensor(values, dtype=torch.float32)).long()
    return np.bincount(places.numpy(), minlength=bins.number)[None]


@settings(deadline=None)
@given(size=SIZES, signed=st.booleans(), negative=st.booleans())
def test_every_value_lies_in_its_bin(size: float, signed: bool, negative: bool) -> None:
    """Also what is smaller or larger than all that is told apart."""
    value = -size if signed and negative else size
    edges, counts_UE = shown_histogram(_counts([value, 0.0], signed), signed)
    assert counts_UE.tolist() == [[1]]  # zeros are in no bin
    inner, outer = sorted(edges, key=abs)
    assert abs(inner) <= size < abs(outer)
    assert np.sign(outer) == np.sign(value)


@pytest.mark.parametrize("signed", [False, True])
def test_edges_are_half_octaves_and_the_outermost_is_open(signed: bool) -> None:
    values = [0.00001, 1.0, 1.49, 1.5, 2.1, 5000.0]
    values += [-value for value in values] if signed else []
    edges, counts_UE = shown_histogram(_counts(values, signed), signed)
    positive = edges[edges >= 0]
    assert positive[0] == 0
    assert positive[-1] == np.inf
    assert positive[-2] == 2**10 * 0.75
    np.testing.assert_allclose(positive[2:-1] / positive[1:-2], np.tile([4 / 3, 1.5], 23))
    found = dict(zip(edges[:-1].tolist(), counts_UE[0].tolist(), strict=True))
    assert {edge: count for edge, count in found.items() if edge >= 0 and count} == {0: 1, 1: 2, 1.5: 1, 2: 1, 768: 1}
    if signed:
        assert edges.tolist() == (-edges[::-1]).tolist()
        np.testing.assert_array_equal(counts_UE[0], counts_UE[0][::-1])


def test_bins_are_those_of_all_units() -> None:
    counts_UE = np.concatenate([_counts([1.0], False), _counts([0.0, 0.0], False), _counts([7.0, 7.9], False)])
    edges, found_UE = shown_histogram(counts_UE, False)
    assert edges.tolist() == [1, 1.5, 2, 3, 4, 6, 8]
    assert found_UE.tolist() == [[1, 0, 0, 0, 0, 0], [0] * 6, [0, 0, 0, 0, 0, 2]]
    assert shown_histogram(_counts([0.0], False), False)[1].tolist() == [[0]]
