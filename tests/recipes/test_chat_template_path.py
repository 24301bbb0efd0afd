"""The Alpaca format of public code as a chat template, and the presets and configs of the paper's runs."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

import monolora.recipes
from monolora.data.chat_template import ALPACA, ALPACA_CONTEXT, prompt_ids, set_chat_template, split_at_answer
from monolora.data.tasks import Example
from monolora.errors import InputError
from monolora.eval.command_line import parse as parse_eval
from monolora.recipes.training.arguments import parse

RECIPES = Path(monolora.recipes.__file__).parent
ALPACA_TEMPLATE = str(RECIPES / "templates" / "alpaca.jinja")
EVAL_CONFIGS = RECIPES.parent / "eval" / "configs"


@pytest.fixture
def alpaca(plain_tokenizer: PreTrainedTokenizerBase, chat_model: Path) -> PreTrainedTokenizerBase:
    tokenizer = type(plain_tokenizer).from_pretrained(chat_model)
    set_chat_template(tokenizer, ALPACA_TEMPLATE)
    return tokenizer


@pytest.mark.parametrize(
    ("example", "text"),
    [
        (Example("Name a fruit.", "plum"), ALPACA.format(instruction="Name a fruit.")),
        (Example("Is it good?", "yes", context="A film.\n\nSo fine."),
         ALPACA_CONTEXT.format(instruction="Is it good?", context="A film.\n\nSo fine.")),
        (Example("A line.\nAnother.", "x"), ALPACA.format(instruction="A line.\nAnother.")),
    ],
)  # fmt: skip
def test_alpaca_without_a_newline_at_its_end(alpaca: PreTrainedTokenizerBase, example: Example, text: str) -> None:
    """The format for models without a template, but for the newline after "### Response:"; BOS once."""
    expected = text.removesuffix("\n")
    assert expected.endswith("### Response:")
    assert prompt_ids(example, alpaca) == alpaca(expected)["input_ids"]
    assert prompt_ids(example, alpaca).count(alpaca.bos_token_id) == 1
    split = split_at_answer(example, alpaca)
    assert alpaca.decode(split.answer) == f"{example.response}{alpaca.eos_token}"


def test_presets_of_the_sst2_run() -> None:
    configs = {
        name: parse(["--config", str(RECIPES / "configs" / name)])
        for name in ("sst2-llama2-7b.yaml", "sst2-llama2-7b-lisa.yaml")
    }
    qi, lisa = configs.values()
    assert (qi.model.lora_r, qi.model.lora_alpha, qi.model.lora_dropout) == (8, 32, 0.05)
    assert (lisa.model.lora_r, lisa.model.lora_alpha, lisa.model.lora_dropout) == (8, 4, 0.1)
    assert qi.training.chat_template_path is None
    assert lisa.training.chat_template_path == "recipes/templates/alpaca.jinja"
    for each in (qi, lisa):
        assert (each.training.num_train_epochs, each.training.per_device_train_batch_size) == (20, 16)
        assert (each.training.learning_rate, each.adapter.max_train_samples) == (1e-4, 5000)


@pytest.mark.parametrize("task", ["sst2", "dolly"])
def test_configs_of_table_2(task: str) -> None:
    name = "paper-table2.yaml" if task == "sst2" else "paper-table2-dolly.yaml"
    found = parse_eval(["--config", str(EVAL_CONFIGS / name)], "p")
    folders = {"LoRA": f"runs/{task}-llama2-lora", "MonoLoRA": f"runs/{task}-llama2-monolora"}
    assert (found.adapters(), found.tasks, found.out) == (folders, (task,), f"runs/table2-{task}")


@pytest.mark.parametrize(
    ("words", "adapters"),
    [
        (["--adapter", "LoRA=a", "--adapter", "MonoLoRA=b"], {"LoRA": "a", "MonoLoRA": "b"}),
        (["--adapter=MonoLoRA=b"], {"MonoLoRA": "b"}),
        ([], {"LoRA": "runs/sst2-llama2-lora", "MonoLoRA": "runs/sst2-llama2-monolora"}),
    ],
)
def test_typed_adapters_replace_those_of_the_file(words: list[str], adapters: dict[str, str]) -> None:
    found = parse_eval(["--config", str(EVAL_CONFIGS / "paper-table2.yaml"), "--out", "x", *words], "p")
    assert found.adapters() == adapters


def test_typed_endpoints_replace_those_of_the_file(tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    config.write_text("model: m\nout: x\nengine: server\nendpoint: [http://a/v1, http://b/v1]\n")
    assert parse_eval(["--config", str(config)], "p").endpoint == ("http://a/v1", "http://b/v1")
    assert parse_eval(["--config", str(config), "--endpoint", "http://c/v1"], "p").endpoint == ("http://c/v1",)


@pytest.mark.parametrize(("text", "says"), [("{{ 1 / 0 }}", "no working chat template: division"), (" \n", "is empty")])
def test_templates_that_fail(chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path, text: str, says: str) -> None:
    """A template is a program, and may raise anything."""
    (tmp_path / "template.jinja").write_text(text)
    with pytest.raises(InputError, match=says):
        set_chat_template(copy.deepcopy(chat_tokenizer), str(tmp_path / "template.jinja"))
