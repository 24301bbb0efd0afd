"""The order of the training examples: those of about one length together, so that little is padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from transformers.trainer_pt_utils import LengthGroupedSampler


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
