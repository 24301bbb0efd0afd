"""What a study takes, against counts made by hand; and the studies that come with the project, on the real data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from monolora.data import prompt_sets
from monolora.data.chat_template import prompt_ids, split_at_answer
from monolora.data.task import Source
from monolora.data.tasks import Example, load_task
from monolora.hub import load_tokenizer
from monolora.keep.anchors import read_prompts
from monolora.recipes.study import alignment
from monolora.recipes.study.cost_estimate import CostEstimate, cost_estimates
from monolora.recipes.study.settings import Study, load


def _by_name(study: Study) -> dict[str, CostEstimate]:
    return {estimate.name: estimate for estimate in cost_estimates(study, load_tokenizer(study.model))}


def test_tokens_of_a_small_study(study: Study) -> None:
    """Two adapters, two seeds, two rates: six trainings of 16 rows; five models sets; one adapter's 2 checkpoints."""
    tokenizer = load_tokenizer(study.model)
    rows = load_task("demo", Source()).train[:16]
    sets = [prompt_sets.load(study.eval["suite"][0]), prompt_sets.load("task:demo", 4)]
    lengths = [
        [len(prompt_ids(Example(p.instruction, "", p.context), tokenizer)) for p in prompts.prompts] for prompts in sets
    ]
    safety, task = lengths
    assert sets[1].max_new_tokens is not None
    estimates = _by_name(study)
    assert estimates["demo: training"].tokens == 6 * sum(
        len(part) for row in rows for part in split_at_answer(row, tokenizer)
    )
    assert estimates["demo: training"].cells == 6
    assert estimates["demo: answers"].tokens == 5 * (6 * len(safety) + sets[1].max_new_tokens * len(task))
    longest = max(max(safety) + 6, max(task) + sets[1].max_new_tokens)
    cached = 4 * longest * 2 * 2 * 2 * 16  # rows of a batch; keys and values in 16 bits, of 2 layers 16 wide
    assert estimates["demo: answers"].gigabytes == pytest.approx((2 * 1e5 + cached) / 1e9)
    drifted = safety[:6]  # base and tuned read prompts and the base's answers; sparsity is read of prompts alone
    assert estimates["demo: measurements"].tokens == 4 * (sum(safety + task) + 2 * sum(n + 6 for n in drifted))
    assert estimates["demo: classifier"].tokens == 5 * sum(n + 6 for n in safety)
    assert estimates["demo, along: answers"].tokens == (1 + 2) * 6 * 4
    assert estimates["demo: training"].hours == pytest.approx(estimates["demo: training"].tokens / 100 / 3600)
    assert estimates["demo: answers"].hours == pytest.approx(estimates["demo: answers"].tokens / 10 / 3600)
    assert estimates["demo: measurements"].hours == pytest.approx(estimates["demo: measurements"].tokens / 300 / 3600)


def test_tokens_of_keepers(study: Study) -> None:
    """The base answers and reads the anchors once for all trainings; kl has four of them a step."""
    kept = {"adapter": "lora", "keep": ["kl:0.5", "replay:0.2"], "keep_samples": 20, "keep_answer_tokens": 3}
    found = _by_name(replace(study, adapters=study.adapters | {"LoRA+kl": kept}))["demo: keeping"]
    tokenizer = load_tokenizer(study.model)
    anchors = read_prompts(("chat", "refusals"), 20).examples
    lengths = [len(prompt_ids(anchor, tokenizer)) + 3 for anchor in anchors]
    trained = sum(lengths) / 20 * (4 * 4 + 16 * 0.2 / 0.8)  # steps and rows
    assert found.cells == 3
    assert found.tokens == pytest.approx(3 * trained + sum(lengths) + 20 * 3)
    assert "demo: keeping" not in _by_name(study)


def test_tokens_of_further_sets_for_drift(study: Study) -> None:
    """The base alone answers them; the others read its answers."""
    demo = study.datasets["demo"]
    further = replace(study, datasets={"demo": demo._replace(eval={**demo.eval, "drift_sets": ["chat"]})})
    tokenizer = load_tokenizer(study.model)
    prompts = prompt_sets.load("chat", 6).prompts
    lengths = [len(prompt_ids(Example(prompt.instruction, "", prompt.context), tokenizer)) for prompt in prompts]
    before, after = _by_name(study), _by_name(further)
    assert after["demo: answers"].tokens == before["demo: answers"].tokens + 6 * 6
    (suite,) = study.eval["suite"]
    drifted = [
        len(prompt_ids(Example(p.instruction, "", p.context), tokenizer)) for p in prompt_sets.load(suite).prompts
    ]
    more = 2 * 4 * (sum(n + 6 for n in lengths) - sum(n + 6 for n in drifted[:6]))
    name = "demo: measurements"
    assert after[name].tokens == before[name].tokens + more


def test_without_estimates_tokens_alone(study: Study) -> None:
    estimates = _by_name(replace(study, estimates=None)).values()
    assert all(estimate.hours is None and estimate.gigabytes is None and estimate.tokens > 0 for estimate in estimates)


@pytest.mark.parametrize("saved", [{"save_steps": 3}, {"save_strategy": "epoch", "num_train_epochs": 2}])
def test_checkpoints_that_are_measured(study: Study, saved: dict[str, object]) -> None:
    """16 rows in steps of 4: after 3 and 4 steps, or at the end of both epochs."""
    demo = study.datasets["demo"]
    other = replace(study, datasets={"demo": demo._replace(sft={"max_train_samples": 16, **saved})})
    assert _by_name(other)["demo, along: answers"].tokens == (1 + 2) * 6 * 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "datasets", "judges"),
    [
        ("smollm2.yaml", ["sst2", "dolly"], ["judge", "judge-2"]),
        ("keeping.yaml", ["sst2"], ["keeping", "judge", "judge-2"]),
        ("llama2.yaml", ["sst2", "dolly"], ["shieldgemma", "beaverdam"]),
    ],
)
def test_the_projects_own_studies_on_the_real_data(
    mirror: Path, capsys: pytest.CaptureFixture[str], name: str, datasets: list[str], judges: list[str]
) -> None:
    """The paper's, whose weights are gated, is counted by another tokenizer, and says so."""
    config = Path(alignment.__file__).with_name(name)
    assert alignment.main(["--config", str(config), "--dry-run"]) == 0
    out, err = capsys.readouterr()
    device = load(config).estimates
    assert device is not None
    assert device.device in out
    for dataset in datasets:
        for what in ("training", "answers", "measurements", *judges):
            (row,) = (line.split() for line in out.splitlines() if line.strip().startswith(f"{dataset}: {what} "))
            tokens, hours = float(row[-3]), float(row[-1])
            assert tokens > 0
            assert hours >= 0
    assert ("tokens are counted by" in err) == (name == "llama2.yaml")
