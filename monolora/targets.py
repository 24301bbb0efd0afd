"""Names of the modules that an adapter can target, for messages about patterns that match nothing."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

_KINDS = (nn.Linear, Conv1D, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def target_names(model: nn.Module) -> list[str]:
    """Last name parts of the model's linear, convolution and embedding modules, sorted, each once."""
    adapted = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))
    return sorted(
        {
            name.rpartition(".")[-1]
            for name, module in model.named_modules()
            if name and isinstance(module, (*_KINDS, BaseTunerLayer)) and not name.startswith(adapted)
        }
    )


def module_names(model: nn.Module) -> list[str]:
    """Names of all modules, without what is inside of layers that are adapted already."""
    adapted = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))
    return [name for name, _ in model.named_modules() if name and not name.startswith(adapted)]


def near_misses(model: nn.Module, targets: str | Iterable[str] | None) -> str:
    """A sentence with the module names nearest to ``targets``, or all of them; empty where the model has none."""
    names = target_names(model)
    wanted = [targets] if isinstance(targets, str) else sorted(targets or [])
    near = list(dict.fromkeys(match for want in wanted for match in difflib.get_close_matches(want, names, n=3)))
    if near:
        return f"Nearest module names: {', '.join(near)}."
    return f"Module names in this model: {', '.join(names)}." if names else ""
