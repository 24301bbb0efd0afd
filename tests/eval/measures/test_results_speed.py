"""Ten models on a thousand prompts are measured in seconds."""

from __future__ import annotations

from typing import Any

from monolora.eval.measures.details import prompt_entries
from monolora.eval.measures.results import build
from monolora.eval.measures.table import Model
from tests.support.limits import cpu_seconds
from tests.support.synthetic_run import MODELS, RUN, make


def test_ten_models_on_a_thousand_prompts() -> None:
    models = [MODELS[0], *(Model(f"model {number}", "adapter") for number in range(9))]
    run = make(1000, models=models, sets=("beavertails",))
    results: dict[str, Any] = {}

    def measure() -> None:
        results.update(build(RUN, run))
        assert len(list(prompt_entries(run))) == 1000

    seconds = cpu_seconds(measure)
    assert len(results["differences"]) == 45 * len([each for each in results["columns"] if each["test"]])
    assert seconds < 10  # takes about 2
