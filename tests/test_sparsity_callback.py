"""SparsityCallback in a real Trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from monolora import MonoLoraConfig, MonoLoraLayer, SparsityCallback, SparsityMeter

Make = Callable[..., LlamaForCausalLM]


class Reporter(TrainerCallback):
    """Stands for TensorBoard and the like: keeps the logs as it is handed them."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        self.logs.append(dict(logs or {}))


@pytest.fixture
def rows() -> list[dict[str, torch.Tensor]]:
    """Eight rows of six tokens; the last two of every other row are padding."""
    rows = []
    for row in torch.randint(3, 64, (8, 6)):
        mask = torch.ones(6, dtype=torch.long)
        if len(rows) % 2:
            mask[-2:] = 0
        rows.append({"input_ids": row, "attention_mask": mask, "labels": row.masked_fill(mask == 0, -100)})
    return rows


def _trainer(model: torch.nn.Module, rows: list[dict[str, torch.Tensor]], folder: Path, **settings: Any) -> Trainer:
    arguments = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "learning_rate": 0.0,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    training = TrainingArguments(output_dir=str(folder), **arguments | settings)
    return Trainer(model, training, train_dataset=rows, eval_dataset=rows)


def test_every_logged_step_has_the_numbers_of_its_own_tokens(
    make_llama: Make, rows: list[dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    model = get_peft_model(make_llama(), MonoLoraConfig(target_modules=["q_proj"], r=5))
    trainer = _trainer(model, rows, tmp_path)
    reporter = Reporter()
    trainer.add_callback(reporter)
    SparsityCallback().add_to(trainer)
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(steps) == 4
    # Two steps see every row once, and with a learning rate of 0 both epochs see the same units.
    meter = SparsityMeter(model)
    with meter.measuring(), torch.no_grad():
        for row in rows:
            model(**{name: value[None] for name, value in row.items()})
    expected = meter.result()
    for epoch in (steps[:2], steps[2:]):
        shares = [entry["sparsity"] for entry in epoch]
        assert min(shares) - 1e-9 <= expected.zeros <= max(shares) + 1e-9
        assert all(entry["dead_units"] >= expected.dead_units for entry in epoch)
    reported = [entry for entry in reporter.logs if "loss" in entry]
    assert [(entry["sparsity"], entry["dead_units"]) for entry in reported] == [
        (entry["sparsity"], entry["dead_units"]) for entry in steps
    ]
    assert all(layer.unit_observer is None for layer in model.modules() if isinstance(layer, MonoLoraLayer))


def test_accumulated_batches_are_counted_together_and_evaluation_not_at_all(
    make_llama: Make, rows: list[dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    model = get_peft_model(make_llama(), MonoLoraConfig(target_modules=["q_proj"], r=5))
    with torch.no_grad():
        meter = SparsityMeter(model)
        with meter.measuring():
            for row in rows:
                model(**{name: value[None] for name, value in row.items()})
    trainer = _trainer(
        model, rows, tmp_path, num_train_epochs=1, gradient_accumulation_steps=4, eval_strategy="steps", eval_steps=1
    )
    SparsityCallback().add_to(trainer)
    trainer.train()
    (step,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert step["sparsity"] == pytest.approx(meter.result().zeros, abs=1e-3)
    assert step["dead_units"] == meter.result().dead_units
    assert not [entry for entry in trainer.state.log_history if "eval_loss" in entry and "sparsity" in entry]


def test_plain_lora_reports_none_and_no_adapter_reports_nothing(
    make_llama: Make, rows: list[dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    for model, expected in (
        (get_peft_model(make_llama(), LoraConfig(target_modules=["q_proj"])), {"sparsity": 0.0, "dead_units": 0}),
        (make_llama(), {}),
    ):
        trainer = _trainer(model, rows, tmp_path, num_train_epochs=1)
        trainer.add_callback(SparsityCallback())
        trainer.train()
        for entry in trainer.state.log_history:
            found = {name: entry[name] for name in ("sparsity", "dead_units") if name in entry}
            assert found == (expected if "loss" in entry else {})
