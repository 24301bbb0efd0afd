"""Taking an adapted model apart: the plain base model, and the units of its adapter."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import onload_layer
from peft.utils.other import AuxiliaryTrainingWrapper, TrainableTokensWrapper
from torch import nn
from transformers import PreTrainedModel

from monolora.activations import CONTROL, activate
from monolora.combine import unit_tensors
from monolora.layer import MonoLoraLayer
from monolora.model import MonoLoraModel

BAKED = "monolora"  # the quantization method that exact checkpoints name: see monolora.merge.quantizer


class Units(NamedTuple):
    """One adapter on one module: ``scaling * (B act(A x) + bias)``.

    Shapes: A ``(r, in)``, B ``(out, r)`` and bias ``(out,)`` or None, for linear layers, Conv1D and embeddings (in: the
    vocabulary) alike. For convolutions A is ``(r, in, *kernel)`` and B ``(out, r, *ones)``. Thresholds are ``(r, 1)``.
    """

    A: torch.Tensor
    B: torch.Tensor
    bias: torch.Tensor | None
    scaling: float
    activation: str
    threshold: torch.Tensor | None = None

    def activate(self, z: torch.Tensor, dim: int = -1) -> torch.Tensor:
        """Units from pre-activations, in evaluation mode (see :func:`monolora.activations.activate`)."""
        threshold = None if self.threshold is None else self.threshold.to(z.device)
        return activate(z, self.activation, dim, threshold)


def unload(model: PeftModel) -> tuple[PreTrainedModel, dict[str, Units]]:
    """Take an adapted model apart. It is consumed: go on with what is returned.

    Args:
        model: a model with one active MonoLoRA adapter.

    Returns:
        The base model without any PEFT layer, in which all that was trained outside of A and B is in place (saved
        modules, tokens, biases), dequantized where bitsandbytes had quantized it; and the active adapter's units by
        the names of the modules that they adapt. The tensors keep their dtype.

    Raises:
        ValueError: where the model is no MonoLoRA model, or no single adapter is active. Nothing has been changed then.
    """
    units = active_units(model)
    tuner = model.base_model
    assert isinstance(tuner, MonoLoraModel)
    _merge_tokens(tuner.model, tuner.active_adapters[0])
    _put_base_layers_back(tuner.model)
    base = _without_wrappers(tuner)
    assert isinstance(base, PreTrainedModel)
    _untie(base)
    return dequantized(base), units


def active_units(model: PeftModel) -> dict[str, Units]:
    """The active adapter's units, by the names that the adapted modules have in the base model. Nothing is changed.

    Raises:
        ValueError: where the model is no MonoLoRA model, or no single adapter is active.
    """
    tuner = model.base_model
    if not isinstance(tuner, MonoLoraModel):
        raise ValueError(f"The model carries no MonoLoRA adapter but {type(tuner).__name__}.")
    name = _active_adapter(tuner)
    return {
        module_name: _units(layer, name)
        for module_name, layer in tuner.model.named_modules()
        if isinstance(layer, MonoLoraLayer) and name in layer.activation
    }


def _active_adapter(tuner: MonoLoraModel) -> str:
    active = tuner.active_adapters
    if len(active) > 1:
        raise ValueError(
            f"Several adapters are active: {', '.join(active)}. Add them up first, "
            f'`model.add_weighted_adapter({active}, [1.0] * {len(active)}, "sum", "cat")`, and activate the sum, '
            '`model.set_adapter("sum")`.'
        )
    return active[0]


def _units(layer: MonoLoraLayer, name: str) -> Units:
    A, B, bias = unit_tensors(layer, name)
    if A.device.type == "meta":  # PEFT left it on disk, together with its base layer
        with onload_layer(layer):
            A, B, bias = unit_tensors(layer, name)
    # Copies, where they share memory: with ensure_weight_tying the head's A and B are views of the embedding's.
    scaling, activation, threshold = layer.scaling[name], layer.activation[name], layer.threshold(name)
    return Units(
        A.contiguous(), B.contiguous(), bias, scaling, activation, None if threshold is None else threshold.data
    )


def lora_units(layer: Any, name: str) -> Units:
    """An adapter of PEFT's LoRA in the same form: its activation is the identity."""
    A, B, bias = unit_tensors(layer, name)
    return Units(A, B, bias, layer.scaling[name], CONTROL)


def _put_base_layers_back(model: nn.Module) -> None:
    """As PEFT's unload would, which reads every adapted layer from disk into memory, and keeps it there."""
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, MonoLoraLayer)}
    for name, layer in adapted.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())


def _merge_tokens(model: nn.Module, name: str) -> None:
    """PEFT's own unload forgets trained tokens.

    Tied embeddings share one weight, which stays shared where they share the tokens too.
    """
    adapters = [
        module.token_adapter
        for module in model.modules()
        if isinstance(module, TrainableTokensWrapper) and name in module.token_adapter.trainable_tokens_delta
    ]
    for adapter in adapters:
        if adapter.tied_adapter is not None:
            continue
        weight = adapter.get_base_layer().weight
        alike = [other.get_base_layer() for other in adapters if other is adapter or other.tied_adapter is adapter]
        sharing = [module for module in model.modules() if module._parameters.get("weight") is weight]
        if len(sharing) > len(alike):
            own = nn.Parameter(weight.data.clone(), requires_grad=False)
            for layer in alike:
                layer.weight = own
    for adapter in adapters:
        adapter.merge(adapter_names=[name])


def _untie(model: PreTrainedModel) -> None:
    """Record in the config that embeddings and output layer are no longer tied, where only one of them was changed."""
    config = model.config.get_text_config(decoder=True)
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    if config.tie_word_embeddings and outputs is not None and inputs.weight is not outputs.weight:
        config.tie_word_embeddings = model.config.tie_word_embeddings = False


def _without_wrappers(tuner: MonoLoraModel) -> nn.Module:
    """The model with trained copies in place of saved modules.

    PEFT's unload does that, but reads a whole offloaded model from disk for each module: it is called only if needed.
    """
    if any(isinstance(module, AuxiliaryTrainingWrapper) for module in tuner.model.modules()):
        return tuner.unload()
    del tuner.model.peft_config
    return tuner.model


def dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with the dense weights that bitsandbytes' quantized ones stand for, in place."""
    config = vars(model.config).get("quantization_config")
    if config is None or config.quant_method == BAKED:
        return model
    unpack(model)
    return model.dequantize()


def unpack(module: nn.Module) -> None:
    """Undo how bitsandbytes packs 4-bit weights at a forward on the CPU: dequantized as they are, they are scrambled.

    bitsandbytes itself unpacks them where the state dict is asked for.
    """
    module.state_dict()
