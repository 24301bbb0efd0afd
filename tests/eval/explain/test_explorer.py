"""What the explorer's script reads, against the records it is made of."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monolora.eval.explain.explorer import LEVELS, explorer_data, level, module_parts, number, share
from monolora.eval.explain.records import Ablations, Explained
from monolora.reporting.html import flat, script_json, script_lines
from tests.support.feature_records import made


def _read(explained: Explained) -> tuple[dict[str, Any], list[Any], list[list[Any]]]:
    """Head, common lines, lines by data set: through JSON and back, as the script gets them."""
    data = explorer_data(explained)
    common, *datasets = (
        [json.loads(line) for line in script_lines(each).split("\n")] for each in (data.common, *data.datasets)
    )
    return json.loads(script_json(data.head)), common, datasets


@pytest.mark.parametrize("signed", [False, True])
def test_contexts_come_back_as_they_were(signed: bool) -> None:
    explained = made(units=30, contexts=5, signed=signed)
    head, _, datasets = _read(explained)
    words = head["strings"]
    for dataset, lines in zip(explained.datasets, datasets, strict=True):
        assert len(lines) == 30
        for unit, line in enumerate(lines):
            assert len(line["e"]) == 1 + signed
            for end, (_, _, contexts, tokens) in zip(dataset.ends, line["e"], strict=True):
                assert [words[mean[0]] for mean in tokens] == [mean.token for mean in end.tokens[unit]]
                assert len(contexts) == len(end.contexts[unit])
                for context, (text, label, value, peak, cut, places, levels) in zip(
                    end.contexts[unit], contexts, strict=True
                ):
                    assert [words[place] for place in places] == list(context.tokens)
                    assert (text, words[label], peak) == (context.text, context.label, context.peak)
                    assert (bool(cut & 1), bool(cut & 2)) == (context.cut_before, context.cut_after)
                    assert value == pytest.approx(context.value, rel=1e-3)
                    shown = np.array(levels) * line["s"] / LEVELS
                    np.testing.assert_allclose(shown, context.activations, atol=1.5 * line["s"] / LEVELS)
                    assert [each == 0 for each in levels] == [each == 0 for each in context.activations]


def test_numbers_of_units_come_back() -> None:
    explained = made(units=30)
    head, common, datasets = _read(explained)
    words = head["strings"]
    names = [f"{head['modules'][m][0]}:{n}" for m, n in zip(head["module"], head["number"], strict=True)]
    assert names == [str(name) for name in explained.units]
    for dataset, found, lines in zip(explained.datasets, head["datasets"], datasets, strict=True):
        for name in ("firing", "max", "min", "effect", "information"):
            np.testing.assert_allclose(found["columns"][name], getattr(dataset, name), rtol=1e-3)
        consistency = [math.nan if value is None else value for value in found["columns"]["consistency"]]
        np.testing.assert_allclose(consistency, dataset.ends[0].consistency, rtol=1e-3)
        assert [None if place is None else words[place] for place in found["label"]] == dataset.ends[0].label
        for unit, line in enumerate(lines):
            first, *counts = line["h"] or [0]
            histogram = np.zeros_like(dataset.histogram_UE[unit])
            histogram[first : first + len(counts)] = counts
            np.testing.assert_array_equal(histogram, dataset.histogram_UE[unit])
            assert [partner[0] for partner in line["p"]] == [each.unit for each in dataset.partners[unit]]
    for unit, line in enumerate(common):
        logits = explained.logits[unit]
        assert (line["l"] is None) == (logits is None)
        if logits is not None:
            assert line["l"][0] == logits.how
            assert [words[token] for token, _ in line["l"][1]] == [token for token, _ in logits.raised]
            assert [words[token] for token, _ in line["l"][2]] == [token for token, _ in logits.lowered]
        changes = explained.ablations.changes.get(unit)
        assert (line["a"] is None) == (changes is None)
        for place, column in enumerate(head["changes"]):
            assert column[unit] == (None if changes is None else pytest.approx(changes[place].value, rel=1e-3))
            if changes is not None:
                change = [math.nan if value is None else value for value in line["a"][place]]
                assert change == pytest.approx(list(changes[place]), rel=1e-3, nan_ok=True)
        assert [each[1] for each in line["c"]] == pytest.approx(
            [each.q[unit] for each in explained.contrasts], rel=1e-3
        )


def test_frequent_tokens_have_small_places() -> None:
    explained = made(units=30)
    words = explorer_data(explained).head["strings"]
    assert len(set(words)) == len(words)
    often = [token for end in explained.datasets[0].ends for each in end.contexts for c in each for token in c.tokens]
    assert np.mean([words.index(token) for token in often]) < len(words) / 2


def test_nothing_known_is_null() -> None:
    explained = made(units=9, labels=False, contrasts=[], ablations=Ablations())
    dead = 7
    head, common, datasets = _read(explained)
    assert head["datasets"][0]["columns"]["consistency"] == [None] * 9
    assert head["datasets"][0]["labels"] == []
    assert head["datasets"][0]["edges"][-1] is None  # infinite
    assert datasets[0][dead] == {"n": [0, 0, None, None], "h": [], "s": 0, "e": [[None, None, [], []]], "p": []}
    assert common[dead] == {"l": None, "a": None, "c": []}


def test_tokens_that_were_not_measured_are_null() -> None:
    explained = made(units=1, contexts=1, gated=(False,))
    end = explained.datasets[0].ends[0]
    context = end.contexts[0][0]
    gone = context._replace(activations=[math.nan, *context.activations[1:]])
    dataset = replace(explained.datasets[0], ends=[end._replace(contexts=[[gone]])])
    line = next(explorer_data(replace(explained, datasets=[dataset])).datasets[0])
    levels = line["e"][0][2][0][-1]
    assert levels[0] is None
    assert None not in levels[1:]
    assert levels[context.peak] == LEVELS


@given(st.floats(-1e6, 1e6), st.floats(1e-9, 1e3))
@settings(deadline=None)
def test_only_zero_has_level_0(value: float, factor: float) -> None:
    found = level(value, factor)
    assert found is not None
    assert (found == 0) == (value == 0)
    assert found * value >= 0
    assert abs(found - value * factor) <= 1


@given(st.floats(width=32))
@settings(deadline=None)
def test_numbers_have_four_digits_that_count(value: float) -> None:
    found = number(value)
    if not math.isfinite(value):
        assert found is None
    else:
        assert found == pytest.approx(value, rel=6e-4)
        assert len(f"{found:e}".split("e")[0].strip("-").replace(".", "").rstrip("0")) <= 4


@given(st.floats(0, 1))
@settings(deadline=None)
def test_only_all_and_none_are_said_to_be(value: float) -> None:
    found = share(value)
    assert found is not None
    assert (found == 1) == (value == 1)
    assert (found == 0) == (value == 0)
    assert found == pytest.approx(value, rel=6e-4)


def test_shares_of_nearly_all_are_not_all() -> None:
    explained = made(units=2, gated=(False,))
    dataset = replace(explained.datasets[0], firing=np.array([0.99996, 1]))
    contrast = replace(explained.contrasts[0], firing_a=np.array([0.99996, 1]), firing_b=np.array([1, 0.99996]))
    data = explorer_data(replace(explained, datasets=[dataset], contrasts=[contrast]))
    assert data.head["datasets"][0]["columns"]["firing"] == [0.9999, 1]
    assert [line["c"][0][2:] for line in data.common] == [[0.9999, 1], [1, 0.9999]]


def test_parts_of_module_names() -> None:
    names = ["model.layers.3.self_attn.q_proj", "lm_head", "encoder.block.0.layer.1.q", "decoder.block.0.layer.1.q"]
    assert [part[1:] for part in module_parts(names)] == [
        (3, "q_proj", "L3 q_proj"),
        (None, "lm_head", "lm_head"),
        (0, "q", "encoder.block.0.layer.1.q"),  # the short name would be both's
        (0, "q", "decoder.block.0.layer.1.q"),
    ]


@given(st.text())
@settings(deadline=None)
def test_json_in_a_page_cannot_end_its_script(text: str) -> None:
    written = script_json([text])
    assert "<" not in written
    assert written.isascii()
    assert json.loads(written) == [text]
    assert len(script_lines([text, text]).splitlines()) == 2


def test_settings_are_flat() -> None:
    made_of = {"a": {"b": 1, "c": [1, 2]}, "d": [{"e": None}, {"e": []}], "f": {}}
    lines = [("a.b", "1"), ("a.c", "1, 2"), ("d 1.e", "none"), ("d 2.e", "none"), ("f", "none")]
    assert list(flat(made_of)) == lines
