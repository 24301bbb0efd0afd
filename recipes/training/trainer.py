"""TRL's SFTTrainer with atomic checkpoints, a reproducible order, and no logits at masked positions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import Trainer
from transformers.modeling_outputs import ModelOutput
from trl import SFTTrainer

from monolora.data.chat_template import IGNORED
from monolora.keep.keeper import Keeper
from monolora.recipes.training.checkpoints import AtomicCheckpoints
from monolora.recipes.training.keeping import WithKeepers
from monolora.recipes.training.sampling import LengthGrouping
from monolora.recipes.training.sparse_units import WithSparseUnits
from monolora.recipes.training.validation import WithValidation
from monolora.shared_prefix import backbone, shared_prefix, unsupported
from monolora.terminal import STDERR


@contextmanager
def labelled_positions(model: nn.Module, inputs: Mapping[str, Any], prefix: int = 0) -> Iterator[dict[str, Any]]:
    """Inputs for TRL's fused head, whose model then gives hidden states only where the next token is learned.

    Most positions are prompts and padding: their logits are never computed. The loss, its gradients and TRL's metrics
    are those of all positions, up to the order of sums.

    Args:
        model: a causal language model, in PEFT's or an accelerator's wrapping or bare.
        inputs: a batch with ``labels``, shape ``(batch, tokens)``.
        prefix: number of first tokens whose hidden states are not given (:func:`monolora.shared_prefix.shared_prefix`).

    Yields:
        The batch with ``shift_labels``, shape ``(1, learned tokens)``, for ``labels``; unchanged if it has none.
    """
    learned = inputs["labels"][:, 1:] != IGNORED
    if not learned.any():
        yield dict(inputs)
        return

    def gather(module: nn.Module, args: Any, output: ModelOutput) -> ModelOutput:
        hidden = output["last_hidden_state"]
        output["last_hidden_state"] = hidden[:, :-1][learned[:, prefix:].to(hidden.device)][None]
        return output

    hook = backbone(model).register_forward_hook(gather)
    try:
        rest = {name: value for name, value in inputs.items() if name != "labels"}
        yield rest | {"shift_labels": inputs["labels"][:, 1:][learned][None]}
    finally:
        hook.remove()


class SftTrainer(WithSparseUnits, WithKeepers, WithValidation, AtomicCheckpoints, LengthGrouping, SFTTrainer):
    """Supervised finetuning on answers.

    Args:
        full_logits: compute logits of masked positions too; the loss is the same.
        keepers: what keeps the base's behaviour; they are prepared after the trainer is made.
    """

    full_logits = False
    _is_reason_shown = False  # why prefixes are not shared

    def __init__(self, *args: Any, full_logits: bool = False, keepers: Sequence[Keeper] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keepers = keepers
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
        """The loss of the learned tokens and, in training, the losses of keepers and units."""
        self._log_padding(model, inputs)
        kept = self.keepers_loss(model, num_items_in_batch)
        with self.units_collected(model):
            loss = self._answer_loss(model, inputs, return_outputs, num_items_in_batch)
        added = [part for part in (kept, self.units_loss(model, num_items_in_batch)) if part is not None]
        return sum(added, loss) if added else loss

    def _answer_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool, num_items_in_batch: Any) -> Any:
        """With ``full_logits`` the model's own loss, over the logits of all positions."""
        if self.full_logits:
            if self.aux_loss_enabled:
                inputs["output_router_logits"] = True
            return Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)
        own_loss = self.compute_loss_func is not None or self.label_smoother is not None
        elsewhere = inputs["labels"].device.type != "cpu"  # TRL's head does the same there
        if return_outputs or own_loss or self.args.torch_compile:  # compiled, it has no hooks
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with shared_prefix(model, inputs["input_ids"], self._unlearned(model, inputs)) as prefix:
            if elsewhere and not prefix:
                return super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
            with labelled_positions(model, inputs, prefix) as learned:
                return super().compute_loss(model, learned, num_items_in_batch=num_items_in_batch)

    def _unlearned(self, model: Any, inputs: Mapping[str, Any]) -> int:
        """How many first positions of a batch have no output that is needed; 0 where a prefix cannot be shared."""
        learned_T = (inputs["labels"] != IGNORED).any(0)
        plain = inputs.keys() <= {"input_ids", "attention_mask", "labels"} and not self.aux_loss_enabled
        if not plain or not bool(learned_T.any()):
            return 0
        reason = unsupported(model)
        if reason and not self._is_reason_shown:
            STDERR.print(f"The common prefix of a batch is computed for every row: {reason}.", soft_wrap=True)
            self._is_reason_shown = True
        return 0 if reason else max(0, int(learned_T.int().argmax()) - 1)

    def _log_padding(self, model: Any, inputs: dict[str, Any]) -> None:
        """The share of a batch that is padding, among TRL's own metrics."""
        if (mask := inputs.get("attention_mask")) is not None:
            mode = "train" if model.training else "eval"
            self._metrics[mode]["padding_share"].append(1 - mask.float().mean().item())
