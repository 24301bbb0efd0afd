"""Columns of what the finetuning was for: the scores of the tasks, by generation, as ``recipes`` scores them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

from monolora.data.prompt_sets import Prompt
from monolora.data.scoring import first_word
from monolora.eval.measures.columns import BOOTSTRAP, MCNEMAR, Cell, Column, Measured, Whole, cell
from monolora.eval.measures.gathered import Gathered
from monolora.eval.records import OK, Response

if TYPE_CHECKING:
    from sacrebleu import BLEU


def task_columns(found: Gathered, group: str) -> Iterator[Measured | Whole]:
    """Accuracy and unparsed answers of a classification task; ROUGE-L and BLEU of one of free text.

    Args:
        found: the responses to the task's prompts, each with a reference.
        group: table 2's word for them.
    """
    return _classification(found, group) if found.set.labels else _free_text(found, group)


def _classification(found: Gathered, group: str) -> Iterator[Measured]:
    name, labels = found.set.name, found.set.labels

    def right(prompt: Prompt, response: Response) -> float:
        return 100.0 * (first_word(response.text) == prompt.reference)

    def unparsed(_: Prompt, response: Response) -> float:
        return 100.0 * (first_word(response.text) not in labels)

    accuracy = Column(f"{name}/accuracy", "accuracy", group, name, better="higher", test=MCNEMAR, headline=True)
    yield found.measured(accuracy, found.of_responses(right))
    # No test of its own: an answer that is no label is a wrong one above.
    yield found.measured(
        Column(f"{name}/unparsed", "unparsed", group, name, better="lower"), found.of_responses(unparsed)
    )


def _free_text(found: Gathered, group: str) -> Iterator[Measured | Whole]:
    from monolora.eval.measures.rouge import RougeL  # a second of nltk

    name = found.set.name
    references = {prompt.key: RougeL(prompt.reference or "") for prompt in found.set.prompts}

    def rouge_l(prompt: Prompt, response: Response) -> float:
        return 100 * references[prompt.key].score(response.text)

    column = Column(f"{name}/rougeL", "ROUGE-L", group, name, better="higher", unit="", test=BOOTSTRAP, headline=True)
    yield found.measured(column, found.of_responses(rouge_l))
    bleu = Column(f"{name}/bleu", "BLEU", group, name, better="higher", unit="")
    yield Whole(bleu, {model.name: _bleu(found, place) for place, model in enumerate(found.models)})


def _bleu(found: Gathered, model: int) -> Cell:
    """Corpus BLEU over all rows; a number of the corpus, with no mean over rows to resample."""
    responses = [found.response(found.models[model], prompt) for prompt in found.set.prompts]
    pairs = [
        (response.text, prompt.reference or "")
        for prompt, response in zip(found.set.prompts, responses, strict=True)
        if response is not None and response.status == OK
        for _ in range(prompt.weight)
    ]
    rows = sum(prompt.weight for prompt in found.set.prompts)
    if not pairs:
        return cell(None, 0, rows)
    answers, references = zip(*pairs, strict=True)
    return cell(_bleu_against(references).corpus_score(answers, None).score, len(pairs), rows - len(pairs))


@lru_cache(maxsize=2)
def _bleu_against(references: tuple[str, ...]) -> BLEU:
    """Reads the references once for all models that answered the same rows."""
    from sacrebleu import BLEU

    return BLEU(references=[references])
