"""What a trainer does to keep the base's behaviour: flags, anchors, the keepers' losses, the report."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import datasets
import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, Trainer

from monolora.data import prompt_sets
from monolora.data.tasks import Example
from monolora.inference import Inference, evaluating
from monolora.keep import KEEPERS, parse_keepers
from monolora.keep.anchors import DEFAULT_PROMPTS, Anchor, Anchors, answered, divided, read_prompts
from monolora.keep.keeper import Keeper, Preparation
from monolora.keep.report import Pair, measure
from monolora.refusals import margin, opening_ids
from monolora.run_record import fingerprint_rows

HELD_OUT_SET = "held-out anchors"
REPORT_PROMPTS = 100  # of a further set in the report, at most


@dataclass
class KeepArguments:
    """Flags of the keepers. A trainer's own dataclass of flags inherits from it."""

    keep: list[str] | None = field(
        default=None,
        metadata={
            "help": f"What keeps the base's behaviour on anchors: {', '.join(KEEPERS)}, several of them, or none; each "
            "as NAME or NAME:WEIGHT. Default: none."
        },
    )
    keep_prompts: list[str] | None = field(
        default=None,
        metadata={
            "help": "Prompts of the anchors: sets of `monolora eval`, beavertails-train, task:NAME, or files with a "
            f"column prompt or messages. Default: {' '.join(DEFAULT_PROMPTS)}, which come with the project."
        },
    )
    keep_samples: int = field(default=500, metadata={"help": "Number of anchors; a tenth of them is held out."})
    keep_answer_tokens: int = field(
        default=64, metadata={"help": "Limit of the base's answer to an anchor, in tokens."}
    )
    keep_first_tokens: int | None = field(
        default=None, metadata={"help": "Number of tokens of each answer that kl holds. Default: all."}
    )
    keep_tokens: int = field(
        default=20_000, metadata={"help": "Number of anchor tokens whose activations silence stores, at most."}
    )
    keep_report: list[str] | None = field(
        default=None,
        metadata={"help": "Further sets of prompts that the keeping report measures. Default: held-out anchors alone."},
    )


class WithKeepers(Trainer):
    """A trainer with keepers, whose losses its ``compute_loss`` adds. Mix it in before the trainer."""

    keepers: Sequence[Keeper] = ()

    def keepers_loss(self, model: Any, num_items_in_batch: Any) -> torch.Tensor | None:
        """The keepers' losses in the last micro-batch of a training step, so once a step; else None.

        To be called before the model's forward, after which FSDP may leave weights whole.
        """
        if not (self.keepers and model.training and self.accelerator.sync_gradients):
            return None
        total = None
        trainer: Any = self  # one of TRL's, which log these metrics beside the loss
        for keeper in self.keepers:
            loss = keeper.loss(model, self.state.global_step)
            if loss is not None:
                for name, value in {keeper.name: loss.detach(), **keeper.metrics}.items():
                    mean = self.accelerator.reduce(value, reduction="mean")  # each process may have anchors of its own
                    trainer._metrics["train"][f"keep_{name}"].append(float(mean))
                total = loss if total is None else total + loss
        # The trainer divides a loss that is not already one of the whole step by the number of its micro-batches.
        if total is not None and num_items_in_batch is None:
            total = total * self.current_gradient_accumulation_steps
        return total


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """What a run keeps, and on which prompts.

    Attributes:
        keepers: of ``--keep``.
        anchors: None where nothing is kept.
        report_sets: what the report measures on beside the held-out anchors, by name.
    """

    keepers: list[Keeper]
    anchors: Anchors | None = None
    report_sets: dict[str, list[Anchor]] = field(default_factory=dict)

    def rows(self, task_rows: int, seed: int) -> datasets.Dataset | None:
        """The rows that keepers add to the task's, tokenized; None for none."""
        if self.anchors is None:
            return None
        rows = [dict(row) for keeper in self.keepers for row in keeper.rows(self.anchors, task_rows, seed)]
        return datasets.Dataset.from_list(rows) if rows else None

    def prepare(
        self,
        trainer: WithKeepers,
        tokenizer: PreTrainedTokenizerBase,
        task_rows: datasets.Dataset,
        flags: KeepArguments,
        base: str,
        is_trained: bool = False,
    ) -> None:
        """Prepare the keepers, which may initialise a new adapter.

        Args:
            trainer: not yet training.
            tokenizer: of its model.
            task_rows: the task's tokenized rows, whole.
            flags: of the run.
            base: the base's key (:func:`monolora.keep.anchors.base_key`).
            is_trained: whether the adapter was trained before.

        Raises:
            InputError: if a keeper cannot work with model, adapter or data.
        """
        if self.anchors is None:
            return
        preparation = Preparation(
            model=trainer.model,
            tokenizer=tokenizer,
            anchors=self.anchors,
            task_rows=task_rows,
            seed=trainer.args.seed,
            batch_size=trainer.args.per_device_eval_batch_size,
            tokens=flags.keep_tokens,
            first_tokens=flags.keep_first_tokens,
            base=base,
            is_trained=is_trained,
        )
        for keeper in self.keepers:
            keeper.prepare(preparation)

    def measured_sets(self, with_held_out: bool) -> dict[str, list[Anchor]]:
        """What the report measures on, by name."""
        held_out = {HELD_OUT_SET: list(self.anchors.held_out)} if self.anchors and with_held_out else {}
        return held_out | self.report_sets

    def refusal_margin(self, tuned: Inference) -> float:
        """The mean refusal margin, in nats, over the sets of ``--keep-report``; without any, over held-out anchors."""
        sets = self.report_sets or self.measured_sets(with_held_out=True)
        prompts = [list(anchor.context) for anchors in sets.values() for anchor in anchors]
        with evaluating(tuned.model):
            log_probs = tuned.continuation_log_probs(prompts, opening_ids(tuned.tokenizer), "refusal margins")
        return sum(map(margin, log_probs)) / len(log_probs)

    def record(
        self, tuned: Inference, base: Callable[[], Any], flags: KeepArguments, with_held_out: bool = True
    ) -> dict[str, Any] | None:
        """What was kept of the base, and how, for the run's record; None where nothing was to be kept or measured.

        Args:
            tuned: the trained model.
            base: loads the base again, for a model without an adapter that could be switched off.
            flags: of the run.
            with_held_out: whether the held-out anchors are measured.
        """
        sets = self.measured_sets(with_held_out)
        if not (sets or self.keepers):
            return None
        reports = {}
        if sets:
            model, length = tuned.model, flags.keep_answer_tokens
            if isinstance(model, PeftModel):
                pair = Pair(model, model, model.disable_adapter)
            else:
                pair = Pair(model, base().to(model.device), nullcontext)
            for name, part in sets.items():
                reports[name] = measure(pair, tuned.tokenizer, part, tuned.batch_size, length)
        return {
            **self._counts(),
            "keepers": {keeper.name: {"weight": keeper.weight, **keeper.report()} for keeper in self.keepers},
            "sets": {name: report.as_json() for name, report in reports.items()},
        }

    def fingerprints(self) -> dict[str, str]:
        """Of the anchors that keepers learn from, and of the code of keepers from outside; empty for none."""
        own = {
            f"keeper {keeper.name}": fingerprint_rows(
                [inspect.getsource(inspect.getmodule(type(keeper)) or type(keeper))]
            )
            for keeper in self.keepers
            if type(keeper) not in KEEPERS.values()
        }
        return own | ({} if self.anchors is None else {"anchors": fingerprint_rows(map(str, self.anchors.train))})

    def _counts(self) -> dict[str, int]:
        """Of the prompts."""
        if self.anchors is None:
            return {}
        anchors = self.anchors
        return {"anchors": len(anchors.train), "held_out": len(anchors.held_out), "evaluated": anchors.evaluated}


def make_keeping(
    flags: KeepArguments,
    tested: Iterable[Example],
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    base: str,
    folder: str | None,
    batch_size: int,
) -> Keeping:
    """Anchors for the keepers and the report, with the base's answers.

    Args:
        flags: of the run.
        tested: the task's held-out examples, which are no anchors.
        model: the base.
        tokenizer: its tokenizer.
        base: its key (:func:`monolora.keep.anchors.base_key`).
        folder: of the base, for vLLM; None for one that is quantized when it is loaded.
        batch_size: prompts answered at a time.

    Raises:
        InputError: if a set is unknown, no prompt is left, or the base cannot answer.
    """
    keepers = parse_keepers(flags.keep or ())
    answer = partial(
        answered,
        tokenizer=tokenizer,
        model=partial(nullcontext, model),
        base=base,
        dtype=model.dtype,
        max_new_tokens=flags.keep_answer_tokens,
        batch_size=batch_size,
        folder=folder,
    )
    anchors, learned = None, []
    if keepers:
        prompts = read_prompts(flags.keep_prompts or DEFAULT_PROMPTS, flags.keep_samples, tested)
        learned = prompts.examples
        anchors = divided(answer(learned), prompts.evaluated)
    sets = {}
    for name in flags.keep_report or ():
        examples = read_prompts([name], REPORT_PROMPTS, learned, from_evaluation=True).examples
        sets[prompt_sets.set_name(name)] = answer(examples)
    return Keeping(keepers=keepers, anchors=anchors, report_sets=sets)
