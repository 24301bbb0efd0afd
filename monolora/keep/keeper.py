"""The interface of a method that keeps the base's behaviour on anchors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import datasets
import torch
from transformers import PreTrainedTokenizerBase

from monolora.keep.anchors import Anchors


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What a keeper is prepared from.

    Attributes:
        model: the model that will be trained, before its first step; a new adapter is the identity still.
        tokenizer: its tokenizer, with a padding token.
        anchors: prompts with the base's own answers; keepers learn from ``anchors.train`` only.
        task_rows: the tokenized training rows, with ``input_ids`` and ``labels``.
        seed: of the run; a keeper draws from generators seeded with it and nothing else, so that a resumed run is the
            uninterrupted one.
        batch_size: anchors in a forward pass.
        tokens: anchor tokens whose activations are stored, at most.
        first_tokens: how many tokens of each answer count; None for all.
        base: the base's key, for caches (:func:`monolora.keep.anchors.base_key`).
        is_trained: whether the adapter was trained before, so that no keeper may initialise it.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    anchors: Anchors
    task_rows: datasets.Dataset
    seed: int
    batch_size: int
    tokens: int
    first_tokens: int | None
    base: str
    is_trained: bool = False


class Keeper:
    """A method that keeps the base's behaviour on anchors. Subclasses override what they need.

    Args:
        weight: of the method's loss beside the task's, or what else it scales; see the subclass.

    Attributes:
        name: the word after ``--keep``.
        default_weight: without one on the command line.
        needs_adapter: whether it works on an adapter's units, and not for full finetuning.
        metrics: scalars of the last :meth:`loss`, to be logged beside it as ``keep_<name>``.
    """

    name: ClassVar[str]
    default_weight: ClassVar[float]
    needs_adapter: ClassVar[bool] = False

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.metrics: dict[str, torch.Tensor] = {}

    def rows(self, anchors: Anchors, task_rows: int, seed: int) -> Sequence[Mapping[str, list[int]]]:
        """Rows to train on beside the task's, with ``input_ids`` and ``labels``.

        Args:
            anchors: prompts and the base's answers.
            task_rows: number of the task's rows.
            seed: of the run.
        """
        return ()

    def prepare(self, preparation: Preparation) -> None:
        """Measure the base on the anchors, and initialise a new adapter if the method does.

        Raises:
            InputError: if the method cannot work with this model, adapter or data.
        """

    def loss(self, model: Any, step: int) -> torch.Tensor | None:
        """The weighted loss of an optimizer step, a scalar to be added to the task's; None for none.

        Args:
            model: as the trainer calls it, wrapped by DDP or FSDP or not.
            step: number of the optimizer step, from 0.
        """
        return None

    def report(self) -> dict[str, Any]:
        """After training, what the run's record says of preparation and result: numbers and short texts, in JSON."""
        return {}
