"""What the tests of chats run, and what they compare with: answers by transformers' own ``generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from monolora import MonoLoraConfig
from tests.support.tiny_chat import save_tiny_chat

TOKENS = 12  # of an answer, at most


class Chatty(NamedTuple):
    """Folders of a tiny model and of two adapters on it, whose answers depend on all that they read."""

    base: Path
    mono: Path
    lora: Path


def make_chatty(root: Path) -> Chatty:
    """Save them: weights of the usual size make a model repeat one token, whatever it reads."""
    folders = Chatty(save_tiny_chat(root / "base"), root / "mono", root / "lora")
    model = LlamaForCausalLM.from_pretrained(folders.base)
    for name, parameter in model.named_parameters():
        parameter.data *= 1 if "norm" in name else 8
    model.save_pretrained(folders.base)
    noise = torch.Generator().manual_seed(1)
    for folder, kind in ((folders.mono, MonoLoraConfig), (folders.lora, LoraConfig)):
        model = LlamaForCausalLM.from_pretrained(folders.base)
        adapted = get_peft_model(model, kind(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.data.copy_(torch.randn(parameter.shape, generator=noise) * 0.3)
        adapted.save_pretrained(folder)
    return folders


class Reference:
    """A tiny model, with an adapter or without, that answers greedily.

    Args:
        base: the model's folder.
        adapter: the adapter's, or None.
    """

    def __init__(self, base: Path, adapter: Path | None = None) -> None:
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
        self.model: Any = LlamaForCausalLM.from_pretrained(base).eval()
        if adapter is not None:
            self.model = PeftModel.from_pretrained(self.model, adapter).eval()

    def prompt(self, messages: list[dict[str, str]]) -> torch.Tensor:
        """Token ids by the chat template, ``(1, T)``."""
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]

    def answer(self, *texts: str, system: str = "") -> str:
        """The answer to a question, the last of the texts; those before are questions and answers in turn."""
        messages = [{"role": "system", "content": system}] if system else []
        messages += [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
        ids = self.prompt(messages)
        tokens = self.model.generate(input_ids=ids, max_new_tokens=TOKENS, do_sample=False)
        return str(self.tokenizer.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True))
