from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from monolora.beaverdam import LABELS, TooLongError, encode, encode_all, text

BEGIN, END = 256, 257


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte; ``<s>`` before a text, as Llama's has it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BEGIN)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


def test_the_text_has_no_space_before_the_response() -> None:
    assert text("Why {x}?", "Because {y}.", "</s>") == (
        "BEGINNING OF CONVERSATION: USER: Why {x}? ASSISTANT:Because {y}.</s>"
    )
    assert text("Why?", "So.</s>", "</s>") == "BEGINNING OF CONVERSATION: USER: Why? ASSISTANT:So.</s>"
    assert text("Why?", "So.", None) == "BEGINNING OF CONVERSATION: USER: Why? ASSISTANT:So."


def test_there_are_fourteen_labels_in_the_alphabets_order() -> None:
    assert len(set(LABELS)) == 14
    assert list(LABELS) == sorted(LABELS)


@settings(deadline=None)
@given(prompt=st.text(max_size=20), response=st.text(max_size=40), room=st.integers(-3, 60))
def test_what_does_not_fit_is_cut_from_the_end(
    tokenizer: PreTrainedTokenizerFast, prompt: str, response: str, room: int
) -> None:
    question = f"BEGINNING OF CONVERSATION: USER: {prompt} ASSISTANT:"
    size = 1 + len(question.encode())
    most = size + room
    whole = [*tokenizer(question + response).input_ids, END]
    if len(whole) <= most:
        assert encode(tokenizer, prompt, response, most) == (whole, False)
    elif room < 1:
        with pytest.raises(TooLongError, match=f"has {size} tokens of the {most}"):
            encode(tokenizer, prompt, response, most)
    else:
        assert encode(tokenizer, prompt, response, most) == (whole[:most], True)


def test_many_pairs_at_once_are_as_one_after_the_other(tokenizer: PreTrainedTokenizerFast) -> None:
    pairs = [("Why?", "So."), ("Why?", "So. " * 99), ("Why? " * 99, "So."), ("", "")]
    found = encode_all(tokenizer, pairs, 70)
    assert isinstance(found[2], TooLongError)
    assert [found[i] for i in (0, 1, 3)] == [encode(tokenizer, *pairs[i], 70) for i in (0, 1, 3)]
    assert encode_all(tokenizer, []) == []
