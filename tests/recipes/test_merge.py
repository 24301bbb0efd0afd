"""``monolora merge ADAPTER OUT``: what it writes, who loads that, and what it says of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from monolora.adapters import load_adapted
from monolora.inference import Inference
from tests.support import forks
from tests.support.merge_runs import IDS, OTHER, Ended, contents, logits, report_of, sentences

Trained = Callable[..., Path]
Merge = Callable[..., Path]

# Every line that a merge of these tests may print on stderr would be noise.
QUIET: list[str] = []


STOCK = f"""
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from peft import PeftModel
dense, lora, exact, base = sys.argv[1:]

def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor({IDS})).logits.tolist()

found = {{"dense": logits(AutoModelForCausalLM.from_pretrained(dense))}}
found["lora"] = logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), lora))
tokenizer = AutoTokenizer.from_pretrained(dense)
found["chat"] = tokenizer.apply_chat_template([{{"role": "user", "content": "good"}}], tokenize=False)
try:
    AutoModelForCausalLM.from_pretrained(exact)
except Exception as error:
    found["exact"] = str(error)
assert "monolora" not in sys.modules
print(json.dumps(found))
"""


@pytest.mark.slow
def test_stock_libraries_load_what_is_written(
    merge: Merge, trained: Trained, tmp_path: Path, chat_model: Path, chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    """transformers and PEFT, in a process that never imports monolora: same logits, dense and as LoRA."""
    adapter = trained()
    dense = merge(adapter, folder=tmp_path / "dense")
    lora = merge(adapter, "--as", "lora", folder=tmp_path / "lora")
    exact = merge(adapter, "--method", "exact", folder=tmp_path / "exact")
    ended = forks.run(STOCK, dense, lora, exact, chat_model, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads(ended.stdout)
    by_dense = torch.tensor(found["dense"])
    torch.testing.assert_close(by_dense, torch.tensor(found["lora"]), rtol=0, atol=1e-5)
    torch.testing.assert_close(by_dense, logits(AutoModelForCausalLM.from_pretrained(dense)), rtol=0, atol=1e-5)
    message = [{"role": "user", "content": "good"}]
    assert found["chat"] == chat_tokenizer.apply_chat_template(message, tokenize=False)
    assert "pip install monolora" in found["exact"]


def test_dense(run_cli: Callable[..., Ended], trained: Trained, out: Path, chat_model: Path) -> None:
    ended = run_cli("merge", trained(), out, "--verify-tokens", "150")
    assert (ended.status, ended.err) == (0, QUIET)
    assert {path.name for path in out.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "merge_report.json", "merge_report.html",
    }  # fmt: skip
    report = report_of(out)
    assert report["passed"] is True
    assert report["kept"] > 0.9
    assert report["fidelity"].keys() == {"demo", "all"}
    assert 150 <= report["fidelity"]["all"]["tokens"] < 250
    assert report["fidelity"]["all"]["kl_merged"].keys() == {"mean", "p50", "p99"}
    assert list(report["modules"]) == [f"model.layers.{k}.self_attn.{m}_proj" for k in (0, 1) for m in "qv"]
    assert all(0 < error < 1 for error in report["modules"].values())
    made = report["merge"]
    assert made["adapters"] == [str(trained())]
    assert made["method"], made["form"] == ("linear", "dense")
    assert made["model"] == str(chat_model)
    assert made["texts"]["demo"]["texts"] == 16  # as many rows as the run was trained on
    assert all(each["tokens"] == made["texts"]["demo"]["tokens"] for each in made["maps"].values())
    assert all(each["ridge"] > 0 and not each["ridge_raised"] for each in made["maps"].values())
    assert report["versions"].keys() >= {"torch", "monolora"}
    # What is printed is what is written.
    assert f"keeps {report['kept']:.2%} of the adapter's effect" in ended.out
    assert f"demo │ {report['fidelity']['demo']['tokens']}" in ended.out
    task = report["task"]
    assert (task["name"], task["n"]) == ("demo", 6)
    assert f"{task['same_answers']} of 6 answers are the adapter's." in ended.out
    recorded = json.loads((trained() / "run.json").read_text())["results"]
    assert (task["base"], task["adapter"]) == (recorded["before"], recorded["after"])


def test_exact(merge: Merge, trained: Trained) -> None:
    out = merge(trained(), "--method", "exact")
    report = report_of(out)
    everywhere = report["fidelity"]["all"]
    assert report["kept"] == everywhere["kept"] == everywhere["top1_merged"] == 1
    assert set(everywhere["kl_merged"].values()) == {0}
    assert set(report["modules"].values()) == {0}
    assert report["task"]["merged"] == report["task"]["adapter"]
    assert report["task"]["same_answers"] == report["task"]["n"] == 6
    assert report["merge"]["calibration"] is None
    adapted, _ = load_adapted(str(trained()), dtype="float32")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(out)), logits(adapted))


def test_as_lora(merge: Merge, trained: Trained, chat_model: Path) -> None:
    out = merge(trained(), "--as", "lora")
    names = {path.name for path in out.iterdir()}
    assert names >= {"adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "merge_report.html"}
    assert not names & {"config.json", "model.safetensors"}
    assert json.loads((out / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert report_of(out)["kept"] > 0.9
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(chat_model), out)
    assert not torch.allclose(logits(loaded), logits(AutoModelForCausalLM.from_pretrained(chat_model)), atol=1e-3)


def test_without_calibration(run_cli: Callable[..., Ended], trained: Trained, out: Path) -> None:
    with pytest.warns(UserWarning, match="Without calibration text the activation is replaced by its mean slope"):
        ended = run_cli("merge", trained(), out, "--calibration", "none", "--verify-tokens", "150")
    assert ended.status in (0, 1)
    made = report_of(out)["merge"]
    assert made["calibration"] is None
    assert made["texts"] == {}
    assert all(each["ridge"] is None and each["tokens"] == 0 for each in made["maps"].values())


FORMATS: dict[str, Callable[[str], dict[str, Any]]] = {
    "messages": lambda text: {
        "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "positive"}]
    },
    "prompt and completion": lambda text: {"prompt": text, "completion": " positive"},
    "instruction": lambda text: {"instruction": "good or bad?", "input": text, "output": "positive"},
    "prompt": lambda text: {"prompt": text},
    "text": lambda text: {"text": text},
}


@pytest.mark.filterwarnings("ignore:The inputs of .* do not vary")  # few words, so few embeddings
@pytest.mark.parametrize("name", FORMATS)
def test_calibration_files(merge: Merge, trained: Trained, write_rows: Callable[..., str], name: str) -> None:
    rows = write_rows([FORMATS[name](text) for text in sentences(60)])
    report = report_of(merge(trained(), "--calibration", rows, "--task-samples", "0"))
    assert report["merge"]["calibration"] == {"dataset": rows, "tokens": 32768}
    assert report["merge"]["texts"][rows]["texts"] == 54  # the other tenth is held out
    assert set(report["fidelity"]) == {rows, "all"}
    assert report["task"] is None
    assert report["kept"] > 0.5


def test_calibration_and_verification_on_other_data(
    merge: Merge, trained: Trained, write_rows: Callable[..., str]
) -> None:
    rows = write_rows([{"text": text} for text in sentences(60)])
    report = report_of(merge(trained(), "--verify-on", rows, "--calibration-tokens", "600"))
    assert report["merge"]["calibration"] == {"dataset": None, "tokens": 600}
    assert 600 <= report["merge"]["texts"]["demo"]["tokens"] < 700
    assert set(report["fidelity"]) == {rows, "all"}


def test_general_text_where_it_is_at_hand(
    run_cli: Callable[..., Ended], trained: Trained, out: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MONOLORA_DATA", str(mirror))
    flags = ("--calibration-tokens", "2000", "--verify-tokens", "500", "--task-samples", "2")
    assert run_cli("merge", trained(), out, *flags).status == 0
    report = report_of(out)
    assert set(report["fidelity"]) == {"demo", "dolly", "all"}
    assert report["merge"]["texts"].keys() == {"demo", "dolly"}
    assert report["task"]["n"] == 2
    pooled = sum(report["fidelity"][name]["tokens"] for name in ("demo", "dolly"))
    assert report["fidelity"]["all"]["tokens"] == pooled


@pytest.mark.parametrize("adapter", ["monolora", "lora"])
def test_a_quantized_base_is_merged_into_dense(
    run_cli: Callable[..., Ended], trained: Trained, out: Path, adapter: str
) -> None:
    folder = trained("--adapter", adapter, "--load-in-4bit")
    ended = run_cli("merge", folder, out, "--verify-tokens", "150")
    assert ended.status == 0
    report = report_of(out)
    assert report["merge"]["quantization"]["load_in_4bit"] is True
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    assert report["kept"] > 0.9
    # Its dense weights are those that the 4-bit ones stand for: the deltas are found again in them.
    assert max(report["modules"].values()) < (0.9 if adapter == "monolora" else 0.1)


def test_exact_from_a_quantized_base(merge: Merge, trained: Trained) -> None:
    report = report_of(merge(trained("--load-in-4bit"), "--method", "exact"))
    assert report["kept"] == pytest.approx(1, abs=1e-3)
    assert report["task"]["same_answers"] == 6


# A model of 490 kB: all of it on disk, some of it, nothing.
@pytest.mark.parametrize("budget", ["cpu=200KB", "cpu=400KB", "cpu=1GiB"])
@pytest.mark.parametrize("flags", [(), ("--as", "lora"), ("--method", "exact")], ids=["dense", "lora", "exact"])
def test_models_larger_than_memory(
    merge: Merge, trained: Trained, chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...], budget: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    before = contents(chat_model)
    whole = merge(trained(), *flags, folder=tmp_path / "whole")
    part = merge(trained(), *flags, "--max-memory", budget, folder=tmp_path / "part")
    assert contents(chat_model) == before
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "part"}
    one, other = report_of(whole), report_of(part)
    for key in ("tokens", "kept", "top1_merged"):
        assert one["fidelity"]["all"][key] == pytest.approx(other["fidelity"]["all"][key], abs=1e-6)
    assert one["task"] == other["task"]
    if "lora" not in flags:
        load = AutoModelForCausalLM.from_pretrained
        torch.testing.assert_close(logits(load(part)), logits(load(whole)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("flags", [(), ("--as", "lora"), ("--method", "exact")], ids=["dense", "lora", "exact"])
def test_errors_of_layers_on_disk(merge: Merge, trained: Trained, tmp_path: Path, flags: tuple[str, ...]) -> None:
    whole = merge(trained(), *flags, folder=tmp_path / "whole")
    part = merge(trained(), *flags, "--max-memory", "cpu=400KB", folder=tmp_path / "part")
    assert report_of(part)["modules"] == pytest.approx(report_of(whole)["modules"], abs=1e-3)


def test_sums_need_the_model_in_memory(
    merge: Merge, run_cli: Callable[..., Ended], trained: Trained, tmp_path: Path
) -> None:
    words = (trained(), trained(*OTHER), tmp_path / "sum", "--method", "exact", "--max-memory")
    ended = run_cli("merge", *words, "cpu=400KB")
    assert ended.status == 2
    assert ended.err == [
        "error: Adapters are added up and weighted in memory, and parts of the model are not. Raise --max-memory."
    ]
    assert list(tmp_path.iterdir()) == []
    assert run_cli("merge", *words, "cpu=1GiB").status == 0


def test_a_base_on_disk_is_never_written_to(
    merge: Merge, trained: Trained, chat_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """PEFT writes the weights that it takes from disk under new names into a file of the same relative path."""
    monkeypatch.chdir(chat_model.parent)
    before = contents(chat_model)
    merge(trained(), "--model", chat_model.name, "--max-memory", "cpu=200KB")
    assert contents(chat_model) == before


@pytest.fixture(scope="module")
def biased_model(tmp_path_factory: pytest.TempPathFactory, chat_tokenizer: PreTrainedTokenizerBase) -> Path:
    """A tiny GPT-2, whose layers all have biases."""
    folder = tmp_path_factory.mktemp("models") / "tiny-gpt2"
    config = GPT2Config(vocab_size=len(chat_tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=512)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(folder)
    chat_tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False but")
@pytest.mark.filterwarnings("ignore:The inputs of .* do not vary")  # LayerNorm leaves no mean
@pytest.mark.parametrize(
    ("flags", "intercept"),
    [((), True), (("--affine",), True), (("--no-affine",), False), (("--as", "lora"), False)],
    ids=["default", "affine", "no affine", "lora"],
)
def test_intercepts(
    merge: Merge, trained: Trained, biased_model: Path, flags: tuple[str, ...], intercept: bool
) -> None:
    adapter = trained("--lora-target-modules", "c_attn", "c_fc", model=biased_model)
    report = report_of(merge(adapter, *flags, "--task-samples", "0"))
    assert {each["intercept"] for each in report["merge"]["maps"].values()} == {intercept}
    assert report["kept"] > 0.7


def test_shards(merge: Merge, trained: Trained) -> None:
    out = merge(trained(), "--max-shard-size", "200KB")
    assert len(list(out.glob("model-*-of-*.safetensors"))) > 1
    assert (out / "model.safetensors.index.json").is_file()
    assert AutoModelForCausalLM.from_pretrained(out).config.hidden_size == 64


def test_inputs_that_do_not_vary(
    run_cli: Callable[..., Ended], trained: Trained, out: Path, write_rows: Callable[..., str]
) -> None:
    """The same row again and again: the moments are singular, which is said and recorded."""
    rows = write_rows([{"text": "the same words again and again, all of them"}] * 200)
    other = write_rows([{"text": text} for text in sentences(20)], name="other.jsonl")
    with pytest.warns(UserWarning, match=r"do not vary in all directions.*smallest ridges were left out"):
        run_cli("merge", trained(), out, "--calibration", rows, "--verify-on", other, "--verify-tokens", "150")
    assert any(each["ridge_raised"] for each in report_of(out)["merge"]["maps"].values())


def test_overwrite(merge: Merge, run_cli: Callable[..., Ended], trained: Trained, out: Path) -> None:
    merge(trained(), "--as", "lora")
    ended = run_cli("merge", trained(), out)
    assert ended.status == 2
    assert ended.err == [f"error: {out} holds another merge. Take another folder, or replace it with --overwrite."]
    merge(trained(), "--overwrite")
    assert (out / "config.json").is_file()
    assert not (out / "adapter_config.json").exists()


def test_empty_and_linked_folders_are_filled(
    merge: Merge, run_cli: Callable[..., Ended], trained: Trained, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    merge(trained(), "--task-samples", "0", folder=tmp_path / "empty")
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    merge(trained(), "--task-samples", "0", folder=tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "config.json").is_file()
    before = contents(tmp_path)
    ended = run_cli("merge", trained(), tmp_path / "link", "--overwrite")
    assert ended.status == 2
    assert f"is a symlink. Give the folder that is meant, {tmp_path / 'there'}." in ended.err[0]
    assert contents(tmp_path) == before


def test_relative_folders(
    run_cli: Callable[..., Ended], trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    ended = run_cli("merge", trained(), "../there/deeper", "--task-samples", "0", "--verify-tokens", "50")
    assert (ended.status, ended.err) == (0, QUIET)
    assert (tmp_path / "there" / "deeper" / "config.json").is_file()
    assert os.listdir() == []
    ended = run_cli("merge", trained(), ".", "--task-samples", "0")
    assert (ended.status, ended.err) == (2, ["error: . is the working directory, or holds it. Take another folder."])


def test_the_run_decides_how_the_base_is_loaded(merge: Merge, trained: Trained, out: Path) -> None:
    assert report_of(merge(trained()))["merge"]["dtype"] == "float32"
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"
    merge(trained(), "--dtype", "bfloat16", "--overwrite", "--task-samples", "0")
    assert report_of(out)["merge"]["dtype"] == "bfloat16"
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("kind", ["exact float16", "exact bfloat16", "lora float16", "lora float32", "exact unsaid"])
def test_without_a_run_the_base_keeps_its_dtype(
    merge: Merge, trained: Trained, chat_model: Path, tmp_path: Path, write_rows: Callable[..., str], kind: str
) -> None:
    """Bit for bit, where nothing is adapted; also where config.json does not say which it is."""
    form, dtype = kind.replace("unsaid", "float16").split()
    base, adapter = tmp_path / chat_model.name, tmp_path / "adapter"
    shutil.copytree(chat_model, base)
    AutoModelForCausalLM.from_pretrained(chat_model, dtype=dtype).save_pretrained(base)
    if "unsaid" in kind:
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "dtype"}))
    shutil.copytree(trained("--adapter", "lora") if form == "lora" else trained(), adapter)
    (adapter / "run.json").unlink()
    rows = write_rows([{"text": "positive and negative, good and bad, and nothing else at all"}] * 12)
    words = [adapter, "--model", base, "--verify-on", rows, *(["--method", "exact"] if form == "exact" else [])]
    out = merge(*words)
    assert json.loads((out / "config.json").read_text())["dtype"] == dtype
    stored = load_file(base / "model.safetensors")
    written = load_file(out / "model.safetensors")
    untouched = "model.layers.0.mlp.up_proj.weight"
    assert written[untouched].dtype == getattr(torch, dtype)
    assert torch.equal(written[untouched], stored[untouched])
    assert report_of(out)["merge"]["compared_in"] == dtype


def test_rounding_of_the_base_is_seen(merge: Merge, trained: Trained, out: Path) -> None:
    """A float32 base merged in bfloat16 is compared in float32, with the base as it is: even an exact merge loses."""
    report = report_of(merge(trained(), "--method", "exact", "--dtype", "bfloat16", "--task-samples", "0"))
    assert (report["merge"]["base_dtype"], report["merge"]["dtype"]) == ("float32", "bfloat16")
    assert report["merge"]["compared_in"] == "float32"
    assert report["kept"] < 1
    assert report["fidelity"]["all"]["kl_merged"]["mean"] > 0
    assert load_file(out / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16


def test_answers_are_compared_row_by_row(merge: Merge, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(self: Inference, prompts: list[list[int]], length: int) -> list[str]:
        words = {"(merged)": "positive", "(adapter)": "positive", "(base)": "so-so"}
        return [words[self.when] if k else self.when for k in range(len(prompts))]

    monkeypatch.setattr(Inference, "generate", answers)
    report = report_of(merge(trained(), "--task-samples", "4"))
    assert report["task"]["same_answers"] == 3
    assert report["task"]["base"]["n"] == 4  # scored here: the run scored six
    assert report["task"]["base"]["unparsed"] == 4
