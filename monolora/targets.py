"""Names of the modules that an adapter can target, for messages about patterns that match nothing."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from torch import nn


def target_names(model: nn.Module) -> list[str]:
    """Last name parts of the model's linear, convolution and embedding modules, sorted, each once."""
    kinds = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, kinds)}
    return sorted(names - {""})


def near_misses(model: nn.Module, targets: str | Iterable[str] | None) -> str:
    """A sentence with the module names nearest to ``targets``, or all of them; empty where the model has none."""
    names = target_names(model)
    wanted = [targets] if isinstance(targets, str) else sorted(targets or [])
    near = list(dict.fromkeys(match for want in wanted for match in difflib.get_close_matches(want, names, n=3)))
    if near:
        return f"Nearest module names: {', '.join(near)}."
    return f"Module names in this model: {', '.join(names)}." if names else ""
