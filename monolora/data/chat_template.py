"""Examples as the model reads them: its chat template where it has one, the Alpaca format where not.

A chat template is checked with a copy of the conversation in which every text is a distinct mark: a mark missing from
the output is a text that the model would never see.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import datasets
import numpy as np
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase
from trl.data_utils import common_prefix_length

from monolora import hub
from monolora.data.example import REASONING, Example, parsed, text_of
from monolora.errors import InputError, in_one_line
from monolora.files import filled_once, read_text

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
IGNORED = -100  # the label of a token that is not trained on


def render(example: Example, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """One example in TRL's prompt-completion format: messages where a chat template applies, else texts.

    Raises:
        InputError: if the example is a conversation and the tokenizer has no chat template.
    """
    if example.verbatim:
        return {"prompt": example.instruction, "completion": example.response}
    if tokenizer.chat_template:
        extras = {"tools": example.tools, "chat_template_kwargs": example.template_kwargs}
        return {
            "prompt": example.messages,
            "completion": [example.answer_message],
            **{name: value for name, value in extras.items() if value},
        }
    if example.is_chat:
        raise InputError(
            "The data set holds conversations, but the model has no chat template. Give one with "
            "--chat-template-path, or use a data set of single instructions."
        )
    template = ALPACA_CONTEXT if example.context else ALPACA
    return {
        "prompt": template.format(instruction=example.instruction, context=example.context),
        "completion": example.response,
    }


def render_all(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    processes: int | None = None,
    *,
    must_extend: bool = False,
) -> datasets.Dataset:
    """The examples tokenized: ``input_ids``, and ``labels``, ``IGNORED`` before the answers.

    They are cached by Hugging Face datasets for later runs with this tokenizer.

    Args:
        examples: with answers.
        tokenizer: with the chat template.
        processes: that share the work.
        must_extend: whether a conversation with its answer must begin with the prompt as it is rendered alone.

    Raises:
        InputError: naming the row that the chat template refuses, or of which it leaves something out.
    """
    rows = [json.dumps(example[:9], default=str) for example in examples]
    return on_disk(datasets.Dataset.from_dict({"example": rows})).map(
        _tokenized,
        fn_kwargs={"tokenizer": tokenizer, "must_extend": must_extend},
        remove_columns=["example"],
        num_proc=processes,
        desc="Tokenizing train dataset",
    )


def _tokenized(row: Mapping[str, str], tokenizer: PreTrainedTokenizerBase, must_extend: bool) -> dict[str, list[int]]:
    context, answer = split_at_answer(Example(*json.loads(row["example"])), tokenizer, must_extend)
    return {"input_ids": context + answer, "labels": [IGNORED] * len(context) + answer}


def prompt_ids(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token ids after which the answer is generated, as TRL makes them for training; of a whole text, all of it.

    Raises:
        InputError: if the chat template refuses the example, or leaves something of it out.
    """
    if example.is_whole_text:
        return _tokens(example.response, tokenizer, example)
    prompt = _checked(example._replace(response="", answer=None), tokenizer, with_answer=False)["prompt"]
    return _tokens(prompt, tokenizer, example, generate=True)


class Split(NamedTuple):
    """An example's tokens: those before its answer, and those of the answer, the end token included."""

    context: list[int]
    answer: list[int]


def split_at_answer(example: Example, tokenizer: PreTrainedTokenizerBase, must_extend: bool = False) -> Split:
    """The tokens of an example, divided as in training: where prompt and prompt with answer begin to differ.

    That is the end of the prompt, unless tokens merge over the boundary, or the template renders a prompt otherwise
    once it is answered. A whole text has no prompt: its first token, which nothing comes before, is no answer.

    Args:
        example: with an answer.
        tokenizer: with the chat template.
        must_extend: whether a prompt that is rendered otherwise is an error.

    Raises:
        InputError: as :func:`prompt_ids`.
    """
    rendered = _checked(example, tokenizer, with_answer=True)
    prompt, answer = rendered["prompt"], rendered["completion"]
    if must_extend and not isinstance(prompt, str):
        alone = _filled(prompt, tokenizer, example, example.tools, generate=True)
        if not _filled(prompt + answer, tokenizer, example, example.tools).startswith(alone):
            raise InputError(
                f"{example.origin or 'A prompt'}: the chat template renders the prompt otherwise once it is answered, "
                "so the model would learn to answer another prompt than it is given. Give another template with "
                "--chat-template-path."
            )
    if isinstance(prompt, str) and not answer.endswith(tokenizer.eos_token):
        answer += tokenizer.eos_token
    whole = _tokens(prompt + answer, tokenizer, example)
    at = common_prefix_length(_tokens(prompt, tokenizer, example, generate=True), whole)
    at = max(at, 1) if example.is_whole_text else at
    return Split(whole[:at], whole[at:])


class TokenSpan(NamedTuple):
    """Adjoining tokens: the position of the first, and the one after the last."""

    start: int
    stop: int


def answer_spans(labels: Sequence[int]) -> list[TokenSpan]:
    """Where the answers are in a tokenized row: its labels that are not ``IGNORED``."""
    is_learned = np.asarray(labels, dtype=np.int64) != IGNORED
    edges = np.flatnonzero(np.diff(is_learned, prepend=False, append=False)).tolist()
    return [TokenSpan(*edges[at : at + 2]) for at in range(0, len(edges), 2)]


def marked_answers(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[TokenSpan]:
    """Where the chat template's ``{% generation %}`` blocks are in an example's tokens; empty if it has none.

    Raises:
        InputError: as :func:`prompt_ids`.
    """
    if not re.search(r"\{%-?\s*generation\s*-?%\}", tokenizer.get_chat_template(tools=example.tools)):
        return []
    rendered = _checked(example, tokenizer, with_answer=True)
    tools: Any = example.tools or None
    made: Any = tokenizer.apply_chat_template(
        rendered["prompt"] + rendered["completion"],
        tools=tools,
        return_assistant_tokens_mask=True,
        **(example.template_kwargs or {}),
    )
    return answer_spans([bit or IGNORED for bit in made["assistant_masks"]])


def _tokens(
    text: str | list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, example: Example, generate: bool = False
) -> list[int]:
    if isinstance(text, str):
        return cast(list[int], tokenizer(text)["input_ids"])
    rendered = _filled(text, tokenizer, example, example.tools, generate)
    return cast(list[int], tokenizer(rendered, add_special_tokens=False)["input_ids"])


def _filled(
    messages: list[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    example: Example,
    tools: Any,
    generate: bool = False,
) -> str:
    """The chat template filled in.

    Raises:
        InputError: naming the row, for whatever the template raises.
    """
    try:
        return cast(
            str,
            tokenizer.apply_chat_template(
                messages,
                tools=tools or None,  # for an empty list a template may introduce no tools
                add_generation_prompt=generate,
                tokenize=False,
                **(example.template_kwargs or {}),
            ),
        )
    except Exception as error:  # a template is a program: it may divide by zero
        raise InputError(
            f"{example.origin or 'A prompt'}: the chat template refuses it: {in_one_line(error)} Correct the row, "
            "leave it out, or give another template with --chat-template-path."
        ) from error


def _checked(example: Example, tokenizer: PreTrainedTokenizerBase, with_answer: bool) -> dict[str, Any]:
    """:func:`render`, with the messages in a form from which the template omits nothing.

    They are unchanged if possible, otherwise in an equivalent form that some templates need: arguments of a call as an
    object or as JSON, no content beside calls as null or as an empty text, parts of text as a list or as one text.
    """
    rendered = render(example, tokenizer)
    if isinstance(rendered["prompt"], str):
        return rendered
    problems = []
    for messages in _forms(rendered["prompt"] + (rendered["completion"] if with_answer else [])):
        problem = _problem(messages, example, tokenizer, with_answer)
        if problem is None:
            split = len(rendered["prompt"])
            return rendered | {"prompt": messages[:split], "completion": messages[split:]}
        problems.append(problem)
    raise problems[0]


def _problem(
    messages: list[dict[str, Any]], example: Example, tokenizer: PreTrainedTokenizerBase, with_answer: bool
) -> InputError | None:
    """The error if the template omits or garbles part of the messages."""
    marks = _Marks()
    marked = [marks.message(message, with_answer and message is messages[-1]) for message in messages]
    try:
        text = _filled(marked, tokenizer, example, marks.tools(example.tools), generate=not with_answer)
    except InputError as error:
        return error
    missing = [what for mark, what in marks.meaning.items() if mark not in text]
    template = tokenizer.get_chat_template(tools=example.tools)
    missing += [f"the variable {name!r}" for name in example.template_kwargs or {} if name not in template]
    # Garbled: a text quoted twice, a list in Python's notation, a null as "None".
    if any(f'\\"{mark}' in text for mark in marks.arguments):
        missing.append("that the arguments of a call are an object")
    contents = [message["content"] for message in messages if "content" in message]
    if any(isinstance(content, list) for content in contents) and re.search(r"""['"]type['"]: ?['"]text""", text):
        missing.append("that a message has several parts")
    if None in contents and "None" in text:
        missing.append("that a message has no content")
    if not missing:
        return None
    return InputError(
        f"{example.origin or 'A prompt'}: the chat template leaves out {missing[0]}. Give a template that knows it "
        "with --chat-template-path, or remove it from the row."
    )


def _forms(messages: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The messages as they are, then in the other forms that mean the same."""
    changes = (_other_arguments, _empty_content, _joined_parts)
    for chosen in itertools.product((False, True), repeat=len(changes)):
        form = messages
        for change in itertools.compress(changes, chosen):
            form = [change(message) for message in form]
        if form == messages and any(chosen):
            continue
        yield form


def _other_arguments(message: dict[str, Any]) -> dict[str, Any]:
    """Arguments that are JSON as an object, and objects as JSON."""
    if not message.get("tool_calls"):
        return message
    return {**message, "tool_calls": [_with_other_arguments(call) for call in message["tool_calls"]]}


def _with_other_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"] if isinstance(call.get("function"), dict) else call
    arguments = function.get("arguments")
    other = parsed(arguments) if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return (
        {**call, "function": {**function, "arguments": other}} if function is not call else {**call, "arguments": other}
    )


def _empty_content(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "content": ""} if message.get("content", "") is None else message


def _joined_parts(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "content": text_of(message)} if isinstance(message.get("content"), list) else message


class _Marks:
    """Copies of messages and tools with a mark for each text; ``meaning`` says what each stands for."""

    def __init__(self) -> None:
        self.meaning: dict[str, str] = {}
        self.arguments: list[str] = []

    def new(self, what: str) -> str:
        mark = f"mark{len(self.meaning)}x"
        self.meaning[mark] = what
        return mark

    def tools(self, tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        if not tools:
            return None
        marked = []
        for tool in tools:
            named = tool["function"] if isinstance(tool.get("function"), dict) else tool
            copy = {**named, "name": self.new(f"the tool {named.get('name')!r}")}
            marked.append({**tool, "function": copy} if named is not tool else copy)
        return marked

    def message(self, message: Mapping[str, Any], is_last: bool) -> dict[str, Any]:
        role = message["role"]
        copy = dict(message)
        content = message.get("content")
        if isinstance(content, list):
            copy["content"] = [{**part, "text": self.new(f"a message of the role {role!r}")} for part in content]
        elif content and content.strip():
            copy["content"] = self.new(f"a message of the role {role!r}")
        for key in REASONING:
            # Earlier reasoning is left out by design of the templates that know it.
            if is_last and isinstance(message.get(key), str) and message[key].strip():
                copy[key] = self.new(f"{key!r} of the answer")
        if message.get("tool_calls"):
            copy["tool_calls"] = [self.call(call) for call in message["tool_calls"]]
        return copy

    def call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        function = call["function"] if isinstance(call.get("function"), dict) else call
        what = f"'tool_calls' ({function.get('name')})"
        copy = {**function, "name": self.new(what)}
        arguments = parsed(function.get("arguments"))
        if isinstance(arguments, dict) and arguments:
            marked = {key: self.new(f"the arguments of {what}") for key in arguments}
            is_json = isinstance(function["arguments"], str)
            copy["arguments"] = json.dumps(marked) if is_json else marked
            self.arguments += marked.values() if is_json else ()
        return {**call, "function": copy} if function is not call else copy


FOLDER = "monolora-rows"  # in $HF_DATASETS_CACHE


def on_disk(rows: datasets.Dataset) -> datasets.Dataset:
    """The same rows, read from the cache; as they were, where caching is off or the cache cannot be written.

    Damaged files are rebuilt.
    """
    if not datasets.is_caching_enabled():
        return rows
    folder = Path(datasets.config.HF_DATASETS_CACHE) / FOLDER / rows._fingerprint  # a hash of what the rows hold
    try:
        with PartialState().main_process_first():
            if not _is_whole(folder, rows):
                with filled_once(folder, lambda folder: _is_whole(folder, rows)) as aside:
                    if aside is not None:
                        rows.save_to_disk(aside)
            return datasets.load_from_disk(str(folder))
    except (OSError, InputError):
        return rows


def _is_whole(folder: Path, rows: datasets.Dataset) -> bool:
    """Whether the folder holds these rows, and what was derived from them can be read."""
    try:
        for derived in folder.glob("cache-*.arrow"):
            datasets.Dataset.from_file(str(derived))
        return bool(datasets.load_from_disk(str(folder)).data.table.equals(rows.data.table))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # what damaged files of Arrow and of JSON end in
        return False


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
