"""Answers and units of a model in this process, beside transformers' ``generate`` and a forward pass by hand."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from monolora.chat.conversation import BASE, TUNED, Conversation, Turn
from monolora.chat.local import LocalSpeaker, Sampling, _Streamer, load_speaker
from monolora.errors import InputError, RunError
from monolora.prune import read_adapter, without_units
from monolora.units import UnitName
from tests.support.chats import TOKENS, Chatty, Reference, make_chatty

QUESTION = "The boat was a delight"
UNITS = [f"{layer}.{kind}.{unit}" for layer in (0, 1) for kind in "qv" for unit in range(4)]


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Chatty:
    """A base and its adapters."""
    return make_chatty(tmp_path_factory.mktemp("chatty"))


def load(folder: Path, **settings: Any) -> LocalSpeaker:
    return load_speaker(str(folder), Sampling(**{"max_new_tokens": TOKENS} | settings), dtype="float32")


def ask(speaker: LocalSpeaker, who: str = TUNED, question: str = QUESTION) -> str:
    return speaker.answer([{"role": "user", "content": question}], who, lambda piece: None).text


@pytest.mark.parametrize("method", ["mono", "lora"])
def test_answers_are_those_of_generate(chatty: Chatty, method: str) -> None:
    adapter: Path = getattr(chatty, method)
    speaker = load(adapter)
    expected = [Reference(chatty.base, adapter).answer(QUESTION), Reference(chatty.base).answer(QUESTION)]
    assert [ask(speaker), ask(speaker, BASE)] == expected
    assert expected[0] != expected[1]


def test_the_pieces_are_the_answer(chatty: Chatty) -> None:
    speaker, pieces = load(chatty.mono, temperature=3.0, max_new_tokens=60), []
    answer = speaker.answer([{"role": "user", "content": QUESTION}], TUNED, pieces.append)
    assert "".join(pieces) == answer.text
    assert len(pieces) > 5


def test_characters_come_whole(chat_tokenizer: PreTrainedTokenizerBase) -> None:
    """Each is several tokens of this tokenizer; no space is waited for."""
    pieces: list[str] = []
    streamer = _Streamer(chat_tokenizer, pieces.append)
    streamer.put(torch.tensor([[5, 6]]))
    for token in chat_tokenizer("né東🙂!", add_special_tokens=False)["input_ids"]:
        streamer.put(torch.tensor([token]))
    assert pieces == ["n", "é", "東", "🙂", "!"]
    streamer.put(torch.tensor(chat_tokenizer("é", add_special_tokens=False)["input_ids"][:1]))
    streamer.end()
    assert pieces[5:] == ["\ufffd"]


def test_the_limit_and_the_end_token(chatty: Chatty, tmp_path: Path) -> None:
    """Which the adapter's folder may bring, as the evaluation has it."""
    messages = [{"role": "user", "content": QUESTION}]
    reference = Reference(chatty.base, chatty.mono)
    assert load(chatty.mono).answer(messages, TUNED, print).end == "length"
    ids = reference.prompt(messages)
    third = int(reference.model.generate(input_ids=ids, max_new_tokens=3, do_sample=False)[0, -1])
    adapter = shutil.copytree(chatty.mono, tmp_path / "ending")
    reference.model.generation_config.eos_token_id = [2, third]
    reference.model.generation_config.save_pretrained(adapter)
    answer = load(adapter).answer(messages, TUNED, lambda piece: None)
    assert answer == (reference.answer(QUESTION), "stop")


def test_sampling_has_a_seed(chatty: Chatty) -> None:
    answers = [ask(load(chatty.mono, temperature=2.0, seed=seed)) for seed in (0, 0, 1)]
    assert answers[0] == answers[1] != answers[2]


def test_units_off_are_units_pruned(chatty: Chatty, tmp_path: Path) -> None:
    speaker, whole = load(chatty.mono), Reference(chatty.base, chatty.mono).answer(QUESTION)
    off = [UnitName(f"model.layers.{layer}.self_attn.v_proj", unit) for layer in (0, 1) for unit in range(3)]
    (tmp_path / "pruned").mkdir()
    without_units(read_adapter(str(chatty.mono)), off).save(tmp_path / "pruned")
    expected = Reference(chatty.base, tmp_path / "pruned").answer(QUESTION)
    speaker.switch_off(["0.v.0", "0.v.1", "0.self_attn.v_proj:2", "layers.1.self_attn.v_proj:0", "1.v:1", "1.v.2"])
    assert speaker.off == set(off)
    assert ask(speaker) == expected != whole
    speaker.switch_on(["0.v.0", "1.v.1"])
    assert speaker.names(speaker.off) == [
        "0.self_attn.v_proj:1", "0.self_attn.v_proj:2", "1.self_attn.v_proj:0", "1.self_attn.v_proj:2",
    ]  # fmt: skip
    speaker.switch_off(UNITS)
    assert ask(speaker) == Reference(chatty.base).answer(QUESTION)
    speaker.switch_on(["all"])
    assert ask(speaker) == whole


@pytest.mark.parametrize("off", [[], ["0.v.1", "1.q.0"]])
def test_units_of_the_last_answer(chatty: Chatty, off: list[str]) -> None:
    """Steps, effects and strongest tokens, from the inputs of the adapted modules, token after token."""
    speaker = load(chatty.mono)
    speaker.switch_off(off)
    text = ask(speaker)
    read = speaker.last_units(strongest=2)
    reference = Reference(chatty.base, chatty.mono)
    prompt = reference.prompt([{"role": "user", "content": QUESTION}])
    start, tensors = prompt.shape[1] - 1, load_file(chatty.mono / "adapter_model.safetensors")
    inputs: dict[str, Any] = {}
    for name, module in reference.model.get_base_model().named_modules():
        if name.endswith(("q_proj", "v_proj")):
            B = module.lora_B["default"]
            for unit in (unit for unit in off if name.endswith(f".{unit[0]}.self_attn.{unit[2]}_proj")):
                B.weight.data[:, int(unit[4])] = 0
            module.base_layer.register_forward_hook(lambda _, args, y, name=name: inputs.update({name: (args[0], y)}))
    with torch.no_grad():
        tokens = reference.model.generate(input_ids=prompt, max_new_tokens=TOKENS, do_sample=False)
        reference.model(input_ids=tokens[:, :-1])
    assert reference.tokenizer.decode(tokens[0, start + 1 :], skip_special_tokens=True) == text
    expected = {}
    for name, (x, y) in inputs.items():
        A, B = (tensors[f"base_model.model.{name}.monolora_{part}.weight"] for part in "AB")
        h_TR = (x[0, start:] @ A.T).relu()
        effect_R = 2 * B.norm(dim=0) * h_TR.mean(0) / y[0, start:].norm(dim=-1).mean()  # lora_alpha / r is 2
        for unit in range(len(A)):
            short = f"{name.split('.', 2)[2]}:{unit}"
            if f"{short[0]}.{short.split('_proj')[0][-1]}.{unit}" not in off and h_TR[:, unit].any():
                top = h_TR[:, unit].topk(2).indices + start
                tokens_ = [reference.tokenizer.decode([int(tokens[0, at])]) for at in top]
                expected[short] = int((h_TR[:, unit] > 0).sum()), float(effect_R[unit]), tokens_
    assert {unit.name: unit.steps for unit in read.firings} == {name: steps for name, (steps, *_) in expected.items()}
    effects = [unit.effect for unit in read.firings]
    assert effects == pytest.approx([expected[unit.name][1] for unit in read.firings], rel=1e-4)
    assert effects == sorted(effects, reverse=True)
    assert all(
        [token for token, _ in unit.strongest] == expected[unit.name][2][: len(unit.strongest)] for unit in read.firings
    )
    assert (read.units, read.steps, read.read) == (16, TOKENS, start + TOKENS)
    assert any(unit.steps < TOKENS for unit in read.firings)  # ReLU


def test_silent_units_and_units_in_the_prompt_alone(chatty: Chatty, tmp_path: Path) -> None:
    adapter = shutil.copytree(chatty.mono, tmp_path / "silent")
    tensors = load_file(adapter / "adapter_model.safetensors")
    zero = {name: tensor * 0 if "_A" in name else tensor for name, tensor in tensors.items()}
    save_file(zero, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    speaker = load(adapter)
    assert ask(speaker) == Reference(chatty.base).answer(QUESTION)
    assert speaker.last_units().firings == []
    assert speaker.last_units().in_prompt == 0


def test_ctrl_c_ends_the_answer_and_nothing_else(chatty: Chatty) -> None:
    speaker, pieces = load(chatty.mono, max_new_tokens=200), []

    def say(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 2:
            signal.raise_signal(signal.SIGINT)

    answer = speaker.answer([{"role": "user", "content": QUESTION}], TUNED, say)
    assert answer.end == "interrupted"
    assert answer.text.startswith("".join(pieces[:2]))
    assert len(pieces) == 2
    assert 0 < speaker.last_units().steps < 200
    speaker._settings = Sampling(max_new_tokens=TOKENS)
    assert ask(speaker) == Reference(chatty.base, chatty.mono).answer(QUESTION)


def test_what_is_refused(chatty: Chatty, tmp_path: Path) -> None:
    speaker = load(chatty.mono)
    with pytest.raises(InputError, match="has not given the last answer"):
        speaker.last_units()
    ask(speaker, BASE)
    with pytest.raises(InputError, match="has not given the last answer"):
        speaker.last_units()
    with pytest.raises(InputError, match=r"The conversation has 5\d\d tokens, and the model reads 512"):
        ask(speaker, question="x" * 520)
    with pytest.raises(InputError, match="has no unit 4"):
        speaker.switch_off(["0.q.4"])
    with pytest.raises(InputError, match=r"no unit 7\.q\.1: .* of layers 0 to 1 and the modules q, v\.$"):
        speaker.switch_off(["0.q.1", "7.q.1"])
    assert speaker.off == set()
    speaker._model.get_base_model().lm_head.weight = torch.nn.Parameter(torch.zeros(500, 3))
    with pytest.raises(RunError, match=r"^The model fails: .*\.$"):
        ask(speaker)


def test_an_adapter_without_units_and_a_whole_model(chatty: Chatty, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(chatty.base)
    config = IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(tmp_path / "ia3")
    expected = Reference(chatty.base).answer(QUESTION)  # IA³ begins as the base
    for folder, message in ((tmp_path / "ia3", "has no units"), (chatty.base, "is no adapter")):
        speaker = load(folder)
        assert ask(speaker) == expected
        with pytest.raises(InputError, match=message):
            speaker.last_units()
        with pytest.raises(InputError, match=message):
            speaker.switch_off(["all"])


def test_each_reads_its_own_answers() -> None:
    turns = [Turn("a", {TUNED: "1"}), Turn("b", {BASE: "2", TUNED: "3"}), Turn("c", {BASE: "4"})]
    chat = Conversation("s", turns)
    for who, answers in ((TUNED, "134"), (BASE, "124")):
        messages = [("system", "s")]
        for question, answer in zip("abc", answers, strict=True):
            messages += [("user", question), ("assistant", answer)]
        assert [(m["role"], m["content"]) for m in chat.messages(who, "d")] == [*messages, ("user", "d")]
