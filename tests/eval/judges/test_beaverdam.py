from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from monolora.beaverdam import LABELS
from monolora.errors import InputError
from monolora.eval.judges import JudgeOptions, make
from monolora.eval.judges.beaverdam import judgements
from tests.support import judge_reference as reference
from tests.support.tiny_judges import PAIRS, items, make_beaverdam

LONG = ("Tell me a long story about a cat.", "The cat sat on the mat and looked at the moon. " * 60)
ENDLESS = ("Is this long? " * 300, "Yes, quite.")


def judged(folder: Path, pairs: tuple[tuple[str, str], ...] = PAIRS, done: tuple[str, ...] = ()) -> dict:
    judge = make(f"beaverdam:{folder}", JudgeOptions(engine="hf", batch_size=4))
    rows = list(judgements({"settings": judge.settings, "items": items(pairs), "done": list(done)}))
    assert len({row["key"] for row in rows}) == len(rows)
    return {row["key"]: row for row in rows}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make_beaverdam(tmp_path_factory.mktemp("beaverdam"))


def assert_as_transformers(rows: dict, folder: Path, pairs: tuple[tuple[str, str], ...] = PAIRS) -> None:
    for key, row in rows.items():
        assert row["status"] == "ok"
        reference.assert_near(row["scores"], reference.beaverdam(folder, *pairs[int(key[1:])]))


def test_scores_are_the_sigmoids_of_the_logits(folder: Path) -> None:
    rows = judged(folder)
    assert len(rows) == len(PAIRS)
    assert_as_transformers(rows, folder)
    assert len({row["scores"]["self_harm"] for row in rows.values()}) == len(PAIRS)


def test_too_long_a_response_is_cut_and_too_long_a_prompt_is_no_verdict(folder: Path) -> None:
    rows = judged(folder, (*PAIRS, LONG, ENDLESS))
    long, endless = rows[f"k{len(PAIRS)}"], rows.pop(f"k{len(PAIRS) + 1}")
    assert [row["cut"] for row in rows.values()].count(True) == 1
    assert long["cut"]
    assert (endless["status"], endless["scores"]) == ("invalid", {})
    assert endless["reason"].startswith("prompt too long: the prompt has ")
    assert_as_transformers(rows, folder, (*PAIRS, LONG, ENDLESS))


@pytest.mark.parametrize("pad", ["</s>", None], ids=["pad is eos", "no pad"])
def test_padding_tokens_change_nothing(tmp_path: Path, pad: str | None) -> None:
    """Where texts end with the padding token, its class pools the token before; without one it takes one text."""
    assert_as_transformers(judged(make_beaverdam(tmp_path, pad=pad)), tmp_path)


def test_a_padding_token_that_the_model_does_not_have_is_none(tmp_path: Path) -> None:
    make_beaverdam(tmp_path)
    tokenizer = reference.tokenizer_of.__wrapped__(tmp_path)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})  # one row more than the embedding has
    tokenizer.save_pretrained(tmp_path)
    assert_as_transformers(judged(tmp_path), tmp_path)


def test_labels_in_another_order_keep_their_names(tmp_path: Path) -> None:
    make_beaverdam(tmp_path, labels=LABELS[::-1])
    rows = judged(tmp_path)
    wanted = reference.beaverdam(tmp_path, *PAIRS[0])
    assert list(rows["k0"]["scores"]) == list(LABELS)
    reference.assert_near(rows["k0"]["scores"], dict(zip(LABELS, list(wanted.values())[::-1], strict=True)))


def test_a_checkpoint_that_names_no_labels_has_them_in_the_judges_order(tmp_path: Path) -> None:
    make_beaverdam(tmp_path, labels=[f"LABEL_{i}" for i in range(14)])
    assert_as_transformers(judged(tmp_path), tmp_path)


def test_a_model_without_usable_numbers_gives_no_verdict(tmp_path: Path) -> None:
    make_beaverdam(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        model.score.weight[3, 5] = float("nan")
    model.save_pretrained(tmp_path)
    rows = judged(tmp_path)
    assert {(row["status"], row["reason"]) for row in rows.values()} == {("invalid", "nan")}


def test_a_resumed_run_gives_the_same_scores_bit_for_bit(folder: Path) -> None:
    whole = judged(folder)
    for done in (("k0",), ("k5", "k4"), ("k1", "k2", "k3", "k4", "k5")):
        rest = judged(folder, done=done)
        assert rest == {key: row for key, row in whole.items() if key not in done}


def test_nothing_is_loaded_where_all_is_done(folder: Path, tmp_path: Path) -> None:
    judge = make(f"beaverdam:{folder}", JudgeOptions(engine="hf"))
    settings = judge.settings | {"engine": "none"}
    job = {"settings": settings, "items": items(), "done": [item["key"] for item in items()]}
    assert list(judgements(job)) == []


def _two_labels(folder: Path) -> None:
    make_beaverdam(folder, labels=["good", "bad"])


def _foreign_label(folder: Path) -> None:
    make_beaverdam(folder, labels=[*LABELS[:-1], "spam"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_two_labels, "has 2 labels, beaver-dam 14. Give a classifier with labels of its own as classifier:"),
        (_foreign_label, "has the label 'spam', which is none of beaver-dam's 14"),
    ],
)
def test_other_labels_are_refused(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(tmp_path)
    with pytest.raises(InputError, match=message):
        make(f"beaverdam:{tmp_path}", JudgeOptions())


def test_weights_without_the_head_are_refused(tmp_path: Path) -> None:
    make_beaverdam(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "score.weight"}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(InputError, match=r"lack score\.weight \(1 such\)"):
        judged(tmp_path)
