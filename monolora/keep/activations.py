"""The inputs of adapted modules on given tokens, recorded from the base.

While an adapter's units are silent on a token, the model is the base there, so its inputs stay what they were: they
are recorded once, and training needs no forward pass over the anchors.

Shapes: N tokens recorded, I inputs of a module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import psutil
import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import LoraLayer

from monolora.data.chat_template import IGNORED
from monolora.errors import InputError
from monolora.inference import MAX_POSITIONS, evaluating, padded
from monolora.terminal import track
from monolora.units import input_device

FEWEST_TOKENS = 512  # fewer say too little of where units must be silent
BATCH_TOKENS = 16_384  # of a forward pass, padding included
_SHARE = 0.5  # of the free memory, at most


class Activations(NamedTuple):
    """Inputs of modules, each shared by the modules that read the same hidden states.

    Attributes:
        inputs: ``(N, I)`` by the first module that reads them; rows in one random order.
        source: of each module, the key of its inputs.
        gradients: of each module, ``(N,)``: the norm of the loss's gradient in its output; empty without labels.
    """

    inputs: dict[str, torch.Tensor]
    source: dict[str, str]
    gradients: dict[str, torch.Tensor]

    def of(self, module: str) -> torch.Tensor:
        """The inputs of a module, ``(N, I)``."""
        return self.inputs[self.source[module]]


class TokenChoice(NamedTuple):
    """Tokens to record.

    Attributes:
        sequences: token ids.
        positions: in each sequence, in their order.
        labels: of each sequence, as for training, where gradients are recorded too.
    """

    sequences: list[list[int]]
    positions: list[torch.Tensor]
    labels: list[list[int]] | None = None

    @property
    def number(self) -> int:
        """Of tokens."""
        return sum(map(len, self.positions))


def choose_tokens(
    sequences: Sequence[list[int]],
    first: int,
    most: int,
    seed: int,
    with_prefix: bool = True,
    labels: Sequence[list[int]] | None = None,
) -> TokenChoice:
    """Random tokens of the sequences.

    Tokens before ``first`` are the same in all sequences, and so are their activations: they are taken from every
    sixteenth sequence only.

    Args:
        sequences: token ids.
        first: length of what all sequences begin with.
        with_prefix: whether these tokens are taken at all.
        most: how many tokens, at most.
        seed: of the choice.
        labels: of the sequences, where gradients are to be recorded too.
    """
    masks = [torch.zeros(len(ids), dtype=torch.bool) for ids in sequences]
    for index, mask in enumerate(masks):
        mask[0 if with_prefix and index % 16 == 0 else first :] = True
    flat = torch.cat(masks).nonzero().flatten()
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(sum(map(len, masks)), dtype=torch.bool)
    chosen[flat[torch.randperm(len(flat), generator=generator)[:most]]] = True
    positions = [part.nonzero().flatten() for part in chosen.split([len(mask) for mask in masks])]
    kept = [index for index, position in enumerate(positions) if len(position)]
    return TokenChoice(
        [list(sequences[index]) for index in kept],
        [positions[index] for index in kept],
        None if labels is None else [list(labels[index]) for index in kept],
    )


class _Recorder:
    """Hooks that copy the inputs of modules at chosen positions, and the norms of the gradients in their outputs."""

    def __init__(self, layers: Mapping[LoraLayer, str], number: int, device: torch.device | str, seed: int) -> None:
        self._layers, self._number, self._device = layers, number, device
        self._order = torch.randperm(number, generator=torch.Generator().manual_seed(seed))
        self.last: tuple[str, torch.Tensor] | None = None
        self.rows = torch.empty(0, dtype=torch.long)  # of the flattened batch
        self.at = 0  # tokens recorded before this batch
        self.activations = Activations({}, {}, {})

    def gradients(self, layer: Any, args: tuple[Any, ...], output: torch.Tensor) -> None:
        """A forward hook."""
        norms = self.activations.gradients.setdefault(self._layers[layer], torch.zeros(self._number))
        rows, places = self.rows, self._order[self.at : self.at + len(self.rows)]

        def keep(gradient: torch.Tensor) -> None:
            norms[places] = gradient.flatten(0, 1)[rows.to(gradient.device)].float().norm(dim=-1).cpu()

        output.register_hook(keep)

    def inputs(self, layer: Any, args: tuple[Any, ...]) -> None:
        name, x = self._layers[layer], args[0].detach()
        inputs, source, _ = self.activations
        if self.last is None or self.last[1] is not args[0]:  # q, k and v read one tensor, and come in turn
            self.last = (name, args[0])
        first = source.setdefault(name, self.last[0])
        if first != name:
            return
        if not x.is_floating_point() or x.dim() != 3:
            raise InputError(
                f"--keep silence: {name} is no linear layer over tokens, so its inputs cannot be recorded. Leave it "
                "out of --lora-target-modules."
            )
        if name not in inputs:
            inputs[name] = torch.empty(self._number, x.shape[-1], dtype=x.dtype, device=self._device)
        rows = x.flatten(0, 1)[self.rows.to(x.device)]
        places = self._order[self.at : self.at + len(rows)]
        inputs[name][places.to(self._device)] = rows.to(self._device)


def record(
    model: Any,
    layers: Mapping[LoraLayer, str],
    tokens: TokenChoice,
    pad_token_id: int,
    batch_size: int,
    device: torch.device | str,
    seed: int = 0,
) -> Activations:
    """The inputs of adapted layers on chosen tokens; the adapter is the identity still.

    Args:
        model: with the adapter.
        layers: its adapted layers, with their names.
        tokens: what is recorded. With labels, gradients of the sum of their cross-entropies are recorded too.
        pad_token_id: any token; padding is masked.
        batch_size: sequences in a forward pass, at most.
        device: where the activations are kept.
        seed: of the order of the rows.

    Raises:
        InputError: for a layer that is not linear over tokens, or one that the model does not call on each.
    """
    recorder, with_gradients = _Recorder(layers, tokens.number, device, seed), tokens.labels is not None
    most = MAX_POSITIONS if with_gradients else BATCH_TOKENS  # a gradient needs logits, and what is between
    batches = _batches([len(ids) for ids in tokens.sequences], batch_size, most)
    where = input_device(model)
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad() if with_gradients else torch.inference_mode())
        stack.enter_context(evaluating(model))
        for layer in layers:
            assert isinstance(layer, torch.nn.Module)
            stack.callback(layer.register_forward_pre_hook(recorder.inputs).remove)
            if with_gradients:
                stack.callback(layer.register_forward_hook(recorder.gradients).remove)
        for batch in track(batches, description="Recording the base's activations"):
            ids, mask = padded([tokens.sequences[index] for index in batch], pad_token_id, left=False)
            width = ids.shape[1]
            recorder.rows = torch.cat([tokens.positions[index] + row * width for row, index in enumerate(batch)])
            labels = None
            if tokens.labels is not None:
                labels = torch.full_like(ids, IGNORED)
                for row, index in enumerate(batch):
                    labels[row, : len(tokens.labels[index])] = torch.tensor(tokens.labels[index])
            _run(model, ids.to(where), mask.to(where), labels)
            recorder.at += len(recorder.rows)
            recorder.last = None
    uncalled = set(layers.values()) - recorder.activations.source.keys()
    if uncalled:
        raise InputError(
            f"--keep silence: the model does not run {min(uncalled)} on these tokens, so nothing says where its units "
            "must be silent. Leave it out of --lora-target-modules."
        )
    return recorder.activations


def _run(model: Any, ids_BT: torch.Tensor, mask_BT: torch.Tensor, labels_BT: torch.Tensor | None) -> None:
    """Forward and, with labels, backward; no parameter keeps a gradient."""
    next_BT = torch.full_like(ids_BT, IGNORED)[:, 1:] if labels_BT is None else labels_BT[:, 1:]
    needed_K = (next_BT != IGNORED).any(0).nonzero().flatten()
    if not len(needed_K):
        model(input_ids=ids_BT, attention_mask=mask_BT, logits_to_keep=1, use_cache=False)
        return
    logits_BKV = model(
        input_ids=ids_BT, attention_mask=mask_BT, logits_to_keep=needed_K.to(ids_BT.device), use_cache=False
    ).logits
    targets_BK = next_BT[:, needed_K].to(logits_BKV.device)
    F.cross_entropy(logits_BKV.flatten(0, 1).float(), targets_BK.flatten(), reduction="sum").backward()
    model.zero_grad(set_to_none=True)


def _batches(lengths: Sequence[int], batch_size: int, most: int) -> list[list[int]]:
    """Indices of sequences of similar length, so many that padded they have at most ``most`` tokens."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        fits = batches and len(batches[-1]) < batch_size and (len(batches[-1]) + 1) * lengths[index] <= most
        if not fits:
            batches.append([])
        batches[-1].append(index)
    return batches


class Store(NamedTuple):
    """Where activations are kept, and of how many tokens.

    Attributes:
        tokens: number of tokens.
        bytes: of all inputs.
        device: the model's where they fit beside it, else the CPU.
    """

    tokens: int
    bytes: int
    device: torch.device


def plan_store(layers: Mapping[LoraLayer, str], dtype: torch.dtype, tokens: int, device: torch.device) -> Store:
    """A store in half of the free memory: on the device if all tokens fit there, else in the host's memory.

    Modules are counted as if none shared its inputs with another, so what is used is less.

    Args:
        layers: adapted layers.
        dtype: of their inputs.
        tokens: wanted number; fewer where they do not fit.
        device: of the model.

    Raises:
        InputError: if not even :data:`FEWEST_TOKENS` fit.
    """
    width = sum(int(layer.in_features or 0) for layer in layers)
    of_token = width * dtype.itemsize
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if tokens * of_token <= _SHARE * free:
            return Store(tokens, tokens * of_token, device)
    fitting = int(_SHARE * psutil.virtual_memory().available / of_token)
    if fitting < min(tokens, FEWEST_TOKENS):
        raise InputError(
            f"--keep silence: the inputs of {len(layers)} modules take {of_token:,} bytes a token, and half of the "
            f"free memory holds {fitting} tokens; {FEWEST_TOKENS} are needed. Adapt fewer modules "
            "(--lora-target-modules)."
        )
    number = min(tokens, fitting)
    return Store(number, number * of_token, torch.device("cpu"))
