"""What a study found, in sentences for titles; verdicts on claims are in :mod:`monolora.recipes.study.claims`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from monolora.activations import DEFAULT, activation_named
from monolora.eval.measures.measures import STILL_REFUSED
from monolora.eval.measures.table import PERCENT
from monolora.recipes.study.claims import Answer, Verdict, counted, decimals_of
from monolora.recipes.study.results import BASE, Values
from monolora.recipes.study.settings import FlagValues, Study
from monolora.reporting.numbers import decimals_of_small, format_change, format_interval, format_number, listed


def title(study: Study) -> str:
    """What was trained on what."""
    return f"{study.model}: {', '.join(study.adapters)} on {', '.join(study.datasets)}"


def asked_by(decided: Sequence[Verdict]) -> dict[str, list[Verdict]]:
    """The verdicts by heading: on the paper's claims, on the project's and on the study's targets, if there are any."""
    papers = [verdict for verdict in decided if verdict.claim.is_the_papers]
    ours = [verdict for verdict in decided if not verdict.claim.is_the_papers]
    groups = {
        "Which of the paper's claims hold": papers,
        "Other claims" if papers else "Claims": [verdict for verdict in ours if verdict.claim.target is None],
        "Targets": [verdict for verdict in ours if verdict.claim.target is not None],
    }
    return {heading: group for heading, group in groups.items() if group}


def unlike_the_papers(study: Study, dataset: str) -> str:
    """Differences from the paper that make its numbers incomparable."""
    judges = str(study.eval.get("judges", ""))
    others = [
        *([] if "llama-2-7b-chat" in study.model.lower() else ["of another model"]),
        *([] if "shieldgemma" in judges and "beaverdam" in judges else ["other judges"]),
        *(["a metric that it does not name"] if dataset == "dolly" else []),
    ]
    return f" ({', '.join(others)}: to be set beside these, not compared)" if others else ""


def retention(study: Study, columns: Mapping[str, Sequence[Values]]) -> str:
    """How many of the base's refusals the control and the tested adapter keep; empty where that is not measured."""
    control, tested = list(study.adapters)[:2]
    measured = {
        dataset: values
        for dataset, own in columns.items()
        for values in own[::-1]  # the first set's is said
        if values.column.metric == STILL_REFUSED and None not in (values.mean(control), values.mean(tested))
    }
    if not measured:
        return ""
    ours, others = (listed([_share(values, name) for values in measured.values()]) for name in (tested, control))
    return f"On {listed(list(measured))}, {tested} keeps {ours} of the base’s refusals, {control} {others}."


def _share(values: Values, model: str) -> str:
    estimate = values.mean(model)
    assert estimate is not None
    return f"{_short(values, estimate.mean)}\N{NO-BREAK SPACE}%"


def verdict_count(decided: Sequence[Verdict]) -> str:
    """How many of the paper's claims hold; of a study that tests none of them, how many of the project's."""
    papers = [verdict for verdict in decided if verdict.claim.is_the_papers]
    asked = papers or decided
    if not asked:
        return "The study measured, and tested no claim."
    count = counted(asked)
    what = f"the paper’s {len(asked)} claims" if papers else f"{len(asked)} claims"
    if count["cannot be told"] == len(asked):
        return f"None of {what} can be decided."
    clauses = [f"{number} {_ANSWERED[answer][number > 1]}" for answer, number in count.items() if number]
    return f"Of {what}, {listed(clauses)}."


_ANSWERED: Mapping[Answer, tuple[str, str]] = {
    "holds": ("holds here", "hold here"),
    "does not hold": ("does not hold", "do not hold"),
    "cannot be told": ("cannot be told", "cannot be told"),
}  # of one, and of several


def compared(study: Study, values: Values) -> str:
    """The tested adapter against the control; empty where they share no prompt."""
    control, tested = list(study.adapters)[:2]
    estimate = values.difference(tested, control)
    if estimate is None:
        return ""
    unit = "points" if values.column.unit == PERCENT else values.column.unit
    digits = decimals_of(estimate, values.column.unit)
    size = f"{format_number(abs(estimate.mean), digits)} {unit}".rstrip()
    if estimate.interval is None:
        same = f"{tested} and {control} are equal for every seed and prompt."
        return same if estimate.mean == 0 else f"{tested} is {size} {_side(estimate.mean)} {control}, always."
    interval = format_interval(estimate.low, estimate.high, digits, changes=True)
    if estimate.interval.low <= 0 <= estimate.interval.high:
        change = f"{format_change(estimate.mean, digits)} {unit}".rstrip()
        return f"No difference between {tested} and {control} was found: {change} {interval}."
    return f"{tested} is {size} {_side(estimate.mean)} {control} {interval}."


def _side(change: float) -> str:
    return "above" if change > 0 else "below"


def means(study: Study, dataset: str, columns: Sequence[Values]) -> str:
    """The first column's means of base, control and tested adapter."""
    control, tested = list(study.adapters)[:2]
    values = columns[0]
    parts = [
        f"{_short(values, estimate.mean)} {values.column.unit}".rstrip() + f" {where}"
        for model, where in ((BASE, "in the base"), (control, f"after {control}"), (tested, f"after {tested}"))
        if (estimate := values.mean(model)) is not None
    ]
    return f"{dataset}: {values.column.title} {', '.join(parts)}"


def _short(values: Values, mean: float) -> str:
    return format_number(mean, 1 if values.column.unit == PERCENT else decimals_of_small([mean]))


def kept(dataset: str, score: Values, drift: Values, adapters: Sequence[str]) -> str:
    """The adapter that drifts least, beside the one that scores best."""
    known = [name for name in adapters if score.mean(name) is not None and drift.mean(name) is not None]
    if not known:
        return f"{dataset}: what keeping the base costs"
    least = min(known, key=lambda name: drift.by_seed(name).mean())
    best = max(known, key=lambda name: score.by_seed(name).mean())
    unit = score.column.unit
    if least == best:
        return f"{dataset}: {least} drifts least and scores best ({_score(score, least)} {unit}".rstrip() + ")"
    return (
        f"{dataset}: {least} drifts least and scores {_score(score, least)} {unit}".rstrip()
        + f"; {best} scores best, {_score(score, best)} {unit}".rstrip()
    )


def _score(values: Values, model: str) -> str:
    return f"{values.by_seed(model).mean():.1f}"


def along(dataset: str, title: str, unit: str, last: Mapping[str, float]) -> str:
    """Where the curves of a column end."""
    ends = ", ".join(f"{value:.3g} {unit}".rstrip() + f" ({name})" for name, value in last.items())
    return f"{dataset}: {title} ends at {ends}"


_KEEPERS = {
    "silence": "It is trained to add nothing on anchor prompts (silence).",
    "kl": "It is trained to keep the base’s next-token probabilities on anchor prompts (KL).",
    "replay": "It is also trained on the base’s own answers to anchor prompts (replay).",
}


def rows(study: Study) -> dict[str, str]:
    """What each row of the tables is."""
    named = {BASE: f"{study.model}, before any finetuning."}
    return named | {name: " ".join(_adapter(flags)) for name, flags in study.adapters.items()}


def _adapter(flags: FlagValues) -> Iterator[str]:
    name = str(flags.get("activation", DEFAULT))
    activation = activation_named(name)
    match flags.get("adapter", "monolora"):
        case "lora":
            yield "LoRA: two small matrices, A and B, beside each adapted weight."
        case "none":
            yield "Full finetuning: all weights are trained."
        case _ if activation.is_linear:
            yield (
                f"MonoLoRA’s code with activation = {name}: {activation.summary}. This is LoRA itself, computed "
                "another way. It shows how far two runs of LoRA lie apart."
            )
        case _:
            yield f"MonoLoRA: LoRA with {activation.summary}."
    keep = flags.get("keep") or ()
    for word in [keep] if isinstance(keep, str) else keep:
        yield _KEEPERS.get(str(word).partition(":")[0], f"It is trained with --keep {word}.")


_JUDGES = {
    "refusal": "Finds phrases of refusal in an answer. It does not say whether the answer is harmful.",
    "shieldgemma": "ShieldGemma: a language model that gives the probability that an answer violates a policy.",
    "beaverdam": "Beaver-Dam: a classifier that its authors trained on BeaverTails.",
}


def judges(study: Study) -> dict[str, str]:
    """What each judge is: always a program, never a person."""
    given = study.eval.get("judges", ())
    words = [given] if isinstance(given, str) else list(map(str, given))
    return dict(_judge(study, word) for word in words)


def _judge(study: Study, word: str) -> tuple[str, str]:
    kind, _, path = word.partition(":")
    name = path.rstrip("/").rpartition("/")[2] or kind
    if study.own_judge(word) is not None:
        return (
            name,
            "A text classifier that was trained for this study, on BeaverTails. It calls an answer safe or unsafe.",
        )
    if kind == "classifier":
        return name, "A text classifier. It calls an answer safe or unsafe."
    return name, _JUDGES.get(kind, "Judges each answer.")
