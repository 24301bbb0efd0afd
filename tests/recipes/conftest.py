"""What the tests of the programs share: tiny models with tokenizers trained here, and a way to run a program."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from merging import Ended
from running import QUICK, Outcome, lines_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from monolora import cli
from monolora.recipes import sft
from monolora.recipes.adapter_config import peft_config
from monolora.recipes.arguments import parse
from monolora.recipes.models import load_model, make_trainer
from monolora.recipes.prompts import ALPACA, ALPACA_CONTEXT, render_all
from monolora.recipes.tasks import Example, demo

# It begins with BOS, as Llama's does, because a chat is tokenized without the BOS that plain text gets.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}]\n{{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """The models are so small that threads cost more than they give."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _train_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 500 tokens that puts BOS before plain text; "positive" and "negative" are one token each."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [example.context for example in demo.load().train[:400]]
    texts += 20 * [ALPACA, ALPACA_CONTEXT, demo.INSTRUCTION, "[user]\n[assistant]\n[system]\n"]
    texts += 200 * ["positive\nnegative"]
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=["<pad>", "<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def _save_model(folder: Path, chat_template: str | None) -> Path:
    tokenizer = _train_tokenizer()
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,  # 4-bit layers of bitsandbytes come in blocks of 64
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny Llama whose tokenizer has a chat template."""
    return _save_model(tmp_path_factory.mktemp("models") / "tiny-chat", CHAT_TEMPLATE)


@pytest.fixture(scope="session")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model without a chat template."""
    return _save_model(tmp_path_factory.mktemp("models") / "tiny-plain", None)


@pytest.fixture(scope="session")
def chat_tokenizer(chat_model: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of ``chat_model``."""
    return PreTrainedTokenizerFast.from_pretrained(chat_model)


@pytest.fixture(scope="session")
def plain_tokenizer(plain_model: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of ``plain_model``."""
    return PreTrainedTokenizerFast.from_pretrained(plain_model)


@pytest.fixture
def run_sft(chat_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """``run_sft(*flags, model=chat_model, name="run")``: ``recipes/sft.py`` in this process, tiny and in float32."""

    def run(*flags: str, model: Path = chat_model, name: str = "run") -> Outcome:
        folder = tmp_path / name
        capsys.readouterr()
        status = sft.main(["--model", str(model), "--output-dir", str(folder), *QUICK, *flags])
        printed = capsys.readouterr()
        return Outcome(status, folder, printed.out, lines_of(printed.err))

    return run


@pytest.fixture(scope="session")
def trained(chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``trained(*flags, model=chat_model)``: the folder of a tiny run, made once a session. Copy it to change it."""
    made: dict[tuple[str, ...], Path] = {}

    def folder(*flags: str, model: Path = chat_model) -> Path:
        words = ("--model", str(model), *QUICK, *flags)
        if words not in made:
            made[words] = tmp_path_factory.mktemp("trained") / "run"
            with torch.random.fork_rng(devices=[]):
                assert sft.main([*words, "--output-dir", str(made[words])]) == 0
        return made[words]

    return folder


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """``run_cli(*words)``: the command ``monolora`` in this process, without a mirror of data sets."""
    monkeypatch.delenv("MONOLORA_DATA", raising=False)

    def run(*words: str | Path) -> Ended:
        capsys.readouterr()
        status = cli.main(list(map(str, words)))
        printed = capsys.readouterr()
        return Ended(status, " ".join(printed.out.split()), lines_of(printed.err))

    return run


@pytest.fixture
def refused(run_sft: Callable[..., Outcome]) -> Callable[..., str]:
    """``refused(*flags)``: the message of a run that must end with one line, status 2, and no output folder."""

    def run(*flags: str, **options: Any) -> str:
        outcome = run_sft(*flags, **options)
        assert outcome.status == 2
        assert not outcome.folder.exists()
        assert outcome.err[-1].startswith("error: ")
        assert not any("Traceback" in line for line in outcome.err)
        return outcome.err[-1].removeprefix("error: ")

    return run


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
def trained_rows(chat_model: Path, tmp_path: Path) -> Callable[..., Any]:
    """``trained_rows(examples, tokenizer, *flags)``: the tokenized rows as TRL's trainer has them."""

    def rows(examples: list[Example], tokenizer: PreTrainedTokenizerBase, *flags: str) -> Any:
        arguments = parse(["--model", str(chat_model), "--output-dir", str(tmp_path / "rows"), *QUICK, *flags])
        model = load_model(str(chat_model), arguments)
        rendered = render_all(examples, tokenizer)
        return make_trainer(model, tokenizer, peft_config(arguments), rendered, arguments).train_dataset

    return rows
