"""What a run leaves for people: the result table, the plot, the model card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from rich.table import Table

PLOT = "training.png"
_PERCENT = {"accuracy", "likelihood_accuracy"}


def result_table(records: Sequence[dict[str, Any]]) -> Table:
    """One row a run: scores before and after, trained parameters, sparsity, seconds."""
    metrics = [name for name in _metrics(records[0]) if name != "n"]
    table = Table(title=f"{records[0]['config']['dataset']} on {records[0]['config']['model']}")
    table.add_column("adapter")
    for metric in metrics:
        table.add_column(f"{metric.replace('_', ' ')}\nbefore → after", justify="right")
    for column in ("trained\nparameters", "sparsity", "training\nseconds"):
        table.add_column(column, justify="right")
    for record in records:
        results = record["results"]
        table.add_row(
            record["config"]["adapter"],
            *(f"{_shown(m, results['before'])} → {_shown(m, results['after'])}" for m in metrics),
            f"{results['trained_parameters']:,}",
            "–" if results["sparsity"] is None else f"{results['sparsity']['zeros']:.1%}",
            f"{results['seconds']['train']:.0f}",
        )
    return table


def _metrics(record: dict[str, Any]) -> list[str]:
    return list(record["results"]["after"] or {})


def _shown(metric: str, scores: dict[str, Any]) -> str:
    value = scores[metric]
    if metric in _PERCENT:
        return f"{value:.1%}"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


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
        right.legend(loc="upper right", frameon=False)
    left.legend(loc="upper left", frameon=False)
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
    ]
    if results["after"]:
        lines += [f"Scores on {results['after']['n']} held-out examples:", "", "| | before | after |", "|---|---|---|"]
        lines += [
            f"| {metric.replace('_', ' ')} | {_shown(metric, results['before'])} | {_shown(metric, results['after'])} |"
            for metric in results["after"]
            if metric != "n"
        ]
        lines.append("")
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
        _usage(adapter),
    ]
    return ModelCard("\n".join(lines))


def _kind(config: dict[str, Any]) -> str:
    if config["adapter"] == "monolora" and config["activation"] != "relu":
        return f"MonoLoRA, {config['activation']}"
    return {"monolora": "MonoLoRA", "lora": "LoRA", "none": "full finetuning"}[config["adapter"]]


def _usage(adapter: str) -> str:
    imports = ["import monolora  # registers the PEFT method"] if adapter == "monolora" else []
    package, cls = (
        ("transformers", "AutoModelForCausalLM") if adapter == "none" else ("peft", "AutoPeftModelForCausalLM")
    )
    code = [*imports, f"from {package} import {cls}", "", f'model = {cls}.from_pretrained("THIS")']
    return "\n".join(["```python", *code, "```"])
