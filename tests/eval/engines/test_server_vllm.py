"""The server engine against vLLM's own server: base, LoRA and MonoLoRA answer as transformers does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from monolora import MonoLoraConfig
from monolora.errors import InputError
from monolora.eval.engines.server import answers
from tests.support.limits import HANG_S
from tests.support.requirements import NEEDS_VLLM
from tests.support.vllm_server import BASE, Server

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    NEEDS_VLLM,
]

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "max_position_embeddings": 512}
WORDS = ["<pad>", "<s>", "</s>", *(f"w{number}" for number in range(3, 64))]
LINEAR = ["q_proj", "v_proj", "up_proj", "down_proj"]
ADAPTERS = {
    "mono": MonoLoraConfig(r=8, target_modules=LINEAR, task_type="CAUSAL_LM"),
    "lora": LoraConfig(r=8, target_modules=LINEAR, task_type="CAUSAL_LM"),
}
CONTEXT = 512  # of the server
MOST = 24  # tokens of an answer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Words for the 64 tokens, written without spaces; it puts a BOS before every text."""
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.decoder = decoders.Fuse()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<pad>"
    )


@pytest.fixture(scope="module")
def folders(
    make_llama: Callable[..., LlamaForCausalLM],
    fill: Callable[..., nn.Module],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """The base and its adapters. The base asks for sampling and a penalty, which an evaluation must not follow."""
    root = tmp_path_factory.mktemp("evaluated")
    base = make_llama(**SIZES)
    base.lm_head.weight.data[2] *= 2  # so that some answers end by themselves
    base.generation_config.update(do_sample=True, temperature=2.0, top_k=3, repetition_penalty=9.0)
    base.save_pretrained(root / BASE)
    tokenizer.save_pretrained(root / BASE)
    for seed, (name, config) in enumerate(ADAPTERS.items(), start=1):
        adapted = get_peft_model(LlamaForCausalLM.from_pretrained(root / BASE), config)
        fill(adapted, seed)
        adapted.save_pretrained(root / name)
    return {name: root / name for name in (BASE, *ADAPTERS)}


@pytest.fixture(scope="module")
def server(folders: dict[str, Path]) -> Iterator[Server]:
    """vLLM's server, with a tokenizer."""
    adapters = {name: folders[name] for name in ADAPTERS}
    server = Server(folders[BASE], adapters, "--max-loras", "2", "--max-lora-rank", "8")
    server.command.remove("--skip-tokenizer-init")
    with server:
        server.await_start()
        yield server


def _prompts() -> list[list[int]]:
    random = torch.Generator().manual_seed(3)
    return [[1, *torch.randint(3, 64, (3 + number,), generator=random).tolist()] for number in range(8)]


@torch.no_grad()
def _greedy(model: nn.Module, prompt: list[int], most: int) -> list[int]:
    """The likeliest token again and again, until the end token. It is far from the second: no rounding chooses."""
    tokens: list[int] = []
    while len(tokens) < most and tokens[-1:] != [2]:
        best = model(torch.tensor([prompt + tokens])).logits[0, -1].topk(2)
        assert best.values[0] - best.values[1] > 1e-5
        tokens.append(int(best.indices[0]))
    return tokens


def _model(folders: dict[str, Path], name: str) -> nn.Module:
    base: Any = LlamaForCausalLM.from_pretrained(folders[BASE])
    if name == BASE:
        return base.eval()
    return PeftModel.from_pretrained(base, folders[name]).eval()


def _job(server: Server, items: list[dict[str, Any]]) -> dict[str, Any]:
    settings = {"temperature": 0.0, "top_p": 1.0, "seed": 0, "concurrency": 8, "retries": 1, "timeout_s": HANG_S}
    return {
        "endpoints": [server.url + "/v1"],
        "models": {name: name for name in (BASE, *ADAPTERS)},
        "items": items,
        "done": [],
        "settings": settings | {"api_key_env": None},
    }


def test_answers_are_those_of_transformers(
    server: Server, folders: dict[str, Path], tokenizer: PreTrainedTokenizerFast
) -> None:
    """Token for token, for all models in one batch."""
    prompts = _prompts()
    items = [
        {"key": f"{name} {number}", "token_ids": prompt, "model": name, "max_new_tokens": MOST}
        for name in folders
        for number, prompt in enumerate(prompts)
    ]
    expected = {}
    for name in folders:
        model = _model(folders, name)
        for number, prompt in enumerate(prompts):
            tokens = _greedy(model, prompt, MOST)
            text = tokenizer.decode(tokens, skip_special_tokens=True)
            expected[f"{name} {number}"] = (text, len(tokens), "stop" if tokens[-1] == 2 else "length")
    rows = {row["key"]: row for row in answers(_job(server, items))}
    assert {key: (row["text"], row["tokens"], row["finish"]) for key, row in rows.items()} == expected
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert {row["finish"] for row in rows.values()} == {"stop", "length"}
    assert all(expected[f"{BASE} {n}"] != expected[f"{name} {n}"] for name in ADAPTERS for n in range(len(prompts)))


def test_prompts_that_leave_no_room_for_an_answer_are_invalid(server: Server) -> None:
    """The server itself refuses only the longest; of the other it would give a part of the answer."""
    items = [
        {"key": key, "token_ids": [5] * length, "model": "mono", "max_new_tokens": MOST}
        for key, length in (("too long", CONTEXT + 9), ("long", CONTEXT - 3), ("short", 9))
    ]
    rows = {row["key"]: row for row in answers(_job(server, items))}
    assert rows["short"]["status"] == "ok"
    assert rows["long"]["reason"] == f"server: its context ended the answer after 3 of {MOST} tokens."
    assert rows["too long"]["reason"].startswith("server: 400 ")
    assert {rows["too long"]["status"], rows["long"]["status"]} == {"invalid"}


def test_a_model_that_vllm_does_not_serve(server: Server) -> None:
    items = [{"key": "k", "token_ids": [5], "model": "monk", "max_new_tokens": MOST}]
    with pytest.raises(InputError, match=r"Unknown model at .* 'monk'; choose one of base, .*Did you mean mono\?"):
        list(answers(_job(server, items) | {"models": {"monk": "monk"}}))
