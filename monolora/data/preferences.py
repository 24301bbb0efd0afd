"""Preferences: two answers to a prompt of which one is better, or one answer and whether it is good; their formats.

prompt, chosen, rejected    plain texts (taken as they are), or messages
chosen, rejected            whole conversations, or whole texts, whose common beginning is the prompt
prompt, completion, label   one answer, and whether it is desirable

Beside messages: what :mod:`monolora.data.row_formats` knows beside them, by the same rules.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from trl import extract_prompt

from monolora.data.example import Example
from monolora.data.row_formats import OF_CHATS, Parse, RowFormat, parsed_messages
from monolora.data.scoring import Metric, Scorer
from monolora.errors import InputError

SIDES = ("chosen", "rejected")
FORMATS = "'prompt' + 'chosen' + 'rejected', 'chosen' + 'rejected', or 'prompt' + 'completion' + 'label'"
_LABELS = {"true": True, "1": True, "false": False, "0": False}


class Preference(NamedTuple):
    """Two answers to a prompt. Of a single answer with a label the other one has no answer.

    Attributes:
        chosen: the better answer, with all that comes before it.
        rejected: the worse one.
    """

    chosen: Example
    rejected: Example

    @property
    def group(self) -> str:
        """As of its examples."""
        return self.chosen.group

    @property
    def answers(self) -> list[Example]:
        """Those that there are, the better one first."""
        return [example for example in self if example.has_answer]

    @property
    def is_pair(self) -> bool:
        """Whether there are two."""
        return len(self.answers) == 2


PAIR_METRICS = ("chosen_likelier", "log_probability_margin")  # of rows with two answers alone


@dataclass(frozen=True)
class Rewards(Scorer):
    """Preferences are scored by the answers' probabilities; see :func:`reward_scores`."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What a run reports."""
        return (
            Metric(
                name="reward_accuracy",
                title="reward accuracy",
                description="pairs whose chosen answer has the larger reward; of single answers, the right sign",
                is_percentage=True,
            ),
            Metric(name="reward_margin", title="reward margin", description="mean reward of chosen minus rejected"),
            Metric(
                name="chosen_likelier",
                title="chosen likelier",
                description="pairs whose chosen answer is the likelier one to the model itself",
                is_percentage=True,
            ),
            Metric(
                name="log_probability_margin",
                title="log probability margin",
                description="mean log-probability of chosen minus rejected answers, in nats",
            ),
        )


class LogProbs(NamedTuple):
    """Log-probabilities of a preference's answers, in nats; None for an answer that there is not."""

    chosen: float | None
    rejected: float | None


def reward_scores(policy: Sequence[LogProbs], reference: Sequence[LogProbs], beta: float) -> dict[str, Any]:
    """Rewards as DPO and KTO define them, ``beta`` times the log-ratio of model and reference.

    Args:
        policy: of the trained model.
        reference: of the model that it started from.
        beta: of the loss.

    Returns:
        ``n``, and of pairs: ``reward_accuracy`` (TRL's ``rewards/accuracies``: ties count as wrong), ``reward_margin``,
        and ``loss``, the mean of ``-log sigmoid(margin)``, whatever loss was trained. Of single answers: the share
        whose reward has the right sign, the difference of the mean rewards (0 where one kind is missing), and the
        cross entropy of the label. Of pairs also :func:`probability_scores`.
    """
    rewards = [
        [None if p is None or r is None else beta * (p - r) for p, r in zip(*row, strict=True)]
        for row in zip(policy, reference, strict=True)
    ]
    pairs = [(good, bad) for good, bad in rewards if good is not None and bad is not None]
    if len(pairs) == len(rewards):
        margins = [good - bad for good, bad in pairs]
        difference = _mean(margins)
    else:
        good = [chosen for chosen, _ in rewards if chosen is not None]
        bad = [rejected for _, rejected in rewards if rejected is not None]
        margins = [*good, *(-reward for reward in bad)]
        difference = _mean(good) - _mean(bad) if good and bad else 0.0
    return {
        "n": len(policy),
        "reward_accuracy": _mean([margin > 0 for margin in margins]),
        "reward_margin": difference,
        "loss": _mean([_softplus(-margin) for margin in margins]),
        **probability_scores(policy),
    }


def probability_scores(policy: Sequence[LogProbs]) -> dict[str, Any]:
    """``n``, and of pairs how much likelier the chosen answers are to the model itself, without a reference."""
    margins = [c - r for c, r in policy if c is not None and r is not None]
    if len(margins) < len(policy):
        return {"n": len(policy)}
    chosen = {"chosen_likelier": _mean([margin > 0 for margin in margins]), "log_probability_margin": _mean(margins)}
    return {"n": len(policy), **chosen}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


class PreferenceFormat(RowFormat):
    """The format of a data set's preferences, by their columns: see the head of this file."""

    def read(self, row: Mapping[str, Any], where: str) -> list[Any]:
        """The row's :class:`Preference`.

        Raises:
            InputError: naming what in the row is not understood, or the side that is missing.
        """
        return [Preference(*self.examples(row, where))]

    def _format(self, columns: Sequence[str]) -> tuple[str, Parse, list[str], frozenset[str]]:
        has = set(columns)
        parse: Parse
        if set(SIDES) <= has:
            parse, needed = self._from_pair, [*(["prompt"] if "prompt" in has else []), *SIDES]
        elif {"prompt", "completion", "label"} <= has:
            parse, needed = self._from_judged, ["prompt", "completion", "label"]
        else:
            raise InputError(f"{self.name} has the columns {', '.join(sorted(columns))}; needed are {FORMATS}.")
        names = {*needed, *OF_CHATS}
        return " + ".join(needed), parse, [column for column in columns if column in names], frozenset()

    def _from_pair(self, row: Mapping[str, Any], where: str) -> Iterator[Example]:
        sides = {side: parsed_messages(row[side]) for side in SIDES}
        for side, value in sides.items():
            _check_given(value, side, where)
        if sides["chosen"] == sides["rejected"]:
            raise InputError(f"{where}: 'chosen' and 'rejected' are the same. Leave the row out.")
        if "prompt" not in row:
            sides = _apart(sides, where)
        elif isinstance(row["prompt"], str) and isinstance(sides["chosen"], list):
            raise InputError(
                f"{where}: 'prompt' is a text and 'chosen' a list of messages. If these are the whole conversation, "
                "leave the prompt out with --drop-columns prompt."
            )
        for side in SIDES:
            for example in self.from_prompt_completion({**row, **sides}, where, side):
                _check_given(example.response or example.answer, side, where)
                yield example

    def _from_judged(self, row: Mapping[str, Any], where: str) -> Iterator[Example]:
        label = _LABELS.get(str(row["label"]).lower())
        if label is None:
            raise InputError(f"{where}: 'label' must be true or false, found {row['label']!r}.")
        (example,) = self.from_prompt_completion(row, where)
        _check_given(example.response or example.answer, "completion", where)
        without = example._replace(response="", answer=None)
        yield from (example, without) if label else (without, example)

    def _not_one_answer(self, column: str, where: str) -> str:
        return (
            f"{where}: after the prompt, {column!r} must be one message with the role 'assistant'. If it is the whole "
            "conversation, leave the prompt out with --drop-columns prompt; if the two differ in more than the last "
            "answer, leave the row out."
        )


def _check_given(value: Any, side: str, where: str) -> None:
    if not value or (isinstance(value, str) and not value.strip()):
        raise InputError(f"{where}: {side!r} is empty. Leave the row out.")


def _apart(sides: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Prompt and answers of whole conversations or texts, as TRL takes them apart."""
    if len({type(value) for value in sides.values()}) > 1:
        raise InputError(f"{where}: 'chosen' and 'rejected' must both be texts, or both be lists of messages.")
    chosen, rejected = (sides[side] for side in SIDES)
    shorter = min(len(chosen), len(rejected))
    if chosen[:shorter] == rejected[:shorter]:
        raise InputError(
            f"{where}: of 'chosen' and 'rejected' one is the beginning of the other, so it is unknown where the prompt "
            "ends. Give a column 'prompt', or leave the row out."
        )
    apart: dict[str, Any] = extract_prompt(dict(sides)) if chosen[0] == rejected[0] else {"prompt": ""}
    if not apart["prompt"]:
        raise InputError(
            f"{where}: 'chosen' and 'rejected' have no common beginning that could be the prompt. Give a column "
            "'prompt', or leave the row out."
        )
    return apart
