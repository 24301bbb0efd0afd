"""The results of a run for people: table, plot, model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from rich.table import Table

from monolora.data.scoring import is_percentage
from monolora.data.task import COUNTS
from monolora.keep.report import KeepingReport, rows_of

PLOT = "training.png"


def rows_line(rows: Mapping[str, Any]) -> str:
    """Numbers of read, dropped, truncated and held-out rows, in one line."""
    parts = [f"{rows['examples']} examples"]
    if "read" in rows:
        parts.insert(0, f"{rows['read']} of {rows['data_set']} rows read for training")
        parts += [f"{rows[key]} {text}" for key, text in COUNTS.items() if rows[key] and key != "read"]
    parts.append(f"{rows['examples'] - rows['dropped']} trained on")
    parts += [f"{rows['dropped']} dropped (longer than --max-length)"] if rows["dropped"] else []
    parts += [f"{rows['truncated']} truncated"] if rows["truncated"] else []
    return f"Data: {', '.join(parts)}; {rows['test']} held out."


def result_table(records: Sequence[dict[str, Any]]) -> Table:
    """One column a run: scores before and after, trained parameters, sparsity; of a single run, seconds too.

    Seconds of several runs are left out: what else the machine did meanwhile is in them, and they read as a comparison.
    """
    table = Table(title=f"{records[0]['config']['dataset']} on {records[0]['config']['model']}")
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


def _metrics(record: dict[str, Any]) -> list[str]:
    return [name for name in record["results"]["after"] or {} if name != "n"]


def shown_score(metric: str, scores: Mapping[str, Any]) -> str:
    """A score as people read it: accuracies in percent."""
    value = scores[metric]
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1%}" if is_percentage(metric) else f"{value:.2f}"


def plot(history: Sequence[dict[str, Any]], folder: Path) -> None:
    """Loss, and the adapter's sparsity where it has one, along the training steps, as a PNG."""
    from matplotlib.figure import Figure

    steps = [entry for entry in history if "loss" in entry]
    figure = Figure(figsize=(7, 4), layout="constrained")
    left = figure.add_subplot()
    left.plot([e["step"] for e in steps], [e["loss"] for e in steps], color="#1f6feb", label="loss")
    left.set(xlabel="step", ylabel="training loss", yscale="log")
    sparse = [entry for entry in steps if "sparsity" in entry]
    if sparse:
        right = left.twinx()
        right.plot(
            [e["step"] for e in sparse], [100 * e["sparsity"] for e in sparse], color="#d9730d", label="sparsity"
        )
        right.set(ylabel="zero units, %", ylim=(0, 100))
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    left.spines[["top"]].set_visible(False)
    figure.savefig(folder / PLOT, dpi=150)


def model_card(record: dict[str, Any]) -> ModelCard:
    """A card with the measured numbers, the command, and how to load the model."""
    config, results = record["config"], record["results"]
    adapter = config["adapter"]
    data = ModelCardData(
        base_model=config["model"],
        library_name="transformers" if adapter == "none" else "peft",
        tags=["sft", "trl", *([] if adapter == "none" else [adapter])],
        pipeline_tag="text-generation",
    )
    lines = [
        f"---\n{data.to_yaml()}\n---",
        f"# {config['model']} finetuned on {config['dataset']} ({_kind(config)})",
        "",
        *([config["card_note"], ""] if config.get("card_note") else []),
    ]
    if results["after"]:
        lines += [f"Scores on {results['after']['n']} held-out examples:", "", "| | before | after |", "|---|---|---|"]
        for metric in _metrics(record):
            scores = (shown_score(metric, results[when]) for when in ("before", "after"))
            lines.append(f"| {metric.replace('_', ' ')} | {' | '.join(scores)} |")
        lines.append("")
    lines += _keeping_lines(results.get("keeping"))
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
    if config["adapter"] == "monolora" and config["activation"] != "relu":
        return f"MonoLoRA, {config['activation']}"
    return {"monolora": "MonoLoRA", "lora": "LoRA", "none": "full finetuning"}[config["adapter"]]


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
