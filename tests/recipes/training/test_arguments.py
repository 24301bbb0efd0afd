"""Flags: defaults, YAML under the command line, and what follows from what."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from peft import LoraConfig
from trl import DPOConfig, KTOConfig, ModelConfig, ScriptArguments, SFTConfig

from monolora import MonoLoraConfig
from monolora.errors import InputError
from monolora.recipes.training import argument_checks
from monolora.recipes.training.argument_checks import NOT_HERE, RENAMED, WORKS, unclassified
from monolora.recipes.training.arguments import Arguments, parse, resolved_config
from monolora.recipes.training.models import peft_config

PRESETS = sorted((Path(__file__).parents[3] / "recipes" / "configs").glob("*.yaml"))


def _with_config(tmp_path: Path, text: str, *flags: str) -> Arguments:
    (tmp_path / "flags.yaml").write_text(text)
    return parse(["--config", str(tmp_path / "flags.yaml"), *flags])


@pytest.mark.parametrize(("adapter", "rate", "dtype"), [("monolora", 1e-3, "bfloat16"), ("none", 2e-5, "float32")])
def test_defaults_follow_the_adapter(adapter: str, rate: float, dtype: str) -> None:
    arguments = parse(["--adapter", adapter])
    assert arguments.training.learning_rate == rate
    assert arguments.model.dtype == dtype
    assert arguments.training.output_dir == f"runs/demo-{adapter}"


def test_given_values_stay() -> None:
    arguments = parse(["--adapter=none", "--learning_rate", "3e-4", "--dtype=bfloat16"])
    assert arguments.training.learning_rate == 3e-4
    assert arguments.model.dtype == "bfloat16"


def test_config_file(tmp_path: Path) -> None:
    arguments = _with_config(
        tmp_path,
        "adapter: none\nlearning-rate: 1e-4\nmax_train_samples: 7\nreport_to: [tensorboard]\n"
        "gradient_checkpointing: yes\nlora_target_modules: q_proj\nlr_scheduler_kwargs: {num_cycles: 2}\ndata_seed:\n",
    )
    assert arguments.adapter.adapter == "none"
    assert arguments.training.learning_rate == 1e-4
    assert arguments.model.dtype == "float32"  # follows from the file's adapter
    assert arguments.adapter.max_train_samples == 7
    assert arguments.training.report_to == ["tensorboard"]
    assert arguments.training.gradient_checkpointing is True
    assert arguments.training.lr_scheduler_kwargs == {"num_cycles": 2}


def test_command_line_wins(tmp_path: Path) -> None:
    arguments = _with_config(tmp_path, "seed: 1\nlora_r: 4\nadapter: lora\n", "--seed", "2", "--adapter", "monolora")
    assert arguments.training.seed == 2
    assert arguments.model.lora_r == 4
    assert arguments.adapter.adapter == "monolora"


def test_config_file_may_hold_an_adapters_flags_for_a_run_without(tmp_path: Path) -> None:
    assert peft_config(_with_config(tmp_path, "lora_r: 4\n", "--adapter", "none")) is None


def test_environment_from_the_config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MONOLORA_TEST", raising=False)
    _with_config(tmp_path, "env: {MONOLORA_TEST: 3}\n")
    assert os.environ["MONOLORA_TEST"] == "3"


@pytest.mark.parametrize("preset", PRESETS, ids=[path.stem for path in PRESETS])
@pytest.mark.parametrize("adapter", ["monolora", "lora"])
def test_presets(preset: Path, adapter: str) -> None:
    arguments = parse(["--config", str(preset), "--adapter", adapter])
    given = yaml.safe_load(preset.read_text())
    resolved = resolved_config(arguments)
    for key, value in given.items():
        assert resolved[key] == (value if key != "lora_target_modules" or len(value) > 1 else value[0]), key
    config = peft_config(arguments)
    assert type(config) is {"monolora": MonoLoraConfig, "lora": LoraConfig}[adapter]


def test_the_papers_presets() -> None:
    """Appendix A.3."""
    sst2, dolly = (parse(["--config", str(PRESETS[0].parent / f"{task}-llama2-7b.yaml")]) for task in ("sst2", "dolly"))
    assert (sst2.training.num_train_epochs, sst2.training.per_device_train_batch_size) == (20, 16)
    assert sst2.training.learning_rate == 1e-4
    assert (dolly.training.num_train_epochs, dolly.training.per_device_train_batch_size) == (1, 4)
    for arguments in (sst2, dolly):
        assert arguments.adapter.max_train_samples == 5000
        assert arguments.model.lora_target_modules == ["q_proj", "v_proj"]


@pytest.mark.parametrize(
    ("dataset", "folder"),
    [
        ("sst2", "runs/sst2-monolora"),
        ("org/data", "runs/org--data-monolora"),
        ("./some/rows.jsonl", "runs/rows-monolora"),
    ],
)
def test_default_output_folder(dataset: str, folder: str) -> None:
    assert parse(["--dataset", dataset]).training.output_dir == folder


def test_output_folder_of_a_resumed_run(tmp_path: Path) -> None:
    assert parse(["--resume-from-checkpoint", "runs/a/checkpoint-5"]).training.output_dir == "runs/a"
    assert parse(["--resume-from-checkpoint"]).training.output_dir == "runs/demo-monolora"
    assert parse(["--resume-from-checkpoint"]).training.resume_from_checkpoint == "latest"
    for word, means in (("true", "latest"), ("True", "latest"), ("latest", "latest"), ("false", None)):
        assert parse(["--resume-from-checkpoint", word]).training.resume_from_checkpoint == means
    assert _with_config(tmp_path, 'resume_from_checkpoint: "True"\n').training.resume_from_checkpoint == "latest"
    assert parse(["--resume-from-checkpoint", "False", "--overwrite"]).adapter.overwrite
    from_file = _with_config(tmp_path, "resume_from_checkpoint: true\n")
    assert from_file.training.resume_from_checkpoint == "latest"
    assert _with_config(tmp_path, "resume_from_checkpoint: false\n").training.resume_from_checkpoint is None


def test_names_of_trl() -> None:
    arguments = parse(["--dataset-name", "sst2", "--model-name-or-path", "org/model"])
    assert arguments.adapter.dataset == "sst2"
    assert arguments.adapter.model == "org/model"


@pytest.mark.parametrize(
    ("flags", "targets"),
    [
        ([], None),
        (["q_proj"], {"q_proj"}),  # TRL makes a single name a string, which PEFT would take for a pattern
        (["self_attn.q_proj"], {"self_attn.q_proj"}),
        (["q_proj", "v_proj"], {"q_proj", "v_proj"}),
        (["all-linear"], "all-linear"),
        ([r".*layers\.0\..*q_proj"], r".*layers\.0\..*q_proj"),
    ],
)
def test_target_modules(flags: list[str], targets: object) -> None:
    config = peft_config(parse(["--lora-target-modules", *flags] if flags else []))
    assert config is not None
    assert config.target_modules == targets


def test_peft_config_takes_every_flag() -> None:
    flags = "--lora-r 4 --lora-alpha 8 --lora-dropout 0.1 --use-rslora --lora-modules-to-save lm_head"
    config = peft_config(parse([*flags.split(), "--activation", "topk:2"]))
    assert isinstance(config, MonoLoraConfig)
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_rslora) == (4, 8, 0.1, True)
    assert (config.modules_to_save, config.activation, config.task_type) == (["lm_head"], "topk:2", "CAUSAL_LM")


def test_what_monolora_refuses() -> None:
    with pytest.raises(InputError, match="target_parameters"):
        peft_config(parse(["--lora-target-parameters", "w"]))


def test_every_flag_of_trl_works_here_or_is_refused() -> None:
    """A flag that a later TRL adds must be looked at: does it have an effect in this recipe?"""
    configs = (SFTConfig, DPOConfig, KTOConfig)
    assert [unclassified(config) for config in configs] == [set(), set(), set()]
    assert not WORKS & NOT_HERE.keys()
    known = {each.name for kind in (ScriptArguments, ModelConfig, *configs) for each in fields(kind)}
    assert known >= WORKS | NOT_HERE.keys()
    assert not RENAMED.keys() & known


def test_a_flag_that_nobody_has_looked_at_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(argument_checks, "WORKS", WORKS - {"warmup_steps"})
    with pytest.raises(InputError, match="--warmup-steps is newer than this recipe"):
        parse(["--warmup-steps", "3"])
    parse(["--seed", "3"])


def test_values_of_a_file(tmp_path: Path) -> None:
    text = "max_length: null\nlr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 1e-5}\n"
    training = _with_config(tmp_path, f"{text}learning_rate: 1e-4\n").training
    assert training.max_length is None
    assert training.lr_scheduler_kwargs == {"min_lr": 1e-5}
    assert training.learning_rate == 1e-4
