"""``monolora data DATASET …``: what is in a data set, and what ``monolora sft`` would train on.

Columns and format, lengths in tokens, duplicates, empty answers, examples that are too long, and three examples with
the trained tokens marked. The code that reads, tokenizes and checks is that of ``monolora sft``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from monolora.cli.flags import FlagParser
from monolora.data.chat_template import set_chat_template
from monolora.data.mixture import Mixture, mixture_task
from monolora.data.mixture_config import from_words
from monolora.data.task import COUNTS, NO_LIMITS, Source
from monolora.errors import InputError, exit_status
from monolora.files import code_trusted, read_text, saving, write_text
from monolora.hub import load_tokenizer, resolve_model
from monolora.recipes.data_statistics import Lengths, Statistics, statistics
from monolora.recipes.settings import DataReport as Settings
from monolora.recipes.training.data_checks import show_spans
from monolora.reporting.charts import Measured, Panel, axis_of, panel
from monolora.reporting.html import chart_style, rendered, script_json
from monolora.reporting.numbers import NOTHING, listed
from monolora.reporting.palette import colour_name
from monolora.terminal import Terminal, suggest

KICKER = "Data report"


def main(argv: list[str]) -> int:
    """Run from the command line; returns the exit status."""
    return run(FlagParser("monolora data", __doc__).parse_into(argv, Settings))


def run(settings: Settings) -> int:
    """Read, count and print; returns the exit status."""
    components = from_words(settings.datasets)
    is_mixture = components[0].fraction is not None
    if is_mixture and (settings.drop_columns or settings.dataset_config or settings.split != Source().train_split):
        raise InputError(
            "--split, --dataset-config and --drop-columns are not applied to a mixture. Leave them or the shares out."
        )
    out = None if settings.out is None else _page_path(Path(settings.out), settings.overwrite)
    source = Source(
        settings.dataset_config, settings.split, drop_columns=settings.drop_columns, train_on=settings.train_on
    )
    with code_trusted(settings.trust_remote_code):
        tokenizer = load_tokenizer(resolve_model(settings.model), trust_remote_code=settings.trust_remote_code)
    if settings.chat_template_path is not None:
        set_chat_template(tokenizer, settings.chat_template_path)
    found = [
        statistics(component.path, source, tokenizer, settings.max_length, settings.max_samples, settings.conversations)
        for component in components
    ]
    mixture = None
    if is_mixture:
        mixture = mixture_task(components, 0, NO_LIMITS, allow_empty_answers=True, train_on=settings.train_on)
    if out is not None:
        with saving(out):
            write_text(out, page(found, mixture, settings.model))
    if settings.json:
        print(json.dumps(as_json(found, mixture), indent=2))
        return 0
    _show(found, mixture, Terminal())
    if out is not None:
        Terminal().print(f"Page: {out}", soft_wrap=True)
    if not any(each.refusal for each in found):
        suggest("monolora", "sft", *_same_for_sft(settings))
    return 0


_SFT_FLAGS = {
    "model": "--model",
    "max_length": "--max-length",
    "split": "--dataset-train-split",
    "dataset_config": "--dataset-config",
    "chat_template_path": "--chat-template-path",
    "train_on": "--train-on",
    "conversations": "--conversations",
}


def _same_for_sft(settings: Settings) -> list[str]:
    """The words with which ``monolora sft`` reads the same rows in the same way."""
    words = [word for name in settings.datasets for word in ("--dataset", name)]
    for name, flag in _SFT_FLAGS.items():
        if (value := getattr(settings, name)) != getattr(Settings, name):
            words += [flag, str(value)]
    return [*words, *(("--drop-columns", *settings.drop_columns) if settings.drop_columns else ())]


def _page_path(path: Path, overwrite: bool) -> Path:
    """Raises: InputError, where no page can be written there."""
    if not path.parent.is_dir():
        raise InputError(f"--out {path}: there is no folder {path.parent}. Make it first.")
    if path.is_dir():
        raise InputError(f"--out {path} is a folder. Give a file, for example {path / 'data.html'}.")
    if path.suffix not in {".html", ".htm"}:
        raise InputError(f"--out {path}: a page's name ends in .html. Give {path}.html.")
    if path.exists() and not overwrite:
        raise InputError(f"--out {path} exists. Give another file, or --overwrite to replace an earlier page.")
    if path.exists() and f'<p class="kicker">{KICKER}</p>' not in read_text(path):
        raise InputError(f"--out {path} is no page of monolora data, and is not replaced. Give another file.")
    return path


def message(found: Sequence[Statistics], mixture: Mixture | None) -> str:
    """The finding, in a sentence: what can be trained on, and what stands most in the way."""
    total = sum(each.train for each in found) if mixture is None else len(mixture.train)
    names = listed(each.name for each in found)
    what = f"{total:,} examples of {names} can be trained on"
    if mixture is not None:
        what = f"The mixture of {names} has {total:,} examples"
    refused = [each.name for each in found if each.refusal]
    tokenized = sum(each.tokenized for each in found)
    lost, cut = sum(each.dropped for each in found), sum(each.truncated for each in found)
    empty, repeated = sum(each.empty_answers for each in found), sum(each.duplicate_examples for each in found)
    which = f" of the {tokenized:,} that were tokenized" if tokenized < total else ""
    if refused:
        return f"{listed(refused)} would be refused by monolora sft."
    if empty:
        return f"{what} once {_number(empty, 'empty answer is', 'empty answers are')} left out or allowed."
    if lost or cut:
        return f"{what}; {(lost + cut) / tokenized:.1%}{which} exceed {found[0].max_length:,} tokens."
    if repeated:
        return f"{what}; {_number(repeated, 'of them repeats', 'of them repeat')} an earlier one."
    return f"{what}, and all{which or ' of them'} fit into {found[0].max_length:,} tokens."


def _number(count: int, singular: str, plural: str = "") -> str:
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def rows_of(each: Statistics) -> dict[str, str]:
    """The numbers of a data set as they are shown, by what they are."""
    columns = each.columns
    share = f" (first {each.tokenized:,})" if each.tokenized < each.train else ""
    return {
        "format": columns.format if columns else "built-in task",
        "columns that are read": ", ".join(columns.read) if columns else NOTHING,
        "columns that are ignored": (", ".join(columns.ignored) or "none") if columns else NOTHING,
        "rows": f"{each.rows:,}",
        "examples": f"{each.examples:,}",
        "examples like an earlier one": f"{each.duplicate_examples:,}",
        "prompts like an earlier one": NOTHING if each.duplicate_prompts is None else f"{each.duplicate_prompts:,}",
        "empty answers": f"{each.empty_answers:,}",
        "examples to train on": f"{each.train:,}",
        "held-out examples": f"{each.held_out:,}",
        **{text: f"{each.counts[what]:,}" for what, text in COUNTS.items() if each.counts.get(what)},
        **_sequences(each, share),
        f"tokens of {_unit(each)}{share}": _quantiles(each.tokens),
        f"tokens of {'an' if each.is_joined else 'its'} answer{share}": _quantiles(each.answer_tokens),
        f"cut at {each.max_length:,} tokens": f"{each.truncated:,}",
        f"dropped, the prompt alone has {each.max_length:,} tokens": f"{each.dropped:,}",
        "checks of monolora sft": each.refusal or "passed",
    }


def _unit(each: Statistics) -> str:
    return "a sequence" if each.is_joined else "an example"


def _sequences(each: Statistics, share: str) -> dict[str, str]:
    """What becomes of conversations, where there are any."""
    joined = {f"sequences, of one or more answers{share}": f"{each.sequences:,}"} if each.is_joined else {}
    return joined | ({f"conversations in several sequences{share}": f"{each.in_parts:,}"} if each.in_parts else {})


def _quantiles(lengths: Lengths) -> str:
    return f"median {lengths.median:,}, 90 % {lengths.p90:,}, 99 % {lengths.p99:,}, longest {lengths.longest:,}"


def as_json(found: Sequence[Statistics], mixture: Mixture | None) -> dict[str, Any]:
    """Everything as JSON values: each data set under ``data_sets``, and what of each is in the ``mixture``, or null."""
    parts = () if mixture is None else mixture.parts
    return {
        "data_sets": {each.name: each.as_json() for each in found},
        "mixture": mixture
        and {
            "examples": len(mixture.train),
            "limited_by": mixture.limited_by and mixture.limited_by.name,
            "data_sets": {
                part.name: {field: getattr(part, field) for field in ("share", "examples", "available", "left_out")}
                for part in parts
            },
        },
    }


def mixture_lines(mixture: Mixture) -> list[str]:
    """What of each data set is in the mixture."""
    total = len(mixture.train)
    lines = [f"{part.name}: {part.examples:,} examples, {part.examples / total:.1%}" for part in mixture.parts]
    limiting = mixture.limited_by
    if limiting is not None:
        lines.append(f"{limiting.name} is used up: the mixture has at most {total:,} examples.")
    return lines


def _show(found: Sequence[Statistics], mixture: Mixture | None, console: Terminal) -> None:
    console.print(message(found, mixture), style="bold", soft_wrap=True)
    for each in found:
        table = Table(title=each.name, show_header=False)
        for what, value in rows_of(each).items():
            table.add_row(what, value)
        console.print(table)
        for number, example in enumerate(each.shown, start=1):
            show_spans(example, f"example {number}", console)
    if mixture is not None:
        console.print("\n".join(["The mixture:", *(f"  {line}" for line in mixture_lines(mixture))]), soft_wrap=True)


def _panel(each: Statistics, index: int) -> Panel:
    """How long examples are."""
    names = {"half at most": "median", "90 % at most": "p90", "99 % at most": "p99", "the longest": "longest"}
    lengths = {name: getattr(each.tokens, field) for name, field in names.items()}
    measured = [
        Measured(name, colour_name(index), value, None, None, f"{value:,} tokens") for name, value in lengths.items()
    ]
    axis = axis_of([*measured], is_bar=True)
    limit = each.max_length if each.max_length <= axis.high else None
    exceeding = each.truncated + each.dropped
    fits = f"{_number(exceeding, 'example exceeds', 'examples exceed')} {each.max_length:,} tokens"
    which = "All examples" if each.tokenized == each.train else f"All of the first {each.tokenized:,} examples"
    finding = f"{fits}: the dashed line" if exceeding else f"{which} fit into {each.max_length:,} tokens"
    return panel(f"tokens of {_unit(each)}", measured, axis, limit, finding)


def page(found: Sequence[Statistics], mixture: Mixture | None, model: str) -> str:
    """The report as a page that needs nothing else."""
    folder = Path(__file__).parent
    examples = [
        {"id": f"e{index}-{number}", "spans": example}
        for index, each in enumerate(found)
        for number, example in enumerate(each.shown)
    ]
    return rendered(
        folder,
        "data_report.html.j2",
        title=f"Data: {', '.join(each.name for each in found)}",
        message=message(found, mixture),
        style=chart_style() + (folder / "data_report.css").read_text(encoding="utf-8"),
        script=(folder / "data_report.js").read_text(encoding="utf-8"),
        kicker=KICKER,
        model=model,
        sets=[{"name": each.name, "rows": rows_of(each), "panel": _panel(each, k)} for k, each in enumerate(found)],
        shown=[len(each.shown) for each in found],
        mixture=[] if mixture is None else mixture_lines(mixture),
        examples=script_json(examples),
    )


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
