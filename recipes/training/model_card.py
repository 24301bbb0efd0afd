"""The results of a run for people: table, plot, model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from rich.table import Table

from monolora.activations import DEFAULT
from monolora.data.preference_tasks import COUNTS as PREFERENCE_COUNTS
from monolora.data.scoring import is_percentage
from monolora.data.task import COUNTS
from monolora.keep.report import KeepingReport, rows_of
from monolora.recipes.training.validation import PREFIX

PLOT = "training.png"


def rows_line(rows: Mapping[str, Any]) -> str:
    """Numbers of read, dropped, truncated and held-out rows, in one line; one more for each data set of a mixture."""
    parts = [f"{rows['examples']} {rows.get('unit', 'examples')}"]
    if "read" in rows:
        parts.insert(0, f"{rows['read']} of {rows['data_set']} rows read for training")
        counts = COUNTS | PREFERENCE_COUNTS
        parts += [f"{rows[key]} {text}" for key, text in counts.items() if rows.get(key) and key != "read"]
    one_pass = f" in {rows['sequences']} sequences" if "sequences" in rows else ""
    parts.append(f"{rows['examples'] - rows['dropped']} trained on{one_pass}")
    parts += [f"{rows['dropped']} dropped (longer than --max-length)"] if rows["dropped"] else []
    parts += [f"{rows['truncated']} truncated"] if rows["truncated"] else []
    lines = [f"Data: {', '.join(parts)}; {rows['test']} held out."]
    if in_parts := rows.get("in_parts"):
        lines.append(
            f"Conversations that are not trained on in one sequence: {in_parts['number']} (the first is "
            f"{in_parts['first']}). The "
            "chat template renders an earlier turn otherwise once more follow."
        )
    lines += [_source_line(name, source) for name, source in rows.get("sources", {}).items()]
    if rows.get("limited_by"):
        lines.append(
            f"{rows['limited_by']} is used up: the mixture has {rows['examples']:,} examples, and more would need some "
            "of them again."
        )
    if any(source.get("columns", {}).get("format") == "text" for source in (rows, *rows.get("sources", {}).values())):
        lines.append("Rows of the format 'text' are trained on as a whole, as in pretraining (language modelling).")
    return "\n".join(lines)


def _source_line(name: str, source: Mapping[str, Any]) -> str:
    parts = [
        f"{source['train']:,} examples ({source['share']:.1%}; asked for {source['asked_share']:.1%})",
        f"{source['answer_tokens']:,} answer tokens ({source['token_share']:.1%})",
    ]
    parts += [f"{source[key]} {text}" for key, text in COUNTS.items() if source.get(key) and key != "read"]
    if source["left_out"]:
        parts.append(f"{source['left_out']} left out that begin as a held-out one")
    if source["examples"] == source["available"]:
        parts.append("all that it has")
    return f"  {name}: {', '.join(parts)}"


def result_table(records: Sequence[dict[str, Any]]) -> Table:
    """One column a run: scores before and after, trained parameters, sparsity; of a single run, seconds too.

    Seconds of several runs are left out: what else the machine did meanwhile is in them, and they read as a comparison.
    """
    title = f"{records[0]['config']['dataset']} on {records[0]['config']['model']}{_scored(records[0], ', scored on ')}"
    table = Table(title=title)
    table.add_column()
    for record in records:
        table.add_column(f"{record['config']['adapter']}\nbefore → after", justify="right")
    runs = [record["results"] for record in records]
    for metric in _metrics(records[0]):
        scores = [f"{shown_score(metric, run['before'])} → {shown_score(metric, run['after'])}" for run in runs]
        table.add_row(metric.replace("_", " "), *scores)
    table.add_row("trained parameters", *(f"{run['trained_parameters']:,}" for run in runs))
    sparsities = ["–" if run["sparsity"] is None else f"{run['sparsity']['zeros']:.1%}" for run in runs]
    table.add_row("sparsity", *sparsities)
    if len(runs) == 1:
        table.add_row("training seconds", f"{runs[0]['seconds']['train']:.0f}")
    return table


def _scored(record: Mapping[str, Any], before: str) -> str:
    """The data set of a mixture that is scored, after some words; empty for a single data set."""
    sources = _sources(record)
    return f"{before}{next(iter(sources))}" if sources else ""


def _sources(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The counts of each data set of a mixture, by its name; empty for a single data set."""
    sources: Mapping[str, Any] = record.get("rows", {}).get("sources", {})
    return sources


def _metrics(record: dict[str, Any]) -> list[str]:
    return [name for name in record["results"]["after"] or {} if name != "n"]


def shown_score(metric: str, scores: Mapping[str, Any], digits: int = 2) -> str:
    """A score as people read it: accuracies in percent, counts whole, a dash for what was not measured."""
    value = scores.get(metric)
    if not isinstance(value, float):
        return "–" if value is None else str(value)
    return f"{value:.1%}" if is_percentage(metric) else f"{value:.{digits}f}"


_PANEL, _SMALL_PANEL = 2.6, 1.8  # inches; of one or two, and of more
_HELD_OUT_LOSS = "held-out loss"


def plot(history: Sequence[dict[str, Any]], folder: Path) -> None:
    """The losses, and below them held-out scores and the adapter's sparsity where there are any, as a PNG."""
    import matplotlib as mpl

    from monolora.reporting.palette import LIGHT
    from monolora.reporting.plots import SETTINGS, titled

    losses = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    zeros = [(entry["step"], 100 * entry["sparsity"]) for entry in history if "loss" in entry and "sparsity" in entry]
    held_out = _held_out(history)
    panels = {"training loss": losses} | held_out | ({"zero units, %": zeros} if zeros else {})
    with mpl.rc_context(SETTINGS):
        height = (_PANEL if len(panels) <= 2 else _SMALL_PANEL) * len(panels)
        figure = titled(_finding(losses, held_out.get(_HELD_OUT_LOSS, []), zeros), "", 7, 0.8 + height)
        all_axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for axes, (label, points), colour in zip(all_axes, panels.items(), cycle(LIGHT[1:]), strict=False):
            is_dense = len(points) > 1 and label not in held_out
            # A marker at the edge is seen whole; margins of preferences may be negative.
            axes.plot(*zip(*points, strict=True), color=colour, marker="" if is_dense else "o", clip_on=False)
            axes.set(ylabel=label, ylim=(0, 100) if label.endswith("%") else None)
        all_axes[-1].set_xlabel("step")
        all_axes[-1].locator_params(axis="x", integer=True)
        figure.savefig(folder / PLOT, dpi=150)


def _held_out(history: Sequence[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Scores on held-out rows along the steps, by the label of their axis; the loss first."""
    panels: dict[str, list[tuple[int, float]]] = {_HELD_OUT_LOSS: []}
    for entry in history:
        for name, value in entry.items():
            metric = name.removeprefix(PREFIX)
            if metric != name:
                share = is_percentage(metric) and isinstance(value, float)
                label = f"held-out {metric.replace('_', ' ')}{', %' if share else ''}"
                panels.setdefault(label, []).append((entry["step"], 100 * value if share else value))
    return {label: points for label, points in panels.items() if points}


def _finding(
    losses: Sequence[tuple[int, float]], validation: Sequence[tuple[int, float]], zeros: Sequence[tuple[int, float]]
) -> str:
    if not losses:
        return "No loss was logged"
    (_, first), (step, last) = losses[0], losses[-1]
    change = f"{'fell' if last < first else 'rose'} from {first:.2f} to" if last != first else "was"
    said = [f"The loss {change} {last:.2f} in {step:,} {'step' if step == 1 else 'steps'}"]
    if validation:
        best, value = min(validation, key=lambda point: point[1])
        said.append(f"on held-out rows it is lowest at step {best:,}: {value:.2f}")
    return "; ".join([*said, *([f"{zeros[-1][1]:.0f} % of units are zero"] if zeros else [])])


def model_card(record: dict[str, Any]) -> ModelCard:
    """A card with the measured numbers, the command, and how to load the model."""
    config, results = record["config"], record["results"]
    adapter = config["adapter"]
    data = ModelCardData(
        base_model=config["model"],
        library_name="transformers" if adapter == "none" else "peft",
        tags=[config.get("method", "sft"), "trl", *([] if adapter == "none" else [adapter])],
        pipeline_tag="text-generation",
    )
    lines = [
        f"---\n{data.to_yaml()}\n---",
        f"# {config['model']} finetuned on {config['dataset']} ({_kind(config)})",
        "",
        *([config["card_note"], ""] if config.get("card_note") else []),
    ]
    if results["after"]:
        held_out = f"{results['after']['n']} held-out examples{_scored(record, ' of ')}"
        lines += [f"Scores on {held_out}:", "", "| | before | after |", "|---|---|---|"]
        for metric in _metrics(record):
            scores = (shown_score(metric, results[when]) for when in ("before", "after"))
            lines.append(f"| {metric.replace('_', ' ')} | {' | '.join(scores)} |")
        lines.append("")
    lines += _keeping_lines(results.get("keeping"))
    if config.get("adapter_from"):
        weights = record["fingerprints"]["adapter"]
        lines += [f"Trained further from the adapter `{config['adapter_from']}` (fingerprint {weights}).", ""]
    if sources := _sources(record):
        lines += [*(f"- {_source_line(name, source).strip()}" for name, source in sources.items()), ""]
    if best := results.get("best"):
        lines += [_best_line(best), ""]
    lines += [f"Trained parameters: {results['trained_parameters']:,}. Seed: {config['seed']}."]
    if results["sparsity"] is not None:
        lines.append(f"Sparsity of the adapter's units on held-out prompts: {results['sparsity']['zeros']:.1%} zeros.")
    lines += [
        "",
        f"![training]({PLOT})",
        "",
        "Every setting and version is in `run.json`.",
        "",
        "## Use",
        "",
        _usage(config),
    ]
    return ModelCard("\n".join(lines))


def _best_line(best: Mapping[str, Any]) -> str:
    metric = best["metric"]
    where = "This is the model of" if best["loaded"] else "This is the model of the last step; the best was"
    shown = shown_score(metric, {metric: best["value"]}, 3)
    return f"{where} step {best['step']:,}, by its {metric.replace('_', ' ')} on held-out training rows: {shown}."


def _keeping_lines(keeping: Mapping[str, Any] | None) -> list[str]:
    """The keeping report as a table."""
    if keeping is None:
        return []
    methods = ", ".join(f"`{name}:{keeper['weight']:g}`" for name, keeper in keeping["keepers"].items()) or "nothing"
    reports = {name: KeepingReport.of(values) for name, values in keeping["sets"].items()}
    if not reports:
        return [f"The base was to be kept by {methods}. Nothing was measured; `monolora keep-report` does that.", ""]
    return [
        f"Kept of the base, by {methods}, measured on prompts that nothing was learned from:",
        "",
        f"| | {' | '.join(f'{name} ({report.anchors} prompts)' for name, report in reports.items())} |",
        f"|---|{'---|' * len(reports)}",
        *(f"| {' | '.join(row)} |" for row in rows_of(reports)),
        "",
    ]


def _kind(config: dict[str, Any]) -> str:
    kind = {"monolora": "MonoLoRA", "lora": "LoRA", "none": "full finetuning"}[config["adapter"]]
    is_default = config["adapter"] != "monolora" or config["activation"] == DEFAULT
    method = config.get("method", "").upper()  # of preferences
    return ", ".join(filter(None, (kind, None if is_default else config["activation"], method)))


def _usage(config: Mapping[str, Any]) -> str:
    """Code that loads the model and lets it answer."""
    folder = config.get("hub_model_id") or config["output_dir"]
    if config["adapter"] == "none":
        imports, cls = ["from transformers import AutoModelForCausalLM, AutoTokenizer"], "AutoModelForCausalLM"
    else:
        # For LoRA too: it finds a base by its name that is packaged or in a mirror.
        imports = ["import monolora  # PEFT's method, and bases by name", "from peft import AutoPeftModelForCausalLM"]
        imports, cls = [*imports, "from transformers import AutoTokenizer"], "AutoPeftModelForCausalLM"
    code = [
        *imports,
        "",
        f"folder = {json.dumps(folder)}",
        f'model, tokenizer = {cls}.from_pretrained(folder, dtype="auto"), AutoTokenizer.from_pretrained(folder)',
        'messages = [{"role": "user", "content": "What is a good name for a cat?"}]',
        'template = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}',
        "prompt = tokenizer.apply_chat_template(messages, **template)",
        "answer = model.generate(**prompt, max_new_tokens=64)[0, prompt.input_ids.shape[1] :]",
        "print(tokenizer.decode(answer, skip_special_tokens=True))",
    ]
    return "\n".join(["```python", *code, "```"])
