"""Bins of activations against a search in their edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monolora.explain.histograms import HIGHEST, LOWEST, Bins, merged

FLOATS = st.lists(st.floats(-3000, 3000, width=32), min_size=1, max_size=50)
ALL_FLOATS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50)


@settings(deadline=None)
@given(FLOATS, st.integers(0, 6))
def test_a_value_lies_between_the_edges_of_its_bin(values: list[float], bits: int) -> None:
    for signed in (True, False):
        tensor = torch.tensor(values if signed else [abs(value) for value in values], dtype=torch.float32)
        bins = Bins(signed, bits)
        found, ends = bins.of(tensor), bins.edges()
        assert len(ends) == bins.number + 1
        for value, place in zip(tensor.double().tolist(), found.tolist(), strict=True):
            if value == 0:
                assert place == bins.zero
            else:
                low, high = ends[place], ends[place + 1]
                assert low <= value < high if value > 0 else low < value <= high
                assert place != bins.zero


def test_edges_rise_and_cut_each_octave_into_four() -> None:
    for signed in (True, False):
        assert (np.diff(Bins(signed, 2).edges()) > 0).all()
    inner = Bins(False, 2).edges()[2:-1]
    assert inner[0] == LOWEST * 1.25
    assert inner[-1] == HIGHEST * 1.75 / 2
    assert {round(float(np.frexp(each)[0]) * 2, 9) for each in inner} == {1.0, 1.25, 1.5, 1.75}
    assert Bins(True, 2).sizes == 4 * 24


@pytest.mark.parametrize("signed", [True, False])
def test_what_is_too_small_or_too_large_is_in_the_outer_bins(signed: bool) -> None:
    bins = Bins(signed, 2)
    found = bins.of(torch.tensor([1e-30, LOWEST / 2, HIGHEST * 2, 1e30])) - bins.zero
    assert found.tolist() == [1, 1, 96, 96]


@pytest.mark.parametrize("signed", [True, False])
@settings(deadline=None)
@given(st.one_of(FLOATS, ALL_FLOATS), st.integers(0, 6), st.integers(0, 6))
def test_merging_is_counting_in_coarser_bins(signed: bool, values: list[float], one: int, other: int) -> None:
    """Also zeros, subnormals, and what is out of range."""
    bits, fine = sorted((one, other))
    tensor = torch.tensor([*values, 0.0, 1e-40, LOWEST, HIGHEST, 3e38], dtype=torch.float32)
    tensor = torch.cat([tensor, -tensor]) if signed else tensor.abs()
    bins = Bins(signed, fine)
    coarser = Bins(signed, bits)
    counts, expected = (np.bincount(each.of(tensor), minlength=each.number) for each in (bins, coarser))
    assert merged(np.stack([counts, 0 * counts]), bins, bits).tolist() == [expected.tolist(), [0] * coarser.number]
    assert set(coarser.edges()) <= set(bins.edges())
