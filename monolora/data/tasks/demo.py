"""A small sentiment task that the project writes itself, so that the first run needs no data.

A seeded grammar fills templates with a thing and two judgements of it. Some sentences say the same twice, some weigh
a judgement against its opposite ("the plot is dull, but the ending is superb": the last word counts), so that
looking for one word is not enough. Training and test sentences share words but no template.
"""

from __future__ import annotations

from itertools import product
from random import Random

from monolora.data.example import Example
from monolora.data.scoring import Classification
from monolora.data.task import Task
from monolora.data.tasks.sst2 import INSTRUCTION, LABELS

THINGS = (
    "camera", "ending", "keyboard", "hotel", "soup", "lecture", "novel", "bicycle", "museum",
    "phone", "concert", "jacket", "coffee", "garden", "train ride", "song", "lamp", "painting",
    "pizza", "game", "couch", "podcast", "map", "bakery",
)  # fmt: skip
GOOD = (
    "wonderful", "superb", "delightful", "brilliant", "charming", "reliable", "excellent", "lovely",
    "impressive", "refreshing", "comfortable", "thoughtful",
)  # fmt: skip
BAD = (
    "awful", "dull", "disappointing", "broken", "tedious", "useless", "terrible", "ugly", "clumsy",
    "annoying", "sloppy", "bland",
)  # fmt: skip

# {thing}, {same}: a word of the label's own sign; {other}: one of the opposite sign.
TRAIN_TEMPLATES = (
    "The {thing} was {same} from start to finish.",
    "I found the {thing} rather {same}.",
    "What a {same} {thing}!",
    "They promised a {other} {thing}, and it turned out {same}.",
    "At first the {thing} seemed {other}, but in the end it was {same}.",
    "Nobody warned me how {same} the {thing} would be.",
)
TEST_TEMPLATES = (
    "My verdict on the {thing}: {same}.",
    "Everyone calls the {thing} {other}; I think it is {same}.",
    "We left early talking about how {same} the {thing} had been.",
    "Far from {other}, the {thing} is simply {same}.",
)


PER_TEMPLATE = 576


def load() -> Task:
    """3,456 training and 2,304 test sentences; the two differ in their templates."""
    return Task(
        name="demo",
        train=sentences(TRAIN_TEMPLATES, seed=0),
        test=sentences(TEST_TEMPLATES, seed=1),
        scorer=Classification(LABELS),
        max_new_tokens=5,
        train_samples=256,
        test_samples=200,
    )


def sentences(templates: tuple[str, ...], seed: int) -> list[Example]:
    """Distinct labelled sentences, 576 of each template, in an order fixed by ``seed``."""
    random = Random(seed)
    examples: list[Example] = []
    for template in templates:
        labelled = {
            template.format(thing=thing, same=same, other=other): label
            for label, own, opposite in zip(LABELS, (BAD, GOOD), (GOOD, BAD), strict=True)
            for thing, same, other in product(THINGS, own, opposite)
        }
        for sentence in random.sample(sorted(labelled), PER_TEMPLATE):
            examples.append(Example(INSTRUCTION, labelled[sentence], context=sentence))
    random.shuffle(examples)
    return examples
