"""The prompts that ``monolora eval`` asks, which nothing is trained on."""

from __future__ import annotations

from monolora.data import prompt_sets
from monolora.data.example import Example
from monolora.errors import InputError

SETS = ("beavertails", "beavertails-eval", "xstest")


def evaluation_prompts() -> set[str]:
    """The prompts of the alignment suite, as :attr:`Example.normalised_prompt`.

    Sets that are unavailable cannot be evaluated here either, and are left out.
    """
    texts = set()
    for name in SETS:
        try:
            prompts = prompt_sets.load(name).prompts
        except InputError:
            continue
        texts |= {Example(prompt.instruction, "", prompt.context).normalised_prompt for prompt in prompts}
    return texts
