"""TRL's SFTTrainer, saving so that a full disk or a kill leaves the earlier checkpoints whole."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from torch.distributed.fsdp import StateDictType
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.modeling_outputs import ModelOutput
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import SFTTrainer

from monolora.errors import RunError, SaveError, is_disk_trouble
from monolora.model_files import (
    any_generation_config,
    check_adapter_files,
    check_model_files,
    save_generation_config,
    write_older_names,
)
from monolora.run_record import GO_ON
from monolora.runs import follow_umask

STAGING = ".saving"


class OwnSteps(TrainerCallback):
    """A resumed run logs and saves at the steps of its own flags; the trainer takes those of the checkpoint."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.compute_steps(args, state.max_steps)


class SftTrainer(SFTTrainer):
    """Checkpoints are written into a folder aside and renamed when complete; masked positions cost no logits."""

    full_logits = False
    adapter_shapes: dict[str, torch.Size] | None = None  # by their names on the disk; None for full finetuning
    _staging: Path | None = None

    def __init__(self, *args: Any, full_logits: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        base: Any = self.accelerator.unwrap_model(self.model)
        base = base.get_base_model() if isinstance(base, PeftModel) else base
        config = base.config.get_text_config()
        if self.aux_loss_enabled:
            # TRL asks for router logits in each batch, and in the config too, where generation would meet them: a model
            # would then compare the logits of one position with the mask of all.
            config.output_router_logits = False
            if "router_aux_loss_coef" in vars(base):  # a copy that the model's own loss takes, made before TRL's flag
                base.router_aux_loss_coef = self.router_aux_loss_coef
        # TRL's fused head looks for the model below the output layer, and for the number of experts by one name: Llama
        # 4's text model has none that it finds, Granite's MoE calls it num_local_experts.
        fused = base.base_model is not base and (hasattr(config, "num_experts") or not self.aux_loss_enabled)
        self.full_logits = full_logits or not fused

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of the learned tokens; with ``full_logits``, the model's own, over the logits of all positions."""
        self._log_padding(model, inputs)
        if self.full_logits:
            if self.aux_loss_enabled:
                inputs["output_router_logits"] = True
            return Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)
        own_loss = self.compute_loss_func is not None or self.label_smoother is not None
        elsewhere = inputs["labels"].device.type != "cpu"  # TRL's head does the same there
        if return_outputs or own_loss or elsewhere or self.args.torch_compile:  # compiled, it has no hooks
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with labelled_positions(model, inputs) as learned:
            return super().compute_loss(model, learned, num_items_in_batch=num_items_in_batch)

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int] | None:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        args, processes = self.args, self.accelerator.num_processes
        return GroupedByLength(
            args.train_batch_size * args.gradient_accumulation_steps * processes,
            [len(ids) for ids in rows["input_ids"]],
            args.seed if args.data_seed is None else args.data_seed,
        )

    def _log_padding(self, model: Any, inputs: dict[str, Any]) -> None:
        """The share of a batch that is padding, among TRL's own metrics."""
        if (mask := inputs.get("attention_mask")) is not None:
            mode = "train" if model.training else "eval"
            self._metrics[mode]["padding_share"].append(1 - mask.float().mean().item())

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Whole, in checkpoints too: of FSDP's sharded state the trainer itself would write nothing that loads."""
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        if plugin is None or plugin.state_dict_type == StateDictType.FULL_STATE_DICT:
            super().save_model(output_dir, _internal_call)
            return
        state_dict = self.accelerator.get_state_dict(self.model)  # every process has a part of it
        if self.args.should_save:
            self._save(output_dir, state_dict=state_dict)

    def check_saved(self, folder: Path) -> None:
        """Open what was written once more, and compare it with what was to be written.

        Raises:
            RunError: naming the first tensor that is missing or of another shape.
        """
        if self.adapter_shapes is not None:
            check_adapter_files(folder, self.adapter_shapes)
        else:
            check_model_files(folder)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """With the generation config as it is, beside an adapter too: it says where an answer ends."""
        folder = Path(output_dir or self.args.output_dir or "")
        model: Any = self.accelerator.unwrap_model(self.model)
        base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        with any_generation_config(base, folder):
            super()._save(output_dir, state_dict)
        if isinstance(model, PeftModel):
            save_generation_config(base.generation_config, folder)
        write_older_names(folder)

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the recipe writes a card with the measured numbers at the end."""

    def clear_staging(self, folder: Path) -> None:
        """Remove what a killed run may have left aside; all processes come here before they write."""
        if self.args.should_save:
            shutil.rmtree(folder / STAGING, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As TRL's; what a schedule-free optimizer leaves as the model's weights is their average."""
        output = super().train(*args, **kwargs)
        self._take_average()
        return output

    def _take_average(self) -> None:
        """Schedule-free optimizers train weights of which they keep an average: that is the model to score and save.

        The next training step goes on from the weights trained; other optimizers have no average.
        """
        optimizer: Any = self.optimizer  # accelerate's, which passes this on to an optimizer that has it
        if optimizer is not None:
            optimizer.eval()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._take_average()
        final = Path(self._get_output_dir(trial))
        self.clear_staging(final)
        self._staging = final / STAGING
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                for checkpoint in self._staging.glob("checkpoint-*"):
                    self.check_saved(checkpoint)
                self._publish(self._staging, final)
        except Exception as error:
            if is_disk_trouble(error) and not isinstance(error, RunError):
                raise SaveError.of(final, error, GO_ON) from error
            raise
        finally:
            self._staging = None
            if self.args.should_save:
                shutil.rmtree(final / STAGING, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """In the dtypes that the weights have: what PEFT loads becomes float32, and TRL trains QLoRA in bfloat16."""
        model_here = cast(nn.Module, self.model)
        dtypes = {name: parameter.dtype for name, parameter in model_here.named_parameters()}
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        for name, parameter in model_here.named_parameters():
            if parameter.dtype != dtypes[name]:
                parameter.data = parameter.data.to(dtypes[name])

    def _publish(self, staging: Path, final: Path) -> None:
        """Put a finished checkpoint in its place, and remove the oldest of this run above ``save_total_limit``.

        Only folders that this trainer names and fills count: a copy that the user made, and a link to elsewhere, stay.
        """
        for checkpoint in staging.glob("checkpoint-*"):
            target = final / checkpoint.name
            if target.is_symlink():
                target.unlink()  # what it leads to stays
            shutil.rmtree(target, ignore_errors=True)
            follow_umask(checkpoint)
            checkpoint.rename(target)
        own = {int(path.name.partition("-")[2]): path for path in final.glob("checkpoint-*") if _is_own(path)}
        surplus = len(own) - (self.args.save_total_limit or len(own))
        for step in sorted(own, key=lambda step: (own[step].stat().st_mtime, step))[: max(0, surplus)]:
            shutil.rmtree(own[step], ignore_errors=True)


def _is_own(path: Path) -> bool:
    is_named = re.fullmatch(r"checkpoint-\d+", path.name) is not None
    return is_named and not path.is_symlink() and (path / "trainer_state.json").is_file()


IGNORED = -100


@contextmanager
def labelled_positions(model: nn.Module, inputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Inputs for TRL's fused head, whose model then gives hidden states only where the next token is learned.

    The loss, its gradients and TRL's metrics are those of all positions, up to the order of sums.

    Args:
        model: a causal language model, in PEFT's or an accelerator's wrapping or bare.
        inputs: a batch with ``labels``, shape ``(batch, tokens)``.

    Yields:
        The batch with ``shift_labels``, shape ``(1, learned tokens)``, for ``labels``; as it was if nothing is learned
        in it.
    """
    learned = inputs["labels"][:, 1:] != IGNORED
    if not learned.any():
        yield dict(inputs)
        return

    def gather(module: nn.Module, args: Any, output: ModelOutput) -> ModelOutput:
        hidden = output["last_hidden_state"]
        output["last_hidden_state"] = hidden[:, :-1][learned.to(hidden.device)][None]
        return output

    hook = _backbone(model).register_forward_hook(gather)
    try:
        rest = {name: value for name, value in inputs.items() if name != "labels"}
        yield rest | {"shift_labels": inputs["labels"][:, 1:][learned][None]}
    finally:
        hook.remove()


def _backbone(model: nn.Module) -> nn.Module:
    """The model below its output layer."""
    while not isinstance(model, PreTrainedModel):
        inner = model.get_base_model() if isinstance(model, PeftModel) else model.module
        assert isinstance(inner, nn.Module)
        model = inner
    assert isinstance(model.base_model, nn.Module)
    return model.base_model


class GroupedByLength(LengthGroupedSampler):
    """transformers' sampler, whose order follows from seed and epoch alone.

    As it comes, it draws from torch's global generator: a resumed run would see other batches than one that was not
    stopped.

    Args:
        batch_size: examples of an optimizer step, over all processes: so the order does not depend on how many there
            are, nor on how a step is divided.
        lengths: of all examples, in tokens.
        seed: of the order.
    """

    def __init__(self, batch_size: int, lengths: Sequence[int], seed: int) -> None:
        super().__init__(batch_size, lengths=list(lengths), generator=torch.Generator())
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate when an epoch begins."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        mixed = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)
        self.generator.manual_seed(int(mixed[0]))
        return super().__iter__()
