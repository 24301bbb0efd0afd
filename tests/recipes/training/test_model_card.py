"""The table, the plot and the model card."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from monolora.recipes.training.model_card import model_card, plot, result_table
from monolora.terminal import Terminal


def _record(adapter: str = "monolora", **results: Any) -> dict[str, Any]:
    scores = {"n": 4, "accuracy": 0.25, "unparsed": 3, "likelihood_accuracy": 0.5}
    return {
        "config": {"adapter": adapter, "model": "org/model", "dataset": "demo", "seed": 42, "activation": "relu"}
        | {"output_dir": "runs/a"},
        "results": {
            "before": scores,
            "after": scores | {"accuracy": 0.75, "unparsed": 0},
            "trained_parameters": 12345,
            "sparsity": {"zeros": 0.4567} if adapter == "monolora" else None,
            "seconds": {"train": 12.3, "total": 20.0},
            **results,
        },
    }


def _printed(*records: dict[str, Any], width: int = 80) -> str:
    out = io.StringIO()
    Terminal(file=out, width=width).print(result_table(records))
    return out.getvalue()


def test_result_table_fits_a_narrow_terminal() -> None:
    text = _printed(_record("lora"), _record("monolora"), width=60)
    assert "…" not in text
    for part in ("25.0% → 75.0%", "3 → 0", "50.0% → 50.0%", "12,345", "45.7%", "likelihood accuracy", "12"):
        assert part in text
    assert text.index("lora") < text.index("monolora")


def test_result_table_of_free_text() -> None:
    scores = {"n": 4, "bleu": 1.234, "rouge1": 20.0, "rouge2": 3.0, "rougeL": 10.0, "perplexity": 12.345}
    text = _printed(_record(before=scores, after=scores | {"perplexity": 6.5}))
    assert "12.35 → 6.50" in text or "12.34 → 6.50" in text
    assert "1.23 → 1.23" in text


def test_result_table_without_scores() -> None:
    text = _printed(_record(before=None, after=None, sparsity=None))
    assert "accuracy" not in text
    assert "12,345" in text


@pytest.mark.parametrize(("sparse", "height"), [(True, 900), (False, 510)])
def test_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sparse: bool, height: int) -> None:
    """One scale a panel, and no legend, as each panel has one line."""
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (drawn.append(self), save(self, *args, **kw)))
    history = [{"step": k, "loss": 2.0 / k, **({"sparsity": 0.1 * k} if sparse else {})} for k in (1, 2, 3)]
    plot([*history, {"train_runtime": 3.0}], tmp_path)
    with Image.open(tmp_path / "training.png") as image:
        assert image.size == (1050, height)
    (figure,) = drawn
    assert [axes.get_ylabel() for axes in figure.axes] == ["training loss", *["zero units, %"] * sparse]
    assert [len(axes.lines) for axes in figure.axes] == [1] * len(figure.axes)
    assert not figure.legends
    zeros = "; 30 % of units are zero" if sparse else ""
    assert figure.get_suptitle() == f"The loss fell from 2.00 to 0.67 in 3 steps{zeros}"


def test_plot_of_scores_while_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A panel each, shares in percent, counts as they are, margins below 0 too."""
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: drawn.append(self))
    scores = [
        {"eval_loss": 2.0, "eval_unparsed": 3, "eval_accuracy": 0.25, "eval_reward_margin": -0.5},
        {"eval_loss": 1.5, "eval_accuracy": 1.0, "eval_reward_margin": -0.25},
    ]
    plot([{"step": 1, "loss": 2.0}, {"step": 1, **scores[0]}, {"step": 2, **scores[1]}], tmp_path)
    (figure,) = drawn
    lines = {axes.get_ylabel(): axes.lines[0].get_xydata().tolist() for axes in figure.axes}
    assert lines == {
        "training loss": [[1, 2]],
        "held-out loss": [[1, 2], [2, 1.5]],
        "held-out unparsed": [[1, 3]],
        "held-out accuracy, %": [[1, 25], [2, 100]],
        "held-out reward margin": [[1, -0.5], [2, -0.25]],
    }
    for axes in figure.axes:
        low, high = axes.get_ylim()
        assert all(low <= y <= high for _, y in lines[axes.get_ylabel()])
    assert "The loss was 2.00 in 1 step;" in figure.get_suptitle()
    assert "lowest at step 2: 1.50" in " ".join(figure.get_suptitle().split())


def test_plot_of_a_run_too_short_to_log(tmp_path: Path) -> None:
    plot([{"train_runtime": 3.0}], tmp_path)
    assert (tmp_path / "training.png").is_file()


@pytest.mark.parametrize(
    ("adapter", "loads_with"), [("monolora", "AutoPeftModel"), ("lora", "AutoPeftModel"), ("none", "AutoModel")]
)
def test_model_card(adapter: str, loads_with: str) -> None:
    text = str(model_card(_record(adapter)))
    assert text.startswith("---\n")
    assert "base_model: org/model" in text
    assert "| accuracy | 25.0% | 75.0% |" in text
    assert "| unparsed | 3 | 0 |" in text
    assert "12,345" in text
    assert "Seed: 42" in text
    assert f"{loads_with}ForCausalLM" in text
    assert ("import monolora" in text) == (adapter != "none")
    assert ("45.7% zeros" in text) == (adapter == "monolora")


def test_model_card_without_scores() -> None:
    text = str(model_card(_record(before=None, after=None, sparsity=None)))
    assert "held-out" not in text
