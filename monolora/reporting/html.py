"""A page that needs nothing else: no network and no other file.

Texts of models and data sets are never part of its markup: they lie in blocks of JSON, from which the page's script
puts them in as text. Everything else is escaped by the template. A content security policy, which lets run no script
but the page's own (by its hash) and fetches nothing, stands behind both.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from monolora.reporting import palette

_FOLDER = Path(__file__).parent


def rendered(
    folder: Path, template: str, *, title: str, message: str, style: str = "", script: str = "", **values: Any
) -> str:
    """The page's text.

    Args:
        folder: of the template, which extends ``base.html.j2``: that brings the policy, the look, title and message.
        template: its name.
        title: of the page in lists of pages.
        message: the finding, a sentence; it stands first, in large type.
        style: CSS, after ``base.css``.
        script: JavaScript; the template puts it in as ``<script>{{ script }}</script>``, with nothing around it.
        values: what else the template names; escaped unless it is markup.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, _FOLDER]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        title=title,
        message=message,
        style=Markup(palette.style() + _read("base.css") + style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() if script else "",
        **values,
    )


def chart_style() -> str:
    """The CSS of the charts in ``charts.html.j2``."""
    return _read("charts.css")


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def script_json(value: Any) -> Markup:
    """JSON that may stand inside a ``<script>``: without ``<`` no markup can end it, and without raw line separators
    (only ASCII is left) it is the same text to every parser.
    """
    return Markup(json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", r"\u003c"))


def script_lines(values: Iterable[Any]) -> Markup:
    """One line of :func:`script_json` a value, so that a script can read one of many without the others."""
    return Markup("\n").join(map(script_json, values))


_MARKS = re.compile(r"\[([^\]]*)\]\(([^)]*)\)|\*\*(.+?)\*\*")  # [text](address), **text**


def inline(text: str) -> Markup:
    """Markdown's links and bold as HTML; all else is escaped. Links to other sites stay text."""
    parts, end = [], 0
    for match in _MARKS.finditer(text):
        shown, address, bold = match.groups()
        parts.append(escape(text[end : match.start()]))
        if bold is not None:
            parts.append(Markup("<strong>{}</strong>").format(inline(bold)))
        elif ":" in address:
            parts.append(escape(shown))
        else:
            parts.append(Markup('<a href="{}">{}</a>').format(address, shown))
        end = match.end()
    return Markup("").join([*parts, escape(text[end:])])


def flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """``("a.b", "1")`` for each leaf of nested JSON; lists of plain values stay together."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flat(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(item, (Mapping, list)) for item in value):
        for number, item in enumerate(value, start=1):
            yield from flat(item, f"{path} {number}".strip())
    elif isinstance(value, list):
        yield path, ", ".join(map(str, value)) or "none"
    else:
        yield path, "none" if value is None or value == {} else str(value)
