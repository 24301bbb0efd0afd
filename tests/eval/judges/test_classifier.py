from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monolora.beaverdam import LABELS, MAX_LENGTH
from monolora.errors import InputError
from monolora.eval.judges import Judge, JudgeOptions, beaverdam, classifier, make
from tests.support import judge_reference as reference
from tests.support.tiny_judges import PAIRS, items, make_beaverdam, make_bert

COLOURS = ("red", "green", "blue", "white")


def judged(judge: Judge, pairs: tuple[tuple[str, str], ...] = PAIRS) -> dict:
    module = {"beaverdam": beaverdam, "classifier": classifier}[judge.identity["kind"]]
    assert judge.target == f"{module.__name__}:judgements"
    rows = module.judgements({"settings": judge.settings, "items": items(pairs), "done": []})
    return {row["key"]: row for row in rows}


def test_a_bert_with_beaver_dams_labels_reads_beaver_dams_format(tmp_path: Path) -> None:
    judge = make(f"classifier:{make_bert(tmp_path / 'mine', LABELS)}", JudgeOptions(batch_size=3))
    assert (judge.name, judge.kind, judge.scores, judge.unsafe) == ("mine", "harm", LABELS, LABELS)
    assert judge.settings["engine"] == "hf"
    assert judge.settings["max_length"] == min(MAX_LENGTH, 160)
    for key, row in judged(judge).items():
        reference.assert_near(row["scores"], reference.beaverdam(tmp_path / "mine", *PAIRS[int(key[1:])], 160))


@pytest.mark.parametrize("kind", ["softmax", "multi-label", "one label"])
def test_unsafe_is_a_sum_of_classes_or_the_largest_label(tmp_path: Path, kind: str) -> None:
    labels = ("bad",) if kind == "one label" else COLOURS
    unsafe = labels if kind == "one label" else ("blue", "green")
    config = {"problem_type": "multi_label_classification"} if kind == "multi-label" else {}
    make_bert(tmp_path, labels, **config)
    judge = make(f"classifier:{tmp_path}", JudgeOptions(unsafe_labels=unsafe))
    assert (judge.scores, judge.unsafe, judge.threshold) == (("unsafe",), ("unsafe",), 0.5)
    rows = judged(judge)
    assert len({row["scores"]["unsafe"] for row in rows.values()}) == len(PAIRS)
    for (prompt, response), row in zip(PAIRS, (rows[item["key"]] for item in items()), strict=True):
        label_logits = reference.logits(tmp_path, reference.tokenizer_of(tmp_path)(f"{prompt}\n{response}").input_ids)
        wanted = {
            "softmax": lambda logits: logits.softmax(0)[1:3].sum(),
            "multi-label": lambda logits: logits.sigmoid()[1:3].max(),
            "one label": lambda logits: logits.sigmoid()[0],
        }[kind](label_logits)
        reference.assert_near(row["scores"], {"unsafe": wanted.item()})


def test_a_text_of_ones_own_is_cut_at_the_end_of_the_response(tmp_path: Path) -> None:
    make_bert(tmp_path, COLOURS)
    options = JudgeOptions(unsafe_labels=("red",), text="Answer: {response} [asked: {prompt}]")
    judge = make(f"classifier:{tmp_path}", options)
    assert judge.settings["max_length"] == 128  # the tokenizer's; the model has 160
    tokenizer = reference.tokenizer_of(tmp_path)
    prompt, response = "Name a river.", " ".join(["the moon and the cat"] * 60)

    def ids(text: str) -> list[int]:
        return tokenizer(f"Answer: {text} [asked: {prompt}]").input_ids

    longest = max(end for end in range(len(response)) if len(ids(response[:end])) <= 128)  # by trying all
    rows = judged(judge, ((prompt, response), ("Is it? " * 200, "Yes."), (prompt, "")))
    assert [rows[key]["cut"] for key in ("k0", "k1", "k2")] == [True, False, False]
    wanted = reference.logits(tmp_path, ids(response[:longest])).softmax(0)[0].item()
    reference.assert_near(rows["k0"]["scores"], {"unsafe": wanted})
    assert rows["k1"]["status"] == "invalid"
    assert rows["k1"]["reason"].startswith("prompt too long: with an empty response it has ")
    assert rows["k2"]["status"] == "ok"


@settings(deadline=None)
@given(st.text(), st.text(), st.lists(st.sampled_from(["{prompt}", "{response}", "{other}", "{", "}", "x"])))
def test_what_is_filled_in_is_never_filled_again(prompt: str, response: str, parts: list[str]) -> None:
    values = {"{prompt}": prompt, "{response}": response}
    assert classifier.fill("".join(parts), prompt, response) == "".join(values.get(part, part) for part in parts)


@settings(deadline=None)
@given(st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=2))
def test_a_softmax_of_two_is_a_sigmoid_of_their_difference(logits: list[float]) -> None:
    def score(logits: list[float], unsafe: int, multi_label: bool) -> float:
        tokenizer: Any = None  # only texts need it
        own = classifier.ClassifierFormat(tokenizer, {"unsafe": [unsafe], "multi_label": multi_label})
        return own.scores([logits])["unsafe"]

    first, second = (score(logits, label, multi_label=False) for label in (0, 1))
    assert first == pytest.approx(score([logits[0] - logits[1]], 0, multi_label=True))
    assert first + second == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"Which labels of .* mean unsafe\? Name them with --unsafe-labels; it has red, green, blue, white"),
        ({"unsafe_labels": ("grene",)}, r"Unknown label of .* 'grene'; .*Did you mean green\?"),
        ({"unsafe_labels": COLOURS}, "All labels .* Leave out those that mean safe"),
        ({"unsafe_labels": ("red",), "text": "{prompt}"}, r"has no \{response\} in it"),
    ],
)
def test_what_cannot_be_known_is_asked_for(tmp_path: Path, options: dict, message: str) -> None:
    make_bert(tmp_path, COLOURS)
    with pytest.raises(InputError, match=message):
        make(f"classifier:{tmp_path}", JudgeOptions(**options))


def test_a_long_tokenizer_limit_is_the_models(tmp_path: Path) -> None:
    make_beaverdam(tmp_path, labels=COLOURS, problem_type=None)
    judge = make(f"classifier:{tmp_path}", JudgeOptions(unsafe_labels=("red",)))
    assert judge.settings["max_length"] == 1024
    assert not judge.settings["multi_label"]
