"""Means, intervals and tests against scipy; the tables say what the numbers do."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save
from scipy import stats

from monolora.recipes import experiment_steps
from monolora.recipes.superposition.records import read_records
from monolora.recipes.superposition.settings import MONO, POLY
from monolora.recipes.superposition.tables import CLEAN, INPUT, LABEL, Comparison, Results, as_markdown, results_of
from monolora.stats import holm

SEEDS = 5
LEVELS = {"label": ("0.0", "0.6", "0.9"), "input": ("0.0", "0.3", "0.6", "2.0")}


def write_records(out: Path, seeds: int = SEEDS) -> None:
    """Made-up ones: at S = 0.5 mono is ahead under label noise only, at 0.9 poly under any noise but input noise 2."""
    random = np.random.default_rng(0)
    out.mkdir(exist_ok=True)
    weights = save({"W": np.zeros((3, seeds, 2, 3), np.float32)})
    (out / "encoders.safetensors").write_bytes(weights)
    inputs = {"encoders": hashlib.sha256(weights).hexdigest()}
    norms = {"0.5": [[1.0, 0.9, 0.2]] * seeds, "0.0": [[1.0, 0.0, 0.1]] * seeds, "0.9": [[0.0, 0.1, 0.5]] * seeds}
    encoders = {
        "loss": {S: random.uniform(size=seeds).tolist() for S in norms},
        "norms": norms,
        "dimensionality": {S: random.uniform(size=(seeds, 3)).tolist() for S in norms},
        "paired": {S: [[True, True, False]] * (seeds - 1) + [[False] * 3] for S in norms},
        "weights": hashlib.sha256(weights).hexdigest(),
        "seconds": 1.0,
    }
    experiment_steps.write(out / "encoders.json", {"seeds": seeds}, {}, encoders)
    own = {"test_samples": 70, "epochs": 2, "learning_rate": 2.0, "weight_decay": 0.0}
    for count in (1000, 90):
        accuracy = {S: accuracies(random, S, seeds) for S in ("0.5", "0.0", "0.9")}
        experiment_steps.write(
            out / f"noise-{count}.json", own, inputs, {"accuracy": accuracy, "fitted": {}, "seconds": 1.0}
        )


def accuracies(random: np.random.Generator, sparsity: str, seeds: int) -> dict[str, Any]:
    shares: dict[str, Any] = {MONO: {}, POLY: {}}
    for kind, levels in LEVELS.items():
        for level in levels:
            shared = random.uniform(0.4, 0.6, seeds)
            gain = {"0.0": 0.0, "0.5": 0.2 * (level == "0.9"), "0.9": -0.2 if level != "2.0" else 0.1}[sparsity]
            noise = 0.01 * random.normal(size=seeds) * (sparsity != "0.0")
            shares[MONO].setdefault(kind, {})[level] = (shared + gain + noise).tolist()
            shares[POLY].setdefault(kind, {})[level] = shared.tolist()
    for of_encoder in shares.values():
        of_encoder["input"]["0.0"] = of_encoder["label"]["0.0"]
    return shares


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_records(tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def results(out: Path) -> Results:
    return results_of(read_records(out))


def raw(out: Path, train_samples: int, sparsity: str) -> dict[str, Any]:
    return json.loads((out / f"noise-{train_samples}.json").read_text())["results"]["accuracy"][sparsity]


def comparison_of(comparisons: list[Comparison], sparsity: float, kind: str, level: float) -> Comparison:
    (match,) = [own for own in comparisons if (own.sparsity, own.kind, own.level) == (sparsity, kind, level)]
    return match


def test_order_and_number(results: Results) -> None:
    assert [run.train_samples for run in results.experiments] == [90, 1000]
    assert [row.sparsity for row in results.encoders] == [0.0, 0.5, 0.9]
    for run in results.experiments:
        of_sparsity = [(CLEAN, 0), (LABEL, 0.6), (LABEL, 0.9), (INPUT, 0.3), (INPUT, 0.6), (INPUT, 2.0)]
        assert [(comparison.sparsity, comparison.kind, comparison.level) for comparison in run.same_data] == [
            (S, *of) for S in (0.0, 0.5, 0.9) for of in of_sparsity
        ]
        assert [comparison.sparsity for comparison in run.own_data] == [0.5] * 6 + [0.9] * 6
    assert len(results.comparisons()) == 2 * 2 * 6


@pytest.mark.parametrize("of", [("label", "0.9", LABEL), ("input", "0.3", INPUT), ("label", "0.0", CLEAN)])
@pytest.mark.parametrize("sparsity", ["0.5", "0.9"])
def test_means_intervals_and_tests_are_scipys(
    out: Path, results: Results, of: tuple[str, str, str], sparsity: str
) -> None:
    kind_in_file, level, kind = of
    comparison = comparison_of(results.experiments[1].same_data, float(sparsity), kind, float(level))
    mono, poly = (np.array(raw(out, 1000, sparsity)[name][kind_in_file][level]) for name in (MONO, POLY))
    for estimate, shares in ((comparison.mono, mono), (comparison.poly, poly), (comparison.difference, mono - poly)):
        values = 100 * shares
        interval = stats.t.interval(0.95, SEEDS - 1, values.mean(), stats.sem(values))
        assert (estimate.mean, estimate.low, estimate.high) == pytest.approx((values.mean(), *interval))
        assert estimate.seeds == SEEDS
    assert comparison.p == pytest.approx(stats.ttest_rel(mono, poly).pvalue)


def test_own_data_is_mono_on_dense_data(out: Path, results: Results) -> None:
    comparison = comparison_of(results.experiments[0].own_data, 0.9, LABEL, 0.9)
    mono, poly = raw(out, 90, "0.0")[MONO]["label"]["0.9"], raw(out, 90, "0.9")[POLY]["label"]["0.9"]
    assert comparison.mono.mean == pytest.approx(100 * np.mean(mono))
    assert comparison.difference.mean == pytest.approx(100 * (np.mean(mono) - np.mean(poly)))
    assert comparison.p == pytest.approx(stats.ttest_rel(mono, poly).pvalue)


def test_who_is_ahead(results: Results) -> None:
    for run in results.experiments:
        assert comparison_of(run.same_data, 0.5, LABEL, 0.9).leader == MONO
        assert comparison_of(run.same_data, 0.9, INPUT, 2.0).leader == MONO
        assert comparison_of(run.same_data, 0.9, CLEAN, 0.0).leader == POLY
        for comparison in run.same_data[:6]:  # at S = 0 the same encoder
            assert (comparison.leader, comparison.difference.mean, comparison.p) == (None, 0.0, 1.0)


def test_a_reversal_is_where_poly_leads_without_noise_and_mono_with_it(results: Results) -> None:
    for run in results.experiments:
        reversals = [
            (comparison.sparsity, comparison.kind, comparison.level)
            for comparison in run.same_data
            if comparison.reversal
        ]
        assert reversals == [(0.9, INPUT, 2.0)]  # at S = 0.5 poly does not lead without noise


def test_encoders(out: Path, results: Results) -> None:
    dense, half, sparse = results.encoders
    assert [row.represented.mean for row in results.encoders] == pytest.approx(
        [1, 2, 0]
    )  # a norm of 0.5 is not above it
    assert half.paired.mean == pytest.approx(2 * (SEEDS - 1) / SEEDS)
    of_file = json.loads((out / "encoders.json").read_text())["results"]
    assert dense.dimensionality is not None
    assert dense.dimensionality.mean == pytest.approx(np.mean([row[0] for row in of_file["dimensionality"]["0.0"]]))
    assert half.dimensionality is not None
    assert half.dimensionality.mean == pytest.approx(np.mean([row[:2] for row in of_file["dimensionality"]["0.5"]]))
    assert sparse.dimensionality is None
    interval = stats.t.interval(0.95, SEEDS - 1, np.mean(of_file["loss"]["0.5"]), stats.sem(of_file["loss"]["0.5"]))
    assert (half.loss.low, half.loss.high) == pytest.approx(interval)


def test_tables(results: Results) -> None:
    text = as_markdown(results)
    lines = text.splitlines()
    assert "Means over 5 seeds ± half of the 95 % t-interval." in lines
    assert sum("the same encoder" in line for line in lines) == 2
    # nearest to 0.5 is 0.6
    (head, *_) = [line for line in lines if "clean: mono" in line]
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    assert columns == [
        "S", "clean: mono", "poly", "mono − poly", "90 % wrong labels: mono", "poly", "mono − poly",
        "input noise 0.6: mono", "poly", "mono − poly",
    ]  # fmt: skip
    row = next(line for line in lines[lines.index(head) :] if line.startswith("| 0.9"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    comparison = comparison_of(results.experiments[0].same_data, 0.9, CLEAN, 0.0)
    assert comparison.difference.half_width is not None
    assert cells[3] == f"−{-comparison.difference.mean:.1f} ± {comparison.difference.half_width:.1f}, poly ahead"
    assert cells[1].split(" ± ")[0] == f"{comparison.mono.mean:.1f}"
    assert "| – " in text or "– |" in text  # nothing is represented at S = 0.9


def test_where_mono_is_ahead_in_words(results: Results) -> None:
    text = as_markdown(results)
    by_hand = {
        kind: [comparison for _, comparison in results.comparisons() if comparison.kind == kind]
        for kind in (CLEAN, LABEL, INPUT)
    }
    assert {kind: len(own) for kind, own in by_hand.items()} == {CLEAN: 4, LABEL: 8, INPUT: 12}
    assert "- label noise: mono is ahead in 2 of 8 (N = 90, S = 0.5 at 0.9; N = 1000, S = 0.5 at 0.9), 2 after" in text
    for kind, own in by_hand.items():
        ahead = [sum(comparison.leader == name for comparison in own) for name in (MONO, POLY, None)]
        (line,) = [line for line in text.splitlines() if line.startswith(f"- {kind}: ")]
        assert line.startswith(f"- {kind}: mono is ahead in {ahead[0]} of {len(own)}")
        assert line.endswith(f"; poly in {ahead[1]}; not told apart: {ahead[2]}.")
    remain = holm([comparison.p for _, comparison in results.comparisons() if comparison.p is not None])
    signs = [comparison.difference.mean > 0 for _, comparison in results.comparisons()]
    mono, poly = (
        sum(p <= 0.05 and sign == which for p, sign in zip(remain, signs, strict=True)) for which in (True, False)
    )
    assert "24 comparisons in all" in text
    assert "2 after Holm's correction; poly is ahead without noise in 0 of these; poly in" in text  # of label noise
    assert "poly is ahead without noise in 2 of these (N = 90, S = 0.9 at 2; N = 1000, S = 0.9 at 2)" in text
    assert f"mono remains ahead in {mono} and poly in {poly}." in text


def test_one_seed_has_no_intervals(tmp_path: Path) -> None:
    write_records(tmp_path, seeds=1)
    results = results_of(read_records(tmp_path))
    comparison = comparison_of(results.experiments[0].same_data, 0.5, LABEL, 0.9)
    assert (comparison.leader, comparison.p, comparison.difference.low) == (None, None, None)
    text = as_markdown(results)
    assert "One seed: no intervals." in text
    assert "±" not in text
    assert "24 comparisons of one seed each: nothing can be told apart." in text


def test_differences_that_are_all_the_same_are_told_apart_without_a_test(tmp_path: Path) -> None:
    write_records(tmp_path)
    path = tmp_path / "noise-90.json"
    record = json.loads(path.read_text())
    record["results"]["accuracy"]["0.5"][MONO]["label"]["0.9"] = [0.75] * SEEDS
    record["results"]["accuracy"]["0.5"][POLY]["label"]["0.9"] = [0.5] * SEEDS
    path.write_text(json.dumps(record))
    comparison = comparison_of(results_of(read_records(tmp_path)).experiments[0].same_data, 0.5, LABEL, 0.9)
    assert (comparison.difference.mean, comparison.p) == (25, 0.0)
