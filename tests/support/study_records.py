"""Made-up results of a study: seeded, shaped like real ones, with a verdict of each kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np

from monolora.eval.measures.table import BOOTSTRAP, MCNEMAR, Column
from monolora.recipes.study.claims import claims, verdicts
from monolora.recipes.study.page import page
from monolora.recipes.study.plan import SelectedRate
from monolora.recipes.study.plots import figure_name, trade
from monolora.recipes.study.results import BASE, Values
from monolora.recipes.study.settings import Dataset, Study
from monolora.reporting.plots import SETTINGS, save_figure

STUDY = Study(
    model="smollm2-135m-instruct",
    out="runs/study",
    adapters={
        "LoRA": {"adapter": "lora"},
        "MonoLoRA": {"adapter": "monolora", "keep": ["silence"]},
        "identity": {"adapter": "monolora", "activation": "identity"},
        "top-2": {"adapter": "monolora", "activation": "topk:2"},
    },
    datasets={"sst2": Dataset({}, {})},
    seeds=(1, 2, 3),
    learning_rates=(1e-3, 1e-2),
    eval={"judges": ["classifier:judge", "refusal"]},
    judges={"judge": {}},
    margin={"flagged": 3, "sst2": 2},
)
_PROMPTS = 120
_FIGURE = ("study", "figure", "curves")
_SHARES = {  # of flags, by column: base, then the adapters
    "flagged": (0.25, 0.52, 0.3, 0.51, 0.45),
    "accuracy": (0.5, 0.85, 0.84, 0.85, 0.84),
    "refusal": (0.3, 0.02, 0.2, 0.03, 0.1),
}


def columns(seed: int = 0) -> list[Values]:
    """Flags of harm, task and refusals, and drift."""
    random = np.random.default_rng(seed)
    heads = [
        Column(
            metric="flagged", set="beavertails", judge="judge", aspect="harm", title="judge flagged", group="",
            description="answers that the judge calls unsafe", better="lower", test=MCNEMAR, headline=True,
            shown_in=_FIGURE,
        ),
        Column(
            metric="accuracy", set="task:sst2", aspect="task", title="accuracy", group="sst2 perf.",
            description="answers whose first word is the label", better="higher", test=MCNEMAR, headline=True,
            shown_in=_FIGURE,
        ),
        Column(
            metric="refusal", set="beavertails", judge="refusal", aspect="refusal", title="refusal",
            group="beavertails", description="answers with a phrase of refusal", test=MCNEMAR, shown_in=_FIGURE,
        ),
    ]  # fmt: skip
    found = [Values(head, np.ones(_PROMPTS), _flags(random, _SHARES[head.metric])) for head in heads]
    drift = Column(
        metric="drift", set="beavertails", aspect="drift", title="drift", group="beavertails", unit="nats/token",
        description="KL(base ‖ model) a token", better="lower", test=BOOTSTRAP, of_base=False, shown_in=_FIGURE,
    )  # fmt: skip
    sizes = zip(STUDY.adapters, (0.6, 0.05, 0.55, 0.3), strict=True)
    return [*found, Values(drift, np.ones(40), {name: random.gamma(2, size / 2, (3, 40)) for name, size in sizes})]


def _flags(random: np.random.Generator, shares: Sequence[float]) -> dict[str, np.ndarray]:
    """Each model's flags on the same prompts: 0 and 100."""
    of_prompts = random.random(_PROMPTS)
    shapes = {BASE: 1} | dict.fromkeys(STUDY.adapters, 3)
    return {
        model: 100.0 * (np.clip(of_prompts + random.normal(0, 0.05, (seeds, _PROMPTS)), 0, 1) < share)
        for (model, seeds), share in zip(shapes.items(), shares, strict=True)
    }


def written(folder: Path) -> Path:
    """The page of these results, in a file."""
    study = replace(STUDY, out=str(folder))
    own = columns()
    rates = {name: SelectedRate(1e-2, {1e-3: 0.41, 1e-2: 0.35}, True) for name in study.adapters}
    about = ["Seeds 1, 2, 3.", "[judge](../judge/run.json) was trained for the study: AUC 0.850."]
    with mpl.rc_context(SETTINGS):
        figure = trade(study, "sst2", own)
        assert figure is not None
        save_figure(figure, folder / "report", figure_name("kept", "sst2"))
    path = folder / "report.html"
    decided = verdicts(list(claims(study, "sst2", own)))
    path.write_text(page(study, {"sst2": own}, {"sst2": rates}, decided, about), encoding="utf-8")
    return path
