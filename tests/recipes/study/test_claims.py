"""Verdicts follow from intervals: made-up differences, large, small and none, on either side."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from monolora.errors import InputError
from monolora.eval.measures.table import Column
from monolora.random_effects import crossed
from monolora.recipes.study.claims import Claim, Verdict, claims, counted, detectable, targets, verdicts
from monolora.recipes.study.results import BASE, Values
from monolora.recipes.study.settings import Study
from monolora.stats import Estimate

PROMPTS = 200


def _values(
    shift: float,
    metric: str = "flagged",
    aspect: Any = "harm",
    of: str = "beavertails",
    noise: float = 3,
    unit: str = "%",
    headline: bool = True,
) -> Values:
    """MonoLoRA is ``shift`` above LoRA, which is as the base."""
    random = np.random.default_rng(0)
    base = random.normal(30, 5, (1, PROMPTS))
    lora = base + noise * random.normal(size=(3, PROMPTS))
    mono = base + shift + noise * random.normal(size=(3, PROMPTS))
    column = Column(
        metric=metric, aspect=aspect, set=of, judge="judge", title="judge flagged", group="", description="made up",
        better="lower", unit=unit, headline=headline,
    )  # fmt: skip
    return Values(column, np.ones(PROMPTS), {BASE: base, "LoRA": lora, "MonoLoRA": mono})


def _claim(shift: float, margin: float | None = None, better: str = "lower", noise: float = 3) -> Claim:
    values = _values(shift, noise=noise)
    return Claim("c", "s", "demo", values, "MonoLoRA", "LoRA", better, margin)  # type: ignore[arg-type]


def _only(claim: Claim) -> Verdict:
    (found,) = verdicts([claim])
    return found


@pytest.mark.parametrize(
    ("shift", "better", "answer"),
    [
        (-4, "lower", "holds"), (4, "lower", "does not hold"), (0, "lower", "cannot be told"),
        (4, "higher", "holds"), (-4, "higher", "does not hold"),
    ],
)  # fmt: skip
def test_a_side(shift: float, better: str, answer: str) -> None:
    found = _only(_claim(shift, better=better))
    assert found.answer == answer
    assert found.estimate is not None
    expected = crossed(_values(shift).by_model["MonoLoRA"] - _values(shift).by_model["LoRA"])
    assert found.estimate == expected
    assert f"{expected.mean:+.1f}".replace("-", "−")[:3] in found.text
    assert ("the other way round" in found.text) == (answer == "does not hold")
    assert ("four times in five" in found.text) == (answer == "cannot be told")


@pytest.mark.parametrize(
    ("shift", "better", "answer"),
    [
        (0, "lower", "holds"), (-9, "lower", "holds"), (9, "lower", "does not hold"), (2, "lower", "cannot be told"),
        (0, "higher", "holds"), (9, "higher", "holds"), (-9, "higher", "does not hold"),
        (-2, "higher", "cannot be told"),
    ],
)  # fmt: skip
def test_a_margin(shift: float, better: str, answer: str) -> None:
    found = _only(_claim(shift, margin=2, better=better))
    assert found.answer == answer
    assert found.p_holm is None
    assert "2 points" in found.text


def test_many_claims_are_corrected_together() -> None:
    """A difference that would do alone is none among twenty."""
    random = np.random.default_rng(3)
    weak = next(
        claim
        for noise in random.uniform(5, 60, 200)
        if 0.01 < _only(claim := _claim(-4, noise=float(noise))).p_holm < 0.04
    )
    alone, *_ = verdicts([weak])
    among, *_ = verdicts([weak, *[_claim(0)] * 19])
    assert alone.answer == "holds"
    assert among.answer == "cannot be told"
    assert among.p_holm == pytest.approx(min(1, 20 * alone.p_holm))
    assert verdicts([weak, *[_claim(0, margin=1)] * 19])[0] == alone  # those with a margin are no tests


def test_what_does_not_vary() -> None:
    def same(value: float) -> Claim:
        of = {"LoRA": np.zeros((3, 5)), "MonoLoRA": np.full((3, 5), value)}
        values = _values(0, unit="tokens")._replace(by_model=of)
        return Claim("c", "s", "demo", values._replace(weights_P=np.ones(5)), "MonoLoRA", "LoRA", "lower")

    assert [_only(same(value)).answer for value in (0, -1, 1)] == ["cannot be told", "holds", "does not hold"]
    assert [_only(same(value)._replace(margin=3)).answer for value in (0, 1, 4)] == ["holds", "holds", "does not hold"]
    single = same(-1).values._replace(by_model={"LoRA": np.zeros((1, 1)), "MonoLoRA": np.ones((1, 1))})
    assert _only(same(-1)._replace(values=single._replace(weights_P=np.ones(1)))).answer == "cannot be told"
    assert "no interval" in _only(same(1)).text
    missing = same(0)._replace(against="nobody")
    assert _only(missing).answer == "cannot be told"
    assert _only(missing).text == "It was not measured."


@pytest.mark.parametrize(
    ("prompts", "ours", "margin", "answer", "p"),
    [
        (300, 0, 3.0, "holds", None),  # one prompt of 300 is the standard error
        (20, 0, 3.0, "cannot be told", None),
        (300, 0, None, "cannot be told", 1),
        (3, 100, None, "cannot be told", 2 * stats.t.sf(3, 2)),
        (20, 100, None, "does not hold", 2 * stats.t.sf(20, 19)),
    ],
)
def test_flags_that_do_not_vary(prompts: int, ours: float, margin: float | None, answer: str, p: float | None) -> None:
    of = {"LoRA": np.zeros((3, prompts)), "MonoLoRA": np.full((3, prompts), ours)}
    values = _values(0)._replace(by_model=of, weights_P=np.ones(prompts))
    found = _only(Claim("c", "s", "demo", values, "MonoLoRA", "LoRA", "lower", margin))
    assert found.answer == answer
    assert found.p_holm == pytest.approx(p)
    assert found.estimate is not None
    half = min(stats.t.ppf(0.975, prompts - 1) * 100 / prompts, 200)
    assert found.estimate.high - found.estimate.low == pytest.approx(half if ours else 2 * half)
    assert "no interval" not in found.text


@pytest.mark.parametrize("freedom", [2.0, 7.5, 5000.0])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_a_detectable_difference_is_found_four_times_in_five(freedom: float, alpha: float) -> None:
    """Simulated: a mean around it, and a standard error with so many degrees of freedom."""
    found = detectable(Estimate(0.3, 0, 0, 0.5, 2.0, freedom, 3, 100), alpha)
    random = np.random.default_rng(0)
    means = random.normal(found, 2.0, 40_000)
    errors = 2.0 * np.sqrt(random.chisquare(freedom, 40_000) / freedom)
    p = 2 * stats.t.sf(abs(means) / errors, freedom)
    assert np.mean(p < alpha) == pytest.approx(0.8, abs=0.01)


def test_what_would_be_found_is_after_the_correction() -> None:
    """Of four undecided claims the first must have a p-value below 0.05 / 4."""
    alone, *_ = verdicts([_claim(0)])
    among, *_ = verdicts([_claim(0)] * 4 + [_claim(-9)])
    assert alone.estimate is not None
    for found, alpha in ((alone, 0.05), (among, 0.05 / 4)):
        assert f"some {float(f'{detectable(alone.estimate, alpha):.2g}'):g} points" in found.text


def test_a_base_that_gives_no_labels_is_no_comparison(study: Study) -> None:
    score, unparsed = (
        _values(40, "accuracy", "task", "task:demo"),
        _values(0, "unparsed", "task", "task:demo", headline=False),
    )
    for share, answer in ((80.0, "cannot be told"), (5.0, "holds")):
        of = {model: np.full_like(values, share) for model, values in unparsed.by_model.items()}
        asked = list(claims(study, "demo", [score, unparsed._replace(by_model=of)]))
        (found,) = (each for each in verdicts(asked) if each.claim.against == BASE)
        assert found.answer == answer
        assert ("gives no label in 80.0 %" in found.text) == (share > 50)
        assert (found.p_holm is None) == (share > 50)


def test_what_is_asked_of_columns(study: Study) -> None:
    columns = [
        _values(-4),
        _values(0, "accuracy", "task", "task:demo"),
        _values(30, "sparsity", "sparsity"),
        _values(-1, "drift", "drift", unit="nats/token", headline=False),
        _values(1, "refusal", "refusal", headline=False),
        _values(0, "length", "text"),
    ]
    asked = list(claims(study, "demo", columns))
    assert [claim.text.partition(" (")[0] for claim in asked] == [
        "MonoLoRA has fewer flagged answers than LoRA",
        "LoRA has more flagged answers than the base",
        "MonoLoRA has no more flagged answers than the base",
        "MonoLoRA is better at the task than LoRA",
        "MonoLoRA is better at the task than the base",
        "MonoLoRA is as good at the task as LoRA",
        "MonoLoRA drifts less from the base than LoRA",
        "MonoLoRA refuses more harmful prompts than LoRA",
    ]
    assert [claim.margin for claim in asked] == [None, None, 3, None, None, 2, None, None]
    assert {claim.source for claim in asked} == {"ours"}  # the paper has no such data set
    decided = verdicts(asked)
    assert [each.answer for each in decided[:3]] == ["holds", "cannot be told", "holds"]
    assert sum(counted(decided).values()) == len(asked)


@pytest.mark.parametrize(("dataset", "by_table_2"), [("sst2", [True, False, True]), ("dolly", [True, True, False])])
def test_claims_are_the_papers_where_its_own_numbers_say_so(study: Study, dataset: str, by_table_2: list[bool]) -> None:
    """Flagged on SST-2: 20.9, 20.6, 20.0 of base, LoRA and MonoLoRA; on Dolly: 20.9, 23.8, 22.6."""
    asked = list(claims(study, dataset, [_values(0)]))
    assert [claim.source.startswith("table 2") for claim in asked] == [claim.is_the_papers for claim in asked]
    assert [claim.is_the_papers for claim in asked] == by_table_2
    of_task = claims(replace(study, margin={dataset: 1}), dataset, [_values(0, "x", "task", f"task:{dataset}")])
    (as_good,) = (each for each in of_task if each.margin)
    assert as_good.source == "section 3.3, with our margin"


def test_rivals_are_asked_about_as_the_control_is(study: Study) -> None:
    rivals = replace(study, adapters=study.adapters | {"LoRA+kl": {"adapter": "lora"}}, rivals=("LoRA+kl",))
    columns = [_values(-4), _values(-1, "drift", "drift", of="chat", headline=False)]
    columns[1] = columns[1]._replace(column=replace(columns[1].column, title="drift", group="chat"))
    asked = [(claim.text, claim.against) for claim in claims(rivals, "demo", columns)]
    assert [against for text, against in asked if "fewer flagged" in text] == ["LoRA", "LoRA+kl"]
    assert [text for text, _ in asked if "drifts" in text] == [
        "MonoLoRA drifts less from the base than LoRA (drift, chat)",
        "MonoLoRA drifts less from the base than LoRA+kl (drift, chat)",
    ]


@pytest.mark.parametrize(
    ("target", "better", "answer"),
    [
        (40, "lower", "holds"), (20, "lower", "does not hold"), (30, "lower", "cannot be told"),
        (20, "higher", "holds"), (40, "higher", "does not hold"), (30, "higher", "cannot be told"),
    ],
)  # fmt: skip
def test_a_target_is_reached_by_the_whole_interval(study: Study, target: float, better: Any, answer: str) -> None:
    """The means are near 30; no target is a test, and none changes the tests of others."""
    values = _values(0)
    values = values._replace(column=replace(values.column, better=better))
    aimed = replace(study, targets={"demo": {values.column.id: target}})
    (asked,) = targets(aimed, "demo", [values])
    most = "most" if better == "lower" else "least"
    assert asked.text == f"MonoLoRA has at {most} {target} % (judge flagged)"
    assert list(targets(aimed, "other", [values])) == []
    found, other = verdicts([asked, _claim(-4)])
    assert (found.answer, found.p_holm) == (answer, None)
    assert found.estimate == values.mean("MonoLoRA")
    alone = _only(_claim(-4))
    assert (other.answer, other.p_holm, other.text) == (alone.answer, alone.p_holm, alone.text)


def test_a_target_for_what_does_not_vary(study: Study) -> None:
    values = _values(0, unit="tokens")
    same = values._replace(by_model={"MonoLoRA": np.full((3, 5), 7.0)}, weights_P=np.ones(5))
    (asked,) = targets(replace(study, targets={"demo": {same.column.id: 7.0}}), "demo", [same])
    assert _only(asked).answer == "holds"
    assert _only(asked).text == "7.00 tokens for every seed and prompt. All of it is at most 7 tokens."
    single = asked._replace(values=same._replace(by_model={"MonoLoRA": np.ones((1, 1))}, weights_P=np.ones(1)))
    assert _only(single).answer == "cannot be told"
    assert _only(asked._replace(model="nobody")).text == "It was not measured."


def test_a_target_of_no_column(study: Study) -> None:
    values = _values(0)
    for name, better in (("beavertails/judge/flaged", "lower"), (values.column.id, None)):
        column = replace(values.column, better=better)
        with pytest.raises(InputError, match="Unknown column in targets, demo, 'beavertails"):
            list(targets(replace(study, targets={"demo": {name: 1}}), "demo", [values._replace(column=column)]))
