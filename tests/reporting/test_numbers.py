"""Numbers as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monolora.reporting.numbers import (
    decimals,
    decimals_of_small,
    format_change,
    format_interval,
    format_number,
    format_p,
    interval_caption,
    plain,
)
from monolora.stats import Estimate


def test_nothing_is_a_dash_and_never_a_zero() -> None:
    assert format_number(None, 2) == format_change(None, 1) == format_p(None) == "–"
    assert format_interval(None, 3.0, 1) == format_interval(3.0, None, 1) == ""


@pytest.mark.parametrize(
    ("value", "places", "text"), [(5.37, 1, "5.4"), (-0.04, 1, "0.0"), (-1.25, 2, "−1.25"), (1234.5, 0, "1234")]
)
def test_numbers(value: float, places: int, text: str) -> None:
    assert format_number(value, places) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.26, "+0.3"), (-0.26, "−0.3"), (0.0, "0.0"), (0.01, "0.0"), (-0.01, "0.0")]
)
def test_changes_have_a_sign_unless_they_are_zero(value: float, text: str) -> None:
    assert format_change(value, 1) == text


def test_intervals() -> None:
    assert format_interval(4.91, 6.0, 1) == "[4.9, 6.0]"
    assert format_interval(-1.0, 2.0, 1, changes=True) == "[−1.0, +2.0]"


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.0, "<0.001"), (0.00099, "<0.001"), (0.001, "0.001"), (0.0499, "0.050"), (0.051, "0.051"), (1.0, "1.00")],
)
def test_p(p: float, text: str) -> None:
    assert format_p(p) == text


@given(st.floats(-1e6, 1e6), st.integers(0, 3))
@settings(deadline=None)
def test_the_text_is_the_number_to_half_a_unit_of_the_last_place(value: float, places: int) -> None:
    for text in (format_number(value, places), format_change(value, places)):
        assert abs(float(text.replace("−", "-")) - value) <= 0.5 * 10.0**-places * (1 + 1e-6)


def test_decimals_are_of_the_largest() -> None:
    assert decimals([None, 0.1, 9.9]) == 2
    assert decimals([0.1, 10.0]) == 1
    assert decimals([1000.0]) == 0
    assert decimals([None]) == 2


def test_plain_text_cannot_steer_a_terminal() -> None:
    assert plain("a\x1b[31mb\r\nc\u2028d\x9b2J") == "a [31mb c d 2J"
    assert plain("ü 🌧") == "ü 🌧"


@pytest.mark.parametrize(
    ("encoders", "draws", "words"),
    [
        (3, 5, "Means and 95 % t-intervals over 3 encoders (pretraining seeds), each the mean of 5 draws."),
        (3, 1, "Means and 95 % t-intervals over 3 encoders (pretraining seeds), one run each."),
        (1, 5, "Means and 95 % t-intervals over 5 draws on one encoder: they say nothing about other encoders."),
        (1, 1, "One run each: no interval."),
    ],
)
def test_captions_say_what_intervals_are_over(encoders: int, draws: int, words: str) -> None:
    assert interval_caption({"CL": [Estimate(0.5, seeds=encoders, draws=draws), None]}, "draws") == words


def test_captions_tell_apart_what_has_other_numbers_of_runs() -> None:
    one, many = Estimate(0.5), Estimate(0.5, 0.4, 0.6, seeds=2)
    assert interval_caption({"CL": [many], "SAE": [one, one], "NCL": [many]}, "draws") == (
        "CL, NCL: Means and 95 % t-intervals over 2 encoders (pretraining seeds), one run each. "
        "SAE: One run each: no interval."
    )


@pytest.mark.parametrize(
    ("values", "places"),
    [([0.27, 0.0018], 4), ([0.27, 0.2], 2), ([57.3, 3.0], 1), ([0.0, 0.5], 2), ([], 2), ([1e-9], 5), ([2000, None], 0)],
)
def test_small_numbers_keep_two_digits(values: list[float | None], places: int) -> None:
    assert decimals_of_small(values) == places
