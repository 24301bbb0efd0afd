"""Scorers: how the answers to a task are read and measured, in training and in evaluation alike.

A task has one scorer. Its metrics are of three kinds: of each row (accuracy, ROUGE), which an evaluation compares
between models row by row; of the corpus (BLEU); and those that need the model at hand (the likelihood of labels,
perplexity). ``recipes/sft.py`` reports all of them, ``monolora eval`` those that answers alone can give.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import TypeAdapter
from transformers import PreTrainedTokenizerBase

from monolora.data.chat_template import Split, prompt_ids, split_at_answer
from monolora.data.example import Example
from monolora.inference import Inference, evaluating
from monolora.sparsity import Sparsity

if TYPE_CHECKING:
    from sacrebleu import BLEU


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number that tells how good the answers to a task are.

    Attributes:
        name: in ``run.json``, and in the ids of an evaluation's columns.
        title: of the column.
        description: what a value is, for a glossary.
        better: which of two values is.
        is_percentage: whether tables show it with a percent sign.
    """

    name: str
    title: str
    description: str
    better: Literal["higher", "lower"] = "higher"
    is_percentage: bool = False


@dataclass(frozen=True, kw_only=True)
class RowMetric(Metric):
    """A metric with a value for each row.

    Attributes:
        value: of an answer and its reference, 0 to 1; a bool for a flag. An evaluation shows 100 times the mean.
        summary: of the values of all rows, as ``run.json`` has it.
        in_evaluation: whether it is a column of an evaluation.
        is_headline: whether that column is one of the main table, and models are tested for a difference in it.
    """

    value: Callable[[str, str], float]
    summary: Callable[[Sequence[float]], float]
    in_evaluation: bool = True
    is_headline: bool = False
    is_flag: bool = False


@dataclass(frozen=True, kw_only=True)
class CorpusMetric(Metric):
    """A metric of all answers and references at once, which is no mean over rows."""

    value: Callable[[Sequence[str], Sequence[str]], float]


@dataclass(frozen=True, kw_only=True)
class ModelMetric(Metric):
    """A metric of the model itself on the rows, whatever it answers."""

    value: Callable[[Inference, Sequence[Example]], float]


@dataclass(frozen=True)
class Scorer:
    """How the answers to a task are read and measured.

    A frozen dataclass with defaults for all fields, so that ``plan.json`` can hold one.

    Attributes:
        labels: the possible answers of a classification task; empty for free text.
    """

    labels: tuple[str, ...] = ()
    kinds: ClassVar[dict[str, type[Scorer]]] = {}

    def __init_subclass__(cls) -> None:
        Scorer.kinds[cls.__name__] = cls

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """In the order in which a run reports them."""
        raise NotImplementedError

    @property
    def reads_answers(self) -> bool:
        """Whether a metric needs answers, which are generated."""
        return not all(isinstance(metric, ModelMetric) for metric in self.metrics)

    def stored(self) -> dict[str, Any]:
        """As JSON values, for :meth:`restored`."""
        return {"kind": type(self).__name__, **asdict(self)}

    @staticmethod
    def restored(stored: Mapping[str, Any]) -> Scorer:
        """The scorer that :meth:`stored` describes.

        Raises:
            ValueError: if this version has no such scorer.
        """
        settings = dict(stored)
        kind = settings.pop("kind", None)
        if kind not in Scorer.kinds:
            raise ValueError(f"there is no scorer {kind!r}; there are {', '.join(Scorer.kinds)}")
        scorer: Scorer = TypeAdapter(Scorer.kinds[kind]).validate_python(settings)
        return scorer


@dataclass(frozen=True)
class Classification(Scorer):
    """Answers of one label: the first word says which. One that is no label is wrong, and counted as unparsed."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Accuracy by generation, and by label likelihood (which label's tokens are likeliest after the prompt)."""
        return (
            RowMetric(
                name="accuracy",
                title="accuracy",
                description="answers whose first word is the label",
                is_percentage=True,
                value=lambda answer, reference: first_word(answer) == reference,
                summary=_mean,
                is_headline=True,
                is_flag=True,
            ),
            # No headline: an answer that is no label is a wrong one above.
            RowMetric(
                name="unparsed",
                title="unparsed",
                description="answers whose first word is no label",
                better="lower",
                is_percentage=True,
                value=lambda answer, _: first_word(answer) not in self.labels,
                summary=sum,
                is_flag=True,
            ),
            ModelMetric(
                name="likelihood_accuracy",
                title="likelihood accuracy",
                description="rows whose label is the likeliest",
                is_percentage=True,
                value=partial(_likelihood_accuracy, self.labels),
            ),
        )


@dataclass(frozen=True)
class FreeText(Scorer):
    """Answers of any words: their overlap with the reference, and the perplexity of the reference."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """BLEU and ROUGE, 0 to 100, and the perplexity of the reference, its end token included."""
        return (
            CorpusMetric(
                name="bleu",
                title="BLEU",
                description="BLEU of all answers against the references",
                value=_bleu,
            ),
            _rouge("ROUGE-1", partial(_rouge_n, n=1)),
            _rouge("ROUGE-2", partial(_rouge_n, n=2)),
            _rouge("ROUGE-L", _rouge_l, is_column=True),
            _perplexity_of("the references"),
        )


@dataclass(frozen=True)
class WholeText(Scorer):
    """Texts without a question, trained on as in pretraining: how well the model predicts them."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The perplexity of the texts; there is nothing to answer."""
        return (_perplexity_of("the texts"),)


def _perplexity_of(what: str) -> ModelMetric:
    return ModelMetric(
        name="perplexity",
        title="perplexity",
        description=f"perplexity of {what}, end tokens included",
        better="lower",
        value=_perplexity,
    )


def _rouge(title: str, value: Callable[[str, str], float], is_column: bool = False) -> RowMetric:
    return RowMetric(
        name=title.replace("ROUGE-", "rouge"),
        title=title,
        description=f"{title} F1 against the reference, times 100",
        value=value,
        summary=_percentage,
        in_evaluation=is_column,
        is_headline=is_column,
    )


def is_percentage(metric: str) -> bool:
    """Whether scores of this name, in whichever task, are shown with a percent sign."""
    return any(own.name == metric and own.is_percentage for kind in Scorer.kinds.values() for own in kind().metrics)


def score(inference: Inference, scorer: Scorer, rows: Sequence[Example], answer_length: int) -> dict[str, Any]:
    """Score a model on ``rows``; under several processes they share the rows, and each gets the whole score.

    Args:
        inference: the model, put into eval mode for the time.
        scorer: of the task.
        rows: the examples to score.
        answer_length: how many tokens are generated at most.

    Returns:
        ``n``, and a number for each metric of the scorer.
    """
    return score_and_answers(inference, scorer, rows, answer_length)[0]


def score_and_answers(
    inference: Inference, scorer: Scorer, rows: Sequence[Example], answer_length: int
) -> tuple[dict[str, Any], list[str]]:
    """:func:`score`, and the answers that were generated, one a row; none where no metric reads them."""
    with evaluating(inference.model):
        prompts = [prompt_ids(row, inference.tokenizer) for row in rows] if scorer.reads_answers else []
        answers = inference.generate(prompts, answer_length) if prompts else []
        references = [_reference(row, inference.tokenizer) for row in rows]
        scores: dict[str, Any] = {"n": len(rows)}
        for metric in scorer.metrics:
            match metric:
                case RowMetric():
                    scores[metric.name] = metric.summary(list(map(metric.value, answers, references)))
                case CorpusMetric():
                    scores[metric.name] = metric.value(answers, references)
                case ModelMetric():
                    scores[metric.name] = metric.value(inference, rows)
        return scores, answers


def first_word(answer: str) -> str:
    """The answer's first word in lower case, without punctuation around it; empty if there is none."""
    match = re.search(r"\w+", answer.lower())
    return match.group() if match else ""


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _percentage(values: Sequence[float]) -> float:
    return 100 * sum(values) / len(values)


def _rouge_n(answer: str, reference: str, n: int) -> float:
    from monolora.data.rouge import rouge_n  # a second of nltk, which classification does without

    return rouge_n(answer, reference, n)


def _rouge_l(answer: str, reference: str) -> float:
    from monolora.data.rouge import rouge_l

    return rouge_l(answer, reference)


def _bleu(answers: Sequence[str], references: Sequence[str]) -> float:
    return _bleu_against(tuple(references)).corpus_score(list(answers), None).score


@lru_cache(maxsize=2)
def _bleu_against(references: tuple[str, ...]) -> BLEU:
    """Reads the references once for all models that answered the same rows."""
    from sacrebleu import BLEU

    return BLEU(references=[references])


def _reference(row: Example, tokenizer: PreTrainedTokenizerBase) -> str:
    """The right answer as :meth:`Inference.generate` would return it, tool calls included."""
    if row.answer is None:
        return row.response
    return str(tokenizer.decode(split_at_answer(row, tokenizer).answer, skip_special_tokens=True)).strip()


def _likelihood_accuracy(labels: Sequence[str], inference: Inference, rows: Sequence[Example]) -> float:
    likelihoods = label_likelihoods(inference, rows, labels)
    return _mean(
        [max(of_row, key=of_row.__getitem__) == row.response for of_row, row in zip(likelihoods, rows, strict=True)]
    )


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
        log_probs = inference.next_token_log_probs(prompts, tokens)
    else:
        columns = [
            inference.answer_log_probs([row[k] for row in splits], f"likelihood of {label!r}")
            for k, label in enumerate(labels)
        ]
        log_probs = [list(row) for row in zip(*columns, strict=True)]
    return [dict(zip(labels, row, strict=True)) for row in log_probs]


def _before_end(split: Split, tokenizer: PreTrainedTokenizerBase) -> Split:
    """Without the end token and what a template puts after it."""
    end = tokenizer.eos_token_id
    return Split(split.context, split.answer[: split.answer.index(end)] if end in split.answer else split.answer)


def _perplexity(inference: Inference, rows: Sequence[Example]) -> float:
    return math.exp(_mean_loss(_answer_losses(inference, rows, "perplexity")))


def validation_loss(
    inference: Inference, rows: Sequence[Example], sources: Sequence[str] | None = None
) -> dict[str, Any]:
    """``n`` and ``loss``, the mean over the tokens of the right answers, end tokens included, in nats.

    Args:
        inference: the model.
        rows: the held-out examples.
        sources: the data set of each example, for the same two numbers of each data set under ``sources``.
    """
    with evaluating(inference.model):
        losses = _answer_losses(inference, rows, "validation")
    parts = {
        source: [loss for loss, own in zip(losses, sources or (), strict=True) if own == source]
        for source in dict.fromkeys(sources or ())
    }
    by_source = {source: {"n": len(part), "loss": _mean_loss(part)} for source, part in parts.items()}
    return {"n": len(rows), "loss": _mean_loss(losses), **({"sources": by_source} if by_source else {})}


class _Loss(NamedTuple):
    """Of an answer: nats in all, and its tokens."""

    nats: float
    tokens: int


def _answer_losses(inference: Inference, rows: Sequence[Example], what: str) -> list[_Loss]:
    splits = [split_at_answer(row, inference.tokenizer) for row in rows]
    log_probs = inference.answer_log_probs(splits, what)
    return [_Loss(-total, len(split.answer)) for total, split in zip(log_probs, splits, strict=True)]


def _mean_loss(losses: Sequence[_Loss]) -> float:
    return sum(loss.nats for loss in losses) / sum(loss.tokens for loss in losses)


def prompt_sparsity(inference: Inference, rows: Sequence[Example]) -> Sparsity:
    """Sparsity of the adapter's units over the tokens of the prompts ("task sparsity" of the paper's table 2)."""
    with evaluating(inference.model):
        return inference.sparsity([prompt_ids(row, inference.tokenizer) for row in rows])
