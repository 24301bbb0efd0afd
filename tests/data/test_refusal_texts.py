"""The project's refusals: each is one by the list of phrases, and they are many."""

from __future__ import annotations

from random import Random

import pytest

from monolora.data import prompt_sets, refusal_texts
from monolora.data.refusal_texts import HARMS, INSTEAD, KINDS, OFFERS, OPENINGS, SELF_HARM, WHY, refusal
from monolora.refusals import refuses


@pytest.mark.parametrize("opening", [*OPENINGS, *SELF_HARM])
def test_every_form_is_found_to_be_a_refusal(opening: str) -> None:
    """What follows the opening must not hide it."""
    endings = ["", *(why.format(harm="do harm") for why in WHY), *(other.format(offer="it") for other in INSTEAD)]
    assert all(refuses(f"{opening} {ending}") for ending in endings)


def test_drawn_texts_are_many_whole_and_of_the_seed_alone() -> None:
    categories = [(category,) for kind in KINDS.values() for category in kind]
    draws = [
        [refusal(categories[n % len(categories)], random) for n in range(2000)] for random in (Random(0), Random(0))
    ]
    assert draws[0] == draws[1]
    assert len(set(draws[0])) > 1200
    assert all("{" not in text and text[-1] in ".?" and text[0].isupper() and refuses(text) for text in draws[0])
    assert refuses(refusal((), Random(1)))
    assert refuses(refusal(("unheard_of",), Random(1)))


def test_every_kind_has_a_reason_and_an_offer() -> None:
    kinds = {*KINDS, "general"} - {"self-harm"}
    assert HARMS.keys() == OFFERS.keys() == kinds
    categories = [category for names in KINDS.values() for category in names]
    assert len(set(categories)) == len(categories)


def test_the_categories_of_the_embedded_requests_have_kinds() -> None:
    found = {category for prompt in prompt_sets.load("refusals").prompts for category in prompt.categories}
    assert found <= refusal_texts._KIND_OF.keys()
