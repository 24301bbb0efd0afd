"""Bad input to a merge: one line that says what is wrong and the fix, status 2, and nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from monolora import MonoLoraConfig
from tests.support.merge_runs import Ended, contents, report_of

Trained = Callable[..., Path]
Cli = Callable[..., Ended]
FEW = ("--verify-tokens", "100", "--task-samples", "0")


@pytest.fixture
def adapter(trained: Trained, tmp_path: Path) -> Path:
    """A copy of a trained adapter, to be damaged."""
    return shutil.copytree(trained(), tmp_path / "adapter")


@pytest.fixture
def refused(run_cli: Cli, tmp_path: Path) -> Callable[..., str]:
    """``refused(*words)``: the message of a merge that must end with one line, status 2, and nothing written."""

    def run(*words: str | Path, out: Path | None = None) -> str:
        out = out or tmp_path / "out"
        before = contents(tmp_path)
        flags = next((k for k, word in enumerate(words) if str(word).startswith("-")), len(words))
        ended = run_cli("merge", *words[:flags], out, *words[flags:])
        assert ended.status == 2
        assert len(ended.err) == 1
        assert ended.err[0].startswith("error: ")
        assert contents(tmp_path) == before
        assert not list(tmp_path.rglob(".*.aside-*")) + list(tmp_path.rglob(".*.lock"))
        assert not (tmp_path / "out").exists()
        return ended.err[0].removeprefix("error: ")

    return run


Refused = Callable[..., str]

FLAGS = {
    "--method exact --calibration demo": ["--calibration has no effect with --method exact. Leave it out."],
    "--method exact --calibration-tokens 500": ["--calibration-tokens has no effect with --method exact"],
    "--method exact --affine": ["--affine has no effect with --method exact"],
    "--method exact --no-affine": ["--affine has no effect with --method exact"],
    "--method exact --as lora": ["--as lora is linear", "Leave --method exact out."],
    "--as lora --affine": ["for which a LoRA adapter has no place. Leave it or --as lora out."],
    "--affine": ["model.layers.0.self_attn.q_proj has no bias that an intercept could go to"],
    "--calibration none --calibration-tokens 500": ["no effect with --calibration none"],
    "--calibration-tokens 0": ["--calibration-tokens must be at least 1"],
    "--calibration-tokens -5": ["--calibration-tokens must be at least 1"],
    "--calibration-tokens many": ["--calibration-tokens", "'many'"],
    "--calibration-tokens 100": ["tokens to model.layers.0.self_attn.q_proj; ", "more are needed (4 for each"],
    "--calibration ./nowhere.jsonl": ["There is no data set at ./nowhere.jsonl"],
    "--calibration nobody/nothing": ["Cannot reach the hub for 'nobody/nothing'", "MONOLORA_DATA"],
    "--verify-on ./nowhere.jsonl": ["There is no data set at ./nowhere.jsonl"],
    "--verify-tokens 0": ["--verify-tokens must be at least 1, got 0"],
    "--verify-tokens 1.5": ["--verify-tokens", "'1.5'"],
    "--batch-size 0": ["--batch-size must be at least 1, got 0"],
    "--batch-size x": ["--batch-size", "'x'"],
    "--task-samples -1": ["--task-samples must be at least 0"],
    "--task-samples all": ["--task-samples", "'all'"],
    "--min-fidelity 1.1": ["--min-fidelity must be at most 1, got 1.1"],
    "--min-fidelity nan": ["--min-fidelity must be at most 1, got nan"],
    "--min-fidelity half": ["--min-fidelity", "'half'"],
    "--weights 1 1": ["Got 1 adapters and 2 --weights. Give one weight an adapter."],
    "--weights one": ["--weights", "'one'"],
    "--weights nan": ["--weights must be numbers, got nan"],
    "--weights inf": ["--weights must be numbers, got inf"],
    "--max-memory cpu": ["--max-memory cpu is not DEVICE=SIZE", "cpu=30GiB"],
    "--max-memory cpu=": ["--max-memory cpu= is not DEVICE=SIZE"],
    "--max-memory cpu=lots": ["--max-memory cpu=lots is not DEVICE=SIZE"],
    "--max-memory disk=1GiB": ["--max-memory disk=1GiB is not DEVICE=SIZE"],
    "--max-memory gpu=1GiB": ["--max-memory gpu=1GiB is not DEVICE=SIZE"],
    "--max-shard-size big": ["--max-shard-size big is no size. Write, for example, 5GB"],
    "--max-shard-size 0GB": ["--max-shard-size 0GB is no size"],
    "--max-shard-size -1GB": ["--max-shard-size"],
    "--dtype float99": ["--dtype", "bfloat16"],
    "--method linar": ["--method", "linear"],
    "--as peft": ["--as", "lora"],
    "--model ./nowhere": ["There is no model at ./nowhere"],
    "--modle x": ["Unknown flag --modle. Did you mean --model"],
    "--calibration_token 5": ["Unknown flag --calibration_token. Did you mean --calibration-tokens"],
    "--what": ["Unknown flag --what. "],
}  # fmt: skip


@pytest.mark.parametrize(("flags", "says"), FLAGS.items(), ids=FLAGS)
def test_flags(refused: Refused, trained: Trained, flags: str, says: list[str]) -> None:
    message = refused(trained(), *flags.split())
    assert all(part in message for part in says), message


def test_missing_words(run_cli: Cli, trained: Trained) -> None:
    for words in ((), (trained(),)):
        ended = run_cli("merge", *words)
        assert ended.status == 2
        assert "required: " in ended.err[0]
        assert "out" in ended.err[0]


def test_what_is_missing_is_counted(refused: Refused, trained: Trained, write_rows: Callable[..., str]) -> None:
    """What the message says is missing is enough."""
    rows = write_rows([{"text": f"{k} words"} for k in range(20)])
    message = refused(trained(), "--calibration", rows)
    brought, more = (int(message.split(" tokens to")[0].split()[-1]), int(message.split("; ")[1].split()[0]))
    assert brought + more == 4 * 64
    assert "Give more or longer texts." in message


def _cut(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _poison(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})


def _set(name: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


DAMAGE: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no folder": (shutil.rmtree, ["holds no adapter: adapter_config.json is missing"]),
    "no config": (lambda folder: (folder / "adapter_config.json").unlink(), ["adapter_config.json is missing"]),
    "no weights": (
        lambda folder: (folder / "adapter_model.safetensors").unlink(),
        ["holds no weights: adapter_model.safetensors is missing. Copy the whole folder."],
    ),
    "cut off": (_cut, ["truncated", "Copy it again"]),
    "not finite": (_poison, ["NaN"]),
    "config is no JSON": (lambda folder: (folder / "adapter_config.json").write_text("{"), ["adapter_config.json"]),
    "unknown method": (_set("adapter_config.json", peft_type="MAGIC"), ["'MAGIC' is no method of PEFT"]),
    "run.json is no JSON": (lambda folder: (folder / "run.json").write_text("{"), ["run.json is not JSON"]),
    "base is gone": (
        lambda folder: [
            _set("adapter_config.json", base_model_name_or_path="/nowhere/base")(folder),
            (folder / "run.json").unlink(),
        ],
        ["There is no model at /nowhere/base"],
    ),
    "names no base": (
        lambda folder: [
            _set("adapter_config.json", base_model_name_or_path=None)(folder),
            (folder / "run.json").unlink(),
        ],
        ["names no base model. Give it with --model."],
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_adapters(refused: Refused, adapter: Path, name: str) -> None:
    damage, says = DAMAGE[name]
    damage(adapter)
    message = refused(adapter, *FEW)
    assert all(part in message for part in says), message
    assert "--output-dir" not in message  # that is a flag of training


@pytest.fixture
def other_base(tmp_path: Path, chat_model: Path, chat_tokenizer: PreTrainedTokenizerBase) -> Callable[..., Path]:
    """``other_base(**config)``: a model beside the one that the adapter was trained on."""

    def make(**config: Any) -> Path:
        settings = LlamaConfig.from_pretrained(chat_model).to_dict() | config
        torch.manual_seed(1)
        LlamaForCausalLM(LlamaConfig(**settings)).save_pretrained(tmp_path / "base")
        chat_tokenizer.save_pretrained(tmp_path / "base")
        return tmp_path / "base"

    return make


def test_a_base_with_other_weights(
    refused: Refused, run_cli: Cli, adapter: Path, other_base: Callable[..., Path], tmp_path: Path
) -> None:
    """Refused, unless it was named."""
    base = other_base()
    _set("adapter_config.json", base_model_name_or_path=str(base))(adapter)
    message = refused(adapter)
    assert f"was trained on other weights than those of {base} (fingerprint " in message
    assert "Give the right model with --model" in message
    with pytest.warns(UserWarning, match="was trained on other weights than those of"):
        assert run_cli("merge", adapter, tmp_path / "out", "--model", base, *FEW, "--min-fidelity", "-9").status == 0
    assert report_of(tmp_path / "out")["merge"]["model"] == str(base)


@pytest.mark.filterwarnings("ignore:.*was trained on other weights")
@pytest.mark.parametrize("method", ["linear", "exact"])
def test_a_base_of_another_shape(refused: Refused, adapter: Path, other_base: Callable[..., Path], method: str) -> None:
    message = refused(adapter, "--method", method, "--model", other_base(hidden_size=32, num_hidden_layers=1))
    assert f"{adapter} does not fit" in message


def test_places_that_cannot_be_written_to(
    run_cli: Cli, trained: Trained, refused: Refused, tmp_path: Path, chat_model: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    assert "exists and is no merge. Take another folder." in refused(trained(), out=tmp_path / "full")
    assert "exists and is no merge. Take another folder." in refused(trained(), "--overwrite", out=tmp_path / "full")
    assert "exists and is no merge" in refused(trained(), out=tmp_path / "full" / "file")
    below = tmp_path / "full" / "file" / "below"
    assert f"{below} cannot be made" in refused(trained(), out=below)
    assert "/proc/nowhere/out cannot be made: No such file or directory." in refused(
        trained(), out=Path("/proc/nowhere/out")
    )
    assert "exists and is no merge" in refused(trained(), out=chat_model)


def test_a_merge_does_not_replace_what_it_is_made_from(run_cli: Cli, trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "lora"
    assert run_cli("merge", trained(), out, "--as", "lora", *FEW).status == 0
    before = contents(tmp_path)
    ended = run_cli("merge", out, out, "--overwrite", *FEW)
    assert ended.status == 2
    assert ended.err == [f"error: {out} holds {out}, which the merge is made from. Take another folder."]
    assert contents(tmp_path) == before


def test_parents_that_were_made_go_too(refused: Refused, trained: Trained, tmp_path: Path) -> None:
    refused(trained(), "--affine", out=tmp_path / "a" / "b" / "c")
    assert not (tmp_path / "a").exists()


def test_the_data_set_of_the_run_is_gone(
    refused: Refused, run_cli: Cli, run_sft: Callable[..., Any], write_rows: Callable[..., str], tmp_path: Path
) -> None:
    rows = write_rows([{"instruction": f"is {k} good?", "output": "positive"} for k in range(40)])
    adapter = run_sft("--dataset", rows, "--skip-eval").folder
    Path(rows).unlink()
    message = refused(adapter)
    assert f"The data set that {adapter} was trained on cannot be read: There is no data set at {rows}." in message
    assert "give other text with --verify-on (and --calibration), and --task-samples 0." in message
    corrected = ("--verify-on", "demo", "--calibration", "demo", "--task-samples", "0", "--verify-tokens", "100")
    assert run_cli("merge", adapter, tmp_path / "out", *corrected).status == 0


ADDED = {
    "activations": (("--activation", "identity"), "These adapters cannot be added up: Cannot combine adapters of diff"),
    "methods": (("--adapter", "lora"), "is no MonoLoRA adapter; only those are added up or weighted"),
}


@pytest.mark.parametrize("name", ADDED)
def test_adapters_that_cannot_be_added_up(refused: Refused, trained: Trained, name: str) -> None:
    flags, says = ADDED[name]
    assert says in refused(trained(), trained(*flags), *FEW)
    assert "cannot be added up" in refused(trained(*flags), trained(), *FEW) or name == "methods"


LORA = {
    "--as lora": "is no MonoLoRA adapter. Leave --as lora out to merge it into its base.",
    "--calibration demo": "--calibration has no effect with an adapter that PEFT merges itself. Leave it out.",
    "--affine": "--affine has no effect with an adapter that PEFT merges itself",
    "--weights 0.5": "is no MonoLoRA adapter",
}


@pytest.mark.parametrize("flags", LORA)
def test_flags_that_are_not_for_lora(refused: Refused, trained: Trained, flags: str) -> None:
    assert LORA[flags] in refused(trained("--adapter", "lora"), *flags.split())


@pytest.mark.filterwarnings("ignore:Without calibration text")
def test_units_without_a_closed_form(refused: Refused, trained: Trained) -> None:
    message = refused(trained("--activation", "topk:2"), "--calibration", "none")
    assert "topk:2 units, for which there is no closed form. Give calibration text." in message


@pytest.mark.filterwarnings("ignore:Without calibration text")
@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups")
@pytest.mark.parametrize("method", ["linear", "exact"])
def test_convolutions(refused: Refused, tmp_path: Path, method: str, chat_tokenizer: PreTrainedTokenizerBase) -> None:
    config = Lfm2Config(
        vocab_size=len(chat_tokenizer), hidden_size=16, num_hidden_layers=1, layer_types=["conv"], intermediate_size=16,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    Lfm2ForCausalLM(config).save_pretrained(tmp_path / "base")
    chat_tokenizer.save_pretrained(tmp_path / "base")
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"),
        MonoLoraConfig(target_modules=["conv.conv"], r=16, task_type="CAUSAL_LM"),
    )
    model.save_pretrained(tmp_path / "conv")
    message = refused(tmp_path / "conv", "--method", method, "--verify-on", "demo", "--dtype", "float32")
    assert "model.layers.0.conv.conv" in message
    assert {"linear": "is a convolution", "exact": "keep linear layers, Conv1D and embeddings only"}[method] in message


@pytest.mark.parametrize("kind", ["MONOLORA", "LORA"])
def test_files_that_would_change_the_base_or_never_be_matched(refused: Refused, adapter: Path, kind: str) -> None:
    path, weights = adapter / "adapter_config.json", adapter / "adapter_model.safetensors"
    config, tensors = json.loads(path.read_text()), load_file(weights)
    if kind == "LORA":
        config = {key: value for key, value in config.items() if key != "activation"} | {"peft_type": kind}
        tensors = {name.replace("monolora_", "lora_"): tensor for name, tensor in tensors.items()}
    path.write_text(json.dumps(config))
    save_file(tensors | {"base_model.model.model.norm.weight": torch.ones(8)}, weights, metadata={"format": "pt"})
    assert "has the foreign tensor 'base_model.model.model.norm.weight'" in refused(adapter)
    save_file(tensors, weights, metadata={"format": "pt"})
    path.write_text(json.dumps(config | {"target_modules": "(([a-z_.0-9]+)+)+!"}))
    assert "target_modules '(([a-z_.0-9]+)+)+!' matches nothing" in refused(adapter)
    path.write_text(json.dumps(config | {"lora_alpha": float("inf")}))
    assert "lora_alpha must be a finite number, got inf" in refused(adapter)


def test_rows_that_have_changed_since_the_run_are_warned_of(
    run_cli: Cli, adapter: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """What is held out now may have been trained on; the base is scored on the rows that are there."""
    record = json.loads((adapter / "run.json").read_text())
    record["fingerprints"] |= {"train": "0" * 16, "test": "0" * 16}
    record["results"]["before"] |= {"accuracy": 0.123}
    (adapter / "run.json").write_text(json.dumps(record))
    with pytest.warns(UserWarning, match="rows of demo that are read now are not those that the run was trained on"):
        assert run_cli("merge", adapter, tmp_path / "out", "--verify-tokens", "100").status == 0
    assert report_of(tmp_path / "out")["task"]["base"]["accuracy"] != 0.123
