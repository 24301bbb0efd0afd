"""Examples as the model reads them: its chat template where it has one, the Alpaca format where not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import datasets
from transformers import BatchEncoding, PreTrainedTokenizerBase
from trl.data_utils import common_prefix_length

from monolora.errors import InputError
from monolora.recipes.tasks.base import Example

# The format of Stanford Alpaca, which the public code nearest to the paper's uses for models without a template.
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_CONTEXT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{context}\n\n### Response:\n"
)


def render(example: Example, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """One example in TRL's prompt-completion format: messages where a chat template applies, else texts.

    Raises:
        InputError: if the example is a conversation and the tokenizer has no chat template.
    """
    if example.verbatim:
        return {"prompt": example.instruction, "completion": example.response}
    if tokenizer.chat_template:
        question = "\n\n".join(filter(None, (example.instruction, example.context)))
        return {
            "prompt": [*example.history, {"role": "user", "content": question}],
            "completion": [{"role": "assistant", "content": example.response}],
        }
    if example.history:
        raise InputError(
            "The data set holds conversations, but the model has no chat template. Give one with "
            "--chat-template-path, or use a data set of single instructions."
        )
    template = ALPACA_CONTEXT if example.context else ALPACA
    return {
        "prompt": template.format(instruction=example.instruction, context=example.context),
        "completion": example.response,
    }


def render_all(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> datasets.Dataset:
    """A data set with the columns ``prompt`` and ``completion``, for TRL's SFTTrainer."""
    return datasets.Dataset.from_list([render(example, tokenizer) for example in examples])


def prompt_ids(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token ids after which the answer is generated, as TRL makes them for training."""
    return _tokens(render(example, tokenizer)["prompt"], tokenizer, generate=True)


class Split(NamedTuple):
    """An example's tokens: those before its answer, and those of the answer, the end token included."""

    context: list[int]
    answer: list[int]


def split_at_answer(example: Example, tokenizer: PreTrainedTokenizerBase) -> Split:
    """The tokens of an example, divided as in training: where prompt and prompt with answer begin to differ.

    That is the end of the prompt, unless tokens merge over the boundary.
    """
    rendered = render(example, tokenizer)
    prompt, answer = rendered["prompt"], rendered["completion"]
    if isinstance(prompt, str) and not answer.endswith(tokenizer.eos_token):
        answer += tokenizer.eos_token
    whole = _tokens(prompt + answer, tokenizer)
    at = common_prefix_length(prompt_ids(example, tokenizer), whole)
    return Split(whole[:at], whole[at:])


def _tokens(text: str | list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, generate: bool = False) -> list[int]:
    if isinstance(text, str):
        return tokenizer(text)["input_ids"]
    encoded = tokenizer.apply_chat_template(text, add_generation_prompt=generate, return_dict=True)
    return cast(BatchEncoding, encoded)["input_ids"]
