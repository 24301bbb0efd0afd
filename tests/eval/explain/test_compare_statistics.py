"""The cluster bootstrap of a comparison against brute force, simulation and what permutations can show."""

from __future__ import annotations

import numpy as np
import pytest

from monolora.eval.explain.compare_records import Mean
from monolora.eval.explain.compare_statistics import Values, change_of, clustered, mean_of


def _values(module_F: list[str], value_F: list[float]) -> Values:
    return Values(np.array(value_F), np.array(module_F, dtype=object))


def test_resamples_are_of_whole_modules_and_shared_by_the_rows() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for modules in (list("abcdef"), list("cdefgh"), list("abcdefgh")):  # some modules are in one row only
        module_F = rng.choice(modules, size=40)
        rows.append(Values(np.where(rng.random(40) < 0.2, np.nan, rng.normal(size=40)), module_F.astype(object)))
    found = clustered(rows, resamples=30, seed=5)
    names = np.array(list("abcdefgh"))
    for r, drawn in enumerate(np.random.default_rng(5).integers(8, size=(30, 8))):
        for k, (value_F, module_F) in enumerate(rows):
            values = np.concatenate([value_F[module_F == name] for name in names[drawn]])
            assert found.resampled_KR[k, r] == pytest.approx(np.nanmean(values))
    change = change_of(found, 0, 1)
    resampled_R = found.resampled_KR[0] - found.resampled_KR[1]
    assert [change.low, change.high] == pytest.approx(np.quantile(resampled_R, [0.025, 0.975]))
    assert change.draws == len(
        {*rows[0].module_F[~np.isnan(rows[0].value_F)]} & {*rows[1].module_F[~np.isnan(rows[1].value_F)]}
    )


def test_intervals_cover_and_tests_hold_their_level_though_units_of_a_module_are_alike() -> None:
    rng = np.random.default_rng(0)
    covered = naive = rejected = 0
    module_F = np.repeat(np.arange(40).astype(str), 8).astype(object)
    for _ in range(300):
        shared = np.repeat(rng.normal(size=40), 8)  # what both adapters' modules have in common
        a, b = (shared + np.repeat(rng.normal(size=40), 8) + rng.normal(size=320) for _ in range(2))
        found = clustered([Values(a, module_F), Values(b, module_F)], resamples=400)
        mean, change = mean_of(found, 0), change_of(found, 0, 1)
        covered += mean.low <= 0 <= mean.high
        rejected += change.p < 0.05
        naive += abs(a.mean()) < 1.96 * a.std() / np.sqrt(320)
    assert 0.9 < covered / 300 < 0.98
    assert rejected / 300 < 0.1
    assert naive / 300 < 0.7  # what the interval would be if units were drawn


def test_p_is_never_below_what_so_few_modules_can_show() -> None:
    low, high = _values(list("abc"), [0.0, 0.1, 0.2]), _values(list("abc"), [5.0, 5.1, 5.2])
    assert change_of(clustered([high, low]), 0, 1).p == 2 / 2**3
    elsewhere = _values(list("def"), [0.0, 0.1, 0.2])
    apart = change_of(clustered([high, elsewhere]), 0, 1)
    assert apart.p == pytest.approx(2 / 20)  # 6 over 3 ways to share out the modules
    assert apart.draws == 0


def test_equal_adapters_do_not_differ_and_copies_have_no_interval() -> None:
    same = _values(list("aabb"), [0.25, 0.5, 0.75, 0.1])
    change = change_of(clustered([same, same]), 0, 1)
    assert change[:4] == (0.0, 0.0, 0.0, 1.0)
    mean = mean_of(clustered([_values(list("ab"), [1.0, 1.0])]), 0)
    assert mean == Mean(1.0, None, None, 2, 2, 2)


def test_a_row_without_values_is_not_tested() -> None:
    found = clustered([_values(list("ab"), [1.0, 2.0]), _values(list("ab"), [np.nan, np.nan])])
    assert mean_of(found, 1) == Mean(None, None, None, 0, 0, 2)
    assert change_of(found, 0, 1) is None
