"""What a trainer does for units that are few at a time and all in use: flags, losses, revival, and an annealed k."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback

from monolora.activations import TOP_K, Activation
from monolora.cli.flags import spelled
from monolora.errors import InputError
from monolora.revival import revive
from monolora.sparsity import real_tokens
from monolora.unit_losses import UnitLosses

STATE_FILE = "units.pt"
# Optimizers whose state of a parameter is a number for each of its entries, which a revived unit can begin anew.
REVIVING = ("adamw_torch", "adamw_torch_fused", "sgd", "rmsprop", "adagrad")


@dataclass
class SparsityArguments:
    """Flags of training for sparse units. A trainer's own dataclass of flags inherits from it."""

    sparsity_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the sparsity loss: the units' effects |h_u| ‖s B_u‖, summed over the units of a module, "
            "averaged over tokens and modules."
        },
    )
    usage_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of the usage loss, which raises units that the last step left at zero."},
    )
    revive_after: int | None = field(
        default=None,
        metadata={
            "help": "Number of steps after which a unit that was zero on every token starts again with new random "
            "weights. Default: never."
        },
    )
    topk_anneal: float = field(
        default=0.0,
        metadata={"help": "Share of the steps in which the k of topk:<k> or batchtopk:<k> falls from the rank."},
    )


def check_units(flags: argparse.Namespace, activation: Activation | None) -> None:
    """Check the flags of :class:`SparsityArguments` against the others.

    Args:
        flags: all flags, parsed.
        activation: of MonoLoRA; None for another adapter.

    Raises:
        InputError: naming the flag and the fix.
    """
    given = [flag.name for flag in fields(SparsityArguments) if getattr(flags, flag.name)]
    if not given:
        return
    if activation is None:
        raise InputError(
            f"{spelled(given[0])} works on MonoLoRA's units; --adapter {flags.adapter} has none. Leave it out, or use "
            "--adapter monolora --activation identity."
        )
    if flags.torch_compile:
        raise InputError(f"{spelled(given[0])} reads units while training, which --torch-compile does not show.")
    for name in ("usage_weight", "revive_after"):
        if name in given and not activation.one_sided:
            raise InputError(
                f"{spelled(name)}: units of {flags.activation} are never off, so none is idle. Leave it out, or use "
                "--activation relu."
            )
    if "revive_after" in given:
        _check_revival(flags, activation)
    if "topk_anneal" in given:
        _check_annealing(flags)


def _check_revival(flags: argparse.Namespace, activation: Activation) -> None:
    if activation.over_units or activation.in_training is not None:
        raise InputError(
            f"--revive-after: a new unit of {flags.activation} would take the places of others, and so change the "
            "model. Use --usage-weight instead."
        )
    optimizer = str(getattr(flags.optim, "value", flags.optim))
    if optimizer not in REVIVING:
        raise InputError(
            f"--revive-after: the state of --optim {optimizer} cannot begin anew for a single unit. Use one of "
            f"{', '.join(REVIVING)}."
        )


def _check_annealing(flags: argparse.Namespace) -> None:
    if flags.activation.partition(":")[0] not in TOP_K:
        raise InputError(
            f"--topk-anneal: --activation {flags.activation} has no k. Use topk:<k> or batchtopk:<k>, or leave it out."
        )
    if not 0 < flags.topk_anneal <= 1:
        raise InputError(f"--topk-anneal must be above 0 and at most 1, got {flags.topk_anneal}.")
    for name, value in (
        ("early_stopping_patience", flags.early_stopping_patience),
        ("load_best_model_at_end", flags.load_best_model_at_end),
        ("save_strategy best", flags.save_strategy == "best"),
    ):
        if value:
            raise InputError(
                f"--topk-anneal: the scores of {spelled(name)} would be of another k than the trained model's. Leave "
                "one of the two out."
            )


def annealed_k(rank: int, k: int, step: int, steps: int, share: float) -> int:
    """The k of a step: in a line from the rank in the first step to k in the last step of a share of all, k after it.

    Args:
        rank: of the module; where it is below k, so is the result.
        k: in the end.
        step: from 0.
        steps: of the run.
        share: above 0, at most 1.
    """
    last = math.ceil(share * steps) - 1
    return k if step >= last else round(rank + (k - rank) * step / last)


class SparseUnits(TrainerCallback):
    """The units of a run while it trains, by its flags. It logs ``k`` and ``revived_units``.

    Args:
        trainer: not yet training.
        flags: of the run.

    Raises:
        InputError: for an adapted module that the flags do not work with.
    """

    def __init__(self, trainer: Trainer, flags: SparsityArguments) -> None:
        self._accelerator, self._seed = trainer.accelerator, trainer.args.seed
        model: Any = trainer.model
        self.losses = UnitLosses(model, sparsity_weight=flags.sparsity_weight, usage_weight=flags.usage_weight)
        self._revive_after, self._share = flags.revive_after, flags.topk_anneal
        self._final = {layer: layer.activation[self.losses.adapter] for layer in self.losses.layers.values()}
        self._revived = 0
        self._k: int | None = None  # the largest of the last step

    def add_to(self, trainer: Any) -> None:
        """Add this to a trainer that is a :class:`WithSparseUnits`, ahead of the reporters."""
        trainer.sparse_units = self
        trainer.add_callback(self)
        callbacks = trainer.callback_handler.callbacks
        callbacks.insert(0, callbacks.pop())

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._set_k(state.global_step, state.max_steps)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._set_k(state.global_step, state.max_steps)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for layer, activation in self._final.items():
            layer.activation[self.losses.adapter] = activation

    def _set_k(self, step: int, steps: int) -> None:
        if not self._share:
            return
        ks = []
        for layer, activation in self._final.items():
            kind, _, k = activation.partition(":")
            ks.append(annealed_k(layer.r[self.losses.adapter], int(k), step, steps, self._share))
            layer.activation[self.losses.adapter] = f"{kind}:{ks[-1]}"
        self._k = max(ks)

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self.losses.end_step(lambda fired: self._accelerator.reduce(fired, reduction="sum"))
        if self._revive_after is None:
            return
        seed = np.random.SeedSequence([self._seed, state.global_step]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(seed[0]))
        for name, layer in self.losses.layers.items():
            idle_R = self.losses.idle_steps[name]
            units = (idle_R >= self._revive_after).nonzero().flatten()
            if len(units):
                revive(layer, units, optimizer, generator, self.losses.adapter)
                idle_R[units] = 0
                self._revived += len(units)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs is None or "loss" not in logs:
            return
        added: dict[str, float] = {} if self._k is None else {"k": self._k}
        if self._revive_after is not None:
            added["revived_units"] = self._revived  # since the first step
        logs.update(added)
        if state.log_history:
            state.log_history[-1].update(added)

    def save(self, folder: Path) -> None:
        """Write what a resumed run needs into a checkpoint."""
        torch.save({"revived": self._revived, "idle_steps": self.losses.state_dict()}, folder / STATE_FILE)

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: if the checkpoint has none.
        """
        path = folder / STATE_FILE
        if not path.is_file():
            raise InputError(f"{folder} has no {STATE_FILE}. Resume from an earlier checkpoint, or start again.")
        state = torch.load(path, weights_only=True)
        self._revived = state["revived"]
        self.losses.load_state_dict(state["idle_steps"])


class WithSparseUnits(Trainer):
    """A trainer with :class:`SparseUnits`, whose losses its ``compute_loss`` adds. Mix it in before the trainer."""

    sparse_units: SparseUnits | None = None
    _step_tokens: torch.Tensor  # of all processes
    _step_losses: dict[str, torch.Tensor]

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """Count the step's tokens too, padding left out."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.sparse_units is not None:
            masks = map(real_tokens, batches)
            counts = [
                batch["input_ids"].numel() if mask is None else int(mask.sum())
                for batch, mask in zip(batches, masks, strict=True)
            ]
            tokens = torch.tensor(float(sum(counts)), device=device)
            self._step_tokens = self.accelerator.reduce(tokens, reduction="sum")
            self._step_losses = {}
        return batches, items

    @contextmanager
    def units_collected(self, model: Any) -> Iterator[None]:
        """Around the forward pass of a training step, for :meth:`units_loss`."""
        if self.sparse_units is None or not model.training:
            yield
            return
        with self.sparse_units.losses.collecting():
            yield

    def units_loss(self, model: Any, num_items_in_batch: Any) -> torch.Tensor | None:
        """The losses of the units of this micro-batch, logged in the step's last one; None for none."""
        if self.sparse_units is None or not model.training:
            return None
        losses = self.sparse_units.losses.take(self._step_tokens)
        for name, loss in losses.items():
            self._step_losses[name] = self._step_losses.get(name, 0) + loss.detach()
        if self.accelerator.sync_gradients:
            trainer: Any = self  # one of TRL's, which log these metrics beside the loss
            for name, loss in self._step_losses.items():
                trainer._metrics["train"][name].append(float(self.accelerator.reduce(loss, reduction="sum")))
        if not losses:
            return None
        # Gradients are averaged over processes, and the trainer divides a loss that is not already one of the whole
        # step by the number of its micro-batches.
        parts = self.accelerator.num_processes
        if num_items_in_batch is None:
            parts *= self.current_gradient_accumulation_steps
        return sum(losses.values(), torch.zeros((), device=self._step_tokens.device)) * parts

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.sparse_units is not None and self.args.should_save:
            self.sparse_units.save(Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.sparse_units is not None and checkpoint is not None:
            self.sparse_units.load(Path(checkpoint))


def add_sparse_units(trainer: WithSparseUnits, flags: SparsityArguments, sharding: str | None) -> None:
    """Make a trainer train for sparse units, if a flag asks for it.

    Args:
        trainer: not yet training.
        flags: of the run.
        sharding: what shards weights or the optimizer's state; None for nothing.

    Raises:
        InputError: for sharded weights, for reentrant checkpointing, or for an adapted module that the flags do not
            work with.
    """
    given = [flag.name for flag in fields(SparsityArguments) if getattr(flags, flag.name)]
    if not given:
        return
    if sharding is not None:
        raise InputError(f"{spelled(given[0])} needs whole weights, and {sharding} shards them. Train without it.")
    args: Any = trainer.args
    if args.gradient_checkpointing and (args.gradient_checkpointing_kwargs or {}).get("use_reentrant"):
        raise InputError(
            f"{spelled(given[0])} needs the gradients of units, which the forward pass does not record with "
            "use_reentrant in --gradient-checkpointing-kwargs. Leave that out."
        )
    SparseUnits(trainer, flags).add_to(trainer)
