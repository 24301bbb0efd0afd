"""TRL's SFTTrainer with atomic checkpoints, a reproducible order, and no logits at masked positions."""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from transformers import Trainer
from trl import SFTTrainer

from monolora.recipes.training.checkpoints import AtomicCheckpoints
from monolora.recipes.training.completion_head import labelled_positions
from monolora.recipes.training.sampling import LengthGrouping


class SftTrainer(AtomicCheckpoints, LengthGrouping, SFTTrainer):
    """Supervised finetuning on answers.

    Args:
        full_logits: compute logits of masked positions too; the loss is the same.
    """

    full_logits = False

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

    def _log_padding(self, model: Any, inputs: dict[str, Any]) -> None:
        """The share of a batch that is padding, among TRL's own metrics."""
        if (mask := inputs.get("attention_mask")) is not None:
            mode = "train" if model.training else "eval"
            self._metrics[mode]["padding_share"].append(1 - mask.float().mean().item())
