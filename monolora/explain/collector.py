"""One pass over the texts: every unit watched, and what each adds to its layer's output measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import nn

from monolora.errors import InputError
from monolora.explain.contexts import Text
from monolora.explain.unit_statistics import Collected, Collector
from monolora.units import Layout, inner_model, input_device, not_of_tokens, watch

TOKENS = 4096  # over so many, or some more, the norms are measured
_FEWEST = 8  # batches of a window that are measured, if it has them: of the longest texts, the shortest and between


class OutputNorms:
    """Mean norm ``‖W x‖`` of each module's base layer over counted tokens.

    A hook on a base layer takes a MonoLoRA layer off its fused path, so that only some batches are measured. Texts come
    in windows, sorted by length. The norms are over batches at even distances of the first window, and of those after
    it until there are 4,096 tokens: of short texts and of long ones. Of a data set with fewer tokens, all are measured.
    """

    def __init__(self, layout: Layout) -> None:
        self._layers: dict[str, Any] = dict(layout.layers)
        self._ranks = layout.ranks
        self._sums: dict[str, float] = dict.fromkeys(layout.layers, 0.0)
        self.tokens = 0

    def batches(self, tokens: Sequence[int]) -> set[int]:
        """Indices of the batches of a window to measure; none once there are enough tokens.

        Args:
            tokens: counted ones of each batch.
        """
        missing, count = TOKENS - self.tokens, len(tokens)
        if missing <= 0:
            return set()
        number = min(count, max(_FEWEST, math.ceil(count * missing / sum(tokens))))
        return {(2 * i + 1) * count // (2 * number) for i in range(number)}

    @contextmanager
    def measuring(self, counted_BL: torch.Tensor) -> Iterator[None]:
        """Measure the forwards of the ``with`` block, whose tokens are these.

        Raises:
            InputError: in the block, if a module sees other rows than the tokens (with its name).
        """
        handles = [
            layer.base_layer.register_forward_hook(partial(self._add, name, counted_BL))
            for name, layer in self._layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self.tokens += int(counted_BL.sum())

    def _add(self, name: str, counted_BL: torch.Tensor, module: nn.Module, args: Any, output: torch.Tensor) -> None:
        norms = torch.linalg.vector_norm(output.float(), dim=-1)
        if norms.numel() != counted_BL.numel():
            raise not_of_tokens(name)
        norm_BL = norms.reshape(counted_BL.shape)
        self._sums[name] += float(norm_BL[counted_BL.to(norm_BL.device)].sum(dtype=torch.float64))

    def check_finite(self) -> None:
        """Refuse outputs that are not finite; they may only follow from units that are not, so look at these first.

        Raises:
            InputError: if an output was not finite on a counted token (with its module).
        """
        for name, norm in self._sums.items():
            if not math.isfinite(norm):
                raise InputError(
                    f"The outputs of {name} are not finite even without the adapter: they overflow the number format, "
                    "or the base model is broken. Try --dtype float32."
                )

    def mean(self) -> torch.Tensor:
        """Of every unit's module, float64 ``(U,)``."""
        by_unit = [self._sums[name] / self.tokens for name, rank in self._ranks.items() for _ in range(rank)]
        return torch.tensor(by_unit, dtype=torch.float64)


_WINDOW = 32  # batches whose texts are sorted by length, so that little is padding


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

    Units of an embedding and of the head are read like others, though those of an embedding cannot be ablated. For an
    adapted head, the logits of all tokens are made.

    Args:
        model: a causal language model with MonoLoRA or LoRA layers, wrapped in a ``PeftModel`` or not, in evaluation
            mode.
        texts: any number of them; they are read once, a few batches ahead. Some token of each counts.
        groups: how many labels there are; ``Text.group`` is below it.
        pad_token_id: for the ends of shorter texts.
        batch_size: texts at a time.
        contexts: how many of the strongest contexts of each unit are kept.
        adapter: its name in the model; it must be active.
        step: called with the number of texts after each batch.

    Raises:
        InputError: if the model has no units, there are no texts, or a text has no token that counts (with its number);
            with the module, if its units are never computed, are no tokens' (of a routed expert), or are not finite.
    """
    layout = Layout.of(model, adapter)
    inner: Any = inner_model(model)
    device = input_device(inner)
    collector = Collector(layout, groups, inner.get_input_embeddings().weight.shape[0], contexts, device)
    norms = OutputNorms(layout)
    seen = _Seen(layout)
    logits_to_keep = _logits_to_keep(inner, layout)
    with seen.watching():
        for window in windows(texts, batch_size):
            measured = norms.batches([sum(len(text.counted) for text in batch) for batch in window])
            for index, batch in enumerate(window):
                ids_BL, length_B = padded_batch(batch, pad_token_id, device)
                mask_BL = torch.arange(ids_BL.shape[1], device=device) < length_B[:, None]
                counted_BL = _counted(batch, ids_BL)
                with norms.measuring(counted_BL) if index in measured else nullcontext():
                    model(
                        input_ids=ids_BL,
                        attention_mask=mask_BL.long(),
                        logits_to_keep=logits_to_keep,
                        use_cache=False,
                    )
                collector.add(seen.take(ids_BL), ids_BL, counted_BL, length_B, batch)
                norms.check_finite()
                step(len(batch))
    if collector.texts == 0:
        raise InputError("There are no texts to read the units on.")
    return collector.finish(norms.mean())


def _logits_to_keep(inner: Any, layout: Layout) -> int:
    """As few logits as are made for all units to be computed; 0 stands for those of all tokens."""
    return 0 if inner.get_output_embeddings() in layout.layers.values() else 1


class TextUnits(NamedTuple):
    """The units of an adapter on one text.

    Attributes:
        h_LU: activations, float32, on the CPU.
        effect_U: as in :class:`monolora.explain.Collected`, over the counted tokens of this text alone.
    """

    h_LU: torch.Tensor
    effect_U: torch.Tensor


@torch.inference_mode()
def text_units(model: Any, text: Text, adapter: str = "default") -> TextUnits:
    """Run a model over one text and read its units, token by token.

    Args:
        model: as for :func:`collect`.
        text: some token of it counts.
        adapter: its name in the model; it must be active.

    Raises:
        InputError: as :func:`collect`.
    """
    layout = Layout.of(model, adapter)
    seen, norms = _Seen(layout), OutputNorms(layout)
    ids_1L, _ = padded_batch([_checked(text)], 0, input_device(model))
    counted_1L = _counted([text], ids_1L)
    with seen.watching(), norms.measuring(counted_1L):
        model(input_ids=ids_1L, logits_to_keep=_logits_to_keep(inner_model(model), layout), use_cache=False)
    norms.check_finite()
    h_LU = seen.take(ids_1L)[0].cpu()
    size_U = h_LU[counted_1L[0].cpu()].abs().mean(0)
    return TextUnits(h_LU, layout.output_direction_norms() * size_U / norms.mean().float())


@torch.inference_mode()
def units_by_text(
    model: Any, texts: Iterable[Text], layouts: Sequence[Layout], *, pad_token_id: int, batch_size: int = 16
) -> Iterator[tuple[Text, list[torch.Tensor]]]:
    """The units of several adapters on each text, which a model runs with all of them active.

    Args:
        model: as for :func:`collect`.
        texts: read a few batches ahead; of these, the longest come first.
        layouts: of adapters that are active.
        pad_token_id: for the ends of shorter texts.
        batch_size: texts at a time.

    Yields:
        The text, and for each layout the activations on its counted tokens, float32 ``(T, U)``, on the CPU.

    Raises:
        InputError: as :func:`collect`, but units that are not finite are yielded.
    """
    all_seen = [_Seen(layout) for layout in layouts]
    logits_to_keep = min(_logits_to_keep(inner_model(model), layout) for layout in layouts)
    device = input_device(model)
    with ExitStack() as watching:
        for seen in all_seen:
            watching.enter_context(seen.watching())
        for batch in (batch for window in windows(texts, batch_size) for batch in window):
            ids_BL, length_B = padded_batch(batch, pad_token_id, device)
            mask_BL = torch.arange(ids_BL.shape[1], device=device) < length_B[:, None]
            model(input_ids=ids_BL, attention_mask=mask_BL.long(), logits_to_keep=logits_to_keep, use_cache=False)
            all_h_BLU = [seen.take(ids_BL) for seen in all_seen]
            for row, text in enumerate(batch):
                counted = slice(text.counted.start, text.counted.stop)
                yield text, [h_BLU[row, counted].cpu() for h_BLU in all_h_BLU]


def windows(texts: Iterable[Text], batch_size: int) -> Iterator[list[list[Text]]]:
    """Batches of texts of similar length, some batches at a time; the longest texts of these come first.

    Raises:
        InputError: for a text without any token that counts.
    """
    stream = map(_checked, texts)
    while window := list(islice(stream, batch_size * _WINDOW)):
        window.sort(key=lambda text: -len(text.ids))
        yield [window[start : start + batch_size] for start in range(0, len(window), batch_size)]


def _checked(text: Text) -> Text:
    if not text.counted:
        raise InputError(
            f"Text {text.number} has no token that counts: it has {len(text.ids)} tokens, of which those from "
            f"{text.start} up to {text.stop} would. Leave it out, or let more of it count."
        )
    return text


def padded_batch(batch: Sequence[Text], pad_token_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, padded on the right, ``(B, L)``, and lengths, ``(B,)``."""
    lengths = torch.tensor([len(text.ids) for text in batch])
    ids = torch.full((len(batch), int(lengths.max())), pad_token_id)
    for row, text in enumerate(batch):
        ids[row, : len(text.ids)] = torch.tensor(text.ids)
    return ids.to(device), lengths.to(device)


def _counted(batch: Sequence[Text], ids_BL: torch.Tensor) -> torch.Tensor:
    """Which tokens count, ``(B, L)``."""
    place_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
    start_B1 = torch.tensor([[text.counted.start] for text in batch], device=ids_BL.device)
    stop_B1 = torch.tensor([[text.counted.stop] for text in batch], device=ids_BL.device)
    return (place_L >= start_B1) & (place_L < stop_B1)


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

    def take(self, ids_BL: torch.Tensor) -> torch.Tensor:
        """The units of all modules side by side, float32 ``(B, L, U)``, where the ids are; they are forgotten here."""
        parts = []
        for name, rank in self._layout.ranks.items():
            if name not in self._of_module:
                raise InputError(
                    f"{name} was not run, or not its adapter {self._layout.adapter!r}: activate it, unmerge it, or, if "
                    "the module sees no text (as an image encoder does), train an adapter on other modules."
                )
            h = self._of_module[name]
            if h.numel() != ids_BL.numel() * rank:
                raise not_of_tokens(name)
            parts.append(h.reshape(*ids_BL.shape, rank).to(ids_BL.device))
        self._of_module = {}
        return torch.cat(parts, -1).float()
