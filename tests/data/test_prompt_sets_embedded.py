"""The prompts that come with the package, and BeaverTails' prompts to train on."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pandas
import pytest

from monolora.data.contrast_pairs import ACTIONS
from monolora.data.prompt_sets import EMBEDDED, PUBLISHED, load, names
from monolora.data.tasks import BUILT_IN
from monolora.errors import InputError

COUNTS = {"chat": (385, 30), "contrasts": (230, 9), "refusals": (266, 27), "contrast-pairs": (975, 5)}


def normalised(text: str) -> str:
    """Without case, punctuation and white space but single blanks."""
    return " ".join(re.sub(r"[^\w\s]", " ", text.casefold().replace("'", "").replace("’", "")).split())


def runs(text: str, length: int = 8) -> set[str]:
    """All runs of consecutive words."""
    words = normalised(text).split()
    return {" ".join(words[start : start + length]) for start in range(len(words) - length + 1)}


@pytest.mark.usefixtures("no_mirror")
@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_sets_need_no_data(name: str) -> None:
    prompts = load(name)
    categories = Counter(prompt.categories for prompt in prompts.prompts)
    assert (prompts.spec["rows"], len(categories)) == COUNTS[name]
    assert prompts.spec["source"] == f"embedded:{name}"
    assert min(categories.values()) >= 7
    assert {(len(prompt.categories), prompt.weight) for prompt in prompts.prompts} == {(1, 1)}
    assert all(prompt.instruction == prompt.instruction.strip() for prompt in prompts.prompts)


def test_purposes_and_labels() -> None:
    """Over-refusal is measured where prompts are labelled safe."""
    chat, refusals = load("chat"), load("refusals")
    assert (chat.purpose, {prompt.label for prompt in chat.prompts}) == ("over-refusal", {"safe"})
    assert (refusals.purpose, {prompt.label for prompt in refusals.prompts}) == ("safety", {None})
    assert sum(prompt.categories == ("sounds_unsafe",) for prompt in chat.prompts) == 42


def test_embedded_prompts_are_all_different() -> None:
    texts = [prompt.instruction for name in EMBEDDED for prompt in load(name).prompts]
    assert len({normalised(text) for text in texts}) == len(texts)
    written = (prompt.instruction for name in EMBEDDED if name != "contrast-pairs" for prompt in load(name).prompts)
    shared = Counter(run for text in written for run in runs(text))
    assert max(shared.values()) == 1


def test_contrast_pairs_share_their_words_across_labels() -> None:
    """Of the first words of a request, a label cannot be told."""
    prompts = load("contrast-pairs").prompts
    asked = [prompt for prompt in prompts if prompt.categories == ("actions",)]
    verbs = {label: {verb for verb in ACTIONS for prompt in asked if prompt.label == label and f" {verb} " in prompt[1]}
             for label in ("safe", "unsafe")}  # fmt: skip
    assert verbs["safe"] == verbs["unsafe"] == set(ACTIONS)
    assert {prompt.label for prompt in prompts} == {"safe", "unsafe"}


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_limit_takes_the_categories_in_turn(name: str) -> None:
    categories = COUNTS[name][1]
    assert set(Counter(prompt.categories for prompt in load(name, limit=2 * categories).prompts).values()) == {2}
    assert load(name, limit=10_000).prompts == load(name).prompts


def test_names_of_embedded_sets() -> None:
    assert names(["chat,refusals", "beavertails-train"]) == ("chat", "refusals", "beavertails-train")
    with pytest.raises(InputError, match="Did you mean refusals"):
        names(["refusal"])
    with pytest.raises(InputError, match=r"mine/chat\.jsonl would both be named 'chat'"):
        names(["chat", "mine/chat.jsonl"])


# No text of these sets in a failed assertion: numbers only.
@pytest.mark.parametrize("name", PUBLISHED)
def test_no_embedded_prompt_is_of_a_published_set(mirror: Path, name: str) -> None:
    folder = mirror / PUBLISHED[name].dataset / "data"
    published = {text for file in folder.glob("*.parquet") for text in pandas.read_parquet(file).prompt}
    _assert_nothing_shared(published)


def test_no_embedded_prompt_is_of_dolly(mirror: Path) -> None:
    files = (mirror / "databricks" / "databricks-dolly-15k" / "data").glob("*.parquet")
    _assert_nothing_shared({text for file in files for text in pandas.read_parquet(file).instruction})


def test_no_embedded_prompt_is_of_the_demo() -> None:
    _assert_nothing_shared({row.context for row in BUILT_IN["demo"]().train})


def _assert_nothing_shared(texts: set[str]) -> None:
    assert texts
    theirs = {normalised(text) for text in texts}
    their_runs = {run for text in texts for run in runs(text)}
    ours = [prompt.instruction for name in EMBEDDED for prompt in load(name).prompts]
    assert sum(normalised(text) in theirs for text in ours) == 0
    assert sum(bool(runs(text) & their_runs) for text in ours) == 0


def _write_split(mirror: Path, split: str, prompts: list[str]) -> None:
    file = mirror / PUBLISHED["beavertails"].dataset / "data" / f"{split}-00000-of-00001.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    count = len(prompts)
    rows = {
        "prompt": prompts,
        "category": [{"a": True}] * count,
        "is_safe": [number % 2 == 0 for number in range(count)],
    }
    pandas.DataFrame(rows).to_parquet(file)


def test_a_part_of_the_train_split_serves_where_the_whole_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MONOLORA_DATA", str(tmp_path))
    _write_split(tmp_path, "30k_test_part", ["Tested?"])
    _write_split(tmp_path, "330k_train", ["Another?"])
    with pytest.raises(InputError, match="Unknown split of PKU-Alignment/BeaverTails '30k_train'"):
        load("beavertails-train")
    _write_split(tmp_path, "30k_train_part", ["One?", "Two?", "One?"])
    part = load("beavertails-train")
    assert (part.spec["split"], part.purpose) == ("30k_train_part", "safety")
    assert [(prompt.instruction, prompt.weight) for prompt in part.prompts] == [("One?", 2), ("Two?", 1)]
    assert [prompt.instruction for prompt in load("beavertails-train", unsafe_only=True).prompts] == ["Two?"]
    _write_split(tmp_path, "30k_train", [f"Whole {number}?" for number in range(1200)])
    whole = load("beavertails-train")
    assert (whole.spec["split"], whole.spec["distinct"]) == ("30k_train", 1200)
    with pytest.raises(InputError, match="Unknown split of PKU-Alignment/BeaverTails '30k_test'"):
        load("beavertails")  # evaluations are compared: only on the whole split


def test_real_train_split(mirror: Path) -> None:
    folder = mirror / PUBLISHED["beavertails-train"].dataset / "data"
    rows = pandas.read_parquet(next(folder.glob("30k_train*.parquet"))).prompt
    prompts = load("beavertails-train")
    assert (prompts.spec["rows"], prompts.spec["distinct"]) == (len(rows), rows.nunique())
