from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaForSequenceClassification

from monolora.errors import InputError
from monolora.eval.judges import JudgeOptions, make
from tests.support.tiny_judges import make_beaverdam, make_shieldgemma


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_beaverdam(tmp_path_factory.mktemp("beaverdam"))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("sheildgemma", r"Unknown judge 'sheildgemma'; choose one of .*Did you mean shieldgemma\?"),
        ("refusals", r"Did you mean refusal\?"),
        ("refusal:x", "has no model"),
        ("classifier", "Which classifier"),
        ("beaverdam:", "Which model"),
        ("beaverdam:./nowhere", "There is no model at ./nowhere"),
    ],
)
def test_words_that_name_no_judge(word: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(word, JudgeOptions())


@pytest.mark.parametrize("word", ["shieldgemma", "beaverdam"])
def test_unavailable_default_models_say_what_to_set(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MONOLORA_DATA", raising=False)
    with pytest.raises(InputError, match=r"Cannot reach the hub.*Set MONOLORA_DATA to a local mirror"):
        make(word, JudgeOptions())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "vlm"}, r"Unknown judge engine 'vlm'.*Did you mean vllm\?"),
        ({"dtype": "float8"}, "Unknown judge dtype"),
        ({"batch_size": 0}, "at least 1, got 0"),
        ({"engine": "server"}, "endpoints .* go together"),
        ({"endpoints": ("http://localhost:1/v1",)}, "endpoints .* go together"),
    ],
)
def test_options_that_cannot_be(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        JudgeOptions(**options)


def test_a_judge_is_of_its_architecture(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is of the class LlamaForSequenceClassification; .*Gemma2ForCausalLM"):
        make(f"shieldgemma:{folder}", JudgeOptions())
    with pytest.raises(InputError, match=r"is of the class Gemma2ForCausalLM; .*ForSequenceClassification"):
        make(f"beaverdam:{make_shieldgemma(tmp_path)}", JudgeOptions())


def test_weights_that_are_no_safetensors_are_refused_but_a_server_needs_none(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"holds no \*\.safetensors.*save_pretrained"):
        make(f"beaverdam:{tmp_path / 'copy'}", JudgeOptions())
    make(f"beaverdam:{tmp_path / 'copy'}", JudgeOptions(engine="server", endpoints=("http://localhost:1/v1",)))


def _config(name: str, value: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {name: value}))

    return spoil


def _weights(folder: Path) -> None:
    model = LlamaForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.score.weight[0, 0] += 1
    model.save_pretrained(folder)


def _tokenizer(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"special": true', '"special": false', 1))


def _readme(folder: Path) -> None:
    (folder / "README.md").write_text("Nothing that a score depends on.")


@pytest.mark.parametrize(
    ("change", "other"),
    [(_weights, True), (_tokenizer, True), (_config("rope_theta", 5.0), True), (_readme, False)],
    ids=["weights", "tokenizer", "config", "readme"],
)
def test_the_identity_is_that_of_the_contents(
    folder: Path, tmp_path: Path, change: Callable[[Path], None], other: bool
) -> None:
    options = JudgeOptions(engine="hf")
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    before = make(f"beaverdam:{folder}", options).identity
    assert make(f"beaverdam:{copy}", options).identity == before  # moved
    change(copy)
    assert (make(f"beaverdam:{copy}", options).identity != before) == other


def test_what_changes_scores_changes_the_identity(folder: Path) -> None:
    word, plain = f"beaverdam:{folder}", JudgeOptions(engine="hf")
    before = make(word, plain).identity
    json.dumps(before)
    for options in (JudgeOptions(engine="hf", dtype="bfloat16"), JudgeOptions(engine="hf", max_model_len=99)):
        assert make(word, options).identity != before
    assert make(word, JudgeOptions(engine="hf", batch_size=3, device="cpu")).identity == before


def test_the_engine_is_vllm_where_it_is_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    word = f"beaverdam:{folder}"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert make(word, JudgeOptions()).settings["engine"] == "hf"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: importlib.machinery.ModuleSpec(name, None))
    assert make(word, JudgeOptions()).settings["engine"] == "vllm"
    assert make(f"classifier:{folder}", JudgeOptions()).settings["engine"] == "hf"
    assert make(word, JudgeOptions(engine="hf")).settings["engine"] == "hf"


def test_the_dtype_is_the_checkpoints_unless_told(folder: Path) -> None:
    assert make(f"beaverdam:{folder}", JudgeOptions()).settings["dtype"] == "float32"
    assert make(f"beaverdam:{folder}", JudgeOptions(dtype="bfloat16")).settings["dtype"] == "bfloat16"


def test_the_flag_is_any_score_above_the_threshold(folder: Path) -> None:
    judge = make(f"beaverdam:{folder}", JudgeOptions())
    scores = dict.fromkeys(judge.scores, 0.5)
    assert not judge.flagged(scores)
    assert judge.flagged(scores | {"privacy_violation": 0.51})
