"""All responses and judgements on one prompt set, as matrices of models and prompts.

What is not there counts as invalid, so that n and invalid always add up to the rows of the set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from monolora.data.prompt_sets import Prompt, PromptSet
from monolora.eval.judges.base import Judge
from monolora.eval.measures.columns import Column, Measured
from monolora.eval.measures.model import Model
from monolora.eval.records import OK, Judgement, Response

Matrix = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """What is known on one set.

    Attributes:
        set: the prompts.
        models: in the order of the rows.
        responses: by model name and prompt key.
        judgements: by judge name and response key.
    """

    set: PromptSet
    models: Sequence[Model]
    responses: Mapping[str, Mapping[str, Response]]
    judgements: Mapping[str, Mapping[str, Judgement]]

    def response(self, model: Model, prompt: Prompt) -> Response | None:
        """The response, or None where none was stored."""
        return self.responses.get(model.name, {}).get(prompt.key)

    def judgement(self, judge: Judge, response: Response | None) -> Judgement | None:
        """What the judge said of the response, or None where nothing was stored."""
        return None if response is None else self.judgements.get(judge.name, {}).get(response.key)

    def was_judged_by(self, judge: Judge) -> bool:
        """Whether the judge has a judgement, be it invalid, of any response on this set."""
        responses = (self.response(model, prompt) for model in self.models for prompt in self.set.prompts)
        return any(self.judgement(judge, response) is not None for response in responses)

    def of_responses(self, value: Callable[[Prompt, Response], float]) -> Matrix:
        """A number of each response; NaN where it is invalid. Shape (models, prompts)."""

        def number(prompt: Prompt, response: Response | None) -> float:
            return np.nan if response is None or response.status != OK else value(prompt, response)

        return self._matrix(number)

    def of_judgements(self, judge: Judge, value: Callable[[Mapping[str, float]], float]) -> Matrix:
        """A number from the scores of each judgement; NaN where it is invalid. Shape (models, prompts)."""

        def number(prompt: Prompt, response: Response | None) -> float:
            judgement = self.judgement(judge, response)
            return np.nan if judgement is None or judgement.status != OK else value(judgement.scores)

        return self._matrix(number)

    def flags(self, judge: Judge) -> Matrix:
        """The judge's flags as 0 and 100; NaN where it gave none. Shape (models, prompts)."""
        return self.of_judgements(judge, lambda scores: 100.0 * judge.flagged(scores))

    def measured(self, column: Column, values_MP: Matrix) -> Measured:
        """A column over all prompts of the set."""
        return Measured(column, self.set.prompts, values_MP)

    def measured_where(self, label: str, column: Column, values_MP: Matrix) -> Measured:
        """A column over the prompts with this label."""
        chosen = [place for place, prompt in enumerate(self.set.prompts) if prompt.label == label]
        return Measured(column, [self.set.prompts[place] for place in chosen], values_MP[:, chosen])

    def _matrix(self, number: Callable[[Prompt, Response | None], float]) -> Matrix:
        prompts = self.set.prompts
        rows = [[number(prompt, self.response(model, prompt)) for prompt in prompts] for model in self.models]
        return np.array(rows, np.float64)
