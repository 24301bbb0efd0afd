"""Ollama's template writes what the chat template writes."""

from __future__ import annotations

import re
from typing import Any

import jinja2
import pytest
from transformers import PreTrainedTokenizerFast

from monolora.export import modelfile
from tests.support.conversations import TEMPLATES, assistant, user
from tests.support.tiny_chat import CHAT_TEMPLATE, train_tokenizer

DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe \"kind\".<|im_end|>\n{% endif %}"
    "{% for m in messages %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}"
    "<|im_start|>assistant\n{% endif %}"
)
FORMS = {"chatml": TEMPLATES["chatml"], "llama": TEMPLATES["llama"], "own": CHAT_TEMPLATE, "default": DEFAULT_SYSTEM}
SYSTEM = {"role": "system", "content": "Answer in verse."}
CONVERSATIONS = [
    [user("Hi")],
    [SYSTEM, user("Hi")],
    [SYSTEM, user("Hi"), assistant("Hello."), user("Why?")],
    [user("Hi"), assistant("Hello."), user("Why?"), assistant("So."), user("How?")],
]


def tokenizer_with(template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = train_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def ollama(text: str, messages: list[dict[str, Any]]) -> str:
    """What Ollama renders: its template as a Jinja template of the same meaning."""
    (go,) = re.findall(r'^TEMPLATE """(.*?)"""$', text, re.S | re.M)
    default = re.findall(r'^SYSTEM """(.*?)"""$', text, re.S | re.M)
    for theirs, ours in (
        ("{{ if .System }}", "{% if system %}"), ("{{ .System }}", "{{ system }}"), ("{{ end }}", "{% end %}"),
        ("{{ range .Messages }}", "{% for m in messages %}"), ("{{ .Content }}", "{{ m.content }}"),
        ('{{ if eq .Role "user" }}', "{% if m.role == 'user' %}"),
        ('{{ else if eq .Role "assistant" }}', "{% elif m.role == 'assistant' %}"),
    ):  # fmt: skip
        go = go.replace(theirs, ours)
    opened: list[str] = []
    for word in re.findall(r"\{% (if|for|end)\b", go):
        if word == "end":
            go = go.replace("{% end %}", f"{{% end{opened.pop()} %}}", 1)
        else:
            opened.append(word)
    assert "{{ ." not in go
    system = [message["content"] for message in messages if message["role"] == "system"] or default or [""]
    return jinja2.Template(go, keep_trailing_newline=True).render(system=system[0], messages=messages)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_conversations(name: str, messages: list[dict[str, Any]]) -> None:
    tokenizer = tokenizer_with(FORMS[name])
    text = modelfile("model-q8_0.gguf", tokenizer, [2])
    expected: Any = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ollama(text, messages) == expected.removeprefix("<s>")  # which llama.cpp adds itself
    assert text.startswith("FROM ./model-q8_0.gguf\n")
    assert text.endswith('PARAMETER stop "</s>"\n')


@pytest.mark.parametrize(
    "template",
    [
        None,
        TEMPLATES["gemma"],  # no system prompt
        CHAT_TEMPLATE.replace("message.content", "message.content | upper"),
        CHAT_TEMPLATE.replace("[{{ message.role }}]", "[{{ message.role }} {{ loop.index }}]"),
        CHAT_TEMPLATE.replace("[{{ message.role }}]", '"""{{ message.role }}'),
    ],
    ids=["none", "no system", "changes content", "counts", "quotes"],
)
def test_another_form_has_no_template(template: str | None) -> None:
    """Ollama then takes the one that is in the GGUF file."""
    assert modelfile("m.gguf", tokenizer_with(template), [2]) == 'FROM ./m.gguf\nPARAMETER stop "</s>"\n'


def instructions(text: str) -> list[tuple[str, str]]:
    """A Modelfile's instructions, as Ollama's parser has them: a name, and what follows, with or without quotes."""
    form = r'(?m)^(FROM|TEMPLATE|SYSTEM|PARAMETER \w+) (?:"""((?:.|\n)*?)"""|"((?:[^"\n])*)"|(\S.*))$\n?'
    found = [(match[1], match[2] or match[3] or match[4]) for match in re.finditer(form, text)]
    assert re.sub(form, "", text) == ""
    return found


def test_what_is_read_back() -> None:
    """The file, the template, a system prompt with quotes and lines, and each end token."""
    tokenizer = tokenizer_with(DEFAULT_SYSTEM.replace('Be "kind".', 'Be "kind".\n\n  Always.'))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert isinstance(end, int)
    first, (name, template), system, *stops = instructions(modelfile("m.gguf", tokenizer, [2, end]))
    assert first == ("FROM", "./m.gguf")
    assert name == "TEMPLATE"
    assert template.startswith("{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}{{ range")
    assert system == ("SYSTEM", 'Be "kind".\n\n  Always.')
    assert stops == [("PARAMETER stop", "</s>"), ("PARAMETER stop", "<|im_end|>")]
