"""An Ollama Modelfile: the chat template as Ollama's own kind of template, end tokens, system prompt.

Ollama's templates are Go's, chat templates are Jinja's. What a chat template puts around messages is found by rendering
conversations, and checked on others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

_SYSTEM, _USER, _ASSISTANT, _AGAIN = "Xsystem1X", "Xuser2X", "Xassistant3X", "Xuser4X"
Messages = list[dict[str, str]]


class ChatForm(NamedTuple):
    """What a chat template writes around messages, without a BOS token.

    Attributes:
        before_system, after_system: around the system prompt.
        before_user, after_user: around a user's message; the latter up to where the assistant's answer begins.
        after_assistant: behind an answer.
        default_system: the system prompt where there is none; None for none.
    """

    before_system: str
    after_system: str
    before_user: str
    after_user: str
    after_assistant: str
    default_system: str | None

    def rendered(self, messages: Messages) -> str:
        """A conversation that ends with a user's message."""
        given = [message["content"] for message in messages if message["role"] == "system"]
        system = given[0] if given else self.default_system
        text = "" if system is None else f"{self.before_system}{system}{self.after_system}"
        for message in messages:
            if message["role"] == "user":
                text += f"{self.before_user}{message['content']}{self.after_user}"
            elif message["role"] == "assistant":
                text += f"{message['content']}{self.after_assistant}"
        return text


def chat_form(tokenizer: PreTrainedTokenizerBase, ends: Iterable[str] = ()) -> ChatForm | None:
    """What the chat template writes around messages; None if it is of no regular form, or there is none.

    Args:
        tokenizer: with the chat template.
        ends: end tokens of messages, which belong to the message before them.
    """
    if tokenizer.chat_template is None:
        return None
    user, answer, again = _message("user", _USER), _message("assistant", _ASSISTANT), _message("user", _AGAIN)
    system = _message("system", _SYSTEM)
    try:
        whole, plain = _render(tokenizer, [system, user, answer, again]), _render(tokenizer, [user])
        head, first, second, third, tail = _between(whole, (_SYSTEM, _USER, _ASSISTANT, _AGAIN))
        opening, closing = _between(plain, (_USER,))
    except (TemplateError, ValueError):  # a template may refuse system prompts, or change contents
        return None
    before_user = _common_end(first, third)
    for end in ends:
        before_user = before_user.rpartition(end)[2].lstrip() if end in before_user else before_user
    form = ChatForm(
        before_system=head,
        after_system=first.removesuffix(before_user),
        before_user=before_user,
        after_user=second,
        after_assistant=third.removesuffix(before_user),
        default_system=None,
    )
    if opening != before_user:
        start, end = form.before_system, form.after_system + before_user
        if not (opening.startswith(start) and opening.endswith(end) and len(opening) >= len(start + end)):
            return None
        form = form._replace(default_system=opening[len(start) : len(opening) - len(end)])
    tests: list[Messages] = [[user], [system, user], [user, answer, again], [system, user, answer, again, answer, user]]
    same = closing == second == tail and all(form.rendered(test) == _render(tokenizer, test) for test in tests)
    return form if same and not any('"""' in part or "{{" in part for part in form if part) else None


def modelfile(file: str, tokenizer: PreTrainedTokenizerBase, end_tokens: Iterable[int]) -> str:
    """A Modelfile for a GGUF file beside it.

    Args:
        file: name of the GGUF file.
        tokenizer: of the model. Without a regular form of its chat template, Ollama takes the one in the GGUF file.
        end_tokens: that end an answer.
    """
    lines, ends = [f"FROM ./{file}"], [str(tokenizer.decode([token])) for token in end_tokens]
    form = chat_form(tokenizer, ends)
    if form is not None:
        lines.append(f'TEMPLATE """{_go_template(form)}"""')
        if form.default_system:
            lines.append(f'SYSTEM """{form.default_system}"""')
    lines += [f'PARAMETER stop "{end}"' for end in ends]
    return "\n".join(lines) + "\n"


def _go_template(form: ChatForm) -> str:
    system = f"{form.before_system}{{{{ .System }}}}{form.after_system}"
    if form.default_system != "":
        system = f"{{{{ if .System }}}}{system}{{{{ end }}}}"
    user = f'{{{{ if eq .Role "user" }}}}{form.before_user}{{{{ .Content }}}}{form.after_user}'
    assistant = f'{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}{form.after_assistant}{{{{ end }}}}'
    return f"{system}{{{{ range .Messages }}}}{user}{assistant}{{{{ end }}}}"


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _render(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str:
    """Without the BOS token, which llama.cpp adds itself."""
    text: Any = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return str(text).removeprefix(str(tokenizer.bos_token)) if _adds_bos(tokenizer) else str(text)


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _between(text: str, contents: Sequence[str]) -> list[str]:
    """What stands before, between and behind contents.

    Raises:
        ValueError: if one is missing.
    """
    parts = []
    for content in contents:
        at = text.index(content)
        parts.append(text[:at])
        text = text[at + len(content) :]
    return [*parts, text]


def _common_end(one: str, other: str) -> str:
    length = 0
    while length < min(len(one), len(other)) and one[-1 - length] == other[-1 - length]:
        length += 1
    return one[len(one) - length :]
