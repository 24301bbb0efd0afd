"""Reports of merges, with made-up numbers."""

from __future__ import annotations

from typing import Any

import torch

from monolora.merge.verify import Comparison, TokenComparison
from monolora.recipes import merge_report

Q, V = "model.layers.0.self_attn.q_proj", "model.layers.11.mlp.down_proj"
SCORES = {"n": 3, "accuracy": 2 / 3, "unparsed": 1, "likelihood_accuracy": 1.0}
TASK = {"name": "sst2", "n": 3, "base": SCORES, "adapter": SCORES, "merged": SCORES, "same_answers": 2}
MERGE = {
    "adapters": ["runs/a"], "weights": [1.0], "model": "some/base", "method": "linear", "form": "dense",
    "calibration": {"dataset": None, "tokens": 100}, "maps": {Q: {"ridge": 1e-3}},
}  # fmt: skip


def _comparison(merged: list[float], base: list[float], **modules: tuple[float, float]) -> Comparison:
    """KLs a token, and of each module what was missed and its size, squared."""
    tokens = TokenComparison(
        torch.tensor(merged), torch.tensor(base), torch.tensor(merged) < 0.1, torch.tensor(base) < 0.1
    )
    names = {name.replace("__", "."): value for name, value in modules.items()}
    return Comparison(tokens, {name: v[0] for name, v in names.items()}, {name: v[1] for name, v in names.items()})


def report(
    modules: dict[str, float] | None = None,
    task: Any = TASK,
    least: float = 0.5,
    texts: int = 2,
    anchors: tuple[float, float] | None = None,
    **merge: Any,
) -> dict[str, Any]:
    """A report on one or two texts; of anchors, KL to merge and base."""
    errors = {Q: 0.5, V: 0.25} if modules is None else modules
    sums = {name.replace(".", "__"): (error**2, 1.0) for name, error in errors.items()}
    compared = {"sst2": _comparison([0.1, 0.0, 0.2], [1.0, 0.0, 2.0], **sums)}
    if texts == 2:
        compared["dolly"] = _comparison([0.5], [0.5], **sums)
    on_anchors = None if anchors is None else _comparison([anchors[0]] * 3, [anchors[1]] * 3, **sums)
    return merge_report.make(compared, task, MERGE | merge, least, on_anchors)
