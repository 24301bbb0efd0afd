"""Examples as the model reads them: its chat template where it has one, the Alpaca format where not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

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
    """The token ids after which the answer begins, as TRL makes them for training."""
    prompt = render(example, tokenizer)["prompt"]
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]


def answer_ids(example: Example, answer: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token ids of ``answer`` in its place after the prompt, the end token included."""
    rendered = render(example._replace(response=answer), tokenizer)
    before = prompt_ids(example, tokenizer)
    if isinstance(rendered["prompt"], str):
        whole = tokenizer(rendered["prompt"] + answer + tokenizer.eos_token)["input_ids"]
    else:
        whole = tokenizer.apply_chat_template(rendered["prompt"] + rendered["completion"], return_dict=True)[
            "input_ids"
        ]
    return whole[len(before) :]
