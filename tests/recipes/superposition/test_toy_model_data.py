"""Samples have the distribution that they should, and all sparsities share their random numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from monolora.errors import InputError
from monolora.recipes.superposition.toy_model import labelled_samples, samples

RANDOM = torch.Generator().manual_seed(5)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.95])
def test_zeros_and_uniform_numbers(sparsity: float) -> None:
    x = samples(torch.rand(40_000, 5, generator=RANDOM), sparsity).flatten().numpy()
    zeros = int((x == 0).sum())
    assert stats.binomtest(zeros, len(x), sparsity).pvalue > 1e-4 if sparsity else zeros <= 1
    assert stats.kstest(x[x > 0], "uniform").pvalue > 1e-4


@given(sparsity=st.floats(0, 0.99), other=st.floats(0, 0.99), v=st.lists(st.floats(0, 1), min_size=1, max_size=9))
@settings(deadline=None)
def test_each_entry_is_its_formula_and_is_active_at_all_lower_sparsities(
    sparsity: float, other: float, v: list[float]
) -> None:
    given_v = torch.tensor(v, dtype=torch.float64)
    x = {S: samples(given_v, S).tolist() for S in (sparsity, other)}
    assert x[sparsity] == pytest.approx([max(0.0, (entry - sparsity) / (1 - sparsity)) for entry in v])
    assert given_v.tolist() == v
    low, high = (x[S] for S in sorted((sparsity, other)))
    assert all(at_low >= at_high - 1e-12 for at_low, at_high in zip(low, high, strict=True))


def test_sparsity_may_be_a_tensor() -> None:
    v = torch.rand(2, 3, 4, generator=RANDOM)
    x = samples(v, torch.tensor([0.0, 0.5]).view(2, 1, 1))
    torch.testing.assert_close(x, torch.stack([samples(v[0], 0.0), samples(v[1], 0.5)]))


@pytest.mark.parametrize(("features", "sparsity"), [(2, 0.0), (2, 0.9), (5, 0.7)])
def test_labelled_samples_are_those_with_an_active_feature(features: int, sparsity: float) -> None:
    """Against rejection of whole rows, with numpy's random numbers."""
    x_Nn, labels_N = labelled_samples(20_000, features, sparsity, seed=0, purpose=1)
    assert x_Nn.dtype == torch.float32
    assert bool((x_Nn.amax(1) > 0).all())
    assert labels_N.tolist() == [max(range(features), key=row.__getitem__) for row in x_Nn.tolist()]

    random = np.random.default_rng(0)
    other = random.uniform(size=(400_000, features)) * (random.uniform(size=(400_000, features)) >= sparsity)
    other = other[other.max(1) > 0][:20_000]
    assert len(other) == 20_000
    for of_row in (np.max, np.min, np.sum):
        assert stats.ks_2samp(of_row(x_Nn.numpy(), 1), of_row(other, 1)).pvalue > 1e-4
    assert stats.chisquare(np.bincount(labels_N, minlength=features)).pvalue > 1e-4


def test_labelled_samples_share_their_random_numbers_over_sparsities() -> None:
    dense = labelled_samples(2_000, 4, 0.0, seed=3, purpose=0)
    for sparsity in (0.3, 0.8):
        sparse = labelled_samples(2_000, 4, sparsity, seed=3, purpose=0)
        active_N = dense.x_Nn.amax(1) > sparsity
        assert 0 < active_N.sum() < 2_000
        torch.testing.assert_close(sparse.x_Nn[active_N], samples(dense.x_Nn, sparsity)[active_N])
        assert torch.equal(sparse.labels_N[active_N], dense.labels_N[active_N])


def test_samples_depend_on_seed_and_purpose_only() -> None:
    first = labelled_samples(50, 4, 0.9, seed=3, purpose=0)
    assert torch.equal(first.x_Nn, labelled_samples(50, 4, 0.9, seed=3, purpose=0).x_Nn)
    for seed, purpose in ((4, 0), (3, 1)):
        assert not torch.equal(first.x_Nn, labelled_samples(50, 4, 0.9, seed=seed, purpose=purpose).x_Nn)


def test_rows_that_are_drawn_again_are_new() -> None:
    sparse = labelled_samples(2_000, 4, 0.4, seed=0, purpose=0)
    assert int((labelled_samples(2_000, 4, 0.0, seed=0, purpose=0).x_Nn.amax(1) <= 0.4).sum()) > 20
    several_Nn = sparse.x_Nn[(sparse.x_Nn > 0).sum(1) > 1]  # single numbers may be the same by chance
    assert len(several_Nn.unique(dim=0)) == len(several_Nn)


def test_where_no_feature_is_ever_active_nothing_is_drawn_for_ever() -> None:
    with pytest.raises(InputError, match=r"--sparsities 0\.9999999 hardly any sample .* raise --features"):
        labelled_samples(1, 2, 0.9999999, seed=0, purpose=0)
