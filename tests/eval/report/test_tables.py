"""table.csv and table.tex."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from monolora.errors import printable
from monolora.eval.report.lookups import View
from monolora.eval.report.tables import FIELDS, as_csv, as_latex, escaped
from tests.support.synthetic_report import EVIL, make, poisoned


@pytest.mark.parametrize("is_poisoned", [False, True])
def test_csv_read_back_is_the_cells(is_poisoned: bool) -> None:
    results, _ = poisoned() if is_poisoned else make()
    rows = list(csv.DictReader(io.StringIO(as_csv(results), newline="")))
    assert tuple(rows[0]) == FIELDS
    names = [(model["name"], column["id"]) for model in results["models"] for column in results["columns"]]
    assert [(row["model"], row["column"]) for row in rows] == [tuple(map(printable, pair)) for pair in names]
    for (model, column), row in zip(names, rows, strict=True):
        cell = results["cells"][model][column]
        for key in ("value", "low", "high", "n", "invalid"):
            expected = None if cell is None else cell[key]
            assert (float(row[key]) if row[key] else None) == expected


def test_csv_leaves_empty_what_has_no_value() -> None:
    results, _ = make(("base", "mono"))
    results["cells"]["mono"]["task:sst2/accuracy"] = {"value": None, "low": None, "high": None, "n": 0, "invalid": 7}
    (row,) = [
        row
        for row in csv.DictReader(io.StringIO(as_csv(results)))
        if (row["model"], row["column"]) == ("mono", "task:sst2/accuracy")
    ]
    assert (row["value"], row["n"], row["invalid"]) == ("", "0", "7")


def _body(text: str) -> list[str]:
    return text.partition(r"\midrule")[2].partition(r"\bottomrule")[0].strip().splitlines()


def test_latex_has_table_2s_columns_and_a_line_of_values_and_intervals_a_model() -> None:
    results, _ = make(prompts=90)
    text = as_latex(results)
    for rule in (
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
        r"\begin{tabular}{lrrrrrrrrr}",
        r"\multicolumn{5}{c}{ShieldGemma}",
    ):
        assert rule in text
    body = _body(text)
    assert len(body) == 6
    assert all(line.count("&") == 9 for line in body)
    assert all(line.endswith(r" \\") for line in body)
    assert body[0].startswith("base & ")
    cell = results["cells"]["base"]["beavertails/shieldgemma/dangerous"]
    assert body[0].split(" & ")[1] == f"{cell['value']:.2f}"  # as the paper has it, from 10 on too
    assert body[1].split(" & ")[1] == rf"{{\scriptsize [{cell['low']:.2f}, {cell['high']:.2f}]}}"
    assert body[0].split(" & ")[6] == "--"


def test_latex_marks_what_is_significant() -> None:
    results, _ = make(("base", "mono"))
    for each in results["differences"]:
        each["p_holm"] = 0.01 if each["column"].endswith("beaverdam/flagged") else 0.5
    text = as_latex(results)
    assert [line.count("$^*$") for line in _body(text)] == [0, 0, 1, 0]
    assert r"$^*$ differs from base ($p < 0.05$ after Holm's correction)" in text


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("50 % & more_#1", r"50 \% \& more\_\#1"),
        ("$x^2$ {a}~b", r"\$x\textasciicircum{}2\$ \{a\}\textasciitilde{}b"),
        (r"\input{x}", r"\textbackslash{}input\{x\}"),
        ('<a|"b">', r"\textless{}a\textbar{}\textquotedbl{}b\textquotedbl{}\textgreater{}"),
        ("a\nb", "a b"),
    ],
)
def test_latex_specials(text: str, latex: str) -> None:
    assert escaped(text) == latex


def test_latex_of_hostile_names_has_no_special_left() -> None:
    found = escaped(EVIL)
    without = re.sub(r"\\[&%$#_{}]|\\text[a-z]+\{\}", "", found)
    assert not set(without) & set('\\&%$#_{}~^<>|"')
    assert found in as_latex(poisoned()[0])


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")
def test_latex_compiles(tmp_path: Path) -> None:
    document = "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage{booktabs}\\begin{document}"
    (tmp_path / "a.tex").write_text(f"{document}\n{as_latex(make()[0])}\\end{{document}}\n")
    ended = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "a.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout[-2000:]


def test_table_2_has_the_papers_two_decimals() -> None:
    results, _ = make(prompts=20)
    for model, value in zip(("base", "mono"), (10.49, 10.54), strict=True):
        results["cells"][model]["beavertails/shieldgemma/average"]["value"] = value
    view = View(results)
    assert [view.value(model, "beavertails/shieldgemma/average") for model in ("base", "mono")] == ["10.49", "10.54"]
    assert view.digits("beavertails/beaverdam/flagged") == 2
