"""The progress of a training run: one live line on a terminal, else a plain line a log."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from monolora.recipes.training.model_card import shown_score
from monolora.recipes.training.validation import PREFIX
from monolora.reporting.numbers import format_duration
from monolora.terminal import STDERR

_SHOWN = (  # of a log: its key, what is shown, and how
    ("loss", "loss {:.3f}"),
    ("rewards/accuracies", "pairs right {:.1%}"),
    ("rewards/margins", "margin {:.2f}"),
    ("mean_token_accuracy", "tokens right {:.1%}"),
    ("sparsity", "units off {:.0%}"),
    ("sparsity_loss", "sparsity loss {:.3g}"),
    ("k", "k {:.0f}"),
    ("keep_silent", "anchors silent {:.1%}"),
)
_FIRST_STEPS = 5  # before a pace is known
_LONG_S = 900.0


@contextmanager
def training_progress(trainer: Trainer) -> Iterator[None]:
    """Show steps, the last logged numbers, tokens per second and the time left, on stderr.

    It takes the place of transformers' bar and of its printed dictionaries; a notebook keeps its table. A run that will
    take long says so after its first steps.
    """
    callback = _TrainingProgress()
    if any(trainer.pop_callback(theirs) for theirs in (ProgressCallback, PrinterCallback)):
        trainer.add_callback(callback)
    try:
        yield
    finally:
        callback.close()  # after an error too: a live line hides the cursor


class _TrainingProgress(TrainerCallback):
    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._first_step = 0
        self._started = self._logged = 0.0
        self._tokens: float | None = None  # counted in the last log
        self._is_pace_known = False

    def close(self) -> None:
        """Leave the line as it is."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        self._first_step, self._is_pace_known = state.global_step, False
        self._tokens = None if state.global_step else 0.0
        self._started = self._logged = time.monotonic()
        if STDERR.is_terminal and not args.disable_tqdm:
            columns = (
                TextColumn("Training"),
                BarColumn(bar_width=16),
                MofNCompleteColumn(),
                TextColumn("{task.description}", markup=False),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=STDERR)
            self._task = self._bar.add_task("", total=state.max_steps, completed=state.global_step)
            self._bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)
        if not self._is_pace_known and state.global_step - self._first_step >= _FIRST_STEPS:
            self._is_pace_known = True
            if (left := self._seconds_left(state)) > _LONG_S:
                STDERR.print(
                    f"At this pace the {state.max_steps:,} steps take {format_duration(left)} more. For a first look, "
                    "train on fewer examples: --max-train-samples.",
                    soft_wrap=True,
                )

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        if "train_runtime" in logs:
            steps = state.global_step - self._first_step
            STDERR.print(f"{steps:,} {'step' if steps == 1 else 'steps'} in {format_duration(logs['train_runtime'])}.")
            return
        if validation := _validation(logs):
            STDERR.print(f"step {state.global_step:,}/{state.max_steps:,} · held out: {validation}", soft_wrap=True)
            return
        numbers = " · ".join([*_numbers(logs), *self._pace(logs)])
        if self._bar is not None:
            self._bar.update(self._task, description=numbers)
        else:
            left = format_duration(self._seconds_left(state))
            STDERR.print(f"step {state.global_step:,}/{state.max_steps:,} · {numbers} · {left} left", soft_wrap=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()

    def _seconds_left(self, state: Any) -> float:
        done = state.global_step - self._first_step
        return (time.monotonic() - self._started) / max(1, done) * (state.max_steps - state.global_step)

    def _pace(self, logs: Mapping[str, float]) -> list[str]:
        """Tokens per second since the last log; a resumed run counts from its first."""
        tokens, before, since = logs.get("num_tokens"), self._tokens, self._logged
        if tokens is None:
            return []
        self._tokens, self._logged = tokens, time.monotonic()
        if before is None:
            return []
        return [f"{(tokens - before) / max(1e-9, self._logged - since):,.0f} tokens/s"]


def _validation(logs: Mapping[str, float]) -> str:
    """The scores on held-out rows; empty where the log has none."""
    scores = {name.removeprefix(PREFIX): value for name, value in logs.items() if name.startswith(PREFIX)}
    return " · ".join(f"{name.replace('_', ' ')} {shown_score(name, scores, 3)}" for name in scores)


def _numbers(logs: Mapping[str, float]) -> list[str]:
    return [text.format(logs[key]) for key, text in _SHOWN if key in logs]
