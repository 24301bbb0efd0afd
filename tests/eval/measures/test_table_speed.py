"""Ten models on a thousand prompts are measured in seconds."""

from __future__ import annotations

from typing import Any

from monolora.eval.measures.entries import entries
from monolora.eval.measures.model import Model
from monolora.eval.measures.table import build
from tests.support.limits import cpu_seconds
from tests.support.synthetic_run import MODELS, make


def test_ten_models_on_a_thousand_prompts() -> None:
    models = [MODELS[0], *(Model(f"model {number}", "adapter") for number in range(9))]
    run = make(1000, models=models, sets=("beavertails",))
    results: dict[str, Any] = {}

    def measure() -> None:
        results.update(build(**run._asdict()))
        assert len(list(entries(run.models, run.sets, run.judges, run.responses, run.judgements))) == 1000

    seconds = cpu_seconds(measure)
    assert len(results["differences"]) == 45 * len([each for each in results["columns"] if each["test"]])
    assert seconds < 10  # takes about 2
