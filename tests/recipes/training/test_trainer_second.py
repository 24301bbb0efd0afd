"""What the trainers share is no part of supervised finetuning: a preference trainer of TRL's takes it as it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer

from monolora import MonoLoraConfig
from monolora.errors import SaveError
from monolora.recipes.training.arguments import TrainingDefaults
from monolora.recipes.training.checkpoints import AtomicCheckpoints

ROWS = [{"prompt": f"Say {k}. ", "chosen": f"It is {k}.", "rejected": "No."} for k in range(8)]


@dataclass(repr=False)
class PreferenceArguments(TrainingDefaults, DPOConfig):
    """TRL's DPOConfig with our defaults."""


class PreferenceTrainer(AtomicCheckpoints, DPOTrainer):
    """TRL's DPOTrainer with atomic checkpoints."""


def _trainer(model: Path, tokenizer: PreTrainedTokenizerBase, output: Path, **more: object) -> PreferenceTrainer:
    torch.manual_seed(0)
    arguments = PreferenceArguments(
        output_dir=str(output), per_device_train_batch_size=2, max_steps=4, save_steps=2, report_to="none",
        disable_tqdm=True, train_sampling_strategy="random", logging_steps=1, learning_rate=1e-2, **more,
    )  # fmt: skip
    return PreferenceTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=arguments,
        train_dataset=datasets.Dataset.from_list(ROWS),
        processing_class=tokenizer,
        peft_config=MonoLoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )


def test_a_preference_trainer_resumes_bit_for_bit(
    chat_model: Path, chat_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    _trainer(chat_model, chat_tokenizer, tmp_path / "whole").train()
    _trainer(chat_model, chat_tokenizer, tmp_path / "resumed").train(str(tmp_path / "whole" / "checkpoint-2"))
    weights = [load_file(tmp_path / run / "checkpoint-4" / "adapter_model.safetensors") for run in ("whole", "resumed")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    state = json.loads((tmp_path / "resumed" / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["global_step"] == 4


@pytest.mark.parametrize(
    ("failing", "left", "fix"),
    [
        ("checkpoint-4", ["checkpoint-2"], "resume with --resume-from-checkpoint"),
        ("checkpoint-2", [], "give the same command again"),
    ],
)
def test_a_checkpoint_that_fails_is_not_there(
    failing: str,
    left: list[str],
    fix: str,
    chat_model: Path,
    chat_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = _trainer(chat_model, chat_tokenizer, tmp_path / "run")
    save = trainer._save_rng_state

    def full(output_dir: str) -> None:
        if output_dir.endswith(failing):
            raise OSError(28, "No space left on device")
        save(output_dir)

    monkeypatch.setattr(trainer, "_save_rng_state", full)
    with pytest.raises(SaveError, match=f"No space left on device.* {fix}"):
        trainer.train()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == left
