"""Files beside the weights: both generations of transformers read them, and none of the base's settings is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from filelock import FileLock
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM

from monolora.adapters import load_adapted
from monolora.errors import InputError, RunError
from monolora.hub import cache_root
from monolora.merge import export_dense, export_exact, export_lora, linearize
from monolora.model_files import (
    any_generation_config,
    check_adapter_files,
    check_model_files,
    end_tokens,
    save_generation_config,
    save_model,
    write_older_names,
)
from tests.support.tiny_chat import train_tokenizer

Make = Callable[..., LlamaForCausalLM]
Adapt = Callable[..., PeftModel]

# transformers 4 and what it asks for in other versions than this environment has; the rest (torch, …) is shared.
OLDER = ("transformers==4.57.6", "tokenizers==0.22.2", "huggingface_hub==0.36.0")
TEXT = "positive or <|im_end|> negative"
# Run by transformers 4: prints, by folder, what it reads.
READ = """
import json, sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer, __version__
read = {"version": __version__}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = torch.load(folder / "expected.pt")
    with torch.no_grad():
        logits = model(expected["ids"]).logits
        answer = model.generate(expected["ids"][:1, :8], do_sample=False, max_new_tokens=6, pad_token_id=0)
    read[folder.name] = {
        "difference": float((logits - expected["logits"]).abs().max()),
        "dtype": str(model.dtype),
        "answer": answer.tolist(),
        "token_ids": tokenizer(sys.argv[2]).input_ids,
        "chat": tokenizer.apply_chat_template([{"role": "user", "content": "positive"}], tokenize=False),
        "special": tokenizer.all_special_tokens,
    }
print(json.dumps(read))
"""
SIZES: dict[str, Any] = {
    "vocab_size": 600, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
BASE = {"rope_theta": 500_000.0}
PLAIN = BASE | {"rope_type": "default"}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 3.0, 4.0]}
# Name of the class, what its config has beside the sizes, its rotary embeddings.
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("Llama", {}, PLAIN),
    "llama3": ("Llama", {}, BASE | LLAMA3 | {"original_max_position_embeddings": 32}),
    "linear": ("Llama", {}, BASE | {"rope_type": "linear", "factor": 4.0}),
    "yarn": ("Qwen2", {}, BASE | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}),
    "partial": ("StableLm", {}, PLAIN | {"partial_rotary_factor": 0.25}),
    "phi": ("Phi", {}, PLAIN | {"partial_rotary_factor": 0.5}),
    "longrope": ("Phi3", {"original_max_position_embeddings": 32}, BASE | LONG),
    "gemma3": (
        "Gemma3Text",
        {"head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
        {
            "full_attention": BASE | {"rope_type": "linear", "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 7000.0},
        },
    ),
    "neox": ("GPTNeoX", {}, PLAIN | {"partial_rotary_factor": 0.5}),
    "mixtral": ("Mixtral", {"num_local_experts": 2}, PLAIN),
}


@pytest.fixture(scope="session")
def older() -> dict[str, str]:
    """The environment variables of a process with transformers 4, which is installed once into the cache."""
    folder = cache_root() / f"{OLDER[0].replace('==', '-')}-{sys.version_info.major}.{sys.version_info.minor}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            aside = Path(tempfile.mkdtemp(dir=folder.parent))
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--retries", "0", "--target", aside]
            ended = subprocess.run([*pip, *OLDER], capture_output=True, text=True, check=False)
            if ended.returncode != 0:
                shutil.rmtree(aside)
                pytest.skip(f"{OLDER[0]} cannot be installed: {ended.stderr.strip().splitlines()[-1]}")
            aside.rename(folder)
    return os.environ | {"PYTHONPATH": str(folder)}


def _model(name: str) -> Any:
    family, more, rope = FAMILIES[name]
    config = getattr(transformers, f"{family}Config")(**SIZES | more, rope_parameters=rope)
    return getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")(config).eval()


@pytest.mark.slow
def test_transformers_4_reads_the_same_model(
    older: dict[str, str], make_llama: Make, adapt: Adapt, tmp_path: Path
) -> None:
    """Logits, greedy answers, token ids, chat template: of every kind of rotary embeddings, and of a merge."""
    tokenizer = train_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    ids = torch.randint(3, 500, (2, 40), generator=torch.Generator().manual_seed(7))
    for name in FAMILIES:
        save_model(_model(name), tmp_path / name, tokenizer)
    adapted = adapt(make_llama(**SIZES, rope_parameters=BASE | LLAMA3, dtype=torch.bfloat16), target_modules=["q_proj"])
    export_dense(adapted, linearize(adapted, None), tmp_path / "merged", tokenizer)
    ours: dict[str, Any] = {}
    for folder in sorted(tmp_path.iterdir()):
        model = AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            torch.save({"ids": ids, "logits": model(ids).logits}, folder / "expected.pt")
            answer = model.generate(ids[:1, :8], do_sample=False, max_new_tokens=6, pad_token_id=0)
        read = AutoTokenizer.from_pretrained(folder)
        ours[folder.name] = {
            "dtype": str(model.dtype),
            "answer": answer.tolist(),
            "token_ids": read(TEXT).input_ids,
            "chat": read.apply_chat_template([{"role": "user", "content": "positive"}], tokenize=False),
        }
        assert read(TEXT).input_ids == tokenizer(TEXT).input_ids
    ended = subprocess.run(
        [sys.executable, "-c", READ, tmp_path, TEXT], env=older, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    theirs = json.loads(ended.stdout.splitlines()[-1])
    assert theirs.pop("version").startswith("4.")
    assert theirs.keys() == ours.keys()
    for name, expected in ours.items():
        read = theirs[name]
        assert read.pop("difference") < (1e-5 if name != "merged" else 0.05), name
        assert "<|im_end|>" in read.pop("special")
        assert read == expected, name


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_5_reads_what_it_did(name: str, tmp_path: Path) -> None:
    """The older names beside its own change nothing."""
    model, ids = _model(name), torch.arange(3, 43)[None]
    save_model(model, tmp_path)
    with torch.no_grad():
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["torch_dtype"] == config["dtype"] == "float32"
    assert config.get("rope_theta", config.get("rotary_emb_base")) == 500_000


# Generation configs that transformers reads with a warning, and refuses to write.
INVALID: dict[str, dict[str, Any]] = {
    "early Llama-2": {"temperature": 0.9, "top_p": 0.6, "eos_token_id": 2},
    "beams": {"num_beams": 1, "length_penalty": 2.0, "eos_token_id": [2, 7]},
    "top k": {"top_k": 5, "do_sample": False},
}


def _with(make_llama: Make, folder: Path, settings: dict[str, Any], where: str = "generation_config.json") -> Path:
    make_llama().save_pretrained(folder)
    path = folder / where
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    if where == "config.json":
        (folder / "generation_config.json").unlink()
    return folder


@pytest.mark.parametrize("form", ["dense", "exact", "lora"])
@pytest.mark.parametrize("name", INVALID)
def test_a_generation_config_is_kept_be_it_invalid(
    make_llama: Make, adapt: Adapt, tmp_path: Path, name: str, form: str
) -> None:
    base = _with(make_llama, tmp_path / "base", INVALID[name])
    model = adapt(LlamaForCausalLM.from_pretrained(base))
    out = tmp_path / "out"
    if form == "exact":
        export_exact(model, out)
    else:
        maps = linearize(model, None)
        (export_dense if form == "dense" else export_lora)(model, maps, out)
    written = json.loads((out / "generation_config.json").read_text())
    assert INVALID[name].items() <= written.items()


def test_generation_settings_in_an_old_config(make_llama: Make, tmp_path: Path) -> None:
    """They go where transformers reads them from today, valid or not."""
    settings = {"temperature": 0.7, "max_length": 33}
    model = LlamaForCausalLM.from_pretrained(_with(make_llama, tmp_path / "base", settings, "config.json"))
    save_model(model, tmp_path / "out")
    read = LlamaForCausalLM.from_pretrained(tmp_path / "out").generation_config
    assert (read.temperature, read.max_length) == (0.7, 33)


def test_what_is_raised_leaves_the_model_as_it_was(make_llama: Make, tmp_path: Path) -> None:
    model = make_llama()
    model.generation_config = own = GenerationConfig(eos_token_id=5)
    with pytest.raises(OSError, match="full"), any_generation_config(model, tmp_path):
        raise OSError("full")
    assert model.generation_config is own


@pytest.fixture
def ending(saved: Callable[..., tuple[Path, torch.Tensor]]) -> Path:
    """An adapter that is trained to end with token 9, or with its base's."""
    folder, _ = saved()
    save_generation_config(GenerationConfig(eos_token_id=[9, 2], pad_token_id=0), folder)
    train_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`")  # PEFT, of a resized vocabulary
def test_loaders_end_where_the_adapter_ends(ending: Path, tmp_path: Path) -> None:
    assert end_tokens(ending) == [9, 2]
    assert end_tokens(tmp_path) == []
    assert AutoPeftModelForCausalLM.from_pretrained(ending).get_base_model().generation_config.eos_token_id == [9, 2]
    model, _ = load_adapted(str(ending), dtype=torch.float32)
    assert model.generation_config.eos_token_id == [9, 2]
    maps = linearize(model, None)
    export_lora(model, maps, tmp_path / "lora")
    export_dense(model, maps, tmp_path / "dense")
    export_exact(load_adapted(str(ending))[0], tmp_path / "exact")
    for form in ("lora", "dense", "exact"):
        assert end_tokens(tmp_path / form) == [9, 2], form


def test_an_adapter_that_says_nothing_ends_as_its_base(saved: Callable[..., tuple[Path, torch.Tensor]]) -> None:
    folder, _ = saved()
    assert AutoPeftModelForCausalLM.from_pretrained(folder).get_base_model().generation_config.eos_token_id == 2


def test_pefts_lora_is_loaded_as_ever(base_folder: Path, tmp_path: Path) -> None:
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base_folder), LoraConfig(task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "lora")
    save_generation_config(GenerationConfig(eos_token_id=9), tmp_path / "lora")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "lora")
    assert loaded.get_base_model().generation_config.eos_token_id == 2


def test_a_damaged_generation_config_is_refused(ending: Path) -> None:
    (ending / "generation_config.json").write_text("{")
    with pytest.raises(InputError, match=r"generation_config.json cannot be used"):
        load_adapted(str(ending))


def test_files_are_compared_with_what_was_to_be_written(
    saved: Callable[..., tuple[Path, torch.Tensor]], base_folder: Path, tmp_path: Path
) -> None:
    folder, _ = saved()
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    check_adapter_files(folder, shapes)
    gone = min(tensors)
    save_file({name: tensor for name, tensor in tensors.items() if name != gone}, path)
    with pytest.raises(RunError, match=rf"was not saved whole: .* lacks '{gone}' \(1 such\)"):
        check_adapter_files(folder, shapes)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError, match=r"was not saved: .* cannot be read"):
        check_adapter_files(folder, shapes)
    with pytest.raises(RunError, match=r"was not saved: .* cannot be read"):
        check_adapter_files(tmp_path, shapes)
    check_model_files(base_folder)
    weights = load_file(base_folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, base_folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunError, match=r"lacks model.norm.weight \(1 such\)"):
        check_model_files(base_folder)


def test_tokenizers_of_other_classes_stay(tmp_path: Path) -> None:
    settings = {"tokenizer_class": "Qwen2Tokenizer", "extra_special_tokens": {"image_token": "<image>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    write_older_names(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == settings
