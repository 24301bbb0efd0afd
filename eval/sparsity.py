"""Sparsity of adapters on given prompts, by transformers (paper, table 2: alignment and task sparsity)."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from peft.tuners.lora.layer import LoraLayer

from monolora.adapters import load_adapted
from monolora.inference import Inference


def measured(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Measure adapters one after the other.

    Args:
        job: ``jobs``, each with ``key``, ``model`` (folder of the base), ``adapter`` (folder), ``identity`` and
            ``token_ids`` of the prompts; ``dtype``; ``batch_size``.

    Yields:
        Fields of a ``Measurement``. An adapter that is neither LoRA nor MonoLoRA has no units: its values are empty.
    """
    by_adapter = sorted(job["jobs"], key=lambda each: (each["model"], each["adapter"]))
    for (base, folder), group in groupby(by_adapter, key=lambda each: (each["model"], each["adapter"])):
        model, tokenizer = load_adapted(folder, base, dtype=job["dtype"])
        has_units = any(isinstance(module, LoraLayer) for module in model.modules())
        inference = Inference(model=model, tokenizer=tokenizer, batch_size=job["batch_size"])
        for each in group:
            values = inference.sparsity(each["token_ids"])._asdict() if has_units else {}
            yield {"key": each["key"], "kind": "sparsity", "model": each["identity"], "values": values}
        del model, inference
        gc.collect()
