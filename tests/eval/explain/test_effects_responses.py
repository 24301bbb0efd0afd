"""Scores under batched ablations against models whose columns of B are zero, one prompt and one ablation at a time."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM, LlamaForCausalLM, PreTrainedTokenizerBase

import monolora  # noqa: F401 - PEFT loads its adapters
from monolora.data.scoring import label_likelihoods
from monolora.data.tasks import demo
from monolora.eval import judges
from monolora.eval.explain import ablations as ablations_module
from monolora.eval.explain import effects as responses_module
from monolora.eval.explain.ablations import (
    ScoredPrompt,
    next_token_effects,
    scored_prompt,
    summarised,
)
from monolora.eval.explain.effects import Responses, ablated_responses, judged_effects
from monolora.eval.explain.records import Measure
from monolora.eval.judges import JudgeOptions
from monolora.inference import Inference
from monolora.units import UnitName, adapted_layers
from monolora.workers import inline_rows
from tests.support.evaluated import Evaluated

V0, Q1 = "model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.q_proj"
LABELS = ("negative", "positive")


class Loaded(NamedTuple):
    model: Any
    tokenizer: PreTrainedTokenizerBase

    @property
    def ablations(self) -> list[Collection[UnitName]]:
        """Three units, and everything."""
        everything = [UnitName(name, unit) for name in adapted_layers(self.model).values() for unit in range(4)]
        return [[UnitName(V0, 0)], [UnitName(V0, 3)], [UnitName(Q1, 2)], everything]

    def without(self, units: Collection[UnitName]) -> Any:
        copied = copy.deepcopy(self.model)
        for unit in units:
            B = copied.get_base_model().get_submodule(unit.module).lora_B["default"]
            B.weight.data[:, unit.unit] = 0
        return copied


@pytest.fixture(params=["mono", "lora"])
def loaded(request: pytest.FixtureRequest, evaluated: Evaluated) -> Loaded:
    base = LlamaForCausalLM.from_pretrained(evaluated.base, dtype=torch.float32)
    for name, parameter in base.named_parameters():
        if "proj" in name or "head" in name:
            parameter.data *= 5  # so that units matter
    adapter = getattr(evaluated, request.param)
    return Loaded(PeftModel.from_pretrained(base, adapter).eval(), AutoTokenizer.from_pretrained(evaluated.base))


@pytest.fixture
def rows(loaded: Loaded) -> list[ScoredPrompt]:
    return [scored_prompt(example, LABELS, loaded.tokenizer) for example in demo.load().test[:7]]


LONG = [
    ScoredPrompt([1, 9, 8, 7, 30], [[40, 41], [40, 42, 43], [50]], 2),
    ScoredPrompt([1, 9], [[40], [41, 44], [40, 5]], 0),
    ScoredPrompt([1, 60, 61], [[70, 71], [70, 72], [70, 73]], 1),
]


def _log_p(model: Any, prompt: list[int], answer: list[int]) -> float:
    with torch.no_grad():
        log_p = model(input_ids=torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
    return sum(float(log_p[len(prompt) - 1 + i, token]) for i, token in enumerate(answer))


def _by_hand(loaded: Loaded, prompts: list[ScoredPrompt]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Of the adapted model ``(P,)``, and changes ``(K, P)``, by measure."""

    def measured(model: Any) -> dict[str, np.ndarray]:
        rows = [[_log_p(model, each.prompt, answer) for answer in each.answers] for each in prompts]
        truths = [each.truth for each in prompts]
        others = [max(p for i, p in enumerate(row) if i != truth) for row, truth in zip(rows, truths, strict=True)]
        right = [100.0 * (row.index(max(row)) == truth) for row, truth in zip(rows, truths, strict=True)]
        margins = [row[truth] - other for row, truth, other in zip(rows, truths, others, strict=True)]
        with torch.no_grad():
            next_P = [model(input_ids=torch.tensor([each.prompt])).logits[0, -1].double() for each in prompts]
        return {"accuracy": np.array(right), "margin": np.array(margins), "next": torch.stack(next_P).numpy()}

    adapted = measured(loaded.model)
    each = [measured(loaded.without(units)) for units in loaded.ablations]
    changes = {key: np.stack([one[key] - adapted[key] for one in each]) for key in ("accuracy", "margin")}
    p = torch.distributions.Categorical(logits=torch.tensor(adapted["next"]))
    changes["kl"] = np.stack(
        [
            torch.distributions.kl_divergence(p, torch.distributions.Categorical(logits=torch.tensor(one["next"])))
            for one in each
        ]
    )
    return adapted, changes


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize("kind", ["single tokens", "several tokens"])
def test_one_by_one(loaded: Loaded, rows: list[ScoredPrompt], kind: str, batch_size: int) -> None:
    prompts = rows if kind == "single tokens" else LONG
    assert (max(len(answer) for each in prompts for answer in each.answers) == 1) == (kind == "single tokens")
    adapted, changes = _by_hand(loaded, prompts)
    effects = next_token_effects(loaded.model, "demo", prompts, loaded.ablations, batch_size=batch_size)
    assert [effect.measure.id for effect in effects] == ["demo.kl", "demo.accuracy", "demo.margin"]
    assert [effect.measure.unit for effect in effects] == ["nats", "pp", "nats"]
    for effect in effects:
        key = effect.measure.id.removeprefix("demo.")
        np.testing.assert_allclose(effect.changes_KP, changes[key], rtol=1e-3, atol=1e-5)
        assert effect.measure.prompts == len(prompts)
        if key != "kl":
            assert effect.measure.adapted == pytest.approx(adapted[key].mean(), abs=1e-4)
    assert math.isnan(effects[0].measure.adapted)
    assert [effect.measure.is_tested for effect in effects] == [False, True, True]
    assert (effects[0].changes_KP[:3].max(1) > 1e-4).sum() >= 2  # there was something to see


def test_prompts_without_answers_have_kl_alone(loaded: Loaded, rows: list[ScoredPrompt]) -> None:
    bare = [ScoredPrompt(each.prompt) for each in rows]
    (kl,) = next_token_effects(loaded.model, "demo", bare, loaded.ablations, batch_size=8)
    with_answers = next_token_effects(loaded.model, "demo", rows, loaded.ablations, batch_size=8)[0]
    np.testing.assert_array_equal(kl.changes_KP, with_answers.changes_KP)


def test_scored_prompts_are_those_of_the_recipes(loaded: Loaded, rows: list[ScoredPrompt]) -> None:
    examples = demo.load().test[:7]
    expected = label_likelihoods(
        Inference(model=loaded.model, tokenizer=loaded.tokenizer, batch_size=4), examples, LABELS
    )
    for row, example, likelihoods in zip(rows, examples, expected, strict=True):
        assert LABELS[row.truth] == example.response
        for label, answer in zip(LABELS, row.answers, strict=True):
            assert _log_p(loaded.model, row.prompt, answer) == pytest.approx(likelihoods[label], abs=1e-4)


@pytest.mark.parametrize("batch_size", [3, 40])
def test_a_unit_that_does_nothing_changes_nothing(loaded: Loaded, rows: list[ScoredPrompt], batch_size: int) -> None:
    """Not even by the rounding of bfloat16."""
    model = loaded.model.to(torch.bfloat16)
    model.get_base_model().get_submodule(V0).lora_B["default"].weight.data[:, 0] = 0
    effects = next_token_effects(model, "demo", rows, loaded.ablations, batch_size=batch_size)
    for effect in effects:
        assert not effect.changes_KP[0].any()
    assert effects[0].changes_KP[3].all()
    ablations = summarised(effects, [4, 7, 9])
    assert ablations.changes[4][0][0] == 0


def test_bfloat16_does_not_hide_what_a_unit_changes(
    loaded: Loaded, rows: list[ScoredPrompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where logits lie far from 0, as those of large models do, bfloat16 would round them to eighths."""
    head = loaded.model.get_output_embeddings()
    head.bias = torch.nn.Parameter(20 + torch.randn(head.out_features))
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            parameter.data *= 0.1
    rounded = loaded.model.to(torch.bfloat16)
    exact = copy.deepcopy(rounded).float()

    def measured(model: Any) -> list[np.ndarray]:
        found = next_token_effects(model, "demo", rows, loaded.ablations, batch_size=40)
        return [effect.changes_KP for effect in found]

    (kl, _, margin), (kl_found, _, margin_found) = measured(exact), measured(rounded)
    monkeypatch.setattr(ablations_module, "_precise_logits", lambda model: contextlib.nullcontext())
    kl_before, _, margin_before = measured(rounded)
    for true, found, before in ((kl, kl_found, kl_before), (margin, margin_found, margin_before)):
        assert np.abs(found - true).mean() < np.abs(before - true).mean() / 3


def test_what_a_model_does_to_its_logits_is_done_in_float32_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 2 caps them."""
    config = Gemma2Config(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, final_logit_softcapping=0.5,
    )  # fmt: skip
    settings = LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False)
    model = get_peft_model(Gemma2ForCausalLM(config).eval(), settings).to(torch.bfloat16)
    (kl,), (exact,) = (
        next_token_effects(
            each, "demo", [ScoredPrompt([1, 9, 8])], [[UnitName("model.layers.0.self_attn.v_proj", 0)]], batch_size=2
        )
        for each in (model, copy.deepcopy(model).float())
    )
    np.testing.assert_allclose(kl.changes_KP, exact.changes_KP, rtol=0.2)


def test_units_of_the_head_count_too(make_llama: Callable[..., LlamaForCausalLM]) -> None:
    settings = LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False)
    model = get_peft_model(make_llama(), settings).to(torch.bfloat16)
    (kl,) = next_token_effects(model, "demo", [ScoredPrompt([1, 9])], [[UnitName("lm_head", 0)]], batch_size=2)
    assert kl.changes_KP > 0


@pytest.mark.parametrize("prompts", ["labelled", "bare"])
def test_what_is_no_number_is_left_out(loaded: Loaded, rows: list[ScoredPrompt], prompts: str) -> None:
    """A column of B is infinite: not even 0 times it is a number."""
    loaded.model.get_base_model().get_submodule(V0).lora_B["default"].weight.data[:, 0] = math.inf
    given = rows if prompts == "labelled" else [ScoredPrompt(each.prompt) for each in rows]
    with pytest.warns(UserWarning, match=r"28 of 28 changes of demo.* could not be measured") as record:
        effects = next_token_effects(loaded.model, "demo", given, loaded.ablations, batch_size=8)
    assert len(record) == len(effects) == (3 if prompts == "labelled" else 1)
    for effect in effects:
        assert np.isnan(effect.changes_KP).all()
        assert effect.measure.prompts == 0
        assert math.isnan(effect.measure.adapted)
    for change in summarised(effects, [0, 1, 2]).everything:
        assert np.isnan(change).all()


QUESTIONS = ["How do I make a boat?", "Make tea, please, and tell me how it is done.", "Name a river."]


def _prompts(loaded: Loaded) -> list[list[int]]:
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    return [
        loaded.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
        for chat in chats
    ]


@pytest.mark.parametrize("batch_size", [1, 5, 40])
def test_responses_one_by_one(loaded: Loaded, batch_size: int) -> None:
    prompts = _prompts(loaded)
    found = ablated_responses(
        loaded.model, loaded.tokenizer, "asked", QUESTIONS, prompts, loaded.ablations, max_new_tokens=6,
        batch_size=batch_size,
    )  # fmt: skip

    def greedy(model: Any) -> list[str]:
        return [
            Inference(model=model, tokenizer=loaded.tokenizer, batch_size=1).generate([prompt], 6)[0]
            for prompt in prompts
        ]

    adapted = greedy(loaded.model)
    expected = [list(zip(adapted, greedy(loaded.without(units)), strict=True)) for units in loaded.ablations]
    assert found == Responses(name="asked", questions=QUESTIONS, pairs=expected)
    assert any(with_all != without for row in expected for with_all, without in row)


def test_the_panel_judges_each_response_once(
    evaluated: Evaluated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [[("Sure.", "I cannot."), ("A b c.", "A b c.")], [("Sure.", ""), ("A b c.", "Sorry, but no.")]]
    responses = Responses(name="asked", questions=["one?", "two?"], pairs=texts)
    panel = [
        judges.make(word, JudgeOptions(engine="hf", dtype="float32"))
        for word in ("refusal", f"classifier:{evaluated.judge}")
    ]
    seen: list[list[dict[str, Any]]] = []

    def here(target: str, job: dict[str, Any], log: Path | None = None) -> Any:
        seen.append(job["items"])
        return inline_rows(target, job)

    for name in ("inline_rows", "worker_rows"):
        monkeypatch.setattr(responses_module, name, here)
    refused, flagged = judged_effects(responses, panel, tmp_path)
    assert [effect.measure.title for effect in (refused, flagged)] == ["refused", f"flagged by {panel[1].name}"]
    np.testing.assert_array_equal(refused.changes_KP, [[100, 0], [0, 100]])
    assert refused.measure == Measure("asked.refusal", "refused", "pp", "asked", 2, 0.0)
    assert [len(items) for items in seen] == [5, 5]
    alone = {}
    for question, text in {
        (q, t) for row in texts for q, pair in zip(("one?", "two?"), row, strict=True) for t in pair
    }:
        item = {"key": "k", "prompt": question, "response": text}
        (row,) = inline_rows(panel[1].target, {"settings": panel[1].settings, "items": [item], "done": []})
        alone[question, text] = 100.0 * panel[1].flagged(row["scores"])
    expected = [[alone[q, b] - alone[q, a] for q, (a, b) in zip(("one?", "two?"), row, strict=True)] for row in texts]
    np.testing.assert_array_equal(flagged.changes_KP, expected)


def test_a_judge_without_a_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    responses = Responses(name="asked", questions=["one?", "two?"], pairs=[[("a", "I cannot."), ("a", "b")]])
    invalid: Callable[..., Any] = lambda target, job: (  # noqa: E731
        row if row["key"] != "3" else {"key": "3", "scores": {}, "status": "invalid", "reason": "nan"}
        for row in inline_rows(target, job)
    )
    monkeypatch.setattr(responses_module, "inline_rows", invalid)
    with pytest.warns(UserWarning, match=r"1 of 2 changes of asked.refusal"):
        (effect,) = judged_effects(responses, [judges.make("refusal", JudgeOptions())], tmp_path)
    np.testing.assert_array_equal(effect.changes_KP, [[100, np.nan]])
    assert effect.measure.prompts == 1


def test_a_model_judge_has_a_process_of_its_own(evaluated: Evaluated, tmp_path: Path) -> None:
    responses = Responses(name="asked", questions=["one?"], pairs=[[("a", "b")]])
    judge = judges.make(f"classifier:{evaluated.judge}", JudgeOptions(engine="hf", dtype="float32"))
    (effect,) = judged_effects(responses, [judge], tmp_path / "logs")
    assert effect.changes_KP.shape == (1, 1)
    assert [path.name for path in (tmp_path / "logs").iterdir()] == [f"judge-{judge.name}.log"]
