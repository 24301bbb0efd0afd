"""Examples as text and tokens: the same tokens that TRL trains on."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerBase

from monolora.data.chat_template import prompt_ids, render, render_all, split_at_answer
from monolora.data.tasks import Example
from monolora.errors import InputError

PLAIN = Example("Say it", "positive")
WITH_CONTEXT = Example("Is it good", "negative", context="The soup was awful.")
IN_A_CHAT = Example("And now", "positive", history=({"role": "system", "content": "be short"},))
VERBATIM = Example("Q: good or bad? A:", " good", verbatim=True)


def test_alpaca(plain_tokenizer: PreTrainedTokenizerBase) -> None:
    assert render(PLAIN, plain_tokenizer) == {
        "prompt": "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\nSay it\n\n### Response:\n",
        "completion": "positive",
    }
    assert "### Input:\nThe soup was awful.\n\n### Response:\n" in render(WITH_CONTEXT, plain_tokenizer)["prompt"]


def test_chat_template(chat_tokenizer: PreTrainedTokenizerBase) -> None:
    ids = prompt_ids(WITH_CONTEXT, chat_tokenizer)
    assert chat_tokenizer.decode(ids) == "<s>[user]\nIs it good\n\nThe soup was awful.[assistant]\n"
    assert chat_tokenizer.decode(prompt_ids(IN_A_CHAT, chat_tokenizer)).startswith("<s>[system]\nbe short[user]\n")


def test_verbatim_goes_past_the_chat_template(chat_tokenizer: PreTrainedTokenizerBase) -> None:
    assert render(VERBATIM, chat_tokenizer) == {"prompt": "Q: good or bad? A:", "completion": " good"}
    assert chat_tokenizer.decode(prompt_ids(VERBATIM, chat_tokenizer)) == "<s>Q: good or bad? A:"


def test_conversation_needs_a_template(plain_tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InputError, match="no chat template"):
        render_all([IN_A_CHAT], plain_tokenizer)


@pytest.mark.parametrize(
    ("kind", "example"),
    [
        *(("chat", example) for example in (PLAIN, WITH_CONTEXT, VERBATIM, IN_A_CHAT)),
        *(("plain", example) for example in (PLAIN, WITH_CONTEXT, VERBATIM)),
    ],
)
def test_split_at_answer(
    chat_tokenizer: PreTrainedTokenizerBase, plain_tokenizer: PreTrainedTokenizerBase, kind: str, example: Example
) -> None:
    tokenizer = {"chat": chat_tokenizer, "plain": plain_tokenizer}[kind]
    context, answer = split_at_answer(example, tokenizer)
    assert context == prompt_ids(example, tokenizer)
    assert context.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(answer) == f"{example.response}</s>"


def test_split_where_tokens_merge_over_the_boundary(plain_tokenizer: PreTrainedTokenizerBase) -> None:
    """ "posi" + "tive" is one token together: the answer's tokens begin before the prompt's end."""
    example = Example("posi", "tive", verbatim=True)
    context, answer = split_at_answer(example, plain_tokenizer)
    assert plain_tokenizer.convert_ids_to_tokens(context + answer) == ["<s>", "positive", "</s>"]
    assert context == [plain_tokenizer.bos_token_id]
    assert len(prompt_ids(example, plain_tokenizer)) > 1
