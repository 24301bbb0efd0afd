"""The settings of ``monolora explain``. Each is a flag."""

from __future__ import annotations

from dataclasses import dataclass

from monolora.cli.flags import Flags, group, setting, words
from monolora.errors import InputError
from monolora.files import TRUST_HELP

RANKINGS = ("effect", "information", "contrast")
KEPT = "kept"  # the data set of kept prompts
DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, kw_only=True)
class Settings(Flags):
    """Settings of an explanation. Each field is a flag, with hyphens for underscores."""

    out: str = setting("", "folder for features.parquet, explorer.html and run.json", metavar="DIR")
    dataset: tuple[str, ...] = setting(
        (),
        "sst2, dolly, demo, beavertails, beavertails-eval, xstest, contrast-pairs, beavertails-answers, a hub id or "
        "a file; repeatable (default: demo)",
        metavar="NAME",
        action="append",
    )
    overwrite: bool = setting(False, "replacement of an earlier explanation in DIR")
    content_note: bool = setting(
        False, "content note before the texts of all data sets, as before those of the safety sets"
    )
    keep_prompts: tuple[str, ...] = setting(
        (),
        "prompt sets on which units should be silent (default: those that the adapter's run kept, if any)",
        metavar="SET",
        nargs="+",
    )
    split: str | None = setting(None, "split of a data set that is not built in (default: its only one, or test)")
    label_column: str = setting("label", "label column of such a data set")
    max_texts: int = setting(1000, "texts of each data set", type=int, at_least=1)
    model: str | None = setting(None, "base model (default: the one that the adapter names)")
    dtype: str = setting("bfloat16", "dtype of the base weights", choices=DTYPES)
    batch_size: int = setting(16, "texts in a batch", type=int, at_least=1)
    contexts: int = setting(20, "strongest contexts of each unit", type=int, at_least=1)
    contrast: tuple[tuple[str, str], ...] = setting(
        (),
        "two groups whose units are compared: a data set, or a label of one as xstest:unsafe xstest:safe; sst2:correct "
        "and sst2:wrong go by the label that the model finds likelier (default: the first data set against each other "
        "one of the same kind, and the labels of those with two)",
        metavar=("A", "B"),
        nargs=2,
        action="append",
    )
    logit_contexts: int = setting(
        4,
        "strongest contexts over which a unit's effect on the next token is measured by ablation; 0 for none",
        type=int,
        at_least=0,
    )
    ablate: int = setting(16, "number of units that are ablated one at a time; 0 for none", type=int, at_least=0)
    ablate_by: str = setting(
        "effect",
        "ranking of these: by largest effect or information on any data set, or AUC farthest from 0.5 of any contrast",
        choices=RANKINGS,
    )
    ablate_units: tuple[str, ...] = setting(
        (), "units to ablate instead, as 3.self_attn.q_proj:5", metavar="UNIT", nargs="+"
    )
    ablation_prompts: int = setting(64, "prompts of each data set for these ablations", type=int, at_least=1)
    safety_prompts: int = setting(16, "safety prompts of each set answered under each ablation", type=int, at_least=0)
    max_new_tokens: int = setting(64, "tokens of these answers", type=int, at_least=1)
    judges: tuple[str, ...] = setting(
        ("refusal",),
        "judges of these answers: refusal, classifier:MODEL, …, as for monolora eval; with commas",
        type=words,
    )
    score: bool = setting(
        False,
        "scores of the units beside those of random units: sparse probing, targeted perturbation, faithfulness; with "
        "--compare stability",
    )
    score_texts: int = setting(400, "labelled texts of each data set for these scores", type=int, at_least=1)
    dashboards: bool = setting(
        False, "dashboards of the units on the first data set, in the JSON of SAEDashboard and Neuronpedia's converter"
    )
    trust_remote_code: bool = setting(False, TRUST_HELP)
    compare: tuple[str, ...] = setting(
        (),
        "explain adapters (or take folders of earlier explanations) and set them side by side",
        metavar="NAME=PATH",
        nargs="+",
    )

    def check(self) -> None:
        """Raises: InputError, naming the flag, for invalid and inconsistent values."""
        if not self.out:
            raise InputError("Where to? Give a folder with --out.")
        super().check()
        if len(set(self.datasets())) < len(self.datasets()):
            raise InputError("A data set is named twice. Leave one out.")
        if KEPT in self.datasets():
            raise InputError(f"--dataset {KEPT}: this name is that of the kept prompts. Name them with --keep-prompts.")

    def datasets(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self.dataset) or ("demo",)


@dataclass(frozen=True, kw_only=True)
class Call(Flags):
    """A command line: the adapter and the settings."""

    adapter: str | None = setting(None, "folder of a MonoLoRA or LoRA adapter", positional=True, nargs="?")
    settings: Settings = group(Settings)

    def check(self) -> None:
        """As for all settings; and either one adapter is explained, or several are compared."""
        super().check()
        if bool(self.adapter) == bool(self.settings.compare):
            raise InputError("Give one adapter folder to explain, or several with --compare NAME=PATH NAME=PATH.")
