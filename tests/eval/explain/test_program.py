"""What ``monolora explain`` prints."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from monolora.eval.explain.program import summary
from monolora.terminal import Terminal
from tests.support.feature_records import made


def test_names_are_shown_as_they_are() -> None:
    """Square brackets are no markup, and what a terminal would obey is not sent to it."""
    explained = made(units=3, contexts=2, gated=(True,))
    dataset = explained.datasets[0]
    nothing = [end._replace(consistency=np.full(3, np.nan), label=[None] * 3) for end in dataset.ends]
    named = replace(dataset, name="a[b]c[/red]", note="\x1b[31mred", ends=nothing)
    console = Terminal(record=True, width=200)
    summary(replace(explained, datasets=[named]), console)
    out = console.export_text()
    assert "a[b]c[/red]" in out
    assert "\x1b" not in out
    assert "[31mred" in out
    assert "(not shown)" in out
    assert "nan" not in out


def test_a_narrow_terminal_shows_which_units() -> None:
    explained = made(units=3, contexts=2, gated=(False,))
    labels = [end._replace(label=["violence,aiding_and_abetting,incitement"] * 3) for end in explained.datasets[0].ends]
    console = Terminal(record=True, width=80)
    summary(replace(explained, datasets=[replace(explained.datasets[0], ends=labels)]), console)
    out = console.export_text()
    for unit in range(3):
        assert f"L0 q_proj {unit}" in out
    assert f"{explained.datasets[0].effect.max():.2%}" in out
    assert "violence" in out
