"""A page that needs nothing else: no network and no other file.

Texts of models and data sets are never part of its markup: they lie in blocks of JSON, from which the page's script
puts them in as text. Everything else is escaped by the template. A content security policy, which lets run no script
but the page's own (by its hash) and fetches nothing, stands behind both.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

_FOLDER = Path(__file__).parent


def rendered(folder: Path, template: str, *, style: str, script: str, **values: Any) -> str:
    """The page's text.

    Args:
        folder: of the template, which may extend ``base.html.j2``: that brings the policy, ``title`` and ``style``.
        template: its name.
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
        style=Markup((_FOLDER / "base.css").read_text(encoding="utf-8") + style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **values,
    )
