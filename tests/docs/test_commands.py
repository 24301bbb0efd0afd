"""Every command line in the README and the documentation is one that its program takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import ROOT, WrongCommandError, check, in_blocks, inline

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_accepted(page: Path) -> None:
    text = page.read_text()
    wrong = []
    for line, whole in [*((line, True) for line in in_blocks(text)), *((line, False) for line in inline(text))]:
        try:
            check(line, whole=whole)
        except WrongCommandError as error:
            wrong.append(str(error))
    assert wrong == []


def test_a_wrong_flag_of_any_command_is_noticed() -> None:
    """Whatever the command is, one flag that its program does not know makes it wrong."""
    own = ("monolora ", "accelerate ", "python benchmarks", "python recipes")
    lines = {line for page in PAGES for line in in_blocks(page.read_text()) if line.startswith(own)}
    assert len(lines) > 50
    for line in lines:
        check(line)
        with pytest.raises(WrongCommandError, match="no-such-flag"):
            check(f"{line} --no-such-flag")


def test_what_is_measured_on_a_gpu() -> None:
    lines = (ROOT / "benchmarks/gpu.sh").read_text().splitlines()
    measured = [line.split(maxsplit=3) for line in lines if line.startswith("measure ")]
    assert sum(int(seconds) for _, _, seconds, _ in measured) <= 540
    for *_, command in measured:
        check(f"python {command}")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("monolora mrege runs/a out", "no such command: mrege"),
        ("monolora merge runs/a", "required: OUT|out"),
        ("monolora merge runs/a out --method exactly", "invalid choice"),
        ("monolora eval rnu --out RUN", "no such step: rnu"),
        ("monolora eval report --out RUN --suite xstest", "no such flag: --suite"),
        ("monolora judge --epochs many", "invalid int value"),
        ("monolora sft --config recipes/configs/none.yaml", "there is no recipes/configs/none.yaml"),
        ("accelerate launch --config recipes/accelerate/ddp.yaml recipes/stf.py", "there is no recipes/stf.py"),
        ("accelerate launch --num_processes 2 recipes/sft.py --lora-rank 8", "no such flag: --lora-rank"),
        ("python benchmarks/serving.py --round 7", "no such flag: --round"),
        ("python -m recipes.vision.prob --config FILE", "no such step: prob"),
        ("make tests", "no such target: tests"),
        ("rm -rf runs", "no such program"),
        ("python servers.py 2 'monolora eval run --out RUN --data-paralel 2'", "no such flag: --data-paralel"),
    ],
)
def test_what_is_wrong_is_named(line: str, complaint: str) -> None:
    with pytest.raises(WrongCommandError, match=complaint):
        check(line)


def test_placeholders_are_accepted() -> None:
    check("monolora eval report --out RUN --seed N")
    check("BASE=$(python -c 'print(1)')")
    check("MONOLORA_TRACEBACK=1 monolora verify OUT --against ADAPTER …")
    check("monolora sft --lora-r <r> --config FILE")
    check("monolora merge --as lora", whole=False)
    with pytest.raises(WrongCommandError, match="no such flag: --ass"):
        check("monolora merge --ass lora", whole=False)


def test_commands_are_found() -> None:
    block = "```bash\nmake demo   # what\n\n# a note\nmonolora merge a \\\n  out  # so\n```\n"
    text = f"a\n{block}`monolora sft --preview` `x`\n"
    assert list(in_blocks(text)) == ["make demo", "monolora merge a out"]
    assert list(inline(text)) == ["monolora sft --preview"]
