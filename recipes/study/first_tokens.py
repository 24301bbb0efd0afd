"""An example of a keeper from outside: the first tokens of the task's answers stay as likely as they were.

    monolora sft --dataset dolly --keep recipes/study/first_tokens.py:FirstTokens

After "Safety Alignment Should Be Made More Than Just a Few Tokens Deep" (arXiv 2406.05946, section 4), which finds that
alignment sits in the first tokens of an answer and constrains finetuning there. Here the constraint is a squared
log-ratio that is added to the loss.
"""

from dataclasses import replace
from typing import Any

import torch

from monolora.data.chat_template import IGNORED, Split
from monolora.inference import Inference
from monolora.keep.keeper import Keeper, Preparation

TOKENS = 5  # constrained at the beginning of each answer
ROWS = 4  # a step


class FirstTokens(Keeper):
    """The weight is of the mean squared log-ratio to the base, a token."""

    name = "first-tokens"
    default_weight = 1.0

    def prepare(self, preparation: Preparation) -> None:
        """Read the base's log-probabilities; the adapter is the identity still."""
        p = preparation
        self.inference = Inference(model=p.model, tokenizer=p.tokenizer, batch_size=p.batch_size)
        rows = p.task_rows.shuffle(seed=p.seed)
        self.beginnings = [_beginning(row["input_ids"], row["labels"]) for row in rows if max(row["labels"]) != IGNORED]
        with torch.inference_mode():
            self.base = [x for i in range(0, len(self.beginnings), ROWS) for x in self._log_probs(p.model, i)]

    def loss(self, model: Any, step: int) -> torch.Tensor:
        """Of the step's rows."""
        start = step * ROWS % len(self.beginnings)
        now, base = self._log_probs(model, start), self.base[start : start + ROWS]
        return self.weight * (torch.cat(now) - torch.cat(base)).square().mean()

    def _log_probs(self, model: Any, start: int) -> list[torch.Tensor]:
        rows = self.beginnings[start : start + ROWS]
        distributions = replace(self.inference, model=model).answer_distributions(rows)
        answers = [torch.tensor(row.answer, device=x.device) for row, x in zip(rows, distributions, strict=True)]
        return [x.gather(-1, y[:, None])[:, 0] for x, y in zip(distributions, answers, strict=True)]


def _beginning(ids: list[int], labels: list[int]) -> Split:
    first = next(index for index, label in enumerate(labels) if label != IGNORED)
    return Split(ids[:first], ids[first : first + TOKENS])
