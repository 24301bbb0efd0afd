"""``--dry-run``: every command of a study, and about how many tokens, how much memory and how many hours it takes."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from transformers import PreTrainedTokenizerBase

from monolora.errors import InputError
from monolora.hub import SMOLLM2, load_tokenizer, resolve_model
from monolora.recipes.studies.cells import middle_rate, planned
from monolora.recipes.studies.loads import Load, loads
from monolora.recipes.studies.settings import Study
from monolora.terminal import STDERR, Terminal, say


def dry_run(study: Study) -> None:
    """Print the commands and what they take; nothing is run."""
    for cell in planned(study):
        say(cell.command)
    middle = middle_rate(study)
    rates = ", ".join(f"{rate:g}" for rate in study.learning_rates)
    said = f"Seeds after the first take the best of the learning rates {rates}; {middle:g} stands for it here."
    STDERR.print(said, soft_wrap=True)
    Terminal().print(_table(study, list(loads(study, _tokenizer(study)))))


def _tokenizer(study: Study) -> PreTrainedTokenizerBase:
    try:
        return load_tokenizer(resolve_model(study.model))
    except InputError:
        STDERR.print(f"{study.model} cannot be had here: tokens are counted by {SMOLLM2}'s tokenizer.")
        return load_tokenizer(resolve_model(SMOLLM2))


def _table(study: Study, found: Sequence[Load]) -> Table:
    device = "no estimates in the study's file" if study.estimates is None else study.estimates.device
    table = Table(title=f"If no answer ends by itself, {device}", box=None)
    for title in ("", "cells", "million tokens", "GB", "hours"):
        table.add_column(title, justify="right" if title else "left")
    for each in found:
        shown = ("–" if value is None else f"{value:.1f}" for value in (each.tokens / 1e6, each.gigabytes, each.hours))
        table.add_row(each.what, str(each.cells), *shown)
    hours = [each.hours for each in found if each.hours is not None]
    if hours:
        table.add_row("all", "", "", "", f"{sum(hours):.1f}")
    return table
