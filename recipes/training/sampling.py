"""The order of training examples: those of one length together, the same in every run of a seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler


class LengthGrouping(Trainer):
    """A trainer whose ``group_by_length`` has an order of seed and epoch alone. Mix it in before the trainer."""

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int] | None:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        args, processes = self.args, self.accelerator.num_processes
        return GroupedByLength(
            args.train_batch_size * args.gradient_accumulation_steps * processes,
            [len(ids) for ids in rows["input_ids"]],
            args.seed if args.data_seed is None else args.data_seed,
        )


class GroupedByLength(LengthGroupedSampler):
    """transformers' sampler, whose order follows from seed and epoch alone.

    As it comes, it draws from torch's global generator: a resumed run would see other batches than one that was not
    stopped.

    Args:
        batch_size: examples of an optimizer step, over all processes: so the order does not depend on how many there
            are, nor on how a step is divided.
        lengths: of all examples, in tokens.
        seed: of the order.
    """

    def __init__(self, batch_size: int, lengths: Sequence[int], seed: int) -> None:
        super().__init__(batch_size, lengths=list(lengths), generator=torch.Generator())
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate when an epoch begins."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        mixed = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)
        self.generator.manual_seed(int(mixed[0]))
        return super().__iter__()
