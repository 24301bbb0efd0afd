"""What the tests share: tiny random models, adapters with something in B, and no network."""

from __future__ import annotations

import json
import os
import tempfile

os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="monolora-tests-")  # datasets reads it when imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import gc
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from monolora import MonoLoraConfig
from monolora.beaverdam import LABELS
from tests.support.evaluated import QUESTIONS, Evaluated
from tests.support.processes import kill
from tests.support.tiny_chat import CHAT_TEMPLATE, save_tiny_chat
from tests.support.tiny_judges import make_bert

transformers_logging.disable_progress_bar()

VOCAB = 64


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: with two processes, neither is left alone with one of them in the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="module")
def told() -> Iterator[Any]:
    """Asks pages about themselves; for one file of tests at a time, as others have event loops of their own."""
    from tests.support.chromium_page import browser_open  # few tests need it

    with browser_open() as opened:
        yield opened


@pytest.fixture(scope="session", autouse=True)
def _row_cache() -> Iterator[None]:
    """The cache of tokenized rows goes with the tests."""
    yield
    shutil.rmtree(os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Every test starts from the same random state and leaves none behind."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """A test leaves no variable behind: engines set some in their process, and one of them turns compilation off."""
    with patch.dict(os.environ):
        yield


@pytest.fixture(scope="session")
def make_llama() -> Callable[..., LlamaForCausalLM]:
    """``make_llama(seed=0, dtype=torch.float32, **config)``: a two-layer Llama in evaluation mode."""

    def make(seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any) -> LlamaForCausalLM:
        sizes = {
            "vocab_size": VOCAB,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 64,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return LlamaForCausalLM(LlamaConfig(**sizes | config)).to(dtype).eval()

    return make


@pytest.fixture(scope="session")
def make_gpt2() -> Callable[..., GPT2LMHeadModel]:
    """``make_gpt2(seed=0, dtype=torch.float32)``: a two-layer GPT-2, whose linear maps are ``Conv1D``."""

    def make(seed: int = 0, dtype: torch.dtype = torch.float32) -> GPT2LMHeadModel:
        config = GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=64)
        config.bos_token_id = config.eos_token_id = 2
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return GPT2LMHeadModel(config).to(dtype).eval()

    return make


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """The models are so small that threads cost more than they give."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny Llama whose tokenizer has a chat template."""
    return save_tiny_chat(tmp_path_factory.mktemp("models") / "tiny-chat", CHAT_TEMPLATE)


@pytest.fixture(scope="session")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model without a chat template."""
    return save_tiny_chat(tmp_path_factory.mktemp("models") / "tiny-plain", None)


@pytest.fixture(scope="session")
def chat_tokenizer(chat_model: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of ``chat_model``."""
    return PreTrainedTokenizerFast.from_pretrained(chat_model)


@pytest.fixture(scope="session")
def plain_tokenizer(plain_model: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of ``plain_model``."""
    return PreTrainedTokenizerFast.from_pretrained(plain_model)


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., str]:
    """``write_rows(rows, name="rows.jsonl")``: a JSONL file; returns its path."""

    def write(rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.fixture(scope="session")
def mirror() -> Path:
    """The mirror of real data sets; without one the test is skipped."""
    root = os.environ.get("MONOLORA_DATA")
    if not root:
        pytest.skip("MONOLORA_DATA names no mirror with the real data sets")
    return Path(root)


@pytest.fixture
def no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    """No mirror, whatever the environment says."""
    monkeypatch.delenv("MONOLORA_DATA", raising=False)


@pytest.fixture
def empty_mirror(no_mirror: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A mirror to be filled."""
    root = tmp_path / "mirror"
    root.mkdir()
    monkeypatch.setenv("MONOLORA_DATA", str(root))
    return root


@pytest.fixture(scope="session")
def ids() -> torch.Tensor:
    """Token ids, ``(3, 6)``, none of them special."""
    return torch.randint(3, VOCAB, (3, 6), generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="session")
def fill() -> Callable[..., nn.Module]:
    """``fill(model, seed=1)``: put normal noise into every A and B, so that an adapter does something."""

    def fill_(model: nn.Module, seed: int = 1, adapter_name: str = "default") -> nn.Module:
        noise = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "lora_" in name and f".{adapter_name}" in name:
                values = torch.randn(parameter.shape, generator=noise) * 0.3
                parameter.data.copy_(values)
        return model

    return fill_


@pytest.fixture(scope="session")
def adapt(fill: Callable[..., nn.Module]) -> Callable[..., PeftModel]:
    """``adapt(model, seed=1, **config)``: a filled MonoLoRA adapter on q_proj and down_proj, in evaluation mode."""

    def adapt_(model: PreTrainedModel, seed: int = 1, **config: Any) -> PeftModel:
        settings: dict[str, Any] = {"target_modules": ["q_proj", "down_proj"], "r": 4, "task_type": "CAUSAL_LM"}
        adapted = get_peft_model(model, MonoLoraConfig(**settings | config))
        fill(adapted, seed)
        return adapted.eval()

    return adapt_


@pytest.fixture
def base_folder(make_llama: Callable[..., LlamaForCausalLM], tmp_path: Path) -> Path:
    """A saved tiny Llama."""
    make_llama().save_pretrained(tmp_path / "tiny-llama")
    return tmp_path / "tiny-llama"


@pytest.fixture
def saved(
    base_folder: Path,
    adapt: Callable[..., PeftModel],
    tmp_path: Path,
    ids: torch.Tensor,
) -> Callable[..., tuple[Path, torch.Tensor]]:
    """``saved(**config)``: an adapter folder on ``base_folder``, and the logits of the model that was saved."""

    def save(name: str = "adapter", seed: int = 1, **config: Any) -> tuple[Path, torch.Tensor]:
        model = adapt(LlamaForCausalLM.from_pretrained(base_folder), seed, **config)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Setting `save_embedding_layers`")
            model.save_pretrained(tmp_path / name)
        with torch.no_grad():
            return tmp_path / name, model(ids).logits

    return save


@pytest.fixture(scope="session")
def evaluated(fill: Callable[..., nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """The folders of base and adapters, with noise in A and B."""
    root = tmp_path_factory.mktemp("evaluated")
    base = save_tiny_chat(root / "base")
    for number, (name, config) in enumerate((("lora", LoraConfig), ("mono", MonoLoraConfig)), start=1):
        adapted = get_peft_model(
            LlamaForCausalLM.from_pretrained(base),
            config(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
        )
        fill(adapted, number)
        adapted.save_pretrained(root / name)
    prompts = root / "questions.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        judge = make_bert(root / "tiny-judge", LABELS)
    return Evaluated(base, root / "lora", root / "mono", prompts, judge)


@pytest.fixture
def holder() -> Iterator[Callable[[Callable[[Callable[[], None]], None]], int]]:
    """``holder(work)``: another process, in ``work(wait)`` until it is killed; returns its number."""
    processes: list[int] = []

    def start(work: Callable[[Callable[[], None]], None]) -> int:
        reached, say = os.pipe()

        def wait() -> None:
            os.write(say, b".")
            signal.pause()

        process = os.fork()
        if process == 0:
            try:
                work(wait)
            finally:
                os._exit(1)
        os.close(say)
        processes.append(process)
        assert os.read(reached, 1) == b"."
        os.close(reached)
        return process

    yield start
    for process in processes:
        kill(process)


def pytest_collection_finish() -> None:
    """Trainers and loaders collect garbage: without this they search all that was imported, half a second each time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()
