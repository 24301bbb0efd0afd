"""``monolora repair ADAPTER --task TASK --keep-prompts SET``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from monolora import MonoLoraConfig, run_record
from monolora.adapters import load_adapted
from monolora.attribution import AnswerLoss
from monolora.data.chat_template import split_at_answer
from monolora.data.example import Example
from monolora.explain.ablation import ablated
from monolora.inference import Inference
from monolora.keep.anchors import read_prompts
from monolora.recipes import repair as program
from monolora.units import UnitName
from tests.support.merge_runs import Ended, contents, logits

V0 = "model.layers.0.self_attn.v_proj"
TASK, KEPT, ALSO = "@#&"  # characters, of which each kind of prompt has its own
QUICK = ("--keep-samples", "12", "--task-samples", "12", "--keep-answer-tokens", "5", "--draws", "2")

RunCli = Callable[..., Ended]


@pytest.fixture
def base(chat_model: Path, tmp_path: Path) -> Path:
    """The tiny model, with an input direction of its own for each of the three characters."""
    folder = shutil.copytree(chat_model, tmp_path / "base")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    weight = model.get_input_embeddings().weight.data
    weight[:, -3:] = 0
    for number, character in enumerate(TASK + KEPT + ALSO):
        (token,) = tokenizer(character, add_special_tokens=False)["input_ids"]
        weight[token] = torch.eye(64)[-3 + number] / 4
    model.save_pretrained(folder)
    return folder


def _rows(count: int) -> list[dict[str, str]]:
    return [
        {"prompt": f"{TASK} is {number} good?", "completion": ("positive", "negative")[number % 2]}
        for number in range(count)
    ]


@pytest.fixture
def task(write_rows: Callable[..., str]) -> str:
    return write_rows(_rows(16), "task.jsonl")


@pytest.fixture
def kept(write_rows: Callable[..., str]) -> str:
    return write_rows([{"prompt": f"{KEPT} tell me of {number}"} for number in range(12)], "kept.jsonl")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    """Units 0 and 1 fire on the task's prompts and were trained for it; 2 does nothing; 3 fires on kept prompts."""
    model = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    config = MonoLoraConfig(
        target_modules=["v_proj"], layers_to_transform=[0], r=4, lora_alpha=4, task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(model, config).eval()
    layer: Any = adapted.get_base_model().get_submodule(V0)
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    A.data.zero_()
    A.data[0, -3] = A.data[1, -3] = A.data[3, -2] = 1
    B.data[:, 3] = torch.randn(len(B))
    rows = [split_at_answer(Example(row["prompt"], row["completion"]), tokenizer) for row in _rows(16)]
    inference = Inference(model=adapted, tokenizer=tokenizer, batch_size=16, shows_progress=False)
    loss = AnswerLoss(inference=inference, rows=rows)
    for _ in range(8):
        (gradient,) = torch.autograd.grad(loss.of(range(16)).mean(), B)
        B.data[:, :2] -= 2 * gradient[:, :2] / gradient[:, :2].norm()
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def repair(run_cli: RunCli, adapter: Path, task: str, kept: str, tmp_path: Path) -> Callable[..., Ended]:
    """``repair(*words)``: of the planted adapter, into ``out``."""

    def run(*words: str | Path) -> Ended:
        ended = run_cli(
            "repair", adapter, "--task", task, "--keep-prompts", kept, "--out", tmp_path / "out", *QUICK, *words
        )
        if ended.status == 0:
            assert program.KIND.foreign(contents(tmp_path / "out")) == []
        return ended

    return run


def _report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "repair.json").read_text())


def test_the_planted_unit_is_taken_out(repair: Callable[..., Ended], adapter: Path, base: Path, tmp_path: Path) -> None:
    ended = repair()
    assert (ended.status, ended.err) == (0, []), ended.err
    report, out = _report(tmp_path / "out"), tmp_path / "out"
    assert report["taken_out"] == [f"{V0}:3"]
    assert report["rolled_back"] is None
    trained, repaired, *controls = report["rows"]
    assert trained["kept"]["mean"] > 1e-4
    assert repaired["kept"]["mean"] == pytest.approx(0, abs=1e-6)
    assert repaired["cost"]["mean"] == pytest.approx(0, abs=1e-6)
    assert [row["name"] for row in controls] == [
        "random units, 2 draws", "the whole adapter scaled down", "single entries of B zeroed"
    ]  # fmt: skip
    by_unit = {row["unit"]: (row["kept"], row["task"]) for row in report["attribution"]}
    assert by_unit[f"{V0}:3"][0] < 0 == by_unit[f"{V0}:3"][1]
    assert by_unit[f"{V0}:0"][1] > 0 == by_unit[f"{V0}:0"][0]
    assert report["sentence"] in ended.out
    assert report["sentence"].startswith("Without 1 of 4 units the KL to the base falls")
    assert report["sentence"] in (out / "repair.md").read_text()
    assert report["sentence"] in (out / "README.md").read_text()
    assert (out / "repair.png").is_file()

    whole, _ = load_adapted(str(adapter), dtype=torch.float32)
    pruned, _ = load_adapted(str(out), dtype=torch.float32)
    with ablated(whole, 2 * [[UnitName(V0, 3)]]):
        torch.testing.assert_close(logits(pruned), logits(whole))

    record = run_record.read(out)
    assert record is not None
    assert record["config"]["dataset"] == report["settings"]["task"]
    assert record["results"]["repair"]["taken_out"] == report["taken_out"]  # type: ignore[typeddict-item]


def test_what_is_worse_on_the_other_half_is_rolled_back(
    repair: Callable[..., Ended], adapter: Path, kept: str, write_rows: Callable[..., str], tmp_path: Path
) -> None:
    """On the half that checks, units 2 and 3 cancel: without unit 3, which alone fires on the other half, 2 is left."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), str(adapter))
    layer: Any = model.get_base_model().get_submodule(V0)
    A, B = layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data
    A[3, -1] = A[2, -1] = 1
    B[:, 2] = -B[:, 3]
    model.save_pretrained(adapter)
    _, checked = program.halves(read_prompts([kept], 12).examples)
    texts = [example.instruction for example in read_prompts([kept], 12).examples]
    prompts = {json.loads(line)["prompt"] for line in Path(kept).read_text().splitlines()}
    assert prompts == set(texts)
    also = {example.instruction for example in checked}
    rows = [json.loads(line)["prompt"] for line in Path(kept).read_text().splitlines()]
    write_rows([{"prompt": text.replace(KEPT, ALSO) if text in also else text} for text in rows], "kept.jsonl")

    assert repair().status == 0
    report, out = _report(tmp_path / "out"), tmp_path / "out"
    assert report["taken_out"] == []
    assert report["rolled_back"].startswith("on the half that checks, the KL to the base does not fall")
    assert "Nothing was taken out: on the half that checks" in report["sentence"]
    assert (out / "adapter_model.safetensors").read_bytes() == (adapter / "adapter_model.safetensors").read_bytes()


def test_an_adapter_without_harm(
    repair: Callable[..., Ended], kept: str, write_rows: Callable[..., str], tmp_path: Path
) -> None:
    write_rows([{"prompt": f"tell me of {number}"} for number in range(12)], "kept.jsonl")
    assert repair().status == 0
    assert "Nothing was taken out: on the half that chooses, no units lower" in _report(tmp_path / "out")["sentence"]


@pytest.mark.parametrize("restore", ["kl", "refusals"])
def test_ranks_of_lora(run_cli: RunCli, trained: Callable[..., Path], tmp_path: Path, restore: str) -> None:
    """What is written is the adapter without singular directions of its B A."""
    lora, out = trained("--adapter", "lora"), tmp_path / "out"
    data = ("--task", "demo", "--keep-prompts", "refusals", "--max-task-loss", "1", "--restore", restore)
    assert run_cli("repair", lora, *data, "--out", out, *QUICK).status == 0
    report = _report(out)
    assert report["rows"][1]["name"] == "ranks taken out"
    whole, _ = load_adapted(str(lora), dtype=torch.float32)
    pruned, _ = load_adapted(str(out), dtype=torch.float32)
    if not report["taken_out"]:
        torch.testing.assert_close(logits(pruned), logits(whole))
        return
    deltas = {name: layer.get_delta_weight("default") for name, layer in _layers(whole).items()}
    left = {name: layer.get_delta_weight("default") for name, layer in _layers(pruned).items()}
    for name, delta in deltas.items():
        numbers = {UnitName.parse(text).unit for text in report["taken_out"] if text.startswith(f"{name}:")}
        U, S, Vt = torch.linalg.svd(delta, full_matrices=False)
        S[list(numbers)] = 0
        wanted = (U * S) @ Vt
        torch.testing.assert_close(left.get(name, torch.zeros_like(wanted)), wanted, atol=1e-5, rtol=1e-4)


def _layers(model: PeftModel) -> dict[str, Any]:
    return {name: layer for name, layer in model.get_base_model().named_modules() if hasattr(layer, "lora_A")}


def test_lora_as_a_control(repair: Callable[..., Ended], adapter: Path, tmp_path: Path) -> None:
    lora = shutil.copytree(adapter, tmp_path / "linear")
    config = json.loads((lora / "adapter_config.json").read_text())
    (lora / "adapter_config.json").write_text(json.dumps(config | {"activation": "identity"}))
    assert repair("--lora", lora).status == 0
    names = [row["name"] for row in _report(tmp_path / "out")["rows"]]
    assert names[-2:] == ["LoRA: the adapter as trained", "LoRA: ranks taken out"]
    assert "--lora" in repair("--lora", adapter, "--overwrite").err[0]


def test_bad_input(
    run_cli: RunCli, repair: Callable[..., Ended], adapter: Path, base: Path, task: str, kept: str, tmp_path: Path
) -> None:
    def refused(*words: str | Path) -> str:
        before = contents(tmp_path)
        ended = run_cli("repair", *words, "--out", tmp_path / "out", *QUICK)
        assert (ended.status, ended.out, len(ended.err)) == (2, "", 1)
        assert contents(tmp_path) == before
        return ended.err[0]

    (tmp_path / "evaluated.jsonl").write_text(json.dumps({"prompt": _rows(1)[0]["prompt"]}) + "\n")
    (tmp_path / "one.jsonl").write_text(json.dumps({"prompt": "hello"}) + "\n")
    assert "nowhere" in refused(adapter, "--task", "nowhere", "--keep-prompts", kept)
    assert "nowhere" in refused(adapter, "--task", task, "--keep-prompts", "nowhere")
    assert "holds no adapter" in refused(base, "--task", task, "--keep-prompts", kept)
    assert "--keep-prompts: 1 is left" in refused(adapter, "--task", task, "--keep-prompts", tmp_path / "one.jsonl")
    assert "has the columns prompt" in refused(adapter, "--task", tmp_path / "one.jsonl", "--keep-prompts", kept)
    assert "--task" in refused(adapter, "--keep-prompts", kept)
    held_out = _held_out(task, tmp_path)
    assert "so none is left" in refused(adapter, "--task", task, "--keep-prompts", held_out)
    top = shutil.copytree(adapter, tmp_path / "top")
    config = json.loads((top / "adapter_config.json").read_text())
    (top / "adapter_config.json").write_text(json.dumps(config | {"activation": "topk:2"}))
    assert "cannot be pruned exactly" in refused(top, "--task", task, "--keep-prompts", kept)


def _held_out(task: str, folder: Path) -> Path:
    """A file with a prompt that the task holds out."""
    from monolora.data.task import Source
    from monolora.data.tasks import load_task

    path = folder / "held-out.jsonl"
    path.write_text(json.dumps({"prompt": load_task(task, Source()).test[0].instruction}) + "\n")
    return path
