"""The order of training rows: grouped by length, from seed and epoch alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices


class LengthGrouping(Trainer):
    """A trainer whose ``group_by_length`` has an order of seed and epoch alone. Mix it in before the trainer."""

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int] | None:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        args, processes = self.args, self.accelerator.num_processes
        return GroupedByLength(
            args.train_batch_size * args.gradient_accumulation_steps * processes,
            self.row_lengths(rows),
            args.seed if args.data_seed is None else args.data_seed,
        )

    def row_lengths(self, rows: Any) -> list[int]:
        """Tokens of each row."""
        return [len(ids) for ids in rows["input_ids"]]


class GroupedByLength(LengthGroupedSampler):
    """transformers' batches of rows of one length, in an order of their own and of seed and epoch alone.

    Unmodified, the sampler goes from long rows to short ones four times or more an epoch. In a mixture whose parts
    differ in length (replayed answers beside labels, refusals beside answers), the last steps would be of one part
    alone. It also draws from torch's global generator, so that a resumed run would see other batches than an
    uninterrupted one.

    The longest row is in the first batch, so that memory runs out there or never. The rows that fill no batch come
    last, and are of any length.

    Args:
        batch_size: examples of an optimizer step over all processes, so that the order depends neither on their number
            nor on how a step is divided.
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
        longest = max(range(len(self.lengths)), key=self.lengths.__getitem__)
        order = [longest, *(row for row in self._permutation(len(self.lengths)) if row != longest)]
        whole = len(order) // self.batch_size
        rows, rest = order[: whole * self.batch_size], order[whole * self.batch_size :]
        if whole:
            lengths = [self.lengths[row] for row in rows]
            grouped = get_length_grouped_indices(lengths, self.batch_size, generator=self.generator)
            for batch in (0, *(1 + later for later in self._permutation(whole - 1))):
                yield from (rows[at] for at in grouped[batch * self.batch_size : (batch + 1) * self.batch_size])
        yield from rest

    def _permutation(self, number: int) -> list[int]:
        return torch.randperm(number, generator=self.generator).tolist()
