"""Columns of what the finetuning was for: the scores of the tasks, by generation, as ``recipes`` scores them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from monolora.data.prompt_sets import Prompt
from monolora.data.scoring import first_word
from monolora.eval.measures.records import SetRecords
from monolora.eval.measures.table import BOOTSTRAP, MCNEMAR, Cell, Column, PromptValues, SetValues, cell
from monolora.eval.records import OK, Response

if TYPE_CHECKING:
    from sacrebleu import BLEU


def task_columns(records: SetRecords) -> Iterator[PromptValues | SetValues]:
    """Accuracy and unparsed answers of a classification task; ROUGE-L and BLEU of one of free text."""
    if records.set.purpose == "task":
        yield from _classification(records) if records.set.labels else _free_text(records)


def _classification(records: SetRecords) -> Iterator[PromptValues]:
    labels = records.set.labels

    def right(prompt: Prompt, response: Response) -> float:
        return 100.0 * (first_word(response.text) == prompt.reference)

    def unparsed(_: Prompt, response: Response) -> float:
        return 100.0 * (first_word(response.text) not in labels)

    column = partial(Column, set=records.set.name, aspect="task", group=f"{records.task} perf.")
    accuracy = column(
        metric="accuracy",
        title="accuracy",
        description="answers whose first word is the label",
        better="higher",
        test=MCNEMAR,
        headline=True,
        shown_in=("figure",),
    )
    yield records.values(accuracy, records.of_responses(right))
    # No test of its own: an answer that is no label is a wrong one above.
    no_label = column(
        metric="unparsed", title="unparsed", description="answers whose first word is no label", better="lower"
    )
    yield records.values(no_label, records.of_responses(unparsed))


def _free_text(records: SetRecords) -> Iterator[PromptValues | SetValues]:
    from monolora.eval.measures.rouge import RougeL  # a second of nltk

    references = {prompt.key: RougeL(prompt.reference or "") for prompt in records.set.prompts}

    def rouge_l(prompt: Prompt, response: Response) -> float:
        return 100 * references[prompt.key].score(response.text)

    column = partial(
        Column, set=records.set.name, aspect="task", group=f"{records.task} perf.", better="higher", unit=""
    )
    rouge = column(
        metric="rougeL",
        title="ROUGE-L",
        description="ROUGE-L F1 against the reference, times 100",
        test=BOOTSTRAP,
        headline=True,
        shown_in=("figure",),
    )
    yield records.values(rouge, records.of_responses(rouge_l))
    bleu = column(metric="bleu", title="BLEU", description="BLEU of all answers against the references", shown_in=())
    yield SetValues(bleu, {model.name: _bleu(records, index) for index, model in enumerate(records.models)})


def _bleu(records: SetRecords, model: int) -> Cell:
    """Corpus BLEU over all rows; a number of the corpus, with no mean over rows to resample."""
    responses = [records.response(records.models[model], prompt) for prompt in records.set.prompts]
    pairs = [
        (response.text, prompt.reference or "")
        for prompt, response in zip(records.set.prompts, responses, strict=True)
        if response is not None and response.status == OK
        for _ in range(prompt.weight)
    ]
    rows = sum(prompt.weight for prompt in records.set.prompts)
    if not pairs:
        return cell(None, 0, rows)
    answers, references = zip(*pairs, strict=True)
    return cell(_bleu_against(references).corpus_score(answers, None).score, len(pairs), rows - len(pairs))


@lru_cache(maxsize=2)
def _bleu_against(references: tuple[str, ...]) -> BLEU:
    """Reads the references once for all models that answered the same rows."""
    from sacrebleu import BLEU

    return BLEU(references=[references])
