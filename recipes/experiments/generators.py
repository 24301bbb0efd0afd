"""Random numbers that depend on what they are for, and on nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def generator_of(seed: Sequence[int]) -> torch.Generator:
    """A generator on the CPU whose numbers depend on all of ``seed``, its order included."""
    mixed = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0]) >> 1)
