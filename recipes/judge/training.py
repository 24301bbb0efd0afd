"""The training of a judge, and its agreement with people in verdicts and labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score
from torch import nn
from transformers import (
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.modeling_outputs import ModelOutput

from monolora.beaverdam import LABELS, THRESHOLD
from monolora.errors import RunError
from monolora.recipes.judge.model import Example
from monolora.recipes.settings import Judge
from monolora.recipes.training.data_checks import check_finite
from monolora.recipes.training.sampling import LengthGrouping

RESAMPLES = 2000


def measure(
    probabilities: NDArray[np.float64],
    labels: NDArray[np.bool_],
    unsafe: NDArray[np.bool_],
    prompts: Sequence[str],
    seed: int = 0,
) -> dict[str, Any]:
    """Every number of the card.

    A row's score is its largest probability: unsafe if above 0.5. ``1 - score`` is the score of is_safe, and its AUC
    the same.

    Args:
        probabilities: shape ``(rows, labels)``.
        labels: of people, of the same shape.
        unsafe: people's verdicts, shape ``(rows,)``; both kinds must occur.
        prompts: rows of one prompt are resampled together.
        seed: of the resampling.
    """
    scores = probabilities.max(axis=1)
    flagged = scores > THRESHOLD
    precision, recall, _, _ = precision_recall_fscore_support(unsafe, flagged, average="binary", zero_division=np.nan)
    low, high = auc_interval(scores, unsafe, prompts, seed)
    return {
        "rows": len(unsafe),
        "prompts": len(set(prompts)),
        "unsafe": int(unsafe.sum()),
        "flagged": int(flagged.sum()),
        "auc": float(roc_auc_score(unsafe, scores)),
        "auc_low": low,
        "auc_high": high,
        "accuracy": float((flagged == unsafe).mean()),
        "majority": float(max(unsafe.mean(), 1 - unsafe.mean())),
        "precision": float(precision),
        "recall": float(recall),
        "categories": {
            label: _category(probabilities[:, index], labels[:, index]) for index, label in enumerate(LABELS)
        },
    }


def _category(probability: NDArray[np.float64], label: NDArray[np.bool_]) -> dict[str, Any]:
    """Counts and agreement of one label; None where undefined."""
    flagged = probability > THRESHOLD
    hits = int((flagged & label).sum())
    return {
        "rows": int(label.sum()),
        "flagged": int(flagged.sum()),
        "auc": float(roc_auc_score(label, probability)) if 0 < label.sum() < len(label) else None,
        "precision": hits / int(flagged.sum()) if flagged.any() else None,
        "recall": hits / int(label.sum()) if label.any() else None,
    }


def auc_standard_error(auc: float, positives: int, negatives: int) -> float:
    """Of an AUC over so many rows of both kinds (Hanley and McNeil 1982, their exponential approximation)."""
    of_two_positives, of_two_negatives = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = (positives - 1) * (of_two_positives - auc**2) + (negatives - 1) * (of_two_negatives - auc**2)
    return float(np.sqrt((auc * (1 - auc) + spread) / (positives * negatives)))


def auc_interval(
    scores: NDArray[np.float64], unsafe: NDArray[np.bool_], prompts: Sequence[str], seed: int
) -> tuple[float, float]:
    """95 % interval of the AUC by the bootstrap over prompts: answers to one prompt are no independent rows."""
    _, prompt_of = np.unique(np.asarray(prompts), return_inverse=True)
    count = int(prompt_of.max()) + 1
    order = np.argsort(scores, kind="stable")
    _, ranks = np.unique(scores[order], return_inverse=True)  # of ties the same
    random = np.random.default_rng(seed)
    aucs = []
    for _ in range(RESAMPLES):
        weights = np.bincount(random.integers(count, size=count), minlength=count)[prompt_of][order]
        aucs.append(_weighted_auc(ranks, unsafe[order], weights))
    low, high = np.nanquantile(aucs, [0.025, 0.975])
    return float(low), float(high)


def _weighted_auc(ranks: NDArray[np.int64], unsafe: NDArray[np.bool_], weights: NDArray[np.int64]) -> float:
    """The share of (unsafe, safe) pairs in the right order, ties half; rows count ``weights`` times. NaN without pairs.

    Args:
        ranks: of each row's score among the distinct scores.
        unsafe: of each row.
        weights: of each row.
    """
    of_unsafe = np.bincount(ranks, weights * unsafe)
    of_safe = np.bincount(ranks, weights * ~unsafe)
    pairs = of_unsafe.sum() * of_safe.sum()
    below = np.cumsum(of_safe) - of_safe / 2
    return float((of_unsafe * below).sum() / pairs) if pairs else float("nan")


LABELS_WEIGHT = 0.2  # of the labels' cross entropy, summed, beside the verdict's


class Trained(NamedTuple):
    """How the training went.

    Attributes:
        epoch: the selected one.
        validation_auc: of that epoch; None without validation rows.
        history: the trainer's log.
    """

    epoch: int
    validation_auc: float | None
    history: list[dict[str, Any]]


class KeptEpoch(TrainerCallback):
    """Keeps the weights of the last epoch whose AUC is within a standard error of the best, in memory.

    A few hundred rows cannot tell two epochs apart that are closer than that, and rounding would choose between them;
    the later one has learned more of the rare labels. In memory, as judges are small and disks can be full.
    """

    def __init__(self) -> None:
        self.auc: float | None = None
        self.epoch = 0
        self._least = 0.0  # that the AUC of a later epoch must have
        self._weights: dict[str, torch.Tensor] = {}

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **inputs: Any) -> None:
        """Compare with the best so far."""
        auc, weights = inputs["metrics"]["eval_auc"], inputs["model"].state_dict()
        if auc >= self._least:
            self._least = max(self._least, auc - inputs["metrics"]["eval_auc_error"])
            self.auc, self.epoch = auc, round(state.epoch or 0)
            self._weights = {name: tensor.detach().clone() for name, tensor in weights.items()}

    def restore(self, model: nn.Module) -> None:
        """Load the weights of the selected epoch into the model."""
        model.load_state_dict(self._weights)


def judge_loss(outputs: ModelOutput, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Cross entropy of the labels, and that of the verdict, which the largest logit gives.

    Fourteen labels, most of them rare, teach little about the verdict. For an unsafe row the verdict is that of its own
    labels, or some rare label would learn to stand for all harm.

    Args:
        outputs: with ``logits``, shape ``(batch, labels)``.
        labels: 0 or 1, of the same shape.
        num_items_in_batch: unused; every row has the same weight.
    """
    logits = outputs["logits"].float()
    unsafe = labels.amax(dim=1)
    beside = (labels == 0) & (unsafe[:, None] == 1)
    verdict = F.binary_cross_entropy_with_logits(logits.masked_fill(beside, -torch.inf).amax(dim=1), unsafe)
    of_labels = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(dim=1).mean()
    return LABELS_WEIGHT * of_labels + verdict


def agreement(prediction: EvalPrediction) -> dict[str, float]:
    """AUC of the verdict and its standard error, as the trainer's metrics.

    Raises:
        RunError: if training diverged.
    """
    logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    if not np.isfinite(logits).all():
        raise RunError("Training diverged: the logits are not finite. Start again with a lower --learning-rate.")
    unsafe = labels.max(axis=1)
    auc = float(roc_auc_score(unsafe, logits.max(axis=1)))
    return {"auc": auc, "auc_error": auc_standard_error(auc, int(unsafe.sum()), int((1 - unsafe).sum()))}


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    training: Sequence[Example],
    validation: Sequence[Example],
    settings: Judge,
    folder: Path,
) -> Trained:
    """Train ``model`` in place. The validation rows select an epoch (:class:`KeptEpoch`); without them it is the last.

    Args:
        model: a classifier.
        tokenizer: pads the batches.
        training: its training rows.
        validation: rows that select its epoch; may be empty.
        settings: of the program; ``bf16`` is set.
        folder: the trainer's; nothing is saved there.

    Raises:
        RunError: if training diverged.
    """
    best = KeptEpoch()
    for module in model.modules():
        if isinstance(module, nn.Dropout):  # its random numbers take a third of the time on a CPU
            module.p = 0.0
    trainer = _JudgeTrainer(
        model=model,
        args=_arguments(settings, validates=bool(validation), folder=folder),
        train_dataset=_features(training),
        eval_dataset=_features(validation) if validation else None,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_loss_func=judge_loss,
        compute_metrics=agreement,
        callbacks=[best],
        optimizers=(_optimizer(model, settings), None),
    )
    trainer.train()
    history = trainer.state.log_history
    check_finite(model, history)
    if validation:
        best.restore(model)
    return Trained(best.epoch if validation else settings.epochs, best.auc, history)


class _JudgeTrainer(LengthGrouping):
    def row_lengths(self, rows: Any) -> list[int]:
        return [len(row["input_ids"]) for row in rows]


def _optimizer(model: PreTrainedModel, settings: Judge) -> torch.optim.Optimizer:
    """AdamW, with a rate of its own for the head, which is random while the rest is pretrained."""
    within = f"{model.base_model_prefix}."
    body = [parameter for name, parameter in model.named_parameters() if name.startswith(within)]
    head = [parameter for name, parameter in model.named_parameters() if not name.startswith(within)]
    groups = [{"params": body, "lr": settings.learning_rate}, {"params": head, "lr": settings.head_learning_rate}]
    return torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)


def _features(examples: Sequence[Example]) -> Any:
    """The examples as the trainer's data set, for which it takes a list."""
    return [
        {"input_ids": example.token_ids, "labels": [float(label) for label in example.row.labels]}
        for example in examples
    ]


def _arguments(settings: Judge, *, validates: bool, folder: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=2 * settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=settings.warmup,  # below 1 a share of all steps
        bf16=bool(settings.bf16),
        use_cpu=not torch.cuda.is_available(),  # explicit: the trainer refuses bfloat16 on a CPU that it fell back to
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch" if validates else "no",
        save_strategy="no",
        logging_steps=10,
        report_to="none",
        seed=settings.seed,
    )
