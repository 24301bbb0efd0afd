"""Loading tokenizer, model and trainer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from monolora import MonoLoraConfig
from monolora.errors import InputError
from monolora.model_files import end_tokens
from monolora.recipes.training import run as training_run
from monolora.recipes.training.arguments import parse
from monolora.recipes.training.models import check_gathers, is_sharded, load_model, load_tokenizer, settle_targets


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_load_model(chat_model: Path, dtype: str) -> None:
    model = load_model(str(chat_model), parse(["--model", str(chat_model), "--dtype", dtype]))
    assert model.dtype == getattr(torch, dtype)
    assert model.name_or_path == str(chat_model)


def test_a_model_of_the_hub_keeps_its_id(chat_model: Path, tmp_path: Path) -> None:
    """What adapter_config.json names as the base must hold on other machines."""
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.parent.mkdir()
    snapshot.symlink_to(chat_model)
    assert load_model(str(snapshot), parse(["--model", "org/model"])).name_or_path == "org/model"


def test_chat_template_from_a_file(plain_model: Path, tmp_path: Path) -> None:
    """Of any suffix; the trainer is not told of it any more."""
    (tmp_path / "template.txt").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    training = parse(["--chat-template-path", str(tmp_path / "template.txt")]).training
    tokenizer = load_tokenizer(str(plain_model), training)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    assert training.chat_template_path is None


def test_chat_template_from_a_folder(
    run_sft: Callable[..., Any],
    plain_model: Path,
    chat_model: Path,
    chat_tokenizer: PreTrainedTokenizerBase,
) -> None:
    outcome = run_sft("--chat-template-path", str(chat_model), "--skip-eval", model=plain_model)
    assert outcome.status == 0
    assert (outcome.folder / "chat_template.jinja").read_text() == chat_tokenizer.chat_template
    with pytest.raises(InputError, match="without a chat template"):
        load_tokenizer(str(chat_model), parse(["--chat-template-path", str(plain_model)]).training)


def test_chat_template_decides_the_format(run_sft: Callable[..., Any], plain_model: Path, tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    template += "{% if add_generation_prompt %}<assistant>{% endif %}"
    (tmp_path / "template.jinja").write_text(template)
    outcome = run_sft("--preview", "--chat-template-path", str(tmp_path / "template.jinja"), model=plain_model)
    assert "<assistant>⟦positive</s>⟧" in outcome.out


def test_end_token_of_choice(run_sft: Callable[..., Any], tmp_path: Path) -> None:
    """A template that ends turns with a token of its own: --eos-token makes training and generation stop there."""
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}<pad>{% endfor %}"
    (tmp_path / "template.jinja").write_text(template)
    flags = ("--chat-template-path", str(tmp_path / "template.jinja"))
    assert "end token '</s>'" in run_sft(*flags).err[-1]
    assert run_sft(*flags, "--eos-token", "<pad>", "--preview").out.count("<pad>⟧") == 3


@pytest.mark.parametrize(
    "targets", [None, "all-linear", ["q_proj"], ["q_proj", "layers.1.mlp.up_proj"], r".*layers\.0.*proj", "lm_head"]
)
def test_settle_targets(make_llama: Callable[..., LlamaForCausalLM], targets: Any) -> None:
    settle_targets(make_llama(), MonoLoraConfig(target_modules=targets, task_type="CAUSAL_LM"))


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (["q_proj", "kproj"], "--lora-target-modules kproj matches no module. Nearest module names: k_proj"),
        (["proj"], "--lora-target-modules proj matches no module"),
        ("q_proj", "--lora-target-modules q_proj matches no module"),  # as a pattern it must match a whole name
        (["*"], r"--lora-target-modules \* matches no module"),
        ("(", "no regular expression"),
    ],
)
def test_settle_targets_refuses(make_llama: Callable[..., LlamaForCausalLM], targets: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        settle_targets(make_llama(), MonoLoraConfig(target_modules=targets, task_type="CAUSAL_LM"))


@pytest.mark.parametrize("whole", [True, False])
def test_weights_that_would_not_be_gathered(whole: bool) -> None:
    """DeepSpeed is not needed to read its settings."""
    plugin: Any = SimpleNamespace(
        zero_stage=3, deepspeed_config={"zero_optimization": {"stage3_gather_16bit_weights_on_model_save": whole}}
    )
    check_gathers(None)
    if whole:
        check_gathers(plugin)
    else:
        with pytest.raises(InputError, match=r"ZeRO-3 would save no model.*zero3_save_16bit_model: true"):
            check_gathers(plugin)


@pytest.mark.parametrize("adapter", ["monolora", "lora", "none"])
def test_end_token_of_choice_is_written(
    run_sft: Callable[..., Any], chat_model: Path, tmp_path: Path, adapter: str
) -> None:
    """Beside adapter, model and checkpoints, before the base's own; so is a generation config that is not valid."""
    base = tmp_path / "base"
    shutil.copytree(chat_model, base)
    settings = {"eos_token_id": [2, 5], "temperature": 0.9, "top_p": 0.6}
    (base / "generation_config.json").write_text(json.dumps(settings))
    (tmp_path / "t.jinja").write_text("{{ bos_token }}{% for m in messages %}{{ m.content }}<pad>{% endfor %}")
    flags = ("--chat-template-path", str(tmp_path / "t.jinja"), "--eos-token", "<pad>", "--skip-eval")
    outcome = run_sft("--adapter", adapter, *flags, "--save-steps", "2", model=base)
    assert outcome.status == 0, outcome.err
    for folder in (outcome.folder, outcome.folder / "checkpoint-2"):
        assert end_tokens(folder) == [0, 2, 5]
        written = json.loads((folder / "generation_config.json").read_text())
        assert (written["temperature"], written["top_p"]) == (0.9, 0.6)


def test_sharded_weights_are_scored_when_training_begins(
    run_sft: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    one = run_sft(name="one")
    monkeypatch.setattr(training_run, "is_sharded", lambda trainer: seen.append(is_sharded(trainer)) or True)
    two = run_sft(name="two")
    assert (one.status, two.status) == (0, 0), two.err
    assert seen
    assert not any(seen)
    assert two.losses == one.losses
    for when in ("before", "after"):
        assert two.record["results"][when] == one.record["results"][when]
