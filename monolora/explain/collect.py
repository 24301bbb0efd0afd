"""One pass of a model over texts, in which everything about its units is counted.

Memory does not depend on how many texts or tokens there are: sums, histograms and the strongest texts are kept.

Shapes: B texts of a batch, L tokens of each, T counted tokens of a batch, U units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch

from monolora.errors import InputError
from monolora.explain.collected import Collected, Collector
from monolora.explain.layout import Layout
from monolora.explain.output_norms import OutputNorms
from monolora.explain.texts import Text
from monolora.units import inner_model, watch

__all__ = ["Collected", "Collector", "collect"]

_WINDOW = 32  # batches whose texts are sorted by length, so that little is padding
_NORM_TOKENS = 4096  # over so many tokens, or a few more, the norms of the base layers' outputs are measured


@torch.inference_mode()
def collect(
    model: Any,
    texts: Iterable[Text],
    *,
    groups: int = 0,
    pad_token_id: int,
    batch_size: int = 16,
    contexts: int = 20,
    adapter: str = "default",
    step: Callable[[int], None] = lambda texts: None,
) -> Collected:
    """Run a model over texts and count what its units do.

    Args:
        model: a causal language model with MonoLoRA or LoRA layers, wrapped in a ``PeftModel`` or not, in evaluation
            mode.
        texts: any number of them; they are read once, a few batches ahead.
        groups: how many labels there are; ``Text.group`` is below it.
        pad_token_id: for the ends of shorter texts.
        batch_size: texts at a time.
        contexts: how many of the strongest contexts of each unit are kept.
        adapter: its name in the model; it must be active.
        step: called with the number of texts after each batch.

    Raises:
        InputError: if the model has no units, there are no texts, or a unit is not finite (with its module).
        ValueError: if a module sees other rows than the tokens of the batch, as a routed expert does.
    """
    layout = Layout.of(model, adapter)
    inner: Any = inner_model(model)
    device = inner.device
    vocabulary = inner.get_input_embeddings().weight.shape[0]
    collector = Collector(layout, groups, vocabulary, contexts, device)
    norms = OutputNorms(layout)
    seen = _Seen(layout)
    with seen.watching():
        for batch in batches(texts, batch_size):
            ids_BL, length_B = padded_batch(batch, pad_token_id, device)
            place_L = torch.arange(ids_BL.shape[1], device=device)
            mask_BL = place_L < length_B[:, None]
            start_B = torch.tensor([text.start for text in batch], device=device)
            stop_B = torch.tensor([text.stop for text in batch], device=device)
            counted_BL = mask_BL & (place_L >= start_B[:, None]) & (place_L < stop_B[:, None])
            with norms.measuring(counted_BL) if norms.tokens < _NORM_TOKENS else norms.resting():
                model(input_ids=ids_BL, attention_mask=mask_BL.long(), logits_to_keep=1, use_cache=False)
            collector.add(seen.take(ids_BL.shape), ids_BL, counted_BL, length_B, batch)
            step(len(batch))
    if collector.texts == 0:
        raise InputError("There are no texts to read the units on.")
    return collector.finish(norms.mean())


def batches(texts: Iterable[Text], batch_size: int) -> Iterator[list[Text]]:
    """Texts of similar length side by side; the longest of a window first."""
    stream = iter(texts)
    while window := list(islice(stream, batch_size * _WINDOW)):
        window.sort(key=lambda text: -len(text.ids))
        for start in range(0, len(window), batch_size):
            yield window[start : start + batch_size]


def padded_batch(batch: Sequence[Text], pad_token_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, padded on the right, ``(B, L)``, and lengths, ``(B,)``."""
    lengths = torch.tensor([len(text.ids) for text in batch])
    ids = torch.full((len(batch), int(lengths.max())), pad_token_id)
    for row, text in enumerate(batch):
        ids[row, : len(text.ids)] = torch.tensor(text.ids)
    return ids.to(device), lengths.to(device)


class _Seen:
    """The units of one forward, module by module."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._names = {layer: name for name, layer in layout.layers.items()}
        self._of_module: dict[str, torch.Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """In the ``with`` block, the units are seen."""
        ends = watch(self._names, self._see)
        try:
            yield
        finally:
            for end in ends:
                end()

    def _see(self, layer: Any, adapter: str, h: torch.Tensor) -> None:
        if adapter == self._layout.adapter:
            self._of_module[self._names[layer]] = h

    def take(self, shape: torch.Size) -> torch.Tensor:
        """The units of all modules side by side, float32 ``(B, L, U)``; they are forgotten here."""
        parts = []
        for name, rank in self._layout.ranks.items():
            if name not in self._of_module:
                raise ValueError(f"{name} was not run: is the adapter {self._layout.adapter!r} active?")
            h = self._of_module[name]
            if h.numel() != shape.numel() * rank:
                raise ValueError(f"{name} sees rows of its own, not the tokens of the batch; its units are no tokens'.")
            parts.append(h.reshape(*shape, rank))
        self._of_module = {}
        return torch.cat([part.to(parts[0].device) for part in parts], -1).float()
