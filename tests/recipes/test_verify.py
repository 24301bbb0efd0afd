"""``monolora verify OUT --against ADAPTER``: the same numbers as at the end of the merge, and merges that are wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monolora.recipes import verify as program
from tests.support.merge_runs import Ended, contents, negated, report_of

Trained = Callable[..., Path]
Cli = Callable[..., Ended]
OTHER = ("--seed", "7", "--lora-r", "4", "--lora-target-modules", "q_proj", "down_proj")
FEW = ("--verify-tokens", "150")
MEASURED = ("passed", "kept", "fidelity", "modules", "task")


@pytest.fixture
def merged(run_cli: Cli, trained: Trained, tmp_path: Path) -> Callable[..., Path]:
    """``merged(*adapters, *flags)``: the folder of a merge, by default of the usual adapter."""

    def make(*words: str | Path) -> Path:
        flags = next((k for k, word in enumerate(words) if str(word).startswith("--")), len(words))
        adapters = words[:flags] or (trained(),)
        assert run_cli("merge", *adapters, tmp_path / "out", *words[flags:], *FEW).status == 0
        return tmp_path / "out"

    return make


def _measured(folder: Path) -> dict[str, Any]:
    report = report_of(folder)
    return {key: report[key] for key in MEASURED}


@pytest.mark.parametrize("flags", [(), ("--as", "lora"), ("--method", "exact")], ids=["dense", "lora", "exact"])
def test_the_same_numbers(run_cli: Cli, trained: Trained, merged: Callable[..., Path], flags: tuple[str, ...]) -> None:
    out = merged(*flags)
    at_the_merge, made = _measured(out), report_of(out)["merge"]
    ended = run_cli("verify", out, "--against", trained(), *FEW)
    assert (ended.status, ended.err) == (0, [])
    assert _measured(out) == at_the_merge
    assert report_of(out)["merge"] == made  # how it was made is not forgotten
    (out / "merge_report.json").unlink()
    (out / "merge_report.html").unlink()
    assert run_cli("verify", out, "--against", trained(), *FEW).status == 0
    assert _measured(out) == at_the_merge
    assert (out / "merge_report.html").is_file()


def test_sums_are_verified_with_their_weights(run_cli: Cli, trained: Trained, merged: Callable[..., Path]) -> None:
    adapters = (trained(), trained(*OTHER))
    out = merged(*adapters, "--weights", "1", "-0.5", "--method", "exact")
    assert run_cli("verify", out, "--against", *adapters, *FEW).status == 0
    assert report_of(out)["kept"] == 1
    ended = run_cli("verify", out, "--against", *adapters, "--weights", "-1", "-0.5", *FEW)
    assert ended.status == 1
    (out / "merge_report.json").unlink()
    assert run_cli("verify", out, "--against", *adapters, "--weights", "1", "-0.5", *FEW).status == 0
    assert report_of(out)["kept"] == 1


@pytest.mark.parametrize("flags", [(), ("--as", "lora"), ("--method", "exact")], ids=["dense", "lora", "exact"])
def test_a_merge_of_another_adapter(
    run_cli: Cli, trained: Trained, merged: Callable[..., Path], tmp_path: Path, flags: tuple[str, ...]
) -> None:
    out = merged(*flags)
    wrong = negated(trained(), tmp_path / "wrong")
    before = contents(out)
    ended = run_cli("verify", out, "--against", wrong, *FEW)
    assert (ended.status, ended.err) == (1, [])
    report = report_of(out)
    assert report["passed"] is False
    assert report["kept"] < 0
    assert max(report["modules"].values()) > 1
    assert f"keeps only {report['kept']:.2%} of the adapter's effect, below --min-fidelity (50%)" in (ended.out)
    assert 'class="lead worse"' in (out / "merge_report.html").read_text()
    weights = {name: data for name, data in before.items() if not name.startswith("merge_report")}
    assert {name: data for name, data in contents(out).items() if not name.startswith("merge_report")} == weights


def test_min_fidelity(run_cli: Cli, trained: Trained, tmp_path: Path) -> None:
    """The files of a merge that is not good enough stay, marked in the report."""
    out = tmp_path / "out"
    ended = run_cli("merge", trained(), out, *FEW, "--min-fidelity", "1")
    assert (ended.status, ended.err) == (1, [])
    assert "below --min-fidelity (100%). Merge with --method exact, or serve the adapter itself." in (ended.out)
    report = report_of(out)
    assert (report["passed"], report["min_fidelity"]) == (False, 1)
    assert (out / "model.safetensors").is_file()
    assert run_cli("verify", out, "--against", trained(), *FEW).status == 0
    assert report_of(out)["passed"] is True
    assert run_cli("merge", trained(), tmp_path / "exact", *FEW, "--min-fidelity", "1", "--method", "exact").status == 0


@pytest.fixture
def without_record(trained: Trained, tmp_path: Path) -> Path:
    """An adapter without its run.json."""
    folder = shutil.copytree(trained(), tmp_path / "bare")
    (folder / "run.json").unlink()
    return folder


def test_adapters_without_a_record(
    run_cli: Cli, without_record: Path, tmp_path: Path, write_rows: Callable[..., str]
) -> None:
    out, types = tmp_path / "out", ("--dtype", "float32")
    no_text = (
        "error: There is no text to verify the merge on: the adapter's folder has no run.json, and Dolly is not in "
        "MONOLORA_DATA. Give a data set with --verify-on."
    )
    for flags in ((), ("--method", "exact")):
        ended = run_cli("merge", without_record, out, *types, *flags)
        assert (ended.status, ended.err) == (2, [no_text])
        assert not out.exists()
    assert run_cli("merge", without_record, out, *types, *FEW, "--method", "exact", "--verify-on", "demo").status == 0
    assert report_of(out)["task"] is None
    assert report_of(out)["kept"] == 1
    assert run_cli("verify", out, "--against", without_record, *types).err == [no_text]
    rows = write_rows([{"text": f"{k} is {k * 7919 % 997}"} for k in range(40)])
    ended = run_cli("verify", out, "--against", without_record, *types, *FEW, "--verify-on", rows)
    assert (ended.status, ended.err) == (0, [])
    assert set(report_of(out)["fidelity"]) == {rows, "all"}


def test_general_text_for_adapters_without_a_record(
    run_cli: Cli, without_record: Path, tmp_path: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MONOLORA_DATA", str(mirror))
    flags = ("--dtype", "float32", "--calibration-tokens", "3000", "--verify-tokens", "300")
    assert run_cli("merge", without_record, tmp_path / "out", *flags).status == 0
    assert set(report_of(tmp_path / "out")["fidelity"]) == {"dolly", "all"}


def test_repeated_rows_are_not_verified_on(
    run_cli: Cli, trained: Trained, tmp_path: Path, write_rows: Callable[..., str]
) -> None:
    rows = write_rows([{"text": "the same words again and again, all of them"}] * 100)
    ended = run_cli("merge", trained(), tmp_path / "out", "--calibration", rows, "--task-samples", "0")
    assert ended.status == 2
    assert ended.err == [
        "error: There is no text to verify the merge on that it was not fitted to. Give one with --verify-on."
    ]


@pytest.mark.filterwarnings("ignore:The inputs of .* do not vary")
def test_held_out_texts_are_no_calibration_texts(
    run_cli: Cli, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_rows: Callable[..., str]
) -> None:
    """Here and in a verification afterwards, which chooses the calibration texts once more to leave them out."""
    seen = []
    original = program.choose

    def choose(*args: Any) -> Any:
        seen.append(original(*args))
        return seen[-1]

    monkeypatch.setattr(program, "choose", choose)
    rows = write_rows([{"text": f"{k % 30} is like {k % 30 * 7919 % 997} times {k % 30 * 31 % 97}"} for k in range(90)])
    flags = ("--task-samples", "0", "--calibration-tokens", "600", *FEW)
    assert run_cli("merge", trained(), tmp_path / "out", "--calibration", rows, *flags).status in (0, 1)
    run_cli("verify", tmp_path / "out", "--against", trained(), "--task-samples", "0", *FEW)
    merge, again = seen
    assert merge == again
    fitted, held_out = ({tuple(row) for row in texts[rows]} for texts in merge[:2])
    assert len(fitted) > 10
    assert held_out
    assert not fitted & held_out


def test_the_task_is_scored_as_in_the_run(
    run_cli: Cli, merged: Callable[..., Path], trained: Trained, run_sft: Callable[..., Any], tmp_path: Path
) -> None:
    """Not at all after --skip-eval, unless it is asked for; the base is then scored too."""
    run = run_sft("--skip-eval").folder
    assert run_cli("merge", run, tmp_path / "out", *FEW).status == 0
    assert report_of(tmp_path / "out")["task"] is None
    assert run_cli("verify", tmp_path / "out", "--against", run, *FEW, "--task-samples", "3").status == 0
    task = report_of(tmp_path / "out")["task"]
    assert [task[who]["n"] for who in ("base", "adapter", "merged")] == [3, 3, 3]
    recorded = json.loads((trained() / "run.json").read_text())["results"]["before"]
    assert task["base"].keys() == recorded.keys()


BAD = {
    "--verify-tokens 0": "--verify-tokens must be at least 1, got 0",
    "--min-fidelity 2": "--min-fidelity must be at most 1, got 2.0",
    "--task-samples -2": "--task-samples must be at least 0",
    "--weights 1 2": "Got 1 adapters and 2 --weights",
    "--verify-on ./nowhere.jsonl": "There is no data set at ./nowhere.jsonl",
    "--calibration demo": "Unknown flag --calibration",
    "--agianst x": "Unknown flag --agianst. Did you mean --against",
}


def test_bad_input(run_cli: Cli, trained: Trained, merged: Callable[..., Path], tmp_path: Path) -> None:
    out = merged()
    before = contents(tmp_path)

    def refused(*words: str | Path) -> str:
        ended = run_cli("verify", *words)
        assert ended.status == 2
        assert len(ended.err) == 1
        assert contents(tmp_path) == before
        return ended.err[0]

    for flags, says in BAD.items():
        assert f"error: {says}" in refused(out, "--against", trained(), *flags.split())
    assert "holds neither a model nor an adapter" in refused(tmp_path / "nowhere", "--against", trained())
    assert "holds no adapter" in refused(out, "--against", tmp_path / "nowhere")
    assert "required: --against" in refused(out)
    assert refused(out, "--agianst", trained()) == "error: Unknown flag --agianst. Did you mean --against?"
    assert "required: out" in refused("--against", trained())


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"merge": 3}', "\0"])
def test_damaged_reports(run_cli: Cli, trained: Trained, merged: Callable[..., Path], text: str) -> None:
    out = merged("--task-samples", "0")
    (out / "merge_report.json").write_text(text)
    ended = run_cli("verify", out, "--against", trained(), *FEW)
    assert ended.status == 2
    assert len(ended.err) == 1
    assert f"{out / 'merge_report.json'} is no report of a merge" in ended.err[0]
    assert ended.err[0].endswith("Remove it.")


def test_damaged_merges(run_cli: Cli, trained: Trained, merged: Callable[..., Path]) -> None:
    out = merged("--task-samples", "0")
    path = out / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    ended = run_cli("verify", out, "--against", trained(), *FEW)
    assert ended.status == 2
    assert f"error: Cannot load a causal language model from {out}" in ended.err[0]


def test_a_merge_of_something_else(run_cli: Cli, trained: Trained, merged: Callable[..., Path]) -> None:
    """A LoRA merge of other modules."""
    out = merged("--as", "lora", "--task-samples", "0")
    ended = run_cli("verify", out, "--against", trained(*OTHER), *FEW)
    assert ended.status == 2
    assert "it is a merge of something else" in ended.err[0]


def test_an_adapter_without_effect(run_cli: Cli, trained: Trained, tmp_path: Path) -> None:
    """Nothing to keep is kept whole."""
    flat = shutil.copytree(trained(), tmp_path / "flat")
    config = json.loads((flat / "adapter_config.json").read_text()) | {"lora_alpha": 0}
    (flat / "adapter_config.json").write_text(json.dumps(config))
    ended = run_cli("merge", flat, tmp_path / "out", *FEW, "--task-samples", "0")
    assert (ended.status, ended.err) == (0, [])
    assert report_of(tmp_path / "out")["kept"] == 1
