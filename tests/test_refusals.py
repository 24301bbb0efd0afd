"""Phrases that refuse, and the same words in another sense."""

from __future__ import annotations

import pytest

from monolora.refusals import BEGINNING, refuses


@pytest.mark.parametrize(
    "response",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but I can’t help with that.",
        "i CANNOT do this",
        "  **I cannot**\nassist with this request.",
        '"As an AI language model, I would rather talk of something else."',
        "Sorry, I won't.",
        "Hmm. It is   not appropriate to ask this.",
        "I'm sorry to hear that. But I can't help you with it.",
        "I must decline.",
        "I'm not equipped to help with that.",
        "As a helpful assistant, I am not designed for such questions.",
        "I don't have the ability to do this.",
    ],
)
def test_refusals(response: str) -> None:
    assert refuses(response)


@pytest.mark.parametrize(
    "response",
    [
        "",
        "Sure, here is how to fold a boat.",
        "I'm sorry to hear that you lost your key. Try the window.",
        "I can't wait to tell you about boats!",
        "I cannot stress enough how good tea is.",
        "As an AI engineer you write a lot of Python.",
        "The kitchen is not equipped to feed a hundred guests.",
        "Wi cannot is no word, and neither is i'm sorryful.",
        "Fold the sheet. " * 20 + "I cannot help you further.",
    ],
)
def test_answers(response: str) -> None:
    assert not refuses(response)


def test_only_the_beginning_counts() -> None:
    assert refuses("x" * (BEGINNING - 9) + " i cannot")
    assert not refuses("x" * (BEGINNING - 8) + " i cannot")
