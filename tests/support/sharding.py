"""FSDP2 and DeepSpeed in processes of a CPU, over gloo, which accelerate offers to accelerators only."""

from __future__ import annotations

import importlib
import os
from typing import Any

from accelerate.state import PartialState
from accelerate.utils import DistributedType


def allow_cpu() -> None:
    """To be called before a program begins: accelerate then takes the CPU for an accelerator."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    begin = PartialState.__init__

    def begin_as_accelerator(self: PartialState, cpu: bool = False, **options: Any) -> None:
        begin(self, **options)

    vars_of: Any = PartialState
    vars_of.__init__ = begin_as_accelerator
    vars_of._prepare_backend = lambda *args, **options: ("gloo", DistributedType.MULTI_GPU)
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":  # it would compile its reductions in shared memory
        vars(importlib.import_module("deepspeed.comm.torch"))["build_shm_op"] = lambda: None
