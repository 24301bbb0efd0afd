"""Conversations of every usual form, and chat templates of three families."""

from __future__ import annotations

from typing import Any

CHATML = (
    "{{ bos_token }}{% if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}{{ messages[0].content }}\n"
    "{% endif %}<tools>{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}</tools><|im_end|>\n"
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if not (loop.first and m.role == 'system') %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{% if m.content is string %}{{ m.content }}{% endif %}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ {'name': call.function.name, "
    "'arguments': call.function.arguments} | tojson }}</tool_call>{% endfor %}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% else %}<|im_end|>{% endif %}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if thinking is defined and not thinking %}"
    "<think></think>{% endif %}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}<|header|>system<|end|>\n{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}"
    "{% set messages = messages[1:] %}{% endif %}{{ eos_token }}{% for m in messages %}"
    "{% if loop.first and tools %}<|header|>user<|end|>\nFunctions:\n{% for t in tools %}{{ t | tojson(indent=4) }}\n"
    "{% endfor %}{{ m.content | trim }}{{ eos_token }}{% elif 'tool_calls' in m %}"
    "{% if m.tool_calls | length != 1 %}{{ raise_exception('One call at a time') }}{% endif %}"
    '<|header|>assistant<|end|>\n{"name": "{{ m.tool_calls[0].function.name }}", "parameters": '
    "{{ m.tool_calls[0].function.arguments | tojson }}}{{ eos_token }}{% elif m.role == 'tool' %}"
    "<|header|>ipython<|end|>\n{{ m.content | tojson }}{{ eos_token }}{% else %}"
    "<|header|>{{ m.role }}<|end|>\n{{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|header|>assistant<|end|>\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant/user/…') }}{% endif %}"
    "<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "llama": LLAMA, "gemma": GEMMA}

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def call(name: str = "weather", arguments: Any = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments or {"city": "Rome"}}}


SYSTEM = {"role": "system", "content": "be short"}
RESULT = {"role": "tool", "name": "weather", "content": "sunny"}
CHATS: dict[str, dict[str, Any]] = {
    "turns": {"messages": [user("hi"), assistant("yes?"), user("good?"), assistant("no")]},
    "system": {"messages": [SYSTEM, user("hi"), assistant("yes?")]},
    "call": {"messages": [user("hi"), assistant("", tool_calls=[call()])], "tools": [WEATHER, CLOCK]},
    "null": {"messages": [user("hi"), assistant(None, tool_calls=[call()])], "tools": [WEATHER]},
    "no content": {"messages": [user("hi"), {"role": "assistant", "tool_calls": [call()]}], "tools": [WEATHER]},
    "result": {
        "messages": [SYSTEM, user("hi"), assistant("", tool_calls=[call()]), RESULT, assistant("It is sunny.")],
        "tools": [WEATHER],
    },
    "reasoning": {"messages": [user("hi"), assistant("yes", reasoning_content="A greeting.")]},
    "variables": {"messages": [user("hi"), assistant("yes")], "chat_template_kwargs": {"thinking": True}},
}
