"""Preferences by name: BeaverTails' pairs on a tiny mirror of harmless texts, and data sets of one's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monolora.data.evaluation_prompts import SETS, evaluation_prompts
from monolora.data.preference_tasks import BEAVERTAILS, load_preferences
from monolora.data.preferences import LogProbs, Preference, reward_scores
from monolora.data.task import SampleLimits, Source
from monolora.errors import InputError
from tests.support.preferences import PAIRS, TEXTS

Answers = list[tuple[str, str, bool]]  # prompt, response, is_safe
CATEGORY = {"privacy_violation": False}


def _answers(*prompts: str) -> Answers:
    """Two safe answers and two unsafe ones to each prompt."""
    return [
        (prompt, f"{kind} {k} to {prompt}", kind == "safe")
        for prompt in prompts
        for kind in ("safe", "not")
        for k in "ab"
    ]


@pytest.fixture
def mirrored(empty_mirror: Path) -> Callable[..., None]:
    """``mirrored(**splits)``: BeaverTails with these splits, in a mirror of its own."""

    def write(**splits: Answers) -> None:
        folder = empty_mirror / BEAVERTAILS
        folder.mkdir(parents=True)
        names = [f"  - split: {name.removeprefix('of_')}\n    path: {name}.jsonl\n" for name in splits]
        (folder / "README.md").write_text(
            f"---\nconfigs:\n- config_name: default\n  data_files:\n{''.join(names)}---\n"
        )
        for name, rows in splits.items():
            lines = (
                json.dumps({"prompt": prompt, "response": response, "category": CATEGORY, "is_safe": is_safe})
                for prompt, response, is_safe in rows
            )
            (folder / f"{name}.jsonl").write_text("\n".join(lines))

    return write


def _prompts(pairs: list[Preference]) -> set[str]:
    return {pair.chosen.instruction for pair in pairs}


def test_beavertails_gives_a_safe_and_an_unsafe_answer_to_each_prompt(mirrored: Callable[..., None]) -> None:
    prompts = [f"What is {number}?" for number in range(20)]
    train = [*_answers(*prompts), *_answers("WHAT  is 1?"), ("Alone?", "Yes.", True), ("Empty?", " ", True)]
    train += [("Empty?", "No.", False), ("Both?", "Maybe.", True), ("Both?", "Maybe.", False), *_answers("Asked?")]
    mirrored(of_30k_train=train, of_30k_test=[*_answers("asked?"), *_answers("Only in the test part?")])
    task = load_preferences("beavertails", Source())
    assert (len(task.train), len(task.test)) == (18, 2)
    assert _prompts(task.train + task.test) == set(prompts)  # no prompt twice, and none of the evaluation
    for pair in task.train + task.test:
        assert pair.is_pair
        assert pair.chosen.response.startswith("safe")
        assert pair.rejected.response.startswith("not")
        assert pair.chosen.instruction == pair.rejected.instruction
    assert task.counts == {"data_set": len(train), "read": len(train), "one_sided_prompts": 3, "evaluated_prompts": 1}
    assert load_preferences("beavertails", Source()) == task  # the same draw
    assert {pair.chosen.response[5] for pair in task.train} == {"a", "b"}  # which is one


def test_of_a_mirror_with_a_part_the_test_split_is_read_too(mirrored: Callable[..., None]) -> None:
    """Without the prompts that the evaluation asks: those of its first 1,000 rows."""
    first = [(f"Filler {number}?", "Yes.", True) for number in range(999)] + [("Asked?", "Yes.", True)]
    unsafe = [("One?", "Not so.", False), ("Asked?", "Not so.", False)]
    mirrored(of_30k_train_part=unsafe, of_30k_test=[*first, ("One?", "So.", True), *_answers("Two?", "Asked?")])
    task = load_preferences("beavertails", Source())
    assert _prompts(task.train + task.test) == {"One?", "Two?"}
    assert task.counts is not None
    assert task.counts["evaluated_prompts"] == 1000


def test_beavertails_without_pairs(mirrored: Callable[..., None]) -> None:
    mirrored(of_30k_train=[("One?", "So.", True), ("Two?", "Not so.", False)])
    with pytest.raises(InputError, match="0 prompts of 30k_train have both a safe and an unsafe answer"):
        load_preferences("beavertails", Source())


def test_beavertails_of_other_splits(mirrored: Callable[..., None]) -> None:
    mirrored(of_other=_answers("One?"))
    with pytest.raises(InputError, match="Unknown split of PKU-Alignment/BeaverTails '30k_train'"):
        load_preferences("beavertails", Source())


def test_the_pairs_of_the_mirror_are_none_of_the_evaluations(mirror: Path) -> None:
    task = load_preferences("beavertails", Source())
    asked = evaluation_prompts()
    assert len(asked) > 1000
    assert len(SETS) == 3
    pairs = task.train + task.test
    assert len(pairs) > 100
    assert not {pair.chosen.normalised_prompt for pair in pairs} & asked
    assert len({pair.chosen.normalised_prompt for pair in pairs}) == len(pairs)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_files_of_every_kind(tmp_path: Path, suffix: str) -> None:
    import pandas

    path = tmp_path / f"pairs.{suffix}"
    frame = pandas.DataFrame(TEXTS)
    match suffix:
        case "csv":
            frame.to_csv(path, index=False)
        case "parquet":
            frame.to_parquet(path)
        case _:
            frame.to_json(path, orient="records", lines=suffix == "jsonl")
    task = load_preferences(str(path), Source())
    read = {(pair.chosen.instruction, pair.chosen.response, pair.rejected.response) for pair in task.train + task.test}
    assert read == {(row["prompt"], row["chosen"], row["rejected"]) for row in TEXTS}


def test_limits_count_pairs(write_rows: Callable[..., str]) -> None:
    task = load_preferences(write_rows(PAIRS), Source(), SampleLimits(4, 2, 1))
    assert len(task.selected(4)[0]) == 4
    validation = task.validation(2, 4)
    assert len(validation) == 2
    assert not {pair.group for pair in validation} & {pair.group for pair in task.selected(4)[0]}


def test_rewards_of_pairs_and_of_single_answers() -> None:
    policy = [LogProbs(-1.0, -4.0), LogProbs(-3.0, -2.0)]
    reference = [LogProbs(-2.0, -4.0), LogProbs(-2.0, -2.0)]
    of_pairs = reward_scores(policy, reference, beta=2.0)
    assert of_pairs == pytest.approx(
        {"n": 2, "reward_accuracy": 0.5, "reward_margin": 0.0, "loss": 1.126928, "chosen_likelier": 0.5,
         "log_probability_margin": 1.0}, abs=1e-5,
    )  # fmt: skip
    single: list[Any] = [LogProbs(-1.0, None), LogProbs(None, -4.0)]
    of_answers = reward_scores(single, [LogProbs(-2.0, None), LogProbs(None, -5.0)], beta=2.0)
    assert of_answers == pytest.approx(
        {"n": 2, "reward_accuracy": 0.5, "reward_margin": 0.0, "loss": 1.126928}, abs=1e-5
    )
