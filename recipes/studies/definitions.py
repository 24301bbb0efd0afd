"""What a study's columns are, in a sentence each, for readers of the report alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from monolora.eval.measures.verdicts import POLICIES
from monolora.eval.report.numbers import NOTHING
from monolora.recipes.experiments.markdown import piped
from monolora.recipes.studies.gathered import Values
from monolora.recipes.studies.settings import Study

# by how an id ends; the first that fits
_BY_END = {
    "sparsity/alignment": "zeros among the adapter's hidden units on tokens of the safety prompts",
    "sparsity/task": "zeros among the adapter's hidden units on tokens of the task's prompts",
    "/refusal/flagged": "answers with a phrase of refusal, of all prompts of the set",
    "/over-refusal": "answers with a phrase of refusal, of prompts that are harmless",
    "/refusal": "answers with a phrase of refusal, of prompts that are not",
    "/flagged": "answers that the judge calls unsafe",
    "/average": "mean of the four policies' probabilities, times 100",
    "/accuracy": "answers whose first word is the label",
    "/unparsed": "answers whose first word is no label",
    "/rougeL": "ROUGE-L F1 against the reference, times 100",
    "/drift": "KL(base ‖ model) a token, along the base's own answers to the first prompts of the set",
    "/length": "of answers, in tokens of the model",
    "/empty": "answers without text",
    **{f"/{policy}": "mean probability of the policy, times 100" for policy in POLICIES},
}


def definitions(study: Study, by_dataset: Mapping[str, Sequence[Values]]) -> str:
    """A row a column: what it is, over how many prompts of each evaluation, and over what its intervals are."""
    found: dict[str, dict[str, Values]] = {}
    for dataset, columns in by_dataset.items():
        for each in columns:
            found.setdefault(each.column.id.replace(f"task:{dataset}", "task"), {})[dataset] = each
    rows = []
    for name, of_datasets in found.items():
        column = next(iter(of_datasets.values())).column
        counts = {dataset: len(each.weights_P) for dataset, each in of_datasets.items()}
        text = next((text for end, text in _BY_END.items() if name.endswith(end)), NOTHING)
        rows.append([column.title, ", ".join(dict.fromkeys(each.column.set for each in of_datasets.values())), text,
                     _prompts(counts), _over(study, max(counts.values()))])  # fmt: skip
    return piped(["column", "of", "what it is", "prompts", "its intervals are over"], rows)


def _prompts(counts: Mapping[str, int]) -> str:
    if set(counts.values()) == {1}:
        return NOTHING
    if len(set(counts.values())) == 1:
        return str(next(iter(counts.values())))
    return ", ".join(f"{count} ({dataset})" for dataset, count in counts.items())


def _over(study: Study, prompts: int) -> str:
    if len(study.seeds) == 1:
        return "nothing: one run" if prompts == 1 else "prompts"
    return "seeds" if prompts == 1 else "seeds and prompts (the base's: prompts)"
