"""Scores on held-out rows while training, and what they decide: the best checkpoint, early stopping, the schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import EarlyStoppingCallback, IntervalStrategy, Trainer, TrainerCallback

from monolora.data.scoring import Metric
from monolora.errors import InputError, unknown
from monolora.recipes.training.arguments import RunArguments

PREFIX = "eval_"
LOSS = Metric(name="loss", title="loss", description="mean over the rows, in nats", better="lower")
REFUSAL_MARGIN = Metric(
    name="refusal_margin", title="refusal margin", description="mean log-odds of opening with a refusal, in nats"
)


class WithValidation(Trainer):
    """A trainer that measures held-out rows as ``--eval-strategy`` says. Mix it in before the trainer.

    Attributes:
        scores: measures the model as it is; set before training begins.
    """

    scores: Callable[[], Mapping[str, Any]] | None = None

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The numbers of :attr:`scores`, logged under names with ``eval_``. Training goes on as if nothing happened.

        Args:
            eval_dataset: ignored, as are the others: :attr:`scores` knows its rows.
            ignore_keys: ignored.
            metric_key_prefix: ignored.
        """
        assert self.scores is not None
        with unchanged(self.accelerator.unwrap_model(self.model)) as model:
            scores = {name: value for name, value in self.scores().items() if isinstance(value, int | float)}
            measured = {f"{PREFIX}{name}": value for name, value in scores.items() if name != "n"}
            model.eval()  # TRL would log the averages of training here
            self.log(dict(measured))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, measured)
        return measured


@contextmanager
def unchanged(model: nn.Module) -> Iterator[nn.Module]:
    """Restore mode and autocast of a model, which scoring takes off it."""
    attributes = dict(vars(model))
    try:
        yield model
    finally:
        vars(model).update(attributes)
        model.train(attributes["training"])


class LastStep(TrainerCallback):
    """The last step is measured too, however many steps lie between two measurements."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.eval_strategy == IntervalStrategy.STEPS and state.global_step >= state.max_steps:
            control.should_evaluate = True


def callbacks(training: Any, flags: RunArguments) -> list[TrainerCallback]:
    """What decides by the scores, as the flags say.

    Args:
        training: TRL's config; it is set so that a resumed run goes on counting.
        flags: the run's own.
    """
    if training.eval_strategy == IntervalStrategy.NO:
        return []
    if flags.early_stopping_patience is None:
        return [LastStep()]
    training.restore_callback_states_from_checkpoint = True
    return [LastStep(), EarlyStoppingCallback(flags.early_stopping_patience, flags.early_stopping_threshold)]


def choose_metric(training: Any, metrics: Sequence[Metric], needed: Mapping[str, str]) -> None:
    """Check ``--metric-for-best-model``, and set which of its values are better.

    Args:
        training: TRL's config.
        metrics: what is measured while training.
        needed: flags without which a metric is not measured, by its name.

    Raises:
        InputError: if it is none of them.
    """
    if training.metric_for_best_model is None:
        return
    by_name = {metric.name: metric for metric in metrics}
    name = training.metric_for_best_model.removeprefix(PREFIX)
    if name not in by_name and name in needed:
        raise InputError(f"--metric-for-best-model {name} is not measured without {needed[name]}. Give that too.")
    if name not in by_name:
        raise unknown("--metric-for-best-model", name, by_name)
    training.metric_for_best_model = name
    training.greater_is_better = by_name[name].better == "higher"


def best_step(trainer: Trainer) -> dict[str, Any] | None:
    """``metric``, ``value`` and ``step`` of the best scores, and whether the model is that step's; None without any."""
    state, args = trainer.state, trainer.args
    if state.best_metric is None:
        return None
    loaded = args.load_best_model_at_end and state.best_model_checkpoint is not None
    key = f"{PREFIX}{args.metric_for_best_model}"
    step = next(entry["step"] for entry in state.log_history if entry.get(key) == state.best_metric)
    return {"metric": args.metric_for_best_model, "value": state.best_metric, "step": step, "loaded": loaded}
