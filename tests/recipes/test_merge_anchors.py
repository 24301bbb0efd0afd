"""Merges of adapters that were trained with ``--keep``: calibrated and verified on the run's anchors too."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from monolora.data.chat_template import prompt_ids
from monolora.keep.anchors import read_prompts
from monolora.recipes import sft
from monolora.recipes import verify as program
from monolora.recipes.calibration_data import ANCHORS, Texts
from monolora.recipes.merge_source import MergeSource
from tests.support.merge_runs import Ended, report_of, sentences
from tests.support.program_runs import QUICK

Cli = Callable[..., Ended]
Write = Callable[..., str]
SAMPLES = 40
KEEP = ("--keep-samples", str(SAMPLES), "--keep-answer-tokens", "4", "--skip-eval")
FEW = ("--verify-tokens", "400", "--task-samples", "0")


@pytest.fixture(scope="module")
def made(chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A silenced adapter, and the cache with the answers to its anchors."""
    folder = tmp_path_factory.mktemp("silenced")
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.setenv("MONOLORA_CACHE", str(folder / "cache"))
        patch.delenv("MONOLORA_DATA", raising=False)
        words = ("--model", str(chat_model), "--output-dir", str(folder / "run"), *QUICK, "--keep", "silence", *KEEP)
        assert sft.main([*words, "--num-train-epochs", "12"]) == 0
    return folder / "run", folder / "cache"


@pytest.fixture
def silenced(made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the adapter, with the cache at hand."""
    monkeypatch.setenv("MONOLORA_CACHE", str(made[1]))
    return shutil.copytree(made[0], tmp_path / "silenced")


@pytest.fixture
def loud(silenced: Path) -> Path:
    """The same units, and a hundred times the effect where they are on."""
    path = silenced / "adapter_model.safetensors"
    tensors = {name: tensor * (100 if "_B" in name else 1) for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    return silenced


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[Texts]:
    """The texts of each merge and verification."""
    texts: list[Texts] = []
    original = program.choose

    def choose(*args: Any) -> Texts:
        texts.append(original(*args))
        return texts[-1]

    monkeypatch.setattr(program, "choose", choose)
    return texts


def _set_config(adapter: Path, **flags: Any) -> None:
    record = json.loads((adapter / "run.json").read_text())
    record["config"] |= flags
    (adapter / "run.json").write_text(json.dumps(record))


def _contexts(tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, ...]]:
    """The anchors' prompts, in their order."""
    examples = read_prompts(("chat", "refusals"), SAMPLES).examples
    return [tuple(prompt_ids(example, tokenizer)) for example in examples]


def test_calibrated_and_verified_on(
    run_cli: Cli, silenced: Path, tmp_path: Path, chosen: list[Texts], chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    """The anchors that the run learned from, and those that it held out, with the base's answers."""
    assert run_cli("merge", silenced, tmp_path / "out", *FEW).status == 0
    contexts = _contexts(chat_tokenizer)
    fitted, held_out = chosen[0].calibration[ANCHORS], chosen[0].anchors
    assert len(fitted) + len(held_out) == SAMPLES
    for index, context in enumerate(contexts):
        part = held_out if index % 10 == 0 else fitted
        (text,) = (tuple(row) for row in part if tuple(row[: len(context)]) == context)
        assert 0 < len(text) - len(context) <= 4
    report = report_of(tmp_path / "out")
    assert report["merge"]["texts"][ANCHORS] == {"texts": len(fitted), "tokens": sum(map(len, fitted))}
    assert report[ANCHORS]["tokens"] == sum(map(len, held_out))
    assert set(report["fidelity"]) == {"demo", "all"}
    assert run_cli("verify", tmp_path / "out", "--against", silenced, *FEW).status == 0
    assert chosen[1] == chosen[0]


@pytest.mark.filterwarnings("ignore:The inputs of .* do not vary", "ignore:.* what --keep kept is lost")
def test_beside_other_text(
    run_cli: Cli, silenced: Path, tmp_path: Path, chosen: list[Texts], write_rows: Write
) -> None:
    """Also where flags name the text, and where the run's task is not read."""
    rows = write_rows([{"text": text} for text in sentences(60)])
    flags = ("--calibration", rows, "--verify-on", rows, "--min-fidelity", "-9")
    assert run_cli("merge", silenced, tmp_path / "out", *FEW, *flags).status == 0
    assert chosen[0].calibration.keys() == {rows, ANCHORS}
    assert chosen[0].held_out.keys() == {rows}
    assert chosen[0].anchors
    _set_config(silenced, dataset="./nowhere.jsonl")
    assert run_cli("verify", tmp_path / "out", "--against", silenced, *FEW, *flags[2:]).status == 0
    assert chosen[1] == chosen[0]


def test_answers_come_from_the_cache_or_the_base(
    run_cli: Cli, silenced: Path, tmp_path: Path, chosen: list[Texts], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever dtype the merge has, they are those of the run; the base is loaded only without the cache."""
    loads: list[str] = []
    original = MergeSource.trained_base

    def counted(source: MergeSource) -> Any:
        loads.append(source.trained_dtype)
        return original(source)

    monkeypatch.setattr(MergeSource, "trained_base", counted)
    flags = (*FEW, "--method", "exact", "--dtype", "bfloat16", "--min-fidelity", "-9")
    assert run_cli("merge", silenced, tmp_path / "one", *flags).status == 0
    assert loads == []
    monkeypatch.setenv("MONOLORA_CACHE", str(tmp_path / "empty"))
    assert run_cli("merge", silenced, tmp_path / "other", *flags).status == 0
    assert loads == ["float32"]
    assert chosen[1].anchors == chosen[0].anchors


@pytest.mark.parametrize("flags", [(), ("--as", "lora"), ("--method", "exact")], ids=["dense", "lora", "exact"])
def test_fidelity_is_of_the_task_alone(run_cli: Cli, silenced: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    """The same merge verified as one of a run without keepers: the same numbers, and not a word of anchors."""
    out = tmp_path / "out"
    assert run_cli("merge", silenced, out, *FEW, *flags).status == 0
    with_anchors = report_of(out)
    _set_config(silenced, keep=["none"])
    ended = run_cli("verify", out, "--against", silenced, *FEW)
    assert (ended.status, ended.err) == (0, [])
    without = report_of(out)
    for key in ("passed", "kept", "fidelity", "modules"):
        assert without[key] == with_anchors[key]
    assert ANCHORS in with_anchors
    assert ANCHORS not in without
    assert "anchors" not in ended.out
    _set_config(silenced, keep=None)
    again = run_cli("merge", silenced, tmp_path / "plain", *FEW, *flags)
    assert "anchors" not in again.out + (tmp_path / "plain" / "merge_report.html").read_text()
    assert ANCHORS not in report_of(tmp_path / "plain")["merge"].get("texts", {})


def test_a_drift_is_warned_of(run_cli: Cli, silenced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On merge and on verify; when a report drifts is tested with the report."""
    monkeypatch.setattr("monolora.recipes.merge_report.drifts", lambda report: "anchors" in report)
    out = tmp_path / "out"
    for words in (("merge", silenced, out), ("verify", out, "--against", silenced)):
        with pytest.warns(UserWarning, match="On held-out anchors the merge is further from the adapter"):
            assert run_cli(*words, *FEW, "--min-fidelity", "-9").status == 0


def test_exact_keeps_silence_and_linear_does_not(run_cli: Cli, loud: Path, tmp_path: Path) -> None:
    ended = run_cli("merge", loud, tmp_path / "exact", *FEW, "--method", "exact")
    assert (ended.status, ended.err) == (0, [])
    report = report_of(tmp_path / "exact")[ANCHORS]
    assert set(report["kl_merged"].values()) == {0}
    assert report["top1_merged"] == 1
    from_base = f"and that is {report['kl_base']['mean']:.2g} from its base"
    assert (
        f"the exact merge is 0 nats a token from the adapter, {from_base}: the adapter's silence is kept." in ended.out
    )
    for flags in ((), ("--as", "lora")):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ended = run_cli("merge", loud, tmp_path / "linear", *FEW, *flags, "--overwrite", "--min-fidelity", "-9")
        assert ended.status == 0
        linear = report_of(tmp_path / "linear")[ANCHORS]
        assert linear["kl_base"] == report["kl_base"]
        assert linear["kl_merged"]["mean"] > 1e-3
        drifts = linear["kl_merged"]["mean"] > max(linear["kl_base"]["mean"], 0.01)
        assert any("what --keep kept is lost" in str(warning.message) for warning in caught) == drifts
        assert linear["top1_merged"] < 1
        told = f"the linear merge is {linear['kl_merged']['mean']:.2g} nats a token from the adapter, {from_base}: "
        assert f"{told}no linear map is silent. Merge with --method exact, or serve the adapter with" in ended.out
        assert "no linear map is silent" in (tmp_path / "linear" / "merge_report.html").read_text()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert run_cli("verify", tmp_path / "linear", "--against", loud, *FEW, "--min-fidelity", "-9").status == 0
    assert report_of(tmp_path / "linear")[ANCHORS] == linear


def test_merges_by_peft(run_cli: Cli, run_sft: Callable[..., Any], silenced: Path, tmp_path: Path) -> None:
    """Measured in the same way; nothing is recommended that they do not have."""
    run = run_sft("--adapter", "lora", "--keep", "replay", *KEEP)
    ended = run_cli("merge", run.folder, tmp_path / "out", *FEW)
    assert (ended.status, ended.err) == (0, [])
    assert report_of(tmp_path / "out")[ANCHORS]["kl_merged"]["mean"] < 1e-6
    assert "On held-out anchors the merge is" in ended.out
    assert "--method exact" not in ended.out


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


@pytest.mark.parametrize(
    "damage",
    [Path.unlink, _cut, lambda path: path.write_text('{"a": 1}\n')],
    ids=["gone", "cut off", "other columns"],
)
def test_prompts_that_cannot_be_read_are_one_line(
    run_cli: Cli, silenced: Path, tmp_path: Path, write_rows: Write, damage: Callable[[Path], object]
) -> None:
    """The merge is made without them, as for an adapter whose run kept nothing."""
    prompts = write_rows([{"prompt": f"How much is {number}?"} for number in range(20)], "mine.jsonl")
    _set_config(silenced, keep_prompts=[prompts])
    damage(Path(prompts))
    with pytest.warns(UserWarning, match="cannot be read, so whether the merge keeps") as warned:
        assert run_cli("merge", silenced, tmp_path / "out", *FEW).status == 0
    assert len(warned) == 1
    message = str(warned[0].message)
    assert prompts in message
    assert "\n" not in message
    assert ANCHORS not in report_of(tmp_path / "out")


def test_other_prompts_than_in_the_run_are_told(
    run_cli: Cli, silenced: Path, tmp_path: Path, write_rows: Write
) -> None:
    """What is held out now may have been learned from."""
    prompts = write_rows([{"prompt": f"How much is {number}?"} for number in range(20)], "mine.jsonl")
    _set_config(silenced, keep_prompts=[prompts])
    with pytest.warns(UserWarning, match=r"The anchors of .* are not all as in its run: the prompts have changed"):
        assert run_cli("merge", silenced, tmp_path / "out", *FEW).status == 0
    assert report_of(tmp_path / "out")[ANCHORS]["tokens"] > 0


def test_what_an_export_says(silenced: Path, run_cli: Cli, tmp_path: Path) -> None:
    """A linear merge is not silent: beside the table and in the record, with the numbers, or that there are none."""
    few = ("--types", "f32", "--prompts", "refusals", "--max-samples", "4", "--max-new-tokens", "4")
    merged = tmp_path / "merged"
    assert run_cli("merge", silenced, merged, *FEW, "--min-fidelity", "-9", "--dtype", "float32").status == 0
    ended = run_cli("export", merged, tmp_path / "gguf", *few)
    assert ended.status == 0, ended.err
    record = json.loads((tmp_path / "gguf" / "export.json").read_text())
    report = report_of(merged)
    assert record["anchors"] == report["anchors"]
    assert f"{report['anchors']['kl_merged']['mean']:.2g} nats a token from the adapter" in record["silence"]
    assert "no linear map is silent. Merge with --method exact" in record["silence"]
    assert record["silence"] in ended.out
    del report["anchors"]
    (merged / "merge_report.json").write_text(json.dumps(report))
    ended = run_cli("export", merged, tmp_path / "gguf", *few, "--overwrite")
    assert "was trained with --keep, and its merge was not measured on the kept prompts" in ended.out
    assert f"monolora verify {merged} --against {silenced}" in ended.out
