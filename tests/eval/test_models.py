"""The models of a run: known by weights, refused where they do not belong together."""

from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from monolora.data.prompt_sets import Prompt, PromptSet
from monolora.errors import InputError
from monolora.eval.command_line import parse
from monolora.eval.models import evaluated_models, group_by_folder, token_ids
from tests.support.evaluated import Evaluated

DAY = date(2024, 2, 29)
# Transformers gives templates one function of the clock. Llama 3 asks it where nobody gives a date, others always do.
DATED = {
    "llama": "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "Today Date: {{ date_string }} {{ messages[0].content }}",
    "granite": "Today's Date: {{ strftime_now('%B %d, %Y') }}. {{ messages[0].content }}",
    "of a minute": "{{ strftime_now('%d/%m/%y %H:%M:%S') }} {{ messages[0].content }}",
}
RENDERED = {
    "llama": "Today Date: 29 Feb 2024 Good?",
    "granite": "Today's Date: February 29, 2024. Good?",
    "of a minute": "29/02/24 00:00:00 Good?",
}


def models_of(*words: object) -> list:
    return evaluated_models(parse(["--out", "x", *map(str, words)], "p"))


def test_models_of_a_run(evaluated: Evaluated, tmp_path: Path) -> None:
    shutil.copytree(evaluated.base, tmp_path / "whole")
    for step in (20, 100, 3):
        shutil.copytree(evaluated.mono, tmp_path / f"checkpoint-{step}")
    models = models_of(
        *evaluated.flags(), "--adapter", f"full={tmp_path / 'whole'}", "--checkpoints", *tmp_path.glob("checkpoint-*")
    )
    assert [(model.name, model.kind, model.step) for model in models] == [
        ("base", "base", None), ("lora", "adapter", None), ("mono", "adapter", None), ("full", "model", None),
        ("step 3", "adapter", 3), ("step 20", "adapter", 20), ("step 100", "adapter", 100),
    ]  # fmt: skip
    groups = group_by_folder(models)
    assert [[model.name for model in group] for group in groups.values()] == [
        ["base", "lora", "mono", "step 3", "step 20", "step 100"], ["full"],
    ]  # fmt: skip


def test_identity_is_of_contents(evaluated: Evaluated, tmp_path: Path) -> None:
    """The same weights elsewhere are the same model; other weights or another alpha under the same name are not."""
    base, lora, mono = models_of(*evaluated.flags())
    assert len({base.identity, lora.identity, mono.identity}) == 3
    copy = tmp_path / "copy"
    shutil.copytree(evaluated.mono, copy)
    assert models_of("--model", evaluated.base, "--adapter", f"other={copy}")[1].identity == mono.identity
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 99}))
    assert models_of("--model", evaluated.base, "--adapter", f"mono={copy}")[1].identity != mono.identity
    shutil.copytree(evaluated.lora, copy, dirs_exist_ok=True)
    assert models_of("--model", evaluated.base, "--adapter", f"mono={copy}")[1].identity == lora.identity


def test_what_cannot_be(evaluated: Evaluated, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Give the base with --model"):
        models_of()
    with pytest.raises(InputError, match=r"is an adapter\. Give its base with --model"):
        models_of("--model", evaluated.mono)
    with pytest.raises(InputError, match="holds no adapter"):
        models_of("--model", evaluated.base, "--adapter", f"x={tmp_path}")
    with pytest.raises(InputError, match="not named checkpoint-STEP"):
        models_of("--model", evaluated.base, "--checkpoints", evaluated.mono)


def test_an_adapter_of_another_base(evaluated: Evaluated, tmp_path: Path) -> None:
    """Its run says what it was trained on; checkpoints lie inside of the run."""
    run = tmp_path / "run"
    shutil.copytree(evaluated.mono, run / "checkpoint-5")
    (run / "run.json").write_text(
        json.dumps(
            {
                "config": {"model": "some/other"},
                "results": {"before": None, "after": None},
                "fingerprints": {"model": "0" * 16},
            }
        )
    )
    with pytest.raises(
        InputError, match=r"checkpoint-5 was trained on other weights .* Give its own base .*some/other"
    ):
        models_of("--model", evaluated.base, "--checkpoints", run / "checkpoint-5")


def test_prompts_are_read_as_in_training(evaluated: Evaluated, tmp_path: Path) -> None:
    """An adapter that was saved with a tokenizer of its own has its template."""
    own = tmp_path / "own"
    shutil.copytree(evaluated.mono, own)
    tokenizer = AutoTokenizer.from_pretrained(evaluated.base)
    tokenizer.chat_template = "{{ messages[0].content }} ->"
    tokenizer.save_pretrained(own)
    base, adapted = models_of("--model", evaluated.base, "--adapter", f"own={own}")
    prompts = PromptSet(name="a", purpose="safety", spec={}, prompts=(Prompt("k", "Good?", "Soup."),))
    assert tokenizer.decode(token_ids(base, prompts, DAY)[0]) == "<s>[user]\nGood?\n\nSoup.[assistant]\n"
    assert tokenizer.decode(token_ids(adapted, prompts, DAY)[0]) == "Good?\n\nSoup. ->"
    template_file = tmp_path / "given.jinja"
    template_file.write_text("{{ messages[0].content }} =>")
    for model in (base, adapted):  # --chat-template-path is for all models
        assert tokenizer.decode(token_ids(model, prompts, DAY, str(template_file))[0]) == "Good?\n\nSoup. =>"
    with pytest.raises(InputError, match="--chat-template-path nowhere is neither a file nor a folder"):
        token_ids(base, prompts, DAY, "nowhere")


@pytest.mark.parametrize("template", DATED)
def test_a_template_that_asks_for_the_date(evaluated: Evaluated, tmp_path: Path, template: str) -> None:
    """It is told the day of the plan, not the clock's."""
    own = Path(shutil.copytree(evaluated.mono, tmp_path / "own"))
    tokenizer = AutoTokenizer.from_pretrained(evaluated.base)
    tokenizer.chat_template = DATED[template]
    tokenizer.save_pretrained(own)
    adapted = models_of("--model", evaluated.base, "--adapter", f"own={own}")[1]
    prompts = PromptSet(name="a", purpose="safety", spec={}, prompts=(Prompt("k", "Good?"),))
    expected = tokenizer(RENDERED[template], add_special_tokens=False)["input_ids"]
    assert token_ids(adapted, prompts, DAY) == [expected]
    assert token_ids(adapted, prompts, date(2023, 1, 1)) != [expected]
