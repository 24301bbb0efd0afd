"""A stock LoRA adapter with linear maps in place of ``act(A x)``: A' for A, the same B."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, PeftType, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from monolora.config import MonoLoraConfig
from monolora.errors import InputError
from monolora.merge.least_squares import LinearMap
from monolora.merge.unload import Units, active_units
from monolora.model_files import save_generation_config, write_older_names
from monolora.targets import read_as_experts


def export_lora(
    model: PeftModel,
    maps: Mapping[str, LinearMap],
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Write an adapter folder that stock PEFT and servers of LoRA load.

    All layers get one rank and one scaling, since many servers know no patterns: where the adapter has patterns,
    smaller layers are padded with zeros and the scaling goes into B.

    Args:
        model: the adapted model; it stays as it is.
        maps: as :func:`~monolora.merge.linearize` gives them for this model.
        folder: where to write.
        tokenizer: saved beside it, with its chat template.

    Raises:
        InputError: if a map has an intercept, which a LoRA adapter cannot hold; as :func:`check_readable`.
    """
    check_readable(model)
    if any(linear_map.intercept is not None for linear_map in maps.values()):
        raise InputError("A LoRA adapter cannot hold intercepts. Leave them out, or write a dense checkpoint.")
    units = active_units(model)
    config = model.peft_config[model.active_adapter]
    assert isinstance(config, MonoLoraConfig)
    scalings = {module_units.scaling for module_units in units.values()}
    rank = max(module_units.A.shape[0] for module_units in units.values())
    scaling = scalings.pop() if len(scalings) == 1 else 1.0
    tensors = get_peft_model_state_dict(
        model,
        adapter_name=model.active_adapter,
        # Where an embedding is adapted, PEFT would write the base's beside it, which servers of LoRA refuse.
        save_embedding_layers=False if any(".lora_embedding_A." in name for name in model.state_dict()) else "auto",
    )
    for name, module_units in units.items():
        _replace(tensors, f"base_model.model.{name}", module_units, maps[name], rank, scaling)
    Path(folder).mkdir(parents=True, exist_ok=True)
    _lora_config(config, rank, scaling).save_pretrained(str(folder))
    save_file(
        {name: tensor.contiguous().cpu().clone() for name, tensor in tensors.items()},
        Path(folder) / SAFETENSORS_WEIGHTS_NAME,
        metadata={"format": "pt"},
    )
    base = model.get_base_model()
    assert isinstance(base, PreTrainedModel)
    save_generation_config(base.generation_config, folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    write_older_names(folder)


def check_readable(model: PeftModel) -> None:
    """Check that stock PEFT would put a LoRA adapter on the modules that this adapter is on.

    Raises:
        InputError: if it would adapt the fused experts of the model instead.
    """
    config = model.peft_config[model.active_adapter]
    assert isinstance(config, MonoLoraConfig)
    experts = read_as_experts(model.get_base_model(), _lora_config(config, config.r, 1.0))
    if experts:
        names = ", ".join(sorted({name.rpartition(".")[-1] for name in experts}))
        raise InputError(
            f"In a LoRA adapter PEFT takes {names} for the fused experts of this model, and would put the weights of "
            "shared experts there. Merge into a checkpoint instead: leave --as lora out."
        )


def _lora_config(config: MonoLoraConfig, rank: int, scaling: float) -> LoraConfig:
    alpha = round(scaling * rank, 9)
    shared = {field.name: vars(config)[field.name] for field in fields(LoraConfig) if field.init}
    return LoraConfig(
        **shared
        | {
            "peft_type": PeftType.LORA,
            "r": rank,
            "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
            "rank_pattern": {},
            "alpha_pattern": {},
            "use_rslora": False,
            "inference_mode": True,
        }
    )


def _replace(
    tensors: dict[str, torch.Tensor], prefix: str, units: Units, linear_map: LinearMap, rank: int, scaling: float
) -> None:
    """Replace the MonoLoRA tensors of one layer by LoRA tensors."""
    kind = "embedding_" if f"{prefix}.monolora_embedding_A" in tensors else ""
    end = "" if kind else ".weight"
    missing = rank - units.A.shape[0]
    factor = units.scaling / scaling
    for matrix in "AB":
        del tensors[f"{prefix}.monolora_{kind}{matrix}{end}"]
    tensors.pop(f"{prefix}.monolora_threshold.weight", None)
    tensors[f"{prefix}.lora_{kind}A{end}"] = F.pad(linear_map.A, (0, 0, 0, missing)).to(units.A.dtype)
    tensors[f"{prefix}.lora_{kind}B{end}"] = F.pad(units.B * factor, (0, missing))
    if units.bias is not None:
        del tensors[f"{prefix}.monolora_B.bias"]
        tensors[f"{prefix}.lora_B.bias"] = units.bias * factor
