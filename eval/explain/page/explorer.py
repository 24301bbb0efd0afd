"""``explorer.html``: the units of an adapter, to be sorted, searched and read (see :mod:`monolora.eval.pages.render`).

The list's data and the script come before what is known of single units, so that the list is there while the rest is
still read.
"""

from __future__ import annotations

from pathlib import Path

from monolora.eval.explain.page.explorer_data import explorer_data
from monolora.eval.explain.records import Explained
from monolora.eval.pages.flat import flat
from monolora.eval.pages.json_blocks import script_json, script_lines
from monolora.eval.pages.render import rendered

_FOLDER = Path(__file__).parent
_STYLES = ("explorer.css", "unit.css")
_SCRIPTS = (
    "tools.js",
    "records.js",
    "search.js",
    "table.js",
    "list.js",
    "figures.js",
    "unit.js",
    "marks.js",
    "keys.js",
)
_LAST = "explorer.js"  # the one that starts


def explorer_page(explained: Explained) -> str:
    """The whole page."""
    data = explorer_data(explained)
    return rendered(
        _FOLDER,
        "explorer.html.j2",
        style="".join(map(_read, _STYLES)),
        script='(() => {\n"use strict";\n' + "\n".join(map(_read, (*_SCRIPTS, _LAST))) + "})();",
        title=explained.title,
        explained=explained,
        modules=len(data.head["modules"]),
        made=list(flat(explained.made)),
        data=script_json(data.head),
        common=script_lines(data.common),
        datasets=map(script_lines, data.datasets),
    )


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")
