"""Running a model over many rows: greedy answers, log-probabilities, sparsity.

Shapes: B rows of a batch, K positions with logits, T tokens of an answer, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import gather_object
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from monolora.data.chat_template import Split
from monolora.shared_prefix import (
    SAVED,
    backbone,
    common_length,
    expanded_cache,
    is_sharded,
    shared_prefix,
    unsupported,
)
from monolora.sparsity import Sparsity, SparsityMeter
from monolora.terminal import track
from monolora.units import input_device

_T = TypeVar("_T")

# Positions whose logits are computed at a time: 1.2 GB in float32 for a vocabulary of 150,000 tokens.
MAX_POSITIONS = 2048

# In full, because a model's own generation config may set sampling and penalties.
GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 50,
}


def sampling(temperature: float, top_p: float) -> dict[str, Any]:
    """Options of ``generate`` for sampling; for the temperature 0 those of greedy decoding."""
    if temperature == 0:
        return GREEDY
    return GREEDY | {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}


@dataclass(frozen=True, kw_only=True)
class Inference:
    """Runs a model on rows of token ids. Several processes share the rows.

    The weights may be sharded over the processes (FSDP2, ZeRO-3). A forward pass then gathers those of a layer from all
    processes, so each of these methods makes the same number of passes in every process.

    Attributes:
        model: a causal language model, adapter and all.
        tokenizer: its tokenizer, with a padding token.
        batch_size: rows per batch and process.
        when: a word for the progress bars, such as "before".
        shows_progress: whether there are progress bars.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    batch_size: int
    when: str = ""
    shows_progress: bool = True

    def generate(self, prompts: Sequence[list[int]], max_new_tokens: int) -> list[str]:
        """A greedy answer per prompt, in the order of the prompts."""
        ids = self.generate_ids(prompts, max_new_tokens)
        return cast(list[str], self.tokenizer.batch_decode(ids, skip_special_tokens=True))

    @torch.no_grad()
    def generate_ids(self, prompts: Sequence[list[int]], max_new_tokens: int) -> list[list[int]]:
        """The tokens of a greedy answer per prompt, up to its end token and with it."""
        end = self.model.generation_config.eos_token_id
        ends = {*([end] if isinstance(end, int) else end or [])}

        def answers(batch: list[int]) -> list[list[int]]:
            rows, pad = [prompts[i] for i in batch], cast(int, self.tokenizer.pad_token_id)
            tokens_BN = generate(self.model, rows, pad, max_new_tokens=max_new_tokens, **GREEDY)
            return [until_end(row, ends) for row in tokens_BN.tolist()]

        return self._shared(answers, by_length(map(len, prompts), self.batch_size), "answers")

    @torch.no_grad()
    def next_token_log_probs(self, prompts: Sequence[list[int]], tokens: Sequence[list[int]]) -> list[list[float]]:
        """Log-probabilities, right after each prompt, of each of the row's ``tokens``."""

        def log_probs(batch: list[int]) -> list[list[float]]:
            ends = [[len(prompts[i]) - 1] for i in batch]
            rows_TV = self.log_probs_after([prompts[i] for i in batch], ends)
            return [row_TV[0, tokens[i]].tolist() for i, row_TV in zip(batch, rows_TV, strict=True)]

        return self._shared(log_probs, by_length(map(len, prompts), self.batch_size), "label likelihoods")

    @torch.no_grad()
    def answer_log_probs(self, splits: Sequence[Split], what: str) -> list[float]:
        """Sum of the log-probabilities of each answer's tokens after its context."""

        def log_probs(batch: list[int]) -> list[float]:
            rows_TV = self.answer_distributions([splits[i] for i in batch])
            answers = [torch.tensor(splits[i].answer, dtype=torch.long, device=rows_TV[0].device) for i in batch]
            return [
                float(row_TV.gather(-1, answer_T[:, None]).sum())
                for answer_T, row_TV in zip(answers, rows_TV, strict=True)
            ]

        return self._shared(log_probs, list(answer_batches(splits, self.batch_size)), what)

    @torch.no_grad()
    def continuation_log_probs(
        self, prompts: Sequence[list[int]], continuations: Sequence[list[int]], what: str
    ) -> list[list[float]]:
        """Sum of the log-probabilities of each continuation's tokens after each prompt; a row for each prompt.

        A prompt is read once, and its keys and values serve all continuations, where the model has a cache that can be
        repeated; else each is read with its prompt.

        Args:
            prompts: token ids.
            continuations: token ids, none of them empty; the same after all prompts.
            what: for the progress bar.
        """
        ids_KT, is_token_KT = padded(continuations, self.tokenizer.pad_token_id, left=False)
        ids_KT = ids_KT.to(input_device(self.model))
        most = min(self.batch_size, max(1, MAX_POSITIONS // ids_KT.numel()))
        if is_sharded(self.model):
            most = 1  # a cache that cannot be repeated takes a pass for each prompt

        def of_batch(batch: list[int]) -> list[list[float]]:
            rows = [prompts[index] for index in batch]
            log_probs_BKT = repeated_prefix_log_probs(self.model, torch.tensor(rows), ids_KT)
            if log_probs_BKT is None:
                return [self._sums_one_by_one(prompt, continuations) for prompt in rows]
            sums: list[list[float]] = (log_probs_BKT.cpu() * is_token_KT).sum(-1).tolist()
            return sums

        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        batches = [
            same[start : start + most]
            for same in (list(group) for _, group in groupby(order, key=lambda index: len(prompts[index])))
            for start in range(0, len(same), most)  # of one length, so that nothing is padded
        ]
        return self._shared(of_batch, batches, what)

    def _sums_one_by_one(self, prompt: list[int], continuations: Sequence[list[int]]) -> list[float]:
        rows_TV = self.answer_distributions([Split(prompt, each) for each in continuations])
        return [
            float(row_TV.gather(-1, torch.tensor(each, device=row_TV.device)[:, None]).sum())
            for row_TV, each in zip(rows_TV, continuations, strict=True)
        ]

    def answer_distributions(self, splits: Sequence[Split]) -> list[torch.Tensor]:
        """Log-probabilities of the next token before each token of each answer, ``(T, V)`` per row."""
        positions = [range(len(split.context) - 1, len(split.context) + len(split.answer) - 1) for split in splits]
        return self.log_probs_after([split.context + split.answer for split in splits], positions)

    def log_probs_after(self, sequences: Sequence[list[int]], positions: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Log-probabilities of the next token after the given positions of each sequence, ``(T, V)`` per row.

        Padding is on the right, where no kind of causal model sees it. Logits are computed only at the positions. What
        all sequences begin with is read once, where that saves enough.
        """
        ids, mask = self._padded(sequences, left=False)
        needed = sorted({position for row in positions for position in row})
        with shared_prefix(self.model, ids, most=min(needed, default=0)) as length:
            logits_BKV = self.model(
                input_ids=ids,
                attention_mask=mask,
                logits_to_keep=torch.tensor(needed, dtype=torch.long, device=ids.device) - length,
                use_cache=False,
            ).logits
        column = {position: k for k, position in enumerate(needed)}
        return [
            F.log_softmax(logits_BKV[b, [column[position] for position in row]].float(), -1)
            for b, row in enumerate(positions)
        ]

    @torch.no_grad()
    def sparsity(self, prompts: Sequence[list[int]]) -> Sparsity:
        """Sparsity of the adapter's units over the tokens of the prompts.

        Each of several processes measures all prompts: they are few, and the counts need no exchange.

        Raises:
            RuntimeError: if the model has no adapter with units.
        """
        ordered = sorted(prompts, key=len)
        starts = range(0, len(ordered), self.batch_size)
        meter = SparsityMeter(self.model)
        with meter.measuring():
            for start in track(starts, description="Measuring sparsity"):
                ids, mask = self._padded(ordered[start : start + self.batch_size], left=False)
                self.model(input_ids=ids, attention_mask=mask, logits_to_keep=1, use_cache=False)
        return meter.result()

    def _shared(self, work: Callable[[list[int]], list[_T]], batches: Sequence[list[int]], what: str) -> list[_T]:
        """Results of ``work`` on batches of rows, given by index; in the order of the rows.

        Processes without a batch of their own in the end repeat the last one.
        """
        state = PartialState()
        starts = range(state.process_index, state.process_index + len(batches), state.num_processes)
        done: list[tuple[int, _T]] = []
        shown = self.shows_progress and state.is_main_process
        for at in track(starts, description=f"Scoring {what} {self.when}", disable=not shown):
            batch = batches[min(at, len(batches) - 1)]
            done += zip(batch, work(batch), strict=True)
        by_row = dict(gather_object(done))
        return [by_row[row] for row in range(len(by_row))]

    def _padded(self, rows: Sequence[list[int]], left: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Padded ids and their mask, on the model's device."""
        ids, mask = padded(rows, self.tokenizer.pad_token_id, left)
        device = input_device(self.model)
        return ids.to(device), mask.to(device)


@torch.no_grad()
def generate(model: Any, prompts: Sequence[list[int]], pad_token_id: int, **options: Any) -> torch.Tensor:
    """The tokens that a model generates after each prompt, ``(B, N)``.

    What all prompts begin with is read once, where that saves enough and the model's cache allows it
    (:mod:`monolora.shared_prefix`); the answers are those of whole rows up to rounding. Padding is on the left, or
    between the common prefix and the rest: generation continues after the last position, which must be a prompt's own.

    Args:
        model: a causal language model.
        prompts: token ids, none of them empty.
        pad_token_id: of the padding.
        options: for the model's ``generate``.
    """
    device = input_device(model)
    B, T = len(prompts), max(map(len, prompts))
    length = min(common_length(prompts), min(map(len, prompts)) - 1)
    if (B - 1) * length < SAVED * B * T or unsupported(model):
        ids_BT, mask_BT = padded(prompts, pad_token_id, left=True)
    else:
        rest_BT, mask_BT = padded([prompt[length:] for prompt in prompts], pad_token_id, left=True)
        prefix_BT = torch.tensor(prompts[0][:length]).expand(B, length)
        ids_BT = torch.cat([prefix_BT, rest_BT], 1)
        mask_BT = torch.cat([torch.ones_like(prefix_BT), mask_BT], 1)
        options["past_key_values"] = expanded_cache(backbone(model), prefix_BT[:1].to(device), B)
    tokens_BT: torch.Tensor = model.generate(
        input_ids=ids_BT.to(device),
        attention_mask=mask_BT.to(device),
        pad_token_id=pad_token_id,
        synced_gpus=is_sharded(model),
        **options,
    )
    return tokens_BT[:, ids_BT.shape[1] :]


def repeated_prefix_log_probs(model: Any, prompts_BP: torch.Tensor, ids_KT: torch.Tensor) -> torch.Tensor | None:
    """Log-probabilities of the tokens of K continuations after each of B prompts of one length, ``(B, K, T)``.

    The prompts are read once, and the continuations behind their repeated keys and values. None for a model whose cache
    cannot be repeated, as of recurrent layers.
    """
    (B, P), (K, T) = prompts_BP.shape, ids_KT.shape
    read = model(input_ids=prompts_BP.to(ids_KT.device), use_cache=True, logits_to_keep=1)
    cache: Any = getattr(read, "past_key_values", None)
    if not hasattr(cache, "batch_repeat_interleave"):
        return None
    logits_BKTV = read.logits[:, None, -1:].expand(B, K, 1, -1)
    if T > 1:
        cache.batch_repeat_interleave(K)
        mask = torch.ones(B * K, P + T - 1, dtype=torch.long, device=ids_KT.device)
        ids = ids_KT[:, :-1].repeat(B, 1)
        further = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True).logits
        logits_BKTV = torch.cat([logits_BKTV, further.view(B, K, T - 1, -1)], 2)
    log_probs_BKTV = logits_BKTV.float().log_softmax(-1)
    return log_probs_BKTV.gather(-1, ids_KT[None, :, :, None].expand(B, K, T, 1))[..., 0]


def by_length(lengths: Iterable[int], batch_size: int) -> list[list[int]]:
    """Indices of rows, the longest first, in batches."""
    of_row = list(lengths)
    order = sorted(range(len(of_row)), key=lambda index: -of_row[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def answer_batches(splits: Sequence[Split], batch_size: int) -> Iterator[list[int]]:
    """Indices of rows, the longest first, in batches whose distributions along the answers fit into memory."""
    batch: list[int] = []
    for index in sorted(range(len(splits)), key=lambda index: -len(splits[index].context) - len(splits[index].answer)):
        tokens = sum(len(splits[other].answer) for other in (*batch, index))
        if batch and (len(batch) == batch_size or tokens > MAX_POSITIONS):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def until_end(ids: Sequence[int], ends: Collection[int]) -> list[int]:
    """Token ids up to the first end token and with it."""
    for position, token in enumerate(ids):
        if token in ends:
            return list(ids[: position + 1])
    return list(ids)


def padded(rows: Sequence[list[int]], pad_token_id: int, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of token ids as one tensor, and its attention mask, 0 at padding; both ``(rows, width)``."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_token_id)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        filled = slice(width - len(row), width) if left else slice(len(row))
        ids[i, filled] = torch.tensor(row)
        mask[i, filled] = 1
    return ids, mask


@contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """In the block, the model is its base: an adapter that it has is switched off, whatever its weights are."""
    with model.disable_adapter() if isinstance(model, PeftModel) else nullcontext():
        yield


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Eval mode, with two exceptions, neither of which changes what is computed.

    The output layer gets contiguous inputs. The last position of a batch is a slice, and PyTorch multiplies a slice by
    a *frozen* weight row by row, copying the vocabulary-sized weight for each row.

    4-bit layers stay in training mode. In eval mode on some CPUs, bitsandbytes irreversibly repacks their weights for
    its inference kernel, and no gradient passes through that kernel when training begins.
    """
    training, head = model.training, cast(nn.Module, model.get_output_embeddings())
    handle = head.register_forward_pre_hook(lambda module, args: (args[0].contiguous(), *args[1:]))
    model.eval()
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.training = True
    try:
        yield
    finally:
        handle.remove()
        model.train(training)
