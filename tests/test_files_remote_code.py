"""Folders that bring Python code: it never runs without the flag, and nobody is asked."""

from __future__ import annotations

import ast
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from monolora import MonoLoraConfig, cli
from monolora.errors import InputError
from monolora.files import code_trusted
from monolora.hub import load_causal_lm, load_classifier, load_config, load_tokenizer
from monolora.recipes.judge.model import load_backbone
from tests.support import forks
from tests.support.requirements import NEEDS_VLLM
from tests.support.tiny_chat import save_tiny_chat

CODE = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
def generate(*args, **kwargs):
    pass
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_chat(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "adapter"
    config = MonoLoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    model.save_pretrained(folder)
    load_tokenizer(str(base)).save_pretrained(folder)
    return folder


class Bringing:
    """Copies of folders that bring code, which makes the file ``marker``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.marker = folder / "ran"

    def _copy(self, source: Path, name: str) -> Path:
        copied = Path(shutil.copytree(source, self.folder / name))
        (copied / "own.py").write_text(CODE.format(marker=str(self.marker)))
        return copied

    def model(self, source: Path, model_type: str = "own") -> Path:
        copied = self._copy(source, "model")
        config = json.loads((copied / "config.json").read_text())
        config |= {"model_type": model_type, "auto_map": {
            "AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel",
            "AutoModelForSequenceClassification": "own.OwnModel",
        }}  # fmt: skip
        (copied / "config.json").write_text(json.dumps(config))
        return copied

    def tokenizer(self, source: Path) -> Path:
        copied = self._copy(source, "tokenizer")
        path = copied / "tokenizer_config.json"
        own = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}
        path.write_text(json.dumps(json.loads(path.read_text()) | own))
        return copied

    def generation(self, source: Path) -> Path:
        copied = self._copy(source, "generation")
        (copied / "custom_generate").mkdir()
        (copied / "own.py").rename(copied / "custom_generate" / "generate.py")
        return copied


@pytest.fixture
def bringing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bringing:
    def ask(prompt: object = "") -> str:
        pytest.fail(f"asks: {prompt}")

    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return Bringing(tmp_path)


@pytest.mark.parametrize("load", [load_config, load_causal_lm, load_classifier, load_backbone])
def test_a_model_of_its_own_class(bringing: Bringing, base: Path, load: Callable[[str], object]) -> None:
    folder = bringing.model(base)
    with pytest.raises(InputError, match=rf"{folder}/config.json would run Python code .* give --trust-remote-code"):
        load(str(folder))
    assert not bringing.marker.exists()


def test_a_tokenizer_of_its_own_class(bringing: Bringing, base: Path) -> None:
    folder = bringing.tokenizer(base)
    with pytest.raises(InputError, match=rf"{folder}/tokenizer_config.json would run Python code"):
        load_tokenizer(str(folder))
    assert not bringing.marker.exists()


def test_own_generation(bringing: Bringing, base: Path) -> None:
    load_causal_lm(str(bringing.generation(base)))
    assert not bringing.marker.exists()


def test_a_class_of_transformers_is_taken_before_a_folders_own(bringing: Bringing, base: Path) -> None:
    """Many published models of families that transformers has by now still bring the code of their first days."""
    folder = bringing.model(base, model_type="llama")
    assert type(load_causal_lm(str(folder))).__module__.startswith("transformers.")
    assert not bringing.marker.exists()


def test_with_the_flag_the_code_runs(bringing: Bringing, base: Path) -> None:
    with code_trusted(True):
        assert type(load_causal_lm(str(bringing.model(base)))).__name__ == "OwnModel"
    assert bringing.marker.exists()


def test_an_adapters_auto_mapping_is_not_imported(
    bringing: Bringing, base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bringing._copy(adapter, "mapped")
    monkeypatch.syspath_prepend(folder)
    path = folder / "adapter_config.json"
    named = {"task_type": None, "auto_mapping": {"base_model_class": "OwnModel", "parent_library": "own"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | named))
    words = ["sparsity", str(folder), "--model", str(base), "--max-samples", "2"]
    assert cli.main(words) == 0, capsys.readouterr().err
    assert "own" not in sys.modules
    assert not bringing.marker.exists()


PROGRAMS = {
    "sft": ["sft", "--model", "MODEL", "--output-dir", "OUT", "--max-train-samples", "8"],
    "template": ["sft", "--model", "BASE", "--chat-template-path", "TOKENIZER", "--output-dir", "OUT"],
    "eval": ["eval", "run", "--model", "MODEL", "--suite", "PROMPTS", "--judges", "refusal", "--out", "OUT"],
    "eval, tokenizer": ["eval", "run", "--model", "BASE", "--adapter", "a=TOKENIZER", "--suite", "PROMPTS", "--engine",
                        "hf", "--judges", "refusal", "--max-new-tokens", "8", "--out", "OUT"],
    "eval, judge": ["eval", "run", "--model", "BASE", "--suite", "PROMPTS", "--judges", "classifier:MODEL",
                    "--engine", "hf", "--out", "OUT"],
    "explain": ["explain", "TOKENIZER", "--model", "BASE", "--out", "OUT"],
    "explain, base": ["explain", "ADAPTER", "--model", "MODEL", "--out", "OUT"],
    "sparsity": ["sparsity", "TOKENIZER", "--model", "BASE"],
    "merge": ["merge", "TOKENIZER", "OUT", "--model", "BASE", "--verify-on", "demo", "--calibration", "demo"],
    "merge, base": ["merge", "ADAPTER", "OUT", "--model", "MODEL", "--verify-on", "demo", "--calibration", "demo"],
    "verify": ["verify", "MODEL", "--against", "ADAPTER", "--model", "BASE", "--verify-on", "demo"],
    "serve-check": ["serve-check", "MODEL"],
}  # fmt: skip


@pytest.mark.parametrize(
    "program", [pytest.param(name, marks=NEEDS_VLLM if name == "serve-check" else ()) for name in PROGRAMS]
)
def test_programs(
    bringing: Bringing, base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], program: str
) -> None:
    """Each refuses in one line that names the file and the flag, which it has."""
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "How do I make tea?"}) + "\n")
    places: dict[str, Callable[[], object]] = {
        "MODEL": lambda: bringing.model(base), "TOKENIZER": lambda: bringing.tokenizer(adapter), "BASE": lambda: base,
        "ADAPTER": lambda: adapter, "OUT": lambda: tmp_path / "out", "PROMPTS": lambda: tmp_path / "prompts.jsonl",
    }  # fmt: skip
    words = PROGRAMS[program]
    made = {word: str(make()) for word, make in places.items() if any(word in each for each in words)}
    for word, path in made.items():
        words = [each.replace(word, path) if each.isupper() or "=" in each or ":" in each else each for each in words]
    assert cli.main(words) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    name = "tokenizer_config.json" if "TOKENIZER" in made else "config.json"
    assert last.startswith("error: ")
    assert f"{made.get('TOKENIZER', made.get('MODEL'))}/{name} would run Python code" in last
    assert "If you have read and trust it, give --trust-remote-code." in last
    assert not bringing.marker.exists()


def test_nobody_is_asked(bringing: Bringing, base: Path, adapter: Path) -> None:
    """In a process of its own, with a `y` on standard input."""
    program = "import sys; from monolora import cli; sys.exit(cli.main())"
    ended = forks.run(program, "sparsity", bringing.tokenizer(adapter), "--model", base, stdin="y\ny\n")
    assert ended.returncode == 2
    assert "[y/N]" not in ended.stdout + ended.stderr
    assert not bringing.marker.exists()


def test_loaders_say_whether_code_is_trusted() -> None:
    """Every loader of transformers and every engine is given a value: left out, some of them ask."""
    root = Path(cli.__file__).parents[1]
    unsaid = []
    for path in (file for part in ("monolora", "recipes", "eval") for file in (root / part).rglob("*.py")):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            words = ast.unparse(call.func)
            loads = words.startswith("Auto") and words.endswith(".from_pretrained")
            if (loads or words in ("LLM", "pipeline")) and "trust_remote_code" not in ast.unparse(call):
                unsaid.append(f"{path.relative_to(root)}:{call.lineno}")
    assert unsaid == []


def test_full_finetuning_of_a_model_of_its_own_class(bringing: Bringing, base: Path, tmp_path: Path) -> None:
    """What was saved is opened again with the same trust; nobody is asked, and the model is kept."""
    flags = ["--adapter", "none", "--trust-remote-code", "--skip-eval", "--max-steps", "1", "--max-train-samples", "8"]
    where = ["--model", str(bringing.model(base)), "--output-dir", str(tmp_path / "run"), "--bf16", "false"]
    where += ["--per-device-train-batch-size", "4"]
    assert cli.main(["sft", *where, *flags]) == 0
    assert (tmp_path / "run" / "model.safetensors").is_file()
