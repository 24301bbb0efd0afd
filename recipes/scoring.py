"""Scores of a task, before and after training, on the same rows.

Classification: by generation (greedy, first word of the answer; an answer that is no label counts as wrong and is
reported as unparsed) and by label likelihood (which label's tokens are likeliest after the prompt). Free text: BLEU
and ROUGE-1/2/L of greedy answers against the reference, and the perplexity of the reference.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import gather_object
from rich.progress import track
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from monolora.recipes.prompts import answer_ids, prompt_ids
from monolora.recipes.tasks.base import Example
from monolora.sparsity import Sparsity, SparsityMeter

_T = TypeVar("_T")


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    labels: Sequence[str],
    rows: Sequence[Example],
    answer_length: int,
    batch_size: int,
    when: str = "",
) -> dict[str, Any]:
    """Score ``model`` on ``rows``; under several processes they share the rows, and each gets the whole score.

    Args:
        model: a causal language model, adapter and all; put into eval mode for the time.
        tokenizer: its tokenizer.
        labels: the possible answers; empty for free text.
        rows: the examples to score.
        answer_length: how many tokens are generated at most.
        batch_size: prompts at a time and process.
        when: a word for the progress bar.

    Returns:
        ``n``, and for classification ``accuracy`` (by generation), ``unparsed`` (a count) and ``likelihood_accuracy``;
        for free text ``bleu``, ``rouge1``, ``rouge2``, ``rougeL`` (0 to 100) and ``perplexity``.
    """
    with evaluating(model):
        answers = generate(model, tokenizer, rows, answer_length, batch_size, when)
        if labels:
            return _score_labels(model, tokenizer, labels, rows, answers, batch_size, when)
        return _score_text(model, tokenizer, rows, answers, batch_size, when)


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Eval mode, with an output layer that is fed contiguous inputs.

    The last positions that it is asked for are a slice. PyTorch multiplies a slice by a *frozen* weight as one product
    a row, copying the vocabulary-sized weight for each: several times the cost of all the rest.
    """
    training, head = model.training, model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda module, args: (args[0].contiguous(), *args[1:]))
    model.eval()
    try:
        yield
    finally:
        handle.remove()
        model.train(training)


def first_word(answer: str) -> str:
    """The answer's first word in lower case, without punctuation around it; empty if there is none."""
    match = re.search(r"\w+", answer.lower())
    return match.group() if match else ""


def _score_labels(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    labels: Sequence[str],
    rows: Sequence[Example],
    answers: Sequence[str],
    batch_size: int,
    when: str,
) -> dict[str, Any]:
    words = [first_word(answer) for answer in answers]
    likelihoods = label_likelihoods(model, tokenizer, rows, labels, batch_size, when)
    likeliest = [max(labels, key=lambda label, i=i: likelihoods[label][i]) for i in range(len(rows))]
    truth = [row.response for row in rows]
    return {
        "n": len(rows),
        "accuracy": _agreement(words, truth),
        "unparsed": sum(word not in labels for word in words),
        "likelihood_accuracy": _agreement(likeliest, truth),
    }


def label_likelihoods(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Example],
    labels: Sequence[str],
    batch_size: int,
    when: str = "",
) -> dict[str, list[float]]:
    """Log-probability of each label's tokens after each prompt, the end token left out.

    Returns:
        For each label one number a row.
    """
    prompts = [prompt_ids(row, tokenizer) for row in rows]
    completions = {
        label: [_before_end(answer_ids(row, label, tokenizer), tokenizer) for row in rows] for label in labels
    }
    if all(len(ids) == 1 for each in completions.values() for ids in each):
        # Every label is a single token: one pass over the prompts answers for all of them.
        return _next_token_log_probs(
            model, tokenizer, prompts, {k: [i[0] for i in v] for k, v in completions.items()}, batch_size, when
        )
    return {
        label: _completion_log_probs(
            model, tokenizer, prompts, completions[label], batch_size, f"likelihood of {label!r} {when}"
        )
        for label in labels
    }


@torch.inference_mode()
def _next_token_log_probs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    tokens: dict[str, list[int]],
    batch_size: int,
    when: str,
) -> dict[str, list[float]]:
    """Log-probability, right after each prompt, of one token a label and row."""

    def log_probs(batch: list[int]) -> list[list[float]]:
        ids, mask = _pad([prompts[i] for i in batch], tokenizer)
        output = model(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device), logits_to_keep=1, use_cache=False
        )
        wanted = torch.tensor([[tokens[label][i] for label in tokens] for i in batch], device=output.logits.device)
        return F.log_softmax(output.logits[:, -1].float(), -1).gather(-1, wanted).tolist()

    per_row = _by_length(log_probs, [len(prompt) for prompt in prompts], batch_size, f"label likelihoods {when}")
    return {label: [row[k] for row in per_row] for k, label in enumerate(tokens)}


def _before_end(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return ids[: ids.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in ids else ids


def _score_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Example],
    answers: Sequence[str],
    batch_size: int,
    when: str,
) -> dict[str, Any]:
    references = [row.response for row in rows]
    prompts = [prompt_ids(row, tokenizer) for row in rows]
    completions = [answer_ids(row, row.response, tokenizer) for row in rows]
    log_probs = _completion_log_probs(model, tokenizer, prompts, completions, batch_size, f"perplexity {when}")
    tokens = sum(len(completion) for completion in completions)
    return {
        "n": len(rows),
        **text_overlap(answers, references),
        "perplexity": math.exp(-sum(log_probs) / max(1, tokens)),
    }


def text_overlap(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU (sacrebleu) and mean ROUGE-1/2/L F-measures (rouge-score, stemmed), 0 to 100."""
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import corpus_bleu

    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    rouge = [scorer.score(reference, answer) for answer, reference in zip(answers, references, strict=True)]
    means = {
        kind: 100 * sum(r[kind].fmeasure for r in rouge) / max(1, len(rouge)) for kind in ("rouge1", "rouge2", "rougeL")
    }
    return {"bleu": corpus_bleu(list(answers), [list(references)]).score, **means}


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Example],
    max_new_tokens: int,
    batch_size: int,
    when: str = "",
) -> list[str]:
    """Greedy answers, one a row, in the order of ``rows``."""
    prompts = [prompt_ids(row, tokenizer) for row in rows]

    def answer(batch: list[int]) -> list[str]:
        ids, mask = _pad([prompts[i] for i in batch], tokenizer)
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        return tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)

    return _by_length(answer, [len(prompt) for prompt in prompts], batch_size, f"answers {when}")


@torch.inference_mode()
def _completion_log_probs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    completions: Sequence[list[int]],
    batch_size: int,
    what: str,
) -> list[float]:
    """Sum of the log-probabilities of each completion's tokens after its prompt."""

    def log_probs(batch: list[int]) -> list[float]:
        ids, mask = _pad([prompts[i] + completions[i] for i in batch], tokenizer)
        longest = max(len(completions[i]) for i in batch)
        # Padding is on the left, so every completion is among the last columns: only these need logits.
        logits = model(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            logits_to_keep=longest + 1,
            use_cache=False,
        ).logits[:, :-1]
        picked = F.log_softmax(logits.float(), -1).gather(-1, ids[:, -longest:, None].to(logits.device))[..., 0].cpu()
        return [float(picked[row, longest - len(completions[i]) :].sum()) for row, i in enumerate(batch)]

    lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
    return _by_length(log_probs, lengths, batch_size, what)


def _by_length(work: Callable[[list[int]], list[_T]], lengths: list[int], batch_size: int, what: str) -> list[_T]:
    """Run ``work`` on batches of row numbers of similar length; results in the order of the rows.

    Processes take turns at the batches. Each runs equally many, the last one again if need be, because a sharded
    model needs all processes in every step.
    """
    state = PartialState()
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    batches += batches[-1:] * (-len(batches) % state.num_processes)
    mine = batches[state.process_index :: state.num_processes]
    done: list[tuple[int, _T]] = []
    for batch in track(mine, description=f"Scoring {what}", disable=not state.is_main_process):
        done += zip(batch, work(batch), strict=True)
    by_row = dict(gather_object(done))
    return [by_row[row] for row in range(len(lengths))]


def _pad(rows: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded ids and their mask."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(row)
        mask[i, width - len(row) :] = 1
    return ids, mask


def _agreement(given: Sequence[str], truth: Sequence[str]) -> float:
    return sum(g == t for g, t in zip(given, truth, strict=True)) / max(1, len(truth))


@torch.inference_mode()
def prompt_sparsity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Example], batch_size: int
) -> Sparsity:
    """Sparsity of the adapter's units over the tokens of the prompts ("task sparsity" of the paper's table 2).

    Under several processes each measures all rows: they are few, and counts need no exchange then.
    """
    prompts = sorted((prompt_ids(row, tokenizer) for row in rows), key=len)
    meter = SparsityMeter(model)
    with evaluating(model), meter.measuring():
        for start in track(range(0, len(prompts), batch_size), description="Measuring sparsity"):
            ids, mask = _pad(prompts[start : start + batch_size], tokenizer)
            model(
                input_ids=ids.to(model.device), attention_mask=mask.to(model.device), logits_to_keep=1, use_cache=False
            )
    return meter.result()
