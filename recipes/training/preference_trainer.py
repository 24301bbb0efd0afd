"""TRL's DPOTrainer and KTOTrainer on rows that are tokenized already, with atomic checkpoints and keepers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import datasets
from peft import PeftModel
from trl import DPOTrainer, KTOConfig, KTOTrainer

from monolora.keep.keeper import Keeper
from monolora.recipes.training.checkpoints import REFERENCE, AtomicCheckpoints
from monolora.recipes.training.keeping import WithKeepers
from monolora.recipes.training.sampling import LengthGrouping
from monolora.recipes.training.validation import WithValidation


class _Preferences(WithKeepers, WithValidation, AtomicCheckpoints, LengthGrouping):
    """What the two trainers share.

    The reference is the model that training starts from: for a new adapter the base, with the adapter off; for one that
    is trained further a frozen copy, which TRL adds as the adapter "ref"; for full finetuning a model of its own.

    Args:
        keepers: what keeps the base's behaviour; they are prepared after the trainer is made.
    """

    def __init__(self, *args: Any, keepers: Sequence[Keeper] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._complete_reference()
        self.keepers = keepers

    def _complete_reference(self) -> None:
        """Copy units of embeddings and trained tokens too: TRL copies the tensors of modules alone."""
        model = self.model
        if isinstance(model, PeftModel) and REFERENCE in model.peft_config:
            for name, parameter in model.named_parameters():
                if name.endswith(".default"):
                    model.get_parameter(f"{name.removesuffix('default')}{REFERENCE}").data.copy_(parameter.data)

    def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> datasets.Dataset:
        self._complete_reference()  # TRL calls this before it has been made
        prepared: datasets.Dataset = super()._precompute_ref_logps(*args, **kwargs)  # type: ignore[misc]  # TRL's
        return prepared

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss and, in training, the keepers' losses."""
        kept = self.keepers_loss(model, num_items_in_batch)
        loss: Any = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return loss if kept is None else loss + kept

    def row_lengths(self, rows: Any) -> list[int]:
        """Tokens of each row's longest answer, with its prompt."""
        answers = [rows[name] for name in ("chosen_ids", "rejected_ids", "completion_ids") if name in rows.column_names]
        longest = (max(map(len, row)) for row in zip(*answers, strict=True))
        return [len(prompt) + length for prompt, length in zip(rows["prompt_ids"], longest, strict=True)]

    def _prepare_dataset(
        self, dataset: datasets.Dataset, processing_class: Any, args: Any, dataset_name: str
    ) -> datasets.Dataset:
        """The rows as they are: TRL would render and tokenize texts, by the same rules."""
        return dataset


class PairTrainer(_Preferences, DPOTrainer):
    """DPO on rows with ``prompt_ids``, ``chosen_ids`` and ``rejected_ids``."""


class JudgedTrainer(_Preferences, KTOTrainer):
    """KTO on rows with ``prompt_ids``, ``completion_ids`` and ``label``."""

    def _prepare_dataset(
        self, dataset: datasets.Dataset, processing_class: Any, args: KTOConfig, dataset_name: str
    ) -> datasets.Dataset:
        """With TRL's pairs for the KL: in each batch, every prompt beside the answer of the row before it."""
        if dataset_name == "train":
            _check_balance(sum(dataset["label"]), len(dataset), args)
        if not self.calculate_KL:
            return dataset
        answers: list[list[int]] = dataset["completion_ids"][:]
        size = args.per_device_train_batch_size
        batches = (answers[start : start + size] for start in range(0, len(answers), size))
        return dataset.add_column("KL_completion_ids", [ids for batch in batches for ids in batch[-1:] + batch[:-1]])


def _check_balance(desirable: int, answers: int, args: KTOConfig) -> None:
    """Warn where there are more labels of one kind and the weights do not make up for it, by Eq. 8 of KTO's paper.

    TRL's own preparation, which is left out here, does the same (https://arxiv.org/abs/2402.01306).
    """
    weight, other = desirable * args.desirable_weight, (answers - desirable) * args.undesirable_weight
    if 0 < desirable != answers - desirable > 0 and not 0.999 < weight / other < 1.34:
        warnings.warn(
            f"{desirable:,} of {answers:,} answers are desirable. KTO is best where desirable answers weigh 1 to 4/3 "
            f"times as much as the others in sum: --desirable-weight {other / desirable:.2g}.",
            stacklevel=2,
        )
