"""``monolora sparsity ADAPTER``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from monolora import cli
from tests.support.program_runs import lines_of

Sparsity = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the module's one trained adapter is kept."""
    return tmp_path_factory.mktemp("adapters") / "monolora"


@pytest.fixture
def adapter(run_sft: Callable[..., Any], kept: Path, tmp_path: Path) -> Path:
    """A copy of a trained adapter."""
    if not kept.exists():
        assert run_sft("--output-dir", str(kept)).status == 0
    shutil.copytree(kept, tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def sparsity(capsys: pytest.CaptureFixture[str]) -> Sparsity:
    """``sparsity(*words)``: status, output, and lines of stderr without progress bars."""

    def run(*words: str) -> tuple[int, str, list[str]]:
        capsys.readouterr()
        status = cli.main(["sparsity", *words])
        printed = capsys.readouterr()
        return status, printed.out, lines_of(printed.err)

    return run


def test_json(sparsity: Sparsity, adapter: Path) -> None:
    status, out, err = sparsity(str(adapter), "--json", "--max-samples", "6", "--batch-size", "4")
    found = json.loads(out)  # nothing else is on stdout
    assert (status, err) == (0, [])
    recorded = json.loads((adapter / "run.json").read_text())["results"]["sparsity"]
    assert found["units"] == recorded["units"] == 32
    assert found["tokens"] == recorded["tokens"]
    assert found["zeros"] == pytest.approx(recorded["zeros"], abs=0.01)  # measured in bfloat16, recorded in float32
    assert list(found["modules"]) == [f"model.layers.{k}.self_attn.{m}_proj" for k in (0, 1) for m in "qv"]


def test_table(sparsity: Sparsity, adapter: Path) -> None:
    status, out, _ = sparsity(str(adapter), "--max-samples", "3")
    assert status == 0
    assert "on 3 prompts of demo" in " ".join(out.split())
    assert "model.layers.1.self_attn.v_proj" in out
    assert "of 32 units were zero on all" in out


def test_a_file_of_prompts(sparsity: Sparsity, adapter: Path, write_rows: Callable[..., str]) -> None:
    rows = write_rows([{"prompt": "is it good?"}, {"prompt": "or bad?"}])
    status, out, _ = sparsity(str(adapter), "--dataset", rows, "--json")
    assert status == 0
    assert json.loads(out)["tokens"] > 10
    status, _, err = sparsity(str(adapter), "--dataset", rows, "--split", "tset")
    assert (status, err) == (2, [f"error: Unknown split of {rows} 'tset'; choose one of train."])


def test_safety_prompts(sparsity: Sparsity, adapter: Path, mirror: Path) -> None:
    flags = ("--split", "30k_test", "--max-samples", "4", "--json")
    status, out, _ = sparsity(str(adapter), "--dataset", "PKU-Alignment/BeaverTails", *flags)
    assert status == 0
    assert 0 < json.loads(out)["zeros"] < 1


def test_lora_has_no_zeros(sparsity: Sparsity, run_sft: Callable[..., Any]) -> None:
    folder = run_sft("--adapter", "lora", "--skip-eval").folder
    status, out, _ = sparsity(str(folder), "--max-samples", "3", "--json")
    assert status == 0
    assert json.loads(out)["zeros"] < 0.01


def test_methods_without_units(sparsity: Sparsity, chat_model: Path, tmp_path: Path) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(AutoModelForCausalLM.from_pretrained(chat_model), config).save_pretrained(tmp_path / "prompt")
    status, _, err = sparsity(str(tmp_path / "prompt"))
    assert status == 2
    assert "neither a MonoLoRA nor a LoRA adapter" in err[-1]


def test_full_models(sparsity: Sparsity, chat_model: Path) -> None:
    assert sparsity(str(chat_model))[2] == [f"error: {chat_model} holds no adapter: adapter_config.json is missing."]


def _cut(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"\0" * 100)


@pytest.mark.parametrize(
    ("words", "damage", "says"),
    [
        ((), _cut, "truncated"),
        ((), lambda folder: (folder / "adapter_config.json").unlink(), "holds no adapter"),
        (("--max-samples", "0"), None, "must be at least 1"),
        (("--batch-size", "x"), None, "invalid int value: 'x'"),
        (("--dataset", "nobody/nothing"), None, "MONOLORA_DATA"),
        (("--model", "/nowhere/x"), None, "There is no model at /nowhere/x"),
        (("--modle", "x"), None, "Did you mean --model?"),
    ],
)
def test_bad_input(
    sparsity: Sparsity, adapter: Path, words: tuple[str, ...], damage: Callable[[Path], None] | None, says: str
) -> None:
    if damage:
        damage(adapter)
    status, out, err = sparsity(str(adapter), *words)
    assert (status, out) == (2, "")
    assert err[-1].startswith("error: ")
    assert says in err[-1]


def test_another_base_of_the_same_shape_is_warned_of(sparsity: Sparsity, adapter: Path, plain_model: Path) -> None:
    with pytest.warns(UserWarning, match=f"this model is '{plain_model}'"):
        assert sparsity(str(adapter), "--model", str(plain_model), "--max-samples", "2")[0] == 0
