"""``monolora prune ADAPTER OUT --units UNIT …``."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from monolora.adapters import load_adapted
from monolora.errors import exit_status
from monolora.prune import Pruned
from monolora.recipes import prune as program
from monolora.run_record import fingerprint_files
from tests.support.merge_runs import Ended, contents, logits
from tests.support.program_runs import lines_of

Trained = Callable[..., Path]
Prune = Callable[..., Ended]
Q0, Q1 = (f"model.layers.{k}.self_attn.q_proj" for k in (0, 1))
V1 = "model.layers.1.self_attn.v_proj"


@pytest.fixture
def adapter(trained: Trained, tmp_path: Path) -> Path:
    """A copy of a trained adapter: q_proj and v_proj of two layers, 8 units each."""
    return shutil.copytree(trained(), tmp_path / "adapter")


@pytest.fixture
def prune(capsys: pytest.CaptureFixture[str]) -> Prune:
    """``prune(*words)``: the program in this process."""

    def run(*words: str | Path) -> Ended:
        capsys.readouterr()
        status = exit_status(lambda: program.main(list(map(str, words))))
        printed = capsys.readouterr()
        out = words[1] if status == 0 and len(words) > 1 and Path(words[1]).is_dir() else None
        assert out is None or program.KIND.foreign(contents(Path(out))) == []
        return Ended(status, " ".join(printed.out.split()), lines_of(printed.err))

    return run


@pytest.fixture
def refused(prune: Prune, tmp_path: Path) -> Callable[..., str]:
    """``refused(*words)``: the message of a run that must end with one line, status 2, and nothing written."""

    def run(*words: str | Path) -> str:
        before = contents(tmp_path)
        ended = prune(*words)
        assert (ended.status, ended.out, len(ended.err)) == (2, "", 1)
        assert contents(tmp_path) == before
        assert not (tmp_path / "out").exists()
        return ended.err[0].removeprefix("error: ")

    return run


Refused = Callable[..., str]


def _record(folder: Path) -> dict[str, object]:
    return json.loads((folder / "pruned.json").read_text())


@pytest.mark.parametrize("kind", ["monolora", "lora"])
def test_the_folder(prune: Prune, trained: Trained, chat_model: Path, tmp_path: Path, kind: str) -> None:
    adapter, out = trained("--adapter", kind), tmp_path / "deep" / "out"
    whole = [f"{V1}:{k}" for k in range(8)]
    ended = prune(adapter, out, "--units", f"{Q0}:1", "0.self_attn.q_proj:7", f"{Q0}:1", *whole)
    assert (ended.status, ended.err) == (0, [])
    summary = f"10 of 32 units were taken out; 3 of 4 modules are left. Wrote {out}."
    assert ended.out == f"{summary} Next: monolora keep-report {out}"
    record = _record(out)
    assert record["source"] == {"folder": str(adapter), "fingerprint": fingerprint_files(adapter)}
    assert record["taken_out"] == [f"{Q0}:1", f"{Q0}:7", *whole]
    assert record["units"] == 32
    assert record["left"][Q0] == [0, 2, 3, 4, 5, 6]  # type: ignore[index]
    assert "peft" in record["versions"]  # type: ignore[operator]
    assert {path.name for path in out.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "pruned.json", "README.md",
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json",
    }  # fmt: skip
    assert [path.name for path in out.parent.iterdir()] == ["out"]

    card = (out / "README.md").read_text()
    assert f"base_model: {chat_model}" in card
    assert ("import monolora" in card) == (kind == "monolora")
    assert "10 of 32 units were taken out; 3 of 4 modules are left." in card

    base = AutoModelForCausalLM.from_pretrained(chat_model, dtype=torch.float32)
    wanted = logits(PeftModel.from_pretrained(base, str(_zeroed(adapter, tmp_path / "zeroed"))).eval())
    adapted, _ = load_adapted(str(out), dtype=torch.float32)
    torch.testing.assert_close(logits(adapted), wanted, rtol=1e-5, atol=1e-6)
    by_peft = AutoPeftModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    assert torch.equal(logits(by_peft), logits(adapted))


def _zeroed(adapter: Path, folder: Path) -> Path:
    """The adapter with columns of B set to zero in its file."""
    shutil.copytree(adapter, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, tensor in tensors.items():
        if f"{Q0}." in name and "_B" in name:
            tensor[:, [1, 7]] = 0
        if f"{V1}." in name and "_B" in name:
            tensor[:] = 0
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_file_of_units_and_out_at_the_end(prune: Prune, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "units.txt").write_text(f"{Q0}:1\n\n  {V1}:3  \n")
    assert prune(adapter, "--units", f"@{tmp_path}/units.txt", f"{Q1}:0", tmp_path / "out", "--overwrite").status == 0
    assert _record(tmp_path / "out")["taken_out"] == [f"{Q0}:1", f"{Q1}:0", f"{V1}:3"]


def test_keep(prune: Prune, adapter: Path, tmp_path: Path) -> None:
    assert prune(adapter, tmp_path / "out", "--keep", f"{Q1}:6", f"{Q1}:2", f"{V1}:0").status == 0
    assert _record(tmp_path / "out")["left"] == {Q1: [2, 6], V1: [0]}
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    before = load_file(adapter / "adapter_model.safetensors")
    assert len(tensors) == 4
    name = f"base_model.model.{Q1}.monolora_B.weight"
    assert torch.equal(tensors[name], before[name][:, [2, 6]])


def test_again(prune: Prune, adapter: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    assert prune(adapter, out, "--units", f"{Q0}:1").status == 0
    assert prune(out, again, "--units", f"{Q0}:1", f"{V1}:0").status == 0
    assert _record(again)["left"][Q0] == [0, 2, 3, 4, 5, 6]  # type: ignore[index]
    first = contents(out)
    assert "holds another pruned adapter" in prune(adapter, out, "--units", f"{Q0}:2").err[0]
    assert contents(out) == first
    for name in (".out.old", ".out.part", ".out.aside-12345678.part"):  # of somebody else
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
    assert prune(adapter, out, "--units", f"{Q0}:2", "--overwrite").status == 0
    assert _record(out)["taken_out"] == [f"{Q0}:2"]
    others = {".out.old", ".out.part", ".out.aside-12345678.part"}
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "out", "again"} | others
    assert all(os.listdir(tmp_path / name) == ["x"] for name in others)


UNITS = {
    "q_proj:1": "'q_proj' is the end of 2 modules' names: model.layers.0.self_attn.q_proj, model.layers.1.self_attn",
    "1.self_attn.q_prj:1": "Unknown module '1.self_attn.q_prj'; choose one of 1.self_attn.q_proj",
    "model.layers.0.self_attn.q_proi:1": "Did you mean model.layers.0.self_attn.q_proj?",
    f"{Q0}:8": f"{Q0} has no unit 8. Take one of its 8 units, 0 to 7.",
    Q0: f"'{Q0}' names no unit. Write MODULE:NUMBER",
    f"{Q0}:-1": "names no unit",
    "@nowhere.txt": "nowhere.txt cannot be read as a text file of units",
}  # fmt: skip


@pytest.mark.parametrize(("unit", "says"), UNITS.items(), ids=UNITS)
@pytest.mark.parametrize("flag", ["--units", "--keep"])
def test_bad_units(refused: Refused, adapter: Path, tmp_path: Path, flag: str, unit: str, says: str) -> None:
    assert says in refused(adapter, tmp_path / "out", flag, f"{Q0}:0", unit)


def test_bad_files_of_units(refused: Refused, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    out = tmp_path / "out"
    assert "There are no units in the file" in refused(adapter, out, "--units", f"@{tmp_path}/empty")
    assert "cannot be read as a text file of units" in refused(adapter, out, "--units", f"@{tmp_path}/binary")


def test_bad_flags(refused: Refused, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    everything = [f"{layer}.self_attn.{name}_proj:{unit}" for layer in "01" for name in "qv" for unit in range(8)]
    assert "OUT, the folder to write, is missing" in refused(adapter, "--units", f"{Q0}:1", f"{Q0}:2")
    assert "OUT, the folder to write, is missing" in refused(adapter, "--units", out)
    assert "Give either the units to take out with --units, or those to keep" in refused(adapter, out)
    assert "Give either the units to take out with --units, or those to keep" in refused(
        adapter, out, "--units", f"{Q0}:1", "--keep", f"{Q0}:2"
    )
    assert "Did you mean --units?" in refused(adapter, out, "--unit", f"{Q0}:1")
    assert "Nothing of the adapter would be left" in refused(adapter, out, "--units", *everything)
    assert "there is nothing to take out" in refused(adapter, out, "--keep", *everything)


def test_bad_folders(refused: Refused, adapter: Path, chat_model: Path, tmp_path: Path) -> None:
    words = ("--units", f"{Q0}:1", "--overwrite")
    assert "holds no adapter" in refused(chat_model, tmp_path / "out", *words)
    assert "which the pruned adapter is made from" in refused(adapter, adapter, *words)
    assert "which the pruned adapter is made from" in refused(adapter, tmp_path, *words)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    assert "exists and is no pruned adapter" in refused(adapter, tmp_path / "other", *words)
    assert "cannot be made" in refused(adapter, tmp_path / "other" / "notes.txt" / "out", *words)
    (adapter / "adapter_model.safetensors").write_bytes(b"\0" * 100)
    assert "truncated" in refused(adapter, tmp_path / "out", *words)


def test_a_full_disk(prune: Prune, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prune(adapter, tmp_path / "out", "--units", f"{Q0}:1").status == 0
    before = contents(tmp_path)

    def full(pruned: Pruned, folder: Path) -> None:
        (folder / "adapter_config.json").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Pruned, "save", full)
    ended = prune(adapter, tmp_path / "out", "--units", f"{Q0}:2", "--overwrite")
    assert ended.status == 1
    assert ended.err == [
        f"error: Cannot save into {tmp_path}/out: [Errno 28] No space left on device. Nothing new was left there. Free "
        "space, then prune again."
    ]
    assert contents(tmp_path) == before
