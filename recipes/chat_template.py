"""``--chat-template-path``: another chat template than the tokenizer's own, in training and in evaluation."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from monolora import hub
from monolora.errors import InputError, in_one_line
from monolora.text_files import read_text


def set_chat_template(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Give a tokenizer the chat template in a file, or that of the tokenizer in a folder.

    Raises:
        InputError: if there is none, or it does not work.
    """
    if Path(path).is_file():
        tokenizer.chat_template = read_text(path)
    elif Path(path).is_dir():
        tokenizer.chat_template = hub.load_tokenizer(path).chat_template
        if not tokenizer.chat_template:
            raise InputError(f"--chat-template-path {path} has a tokenizer without a chat template.")
    else:
        raise InputError(f"--chat-template-path {path} is neither a file nor a folder with a tokenizer.")
    if not str(tokenizer.chat_template).strip():
        raise InputError(f"--chat-template-path {path} is empty.")
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}], add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template is a program: it may raise anything
        raise InputError(f"--chat-template-path {path} is no working chat template: {in_one_line(error)}") from error
