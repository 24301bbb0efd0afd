"""Mixtures against brute force and against TRL's own."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trl.scripts.utils import DatasetConfig, DatasetMixtureConfig, get_dataset

from monolora.data.mixture import Mixture, allocated, interleaved, mixture_task
from monolora.data.mixture_config import Component, as_settings, from_settings, from_words
from monolora.data.row_formats import beginning
from monolora.data.task import SampleLimits
from monolora.data.tasks import demo
from monolora.errors import InputError

Write = Callable[..., str]
SHARES = st.sampled_from(["0.9", "0.1", "1", "2.5", "0.333", "7"]).map(Fraction)
SOURCES = st.lists(st.tuples(st.integers(1, 60), SHARES), min_size=1, max_size=4)


@given(SOURCES, st.none() | st.integers(1, 100))
def test_a_mixture_is_the_largest_without_repetition(sources: list[tuple[int, Fraction]], most: int | None) -> None:
    available, shares = zip(*sources, strict=True)
    numbers = allocated(available, shares, most)
    size, total = sum(numbers), sum(shares)
    assert all(number <= own for number, own in zip(numbers, available, strict=True))
    assert most is None or size <= most
    # By brute force: the largest size at which no data set has to give more than it has.
    largest = max(
        n for n in range(sum(available) + 1)
        if all(n * share / total <= own for own, share in zip(available, shares, strict=True))
    )  # fmt: skip
    assert size in ({largest, largest + 1} if most is None or most > largest else {most})
    for number, share in zip(numbers, shares, strict=True):
        assert abs(number - size * share / total) < 2
        assert size < 400 or abs(number / size - share / total) < 0.01


def test_shares_are_realised_within_a_hundredth() -> None:
    for most in (200, 999, 5000, None):
        numbers = allocated([100_000, 9_000, 40_000], [Fraction("0.7"), Fraction("0.1"), Fraction("0.2")], most)
        for number, share in zip(numbers, (0.7, 0.1, 0.2), strict=True):
            assert abs(number / sum(numbers) - share) < 0.01
    assert numbers == [63_000, 9_000, 18_000]


def _brute_force_order(numbers: list[int], seed: int) -> list[int]:
    """The rule of :func:`interleaved` step by step: whose next example comes first?"""
    draw = random.Random(seed)
    places = [[(k + draw.random()) / number for k in range(number)] for number in numbers]
    order = []
    while any(places):
        source = min((own[0], index) for index, own in enumerate(places) if own)[1]
        places[source].pop(0)
        order.append(source)
    return order


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_the_order_against_brute_force(numbers: list[int], seed: int) -> None:
    order = interleaved(numbers, seed)
    assert order == _brute_force_order(numbers, seed)
    assert [order.count(source) for source in range(len(numbers))] == numbers
    # Every beginning of the mixture holds the shares of the whole, but for an example or two of each data set.
    for end in range(len(order) + 1):
        for source, number in enumerate(numbers):
            expected = end * number / len(order)
            assert abs(order[:end].count(source) - expected) <= len(numbers) + 1


def test_the_order_is_that_of_every_process() -> None:
    assert interleaved([5, 2, 3], 11) == [0, 2, 1, 0, 2, 0, 1, 0, 0, 2]
    assert interleaved([5, 2, 3], 12) != interleaved([5, 2, 3], 11)


def _rows(letter: str, number: int) -> list[dict[str, str]]:
    return [{"prompt": f"{letter}{k}", "completion": f" {letter.upper()}{k}"} for k in range(number)]


def _mixed(components: list[Component], seed: int = 3, **limits: Any) -> Mixture:
    return mixture_task(components, seed, SampleLimits(**limits))


@pytest.mark.parametrize("fractions", [(None, None), (0.75, 0.25), (0.2, 0.8), (3, 1)])
def test_trl_mixes_the_same_rows(
    write_rows: Write, tmp_path: Any, fractions: tuple[float | None, float | None]
) -> None:
    """Of folders with a test split, which TRL does not hold out itself."""
    entries = []
    for letter, number, fraction in zip("ab", (37, 23), fractions, strict=True):
        (tmp_path / letter).mkdir()
        write_rows([{**row, "note": "n"} for row in _rows(letter, number)], f"{letter}/train.jsonl")
        write_rows(_rows(f"test-{letter}", 2), f"{letter}/test.jsonl")
        columns = ["prompt", "completion"]
        entries.append({"path": str(tmp_path / letter), "columns": columns, "fraction": fraction})
    theirs = get_dataset(DatasetMixtureConfig(datasets=[DatasetConfig(**entry) for entry in entries]))["train"]
    ours = _mixed(from_settings(entries, "here"))
    wanted = [(row["prompt"], row["completion"]) for row in theirs]
    trained = [(example.instruction, example.response) for example in ours.train]
    assert sorted(trained) == sorted(wanted)
    for letter in "ab":  # each in its own order
        assert [t for t in trained if t[0][0] == letter] == [t for t in wanted if t[0][0] == letter]
    assert from_settings(as_settings(from_settings(entries, "here")), "record") == from_settings(entries, "here")


def test_the_parts_of_a_mixture(write_rows: Write) -> None:
    path = write_rows(_rows("a", 100))
    mixed = _mixed(from_words(["demo:0.9", f"{path}:0.1"]), train=200, validation=20, test=5)
    names = [part.name for part in mixed.parts]
    assert names == ["demo", path]
    assert mixed.name == f"demo + {path}"
    assert [part.examples for part in mixed.parts] == [180, 20]
    assert [len(examples) for examples in mixed.held_out] == [18, 2]
    assert mixed.validation(20) == [*mixed.held_out[0], *mixed.held_out[1]]
    assert mixed.held_out[0] == demo.load().train[-18:]
    of_demo = [e for e, source in zip(mixed.train, mixed.train_sources, strict=True) if source == 0]
    assert of_demo == demo.load().train[:180]
    assert mixed.train_sources == interleaved([180, 20], 3)
    assert mixed.limited_by is None
    assert mixed.test == demo.load().test
    assert mixed.selected(None, 5) == (mixed.train, mixed.test[:5])
    own = {example.group for example in mixed.held_out[1]}
    assert own.isdisjoint(example.group for example in mixed.train)
    # The same examples with every seed, in another order.
    other = _mixed(from_words(["demo:0.9", f"{path}:0.1"]), seed=4, train=200, validation=20, test=5)
    assert other.train != mixed.train
    assert Counter(map(str, other.train)) == Counter(map(str, mixed.train))


def test_a_small_data_set_limits_the_mixture(write_rows: Write) -> None:
    path = write_rows(_rows("a", 50))  # five are held out
    mixed = _mixed(from_words(["demo:0.9", f"{path}:0.1"]), train=5000)
    assert [part.examples for part in mixed.parts] == [405, 45]
    assert mixed.limited_by == mixed.parts[1]
    assert max(Counter(map(str, mixed.train)).values()) == 1
    whole = _mixed(from_words(["demo", path]))
    assert [part.examples for part in whole.parts] == [3456, 45]
    assert whole.limited_by is None
    # Without shares, a part of the mixture has those of the whole.
    assert [part.examples for part in _mixed(from_words(["demo", path]), train=100).parts] == [99, 1]
    with pytest.raises(
        InputError, match=r"The share of .*rows.jsonl is less than one of the 10 examples of the mixture"
    ):
        _mixed(from_words(["demo", path]), train=10)
    with pytest.raises(InputError, match=r"--validation-samples 4: the share of .*rows.jsonl is less than one example"):
        _mixed(from_words(["demo", path]), validation=4)
    with pytest.raises(InputError, match=r"--validation-samples 90: .*has 45 examples, and 45 would be held out"):
        _mixed(from_words([f"{path}:1", "demo:1"]), validation=90)


def test_what_one_holds_out_no_other_is_trained_on(write_rows: Write) -> None:
    """Rows that are in two data sets."""
    first = write_rows(_rows("a", 40), "first.jsonl")
    second = write_rows([*_rows("a", 20), *_rows("b", 60)], "second.jsonl")
    mixed = _mixed(from_words([first, second]), validation=12)
    held_out = {beginning(example) for example in (*mixed.test, *mixed.validation(12))}
    assert held_out.isdisjoint(map(beginning, mixed.train))
    assert mixed.parts[1].left_out > 0
    assert all(part.examples == part.available for part in mixed.parts)
    assert mixed.train == _mixed(from_words([first, second]), validation=12, test=1).train  # however few are scored


def test_rows_that_all_begin_alike(write_rows: Write) -> None:
    rows = [{"prompt": "Go on.", "completion": f" {k}"} for k in range(20)]
    other = [{"prompt": "Go on.", "completion": f" {k}"} for k in range(20, 40)]
    paths = [write_rows(rows, "a.jsonl"), write_rows(other, "b.jsonl")]
    with pytest.warns(UserWarning, match=r"18 of 18 examples of .*b.jsonl begin as a scored row of .*a.jsonl"):
        mixed = _mixed(from_words(paths))
    assert [part.examples for part in mixed.parts] == [18, 18]
