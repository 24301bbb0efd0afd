"""Scores of a task, before and after training, on the same rows.

Classification: by generation (greedy, first word of the answer; an answer that is no label counts as wrong and is
reported as unparsed) and by label likelihood (which label's tokens are likeliest after the prompt). Free text: BLEU
and ROUGE-1/2/L of greedy answers against the reference, and the perplexity of the reference.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from monolora.data.chat_template import Split, prompt_ids, split_at_answer
from monolora.data.task import Example
from monolora.inference import Inference, evaluating
from monolora.sparsity import Sparsity


def score(inference: Inference, labels: Sequence[str], rows: Sequence[Example], answer_length: int) -> dict[str, Any]:
    """Score a model on ``rows``; under several processes they share the rows, and each gets the whole score.

    Args:
        inference: the model, put into eval mode for the time.
        labels: the possible answers; empty for free text.
        rows: the examples to score.
        answer_length: how many tokens are generated at most.

    Returns:
        ``n``, and for classification ``accuracy`` (by generation), ``unparsed`` (a count) and ``likelihood_accuracy``;
        for free text ``bleu``, ``rouge1``, ``rouge2``, ``rougeL`` (0 to 100) and ``perplexity`` (of the reference, its
        end token included).
    """
    return score_and_answers(inference, labels, rows, answer_length)[0]


def score_and_answers(
    inference: Inference, labels: Sequence[str], rows: Sequence[Example], answer_length: int
) -> tuple[dict[str, Any], list[str]]:
    """:func:`score`, and the answers that were generated, one a row."""
    with evaluating(inference.model):
        answers = inference.generate([prompt_ids(row, inference.tokenizer) for row in rows], answer_length)
        if labels:
            return _score_labels(inference, labels, rows, answers), answers
        return _score_text(inference, rows, answers), answers


def first_word(answer: str) -> str:
    """The answer's first word in lower case, without punctuation around it; empty if there is none."""
    match = re.search(r"\w+", answer.lower())
    return match.group() if match else ""


def _score_labels(
    inference: Inference, labels: Sequence[str], rows: Sequence[Example], answers: Sequence[str]
) -> dict[str, Any]:
    words = [first_word(answer) for answer in answers]
    likelihoods = label_likelihoods(inference, rows, labels)
    likeliest = [max(row, key=row.__getitem__) for row in likelihoods]
    truth = [row.response for row in rows]
    return {
        "n": len(rows),
        "accuracy": _agreement(words, truth),
        "unparsed": sum(word not in labels for word in words),
        "likelihood_accuracy": _agreement(likeliest, truth),
    }


def label_likelihoods(inference: Inference, rows: Sequence[Example], labels: Sequence[str]) -> list[dict[str, float]]:
    """Log-probability of each label's tokens after each prompt, the end token left out.

    Returns:
        For each row one number a label.
    """
    tokenizer = inference.tokenizer
    prompts = [prompt_ids(row, tokenizer) for row in rows]
    splits = [
        [_before_end(split_at_answer(row._replace(response=label), tokenizer), tokenizer) for label in labels]
        for row in rows
    ]
    if all(
        len(split.answer) == 1 and split.context == prompt
        for row, prompt in zip(splits, prompts, strict=True)
        for split in row
    ):
        # Every label is a single token: one pass over the prompts answers for all of them.
        tokens = [[split.answer[0] for split in row] for row in splits]
        found = inference.next_token_log_probs(prompts, tokens)
    else:
        columns = [
            inference.answer_log_probs([row[k] for row in splits], f"likelihood of {label!r}")
            for k, label in enumerate(labels)
        ]
        found = [list(row) for row in zip(*columns, strict=True)]
    return [dict(zip(labels, row, strict=True)) for row in found]


def _before_end(split: Split, tokenizer: PreTrainedTokenizerBase) -> Split:
    """Without the end token and what a template puts after it."""
    end = tokenizer.eos_token_id
    return Split(split.context, split.answer[: split.answer.index(end)] if end in split.answer else split.answer)


def _score_text(inference: Inference, rows: Sequence[Example], answers: Sequence[str]) -> dict[str, Any]:
    return {
        "n": len(rows),
        **text_overlap(answers, [_reference(row, inference.tokenizer) for row in rows]),
        "perplexity": math.exp(_answer_loss(inference, rows, "perplexity")),
    }


def _reference(row: Example, tokenizer: PreTrainedTokenizerBase) -> str:
    """The right answer as :meth:`Inference.generate` would return it, tool calls included."""
    if row.answer is None:
        return row.response
    return str(tokenizer.decode(split_at_answer(row, tokenizer).answer, skip_special_tokens=True)).strip()


def validation_loss(inference: Inference, rows: Sequence[Example]) -> dict[str, Any]:
    """``n`` and ``loss``, the mean over the tokens of the right answers, end tokens included, in nats."""
    with evaluating(inference.model):
        return {"n": len(rows), "loss": _answer_loss(inference, rows, "validation")}


def _answer_loss(inference: Inference, rows: Sequence[Example], what: str) -> float:
    splits = [split_at_answer(row, inference.tokenizer) for row in rows]
    return -sum(inference.answer_log_probs(splits, what)) / sum(len(split.answer) for split in splits)


def text_overlap(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU (sacrebleu) and mean ROUGE-1/2/L F-measures (rouge-score, stemmed), 0 to 100."""
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import corpus_bleu

    kinds = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(kinds, use_stemmer=True)
    rouge = [scorer.score(reference, answer) for answer, reference in zip(answers, references, strict=True)]
    means = {kind: 100 * sum(each[kind].fmeasure for each in rouge) / len(rouge) for kind in kinds}
    return {"bleu": corpus_bleu(list(answers), [list(references)]).score, **means}


def _agreement(given: Sequence[str], truth: Sequence[str]) -> float:
    return sum(g == t for g, t in zip(given, truth, strict=True)) / len(truth)


def prompt_sparsity(inference: Inference, rows: Sequence[Example]) -> Sparsity:
    """Sparsity of the adapter's units over the tokens of the prompts ("task sparsity" of the paper's table 2)."""
    with evaluating(inference.model):
        return inference.sparsity([prompt_ids(row, inference.tokenizer) for row in rows])
