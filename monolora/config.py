"""MonoLoraConfig: PEFT's LoraConfig plus the activation; incompatible options are refused by name."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
from peft import LoraConfig, PeftType

from monolora.activations import DEFAULT, activation_names, check_activation
from monolora.checkpoint import adapted_modules, check_weights_file
from monolora.peft_type import extend_peft_type

extend_peft_type()

# Options of LoraConfig that MonoLoRA does not support, and why. Any true value is refused.
_REFUSED: dict[str, str] = {
    "use_dora": "DoRA renormalises W + BA, and with an activation there is no such matrix",
    "alora_invocation_tokens": "aLoRA has its own forward, which has no activation",
    "arrow_config": "Arrow routes by the singular vectors of BA, and with an activation there is no such matrix",
    "use_bdlora": "BD-LoRA replaces A or B by block-diagonal matrices with a forward of their own",
    "velora_config": "VeLoRA compresses A's input for a linear backward pass",
    "monteclora_config": "MonteCLoRA samples around a linear BA",
    "kasa_config": "KaSA truncates the base weight and trains a linear SVD form",
    "use_qalora": "QALoRA merges the adapter into the quantization zero points, which takes a linear BA",
    "target_parameters": "PEFT adapts a bare parameter by W + BA, and with an activation there is no such matrix",
    "megatron_config": "Megatron's row-parallel layers would apply the activation to partial sums",
    "layer_replication": "a replicated layer shares its base weights in ways that this method is not tested with",
}

# Initialisations that change the base weight to make room for BA, or that leave A at zero where
# ReLU has no gradient, or whose BA is zero only without an activation.
_REFUSED_INITS: dict[str, str] = {
    "pissa": "fits B A to the base weight",
    "olora": "fits B A to the base weight",
    "corda": "fits B A to the base weight",
    "loftq": "fits B A to the quantization error",
    "lora_ga": "fits B A to the weight gradient and subtracts it from the base weight",
    "mica": "leaves A at zero, where ReLU passes no gradient",
    "orthogonal": "is the identity only for a linear B A",
}


@dataclass
class MonoLoraConfig(LoraConfig):
    """Configuration of MonoLoRA: ``h = W x + s B act(A dropout(x))``, ``s = lora_alpha / r`` (paper, eq. 5).

    Takes every argument of :class:`peft.LoraConfig`; those that presuppose a linear ``B A`` are refused
    by name. ``init_lora_weights`` may be ``True``, ``False``, ``"gaussian"`` or ``"eva"``.

    Args:
        activation: a name of :func:`monolora.activations.activation_names`, such as ``"relu"`` (default),
            ``"identity"`` (plain LoRA, the control), ``"topk:4"`` or ``"jumprelu"``.

    Raises:
        ValueError: for an unknown activation, ``r`` below 1, or an unsupported option.
    """

    activation: str = field(
        default=DEFAULT,
        metadata={"help": f"Activation between A and B: {', '.join(activation_names())}."},
    )

    def __post_init__(self) -> None:
        check_activation(self.activation)
        self._check_ranks()
        self._check_options()
        check_numbers(self)
        super().__post_init__()
        self.peft_type = PeftType("MONOLORA")
        # Not a setting: the modules with tensors in the file, if this was loaded from a folder, else None.
        self.adapted_modules: tuple[str, ...] | None = None

    def _check_ranks(self) -> None:
        for where, rank in {
            "r": self.r,
            **{f"rank_pattern[{k!r}]": v for k, v in (self.rank_pattern or {}).items()},
        }.items():
            if type(rank) is not int or rank < 1:
                raise ValueError(f"{where} must be a positive integer, got {rank!r}; a common choice is 8.")

    def _check_options(self) -> None:
        for name, reason in _REFUSED.items():
            if getattr(self, name):
                raise ValueError(f"MonoLoRA does not support {name}: {reason}. Leave it out, or use peft.LoraConfig.")
        init = str(self.init_lora_weights).lower()
        for name, reason in _REFUSED_INITS.items():
            if init == name or (name == "pissa" and init.startswith("pissa_niter_")):
                raise ValueError(
                    f"MonoLoRA does not support init_lora_weights={self.init_lora_weights!r}: it {reason}. "
                    "Use True, False, 'gaussian' or 'eva'."
                )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> MonoLoraConfig:
        """Load from an adapter folder or hub id (see :meth:`peft.PeftConfig.from_pretrained`).

        Raises:
            AdapterFileError: if the weights in a local folder are a pickle, or truncated.
        """
        folder = os.path.join(pretrained_model_name_or_path, subfolder or "")
        check_weights_file(folder)
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
        config.adapted_modules = adapted_modules(folder)
        return config


def check_numbers(config: LoraConfig) -> None:
    """Check scaling and dropout, of MonoLoRA or LoRA.

    Raises:
        ValueError: naming the first value that is not a number, or not finite in float32.
    """
    alphas = {"lora_alpha": config.lora_alpha}
    alphas |= {f"alpha_pattern[{key!r}]": alpha for key, alpha in (config.alpha_pattern or {}).items()}
    for where, alpha in alphas.items():
        if not _is_number(alpha) or not abs(alpha) <= torch.finfo(torch.float32).max:
            raise ValueError(f"{where} must be a finite number, got {alpha!r}; a common choice is twice the rank.")
    if not _is_number(config.lora_dropout) or not 0 <= config.lora_dropout <= 1:
        raise ValueError(f"lora_dropout must be a number from 0 to 1, got {config.lora_dropout!r}.")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
