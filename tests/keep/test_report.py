"""The keeping report: against loops over single sequences, and at its two ends: nothing changed, everything silent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from monolora import MonoLoraConfig
from monolora.keep.anchors import Anchor
from monolora.keep.report import KeepingReport, Pair, keeping_table, measure, rows_of
from monolora.refusals import refuses
from monolora.terminal import Terminal
from monolora.units import adapted_layers
from tests.support.keeping import silent_on


def _prompts(number: int) -> list[Anchor]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(3, 9, (number,), generator=generator).tolist()
    return [Anchor(torch.randint(5, 60, (length,), generator=generator).tolist(), []) for length in lengths]


def _model(chat_model: Path, config: Any) -> Any:
    return get_peft_model(LlamaForCausalLM.from_pretrained(chat_model, dtype=torch.float32), config).eval()


def _mono(**options: Any) -> MonoLoraConfig:
    return MonoLoraConfig(r=3, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **options)


def _measure(model: Any, tokenizer: PreTrainedTokenizerBase, anchors: list[Anchor]) -> KeepingReport:
    return measure(Pair(model, model, model.disable_adapter), tokenizer, anchors, batch_size=3, max_new_tokens=4)


def test_an_untrained_adapter_is_the_base(chat_model: Path, chat_tokenizer: PreTrainedTokenizerBase) -> None:
    """B = 0: KL 0, answers identical, though units are on."""
    report = _measure(_model(chat_model, _mono()), chat_tokenizer, _prompts(7))
    assert report.anchors == 7
    assert report.identical.mean == 1
    assert report.kl.mean == 0
    assert report.silent is not None
    assert report.silent.mean < 0.5
    assert report.refused_before == report.refused_after
    low, high = report.identical.low, report.identical.high
    assert low == pytest.approx(0.646, abs=1e-3)  # Wilson's, for 7 of 7
    assert high == pytest.approx(1)


def test_every_number_against_single_sequences(chat_model: Path, chat_tokenizer: PreTrainedTokenizerBase) -> None:
    """Greedy answers token by token, logits without padding, units by hooks on A."""
    model = _model(chat_model, _mono())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    anchors = _prompts(5)
    report = _measure(model, chat_tokenizer, anchors)
    end = model.generation_config.eos_token_id
    kl, silent, on, tokens, same, refused = [], 0, 0.0, 0, 0, [0, 0]
    for anchor in anchors:
        answers = []
        for tuned in (False, True):
            answer: list[int] = []
            while len(answer) < 4 and end not in answer:
                answer.append(int(_logits(model, anchor.context + answer, tuned)[-1].argmax()))
            answers.append(answer)
            refused[tuned] += refuses(chat_tokenizer.decode(answer, skip_special_tokens=True))
        same += answers[0] == answers[1]
        ids = anchor.context + answers[0]
        at = slice(len(anchor.context) - 1, len(ids) - 1)
        p, q = (_logits(model, ids, tuned)[at].log_softmax(-1) for tuned in (False, True))
        kl.append(float((p.exp() * (p - q)).sum(-1).mean()))
        units = _units(model, ids)
        silent, on, tokens = silent + int((units == 0).all(1).sum()), on + float((units != 0).sum()), tokens + len(ids)
    assert report.tokens == tokens
    assert report.identical.mean == pytest.approx(same / 5)
    assert report.kl.mean == pytest.approx(sum(kl) / 5, rel=1e-3)
    assert report.silent is not None
    assert report.units_on is not None
    assert report.silent.mean == pytest.approx(silent / tokens)
    assert report.units_on.mean == pytest.approx(on / tokens / units.shape[1])
    assert [report.refused_before.mean, report.refused_after.mean] == [refused[0] / 5, refused[1] / 5]


@torch.no_grad()
def _logits(model: Any, ids: list[int], tuned: bool) -> torch.Tensor:
    with torch.no_grad() if tuned else model.disable_adapter():
        return model(input_ids=torch.tensor([ids])).logits[0]


@torch.no_grad()
def _units(model: Any, ids: list[int]) -> torch.Tensor:
    parts = []
    hooks = [
        layer.register_forward_pre_hook(
            lambda module, args: parts.append((args[0][0] @ module.lora_A["default"].weight.T).relu())
        )
        for layer in adapted_layers(model)
    ]
    model(input_ids=torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return torch.cat(parts, 1)


def test_silent_tokens_are_counted_as_such(chat_model: Path, chat_tokenizer: PreTrainedTokenizerBase) -> None:
    """An adapter that is silent on a sequence by construction, with any B: nothing differs there."""
    model = _model(chat_model, _mono())
    prompt = _prompts(1)[0].context
    with torch.no_grad(), model.disable_adapter():
        answer = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=4,
            do_sample=False,
        )
    silent_on(model, answer)
    report = _measure(model, chat_tokenizer, [Anchor(prompt, [])])
    assert report.silent is not None
    assert report.silent.mean == 1
    assert report.identical.mean == 1
    assert report.kl.mean == 0
    other = _measure(model, chat_tokenizer, _prompts(5)[1:])
    assert other.silent is not None
    assert other.silent.mean < 1
    assert other.kl.mean > 0


def test_linear_units_are_never_silent(chat_model: Path, chat_tokenizer: PreTrainedTokenizerBase) -> None:
    """LoRA's and those of identity."""
    lora = LoraConfig(r=3, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    for config in (lora, _mono(activation="identity")):
        report = _measure(_model(chat_model, config), chat_tokenizer, _prompts(3))
        assert report.silent is not None
        assert report.silent.mean == 0


def test_a_whole_model_has_no_units(chat_model: Path, chat_tokenizer: PreTrainedTokenizerBase) -> None:
    """Full finetuning: the base is another model, and the row of silence has a dash."""
    base, tuned = (LlamaForCausalLM.from_pretrained(chat_model, dtype=torch.float32) for _ in range(2))
    torch.nn.init.normal_(tuned.lm_head.weight)
    report = measure(Pair(tuned, base, torch.no_grad), chat_tokenizer, _prompts(4), 2, 4)
    assert report.silent is None
    assert report.kl.mean > 0
    assert rows_of({"held": report})[0] == ["tokens with all units silent", "–"]
    console = Terminal(record=True, width=100)
    console.print(keeping_table({"held": report, "more": report}))
    assert "4 prompts" in console.export_text()


def test_as_json_and_back(chat_model: Path, chat_tokenizer: PreTrainedTokenizerBase) -> None:
    """What the card and the study read of ``run.json``."""
    report = _measure(_model(chat_model, _mono()), chat_tokenizer, _prompts(3))
    again = KeepingReport.of(report.as_json())
    assert rows_of({"a": again}) == rows_of({"a": report})
    assert again.as_json() == report.as_json()
