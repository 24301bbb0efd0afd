"""What a run says while it trains."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments

from monolora.recipes.training import progress
from monolora.recipes.training.progress import training_progress
from monolora.terminal import Terminal


class _Squares(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": torch.full((3,), float(index))}


class _Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.layer(x / 24).square().mean()}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A clock of its own: ``clock.now`` is read by the progress."""
    own = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: own.now))
    return own


def _trained(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, terminal: bool, tick: Callable[[], None], **flags: Any
) -> tuple[str, Trainer]:
    screen = io.StringIO()
    monkeypatch.setattr(progress, "STDERR", Terminal(file=screen, force_terminal=terminal, width=140))
    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=2, logging_steps=6, use_cpu=True, report_to="none", **flags
    )
    trainer = Trainer(_Model(), arguments, train_dataset=_Squares())
    training_step = trainer.training_step
    monkeypatch.setattr(trainer, "training_step", lambda *words: (tick(), training_step(*words))[1])
    with training_progress(trainer):
        trainer.train()
    return screen.getvalue(), trainer


def test_plain_lines_without_a_terminal(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    def tick() -> None:
        clock.now += 2

    said, trainer = _trained(tmp_path, monkeypatch, False, tick, num_train_epochs=1)
    first, second, last = said.splitlines()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert first == f"step 6/12 · loss {losses[0]:.3f} · 12 s left"
    assert second == f"step 12/12 · loss {losses[1]:.3f} · 0 s left"
    assert last.startswith("12 steps in ")
    captured = capsys.readouterr()
    assert "{" not in captured.out + captured.err  # neither dictionaries nor transformers' bar
    assert not any(
        isinstance(callback, (ProgressCallback, PrinterCallback)) for callback in trainer.callback_handler.callbacks
    )


def test_a_long_run_says_so_after_its_first_steps(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace
) -> None:
    def tick() -> None:
        clock.now += 90 if clock.now < 90 * 30 else 0

    said, _ = _trained(tmp_path, monkeypatch, False, tick, max_steps=85)
    (line,) = (line for line in said.splitlines() if "--max-train-samples" in line)
    assert line.startswith("At this pace the 85 steps take 2 h 0 min more.")  # 80 of 90 seconds


def test_tokens_per_second_and_the_adapters_numbers(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(progress, "STDERR", Terminal(file=screen, width=200))
    trainer = Trainer(_Model(), TrainingArguments(str(tmp_path), use_cpu=True), train_dataset=_Squares())
    with training_progress(trainer):
        handler, state = trainer.callback_handler, trainer.state
        state.max_steps = 40
        handler.on_train_begin(trainer.args, state, trainer.control)
        logs = {"loss": 0.5, "mean_token_accuracy": 0.904, "sparsity": 0.76, "keep_silent": 0.991, "num_tokens": 3000.0}
        state.global_step, clock.now = 10, 20.0
        handler.on_log(trainer.args, state, trainer.control, logs)
    assert screen.getvalue() == (
        "step 10/40 · loss 0.500 · tokens right 90.4% · units off 76% · anchors silent 99.1% · 150 tokens/s"
        " · 1 min 0 s left\n"
    )


def test_a_terminal_has_one_line_which_an_error_ends(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace
) -> None:
    class StopError(Exception):
        pass

    def tick() -> None:
        clock.now += 1
        if clock.now == 9:
            raise StopError

    with pytest.raises(StopError):
        _trained(tmp_path, monkeypatch, True, tick, num_train_epochs=1, disable_tqdm=False)
    screen = progress.STDERR.file
    assert isinstance(screen, io.StringIO)
    said = screen.getvalue()
    assert "8/12" in said
    assert "loss" in said
    assert said.count("\x1b[?25l") == said.count("\x1b[?25h") == 1  # the cursor is shown again


def test_disable_tqdm_means_plain_lines(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace) -> None:
    said, _ = _trained(tmp_path, monkeypatch, True, lambda: None, num_train_epochs=1, disable_tqdm=True)
    assert said.startswith("step 6/12")
    assert "\x1b[?25l" not in said
