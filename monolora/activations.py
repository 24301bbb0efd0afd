"""The activation between A and B: its names, and what each computes.

``relu`` is MonoLoRA as published (paper, eq. 5). ``identity`` turns the adapter into plain LoRA: the
control in every comparison. ``softplus`` is smooth and never exactly zero; ``topk:<k>`` keeps the k
largest positive units of each token.
"""

from __future__ import annotations

import difflib
import re

import torch
import torch.nn.functional as F

ACTIVATIONS = ("relu", "identity", "softplus", "topk:<k>")


def check_activation(name: str) -> str:
    """Return ``name`` if it names an activation.

    Raises:
        ValueError: if it does not; the message lists the choices and the nearest one.
    """
    if name in ("relu", "identity", "softplus") or topk_of(name) is not None:
        return name
    near = difflib.get_close_matches(str(name), ("relu", "identity", "softplus", "topk:4"), n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"Unknown activation {name!r}; choose one of {', '.join(ACTIVATIONS)} (k at least 1).{hint}")


def topk_of(name: str) -> int | None:
    """The k of ``"topk:<k>"``, or None for every other activation."""
    match = re.fullmatch(r"topk:([1-9]\d*)", str(name))
    return int(match.group(1)) if match else None


def activate(z: torch.Tensor, name: str, dim: int = -1) -> torch.Tensor:
    """Hidden units from pre-activations.

    Args:
        z: pre-activations ``A x``, units along ``dim``, any other shape.
        name: a checked activation name.
        dim: the dimension of the units; only ``topk`` looks at it.

    Returns:
        A tensor of the shape of ``z``. Under ``relu`` and ``topk`` it is non-negative.
    """
    if name == "relu":
        return F.relu(z)
    if name == "identity":
        return z
    if name == "softplus":
        return F.softplus(z)
    k = topk_of(name)
    if k is None:
        raise ValueError(f"Unknown activation {name!r}; choose one of {', '.join(ACTIVATIONS)}.")
    h = F.relu(z)
    if k >= z.shape[dim]:
        return h
    largest = h.topk(k, dim=dim).indices
    return torch.zeros_like(h).scatter(dim, largest, h.gather(dim, largest))
