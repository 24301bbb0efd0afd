"""MonoLoraModel: PEFT's LoraModel, with our layers, our names on disk, and no merge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraModel
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import (
    BaseTunerLayer,
    _filter_state_dict_by_key_prefixes,
    _get_tuner_state_dict_key_prefixes,
)
from peft.utils.error import NoMatchingPeftModuleError
from peft.utils.other import AuxiliaryTrainingWrapper
from peft.utils.save_and_load import _filter_state_dict_for_adapter_name, _validate_lora_adapter_state_dict
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers import PreTrainedModel

from monolora.checkpoint import (
    AdapterFileError,
    check_no_lora_tensors,
    check_tensors,
    is_resized,
    is_unit_tensor,
    model_name,
    origin_of,
    room_for,
    saved_beside,
    to_disk_name,
    to_memory_name,
    warn_of_other_base,
)
from monolora.combine import combined_config, concatenate_units
from monolora.config import MonoLoraConfig
from monolora.hotswap import used_units
from monolora.layer import MERGE_HINT, MIXING_HINT, MonoLoraLayer
from monolora.targets import (
    all_linear,
    default_targets,
    gives_a_linear_map,
    is_all_linear,
    module_names,
    near_misses,
    resolve_patterns,
)


class MonoLoraModel(LoraModel):
    """The tuner behind ``peft_type="MONOLORA"``; made by ``get_peft_model``, used like ``LoraModel``.

    Target matching, quantized layers, patterns, weight tying, mixed batches and hotswap are PEFT's. What differs:
    the layers' forward, the tensors' names on disk, ``add_weighted_adapter`` (``"cat"`` only) and merging, which
    raises.
    """

    peft_config: dict[str, MonoLoraConfig]  # type: ignore[assignment]

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """As PEFT's; errors about targets suggest module names."""
        if "." in adapter_name or adapter_name in ("weight", "bias"):
            raise ValueError(
                f"An adapter cannot be called {adapter_name!r}: the name becomes a part of tensors' names, which is "
                "to be told from the others. Choose one without a dot that is not weight or bias."
            )
        config = self.peft_config[adapter_name]
        pattern = config.target_modules
        if config.adapted_modules is not None:  # the config comes from a file
            resolve_patterns(config, module_names(model), config.adapted_modules)
        if pattern and not config.target_modules:
            raise NoMatchingPeftModuleError(f"target_modules {pattern!r} matches nothing. {near_misses(model, None)}")
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except NoMatchingPeftModuleError as error:
            raise NoMatchingPeftModuleError(f"{error} {near_misses(model, config.target_modules)}") from error
        except ValueError as error:
            if config.target_modules is None:
                raise ValueError(f"{error} {near_misses(model, None)}") from error
            raise

    def _prepare_adapter_config(self, peft_config: Any, model_config: Any) -> Any:
        """As PEFT's, with defaults for more families, and ``"all-linear"`` without modules that cannot be adapted."""
        if peft_config.target_modules is None and model_config.get("model_type") not in self.target_module_mapping:
            peft_config.target_modules = default_targets(self.model)
        elif is_all_linear(peft_config.target_modules):
            peft_config.target_modules = all_linear(self.model)
        return super()._prepare_adapter_config(peft_config, model_config)

    def _check_new_adapter_config(self, config: Any) -> None:
        super()._check_new_adapter_config(config)
        if any(isinstance(layer, LoraLayer) and not isinstance(layer, MonoLoraLayer) for layer in self.model.modules()):
            raise ValueError(f"The model carries a plain LoRA adapter already. {MIXING_HINT}")

    def _get_module_names_tied_with_embedding(self) -> list[str]:
        # PEFT finds shared weights by name, and an earlier adapter has moved them: the second would be tied to nothing,
        # or into the first.
        model = self.model
        embedding = model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None
        if not isinstance(embedding, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            return super()._get_module_names_tied_with_embedding()
        if not model.config.get_text_config(decoder=True).tie_word_embeddings:
            return []
        name = next(name for name, module in model.named_modules() if module is embedding)
        tied = dict(model._tied_weights_keys or {}).items()
        return sorted(key.rpartition(".")[0] for key, source in tied if source.rpartition(".")[0] == name)

    def _check_target_module_compatiblity(self, peft_config: Any, model: nn.Module, target_name: str) -> None:
        # PEFT refuses targets whose forward is never called (in Mamba models) only where the type is LORA.
        super()._check_target_module_compatiblity(LoraConfig(), model, target_name)

    @staticmethod
    def _create_new_module(
        lora_config: MonoLoraConfig, adapter_name: str, target: nn.Module, **kwargs: Any
    ) -> nn.Module:
        if isinstance(target, (nn.MultiheadAttention, NonDynamicallyQuantizableLinear)):
            raise ValueError(
                "MonoLoRA does not support nn.MultiheadAttention, nor its out_proj alone: PEFT merges the adapter into "
                "their weights at every call, which an activation makes impossible. Leave it out of target_modules, "
                "or name it in exclude_modules."
            )
        if not gives_a_linear_map(target):
            raise ValueError(
                f"MonoLoRA cannot adapt a {type(target).__name__}: its forward gives something else than W x + b. "
                "Leave it out of target_modules, or name it in exclude_modules."
            )
        layer = LoraModel._create_new_module(lora_config, adapter_name, target, **kwargs)
        return MonoLoraLayer.adopt(layer, adapter_name, lora_config)

    def _check_merge_allowed(self) -> NoReturn:
        # TRL's trainers with use_vllm=True merge before they generate for the first time, before any training.
        raise ValueError(
            f"{MERGE_HINT} Trainers that merge the adapter to send it to vLLM (GRPO with use_vllm=True) cannot train "
            "it: set use_vllm=False."
        )

    def add_weighted_adapter(
        self,
        adapters: list[str],
        weights: list[float],
        adapter_name: str,
        combination_type: str = "cat",
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Add the adapter whose output is the weighted sum of the given adapters' outputs, exactly.

        The units are put side by side (``A`` stacked, ranks added up layer by layer) and weight × scaling goes to
        ``B``: before the ReLU a negative weight would silence other units. Scaling is 1 afterwards.

        Args:
            adapters: names of the adapters to add up.
            weights: one factor an adapter, of any sign.
            adapter_name: name of the new adapter; if it exists already, nothing is done (as in PEFT).
            combination_type: ``"cat"``; every other type mixes weights, which is not the sum of non-linear adapters.

        Raises:
            ValueError: for another combination type or its arguments, and for adapters that cannot be added up
                exactly (see :func:`monolora.combine.combined_config`). Nothing has been changed then.
        """
        if adapter_name in self.peft_config:
            return
        if combination_type != "cat" or args or kwargs:
            raise ValueError(
                f"MonoLoRA adapters can only be combined with combination_type='cat', without further arguments, got "
                f"{', '.join([repr(combination_type), *map(repr, args), *kwargs])}: mixing A's or B's does not mix "
                "non-linear outputs."
            )
        self.peft_config[adapter_name] = combined_config(self.model, self.peft_config, adapters, weights)
        self.inject_adapter(self.model, adapter_name)
        self._cast_adapter_dtype(adapter_name)
        self.set_requires_grad(adapter_name, requires_grad=False)
        for layer in self.model.modules():
            if isinstance(layer, MonoLoraLayer) and adapter_name in layer.activation:
                concatenate_units(layer, adapters, weights, adapter_name)

    @classmethod
    def _convert_state_dict_for_initial_model(cls, *args: Any, **kwargs: Any) -> NoReturn:
        raise ValueError(
            "MonoLoRA does not support path_initial_model_for_weight_conversion: it undoes initialisations that change "
            "the base weight (PiSSA and the like), which MonoLoRA does not have."
        )

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, torch.Tensor]:
        tensors = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        for key in _names_of_units(model, adapter_name):
            if not _filter_state_dict_for_adapter_name({key: torch.empty(0)}, unwanted_adapter_names):
                raise ValueError(
                    f"Adapter {adapter_name!r} cannot be saved: PEFT takes {key!r} for a tensor of another adapter of "
                    f"this model ({', '.join(unwanted_adapter_names)}). Give that one a name that no module has."
                )
        # PEFT warns of tensors left empty by ZeRO-3 only where the type is LORA.
        units = {key: value for key, value in tensors.items() if is_unit_tensor(key, adapter_name)}
        _validate_lora_adapter_state_dict(units, adapter_name=adapter_name)
        tensors = used_units(model, adapter_name, tensors) | _new_rows(model, adapter_name, tensors, state_dict)
        return {to_disk_name(key, adapter_name): value for key, value in tensors.items()}

    @classmethod
    def _get_learnable_bias_state_dict(cls, model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        # With bias="all" PEFT lists the biases of modules_to_save here too, under names that no model has when the
        # file is read. It saves these modules by itself, under their right names; and those of B with A and B.
        biases = super()._get_learnable_bias_state_dict(model, *args, **kwargs)
        units = _filter_state_dict_by_key_prefixes(biases, _get_tuner_state_dict_key_prefixes(model))
        return {key: bias for key, bias in biases.items() if ".modules_to_save." not in key and key not in units}

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """File tensors under the model's names, checked.

        Raises:
            AdapterFileError: for missing, foreign, misshapen or non-finite tensors, or those of a plain LoRA.
        """
        in_model = {key: value for key, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
        prefix = "base_model.model."
        if not any(key.startswith(prefix) for key in in_model):  # injected without a PeftModel around it
            state_dict = {key.removeprefix(prefix): value for key, value in state_dict.items()}
        check_no_lora_tensors(key for key in state_dict if key not in in_model)
        renamed = {key if key in in_model else to_memory_name(key): value for key, value in state_dict.items()}
        remapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, renamed)
        name = model_name(model)
        origin = origin_of(config.base_model_name_or_path, name)
        if len(remapped) < len(state_dict):
            raise AdapterFileError(f"The adapter file holds a tensor under two names. {origin}")
        prefixes = _get_tuner_state_dict_key_prefixes(model, adapter_name=adapter_name)
        own = [
            *_filter_state_dict_by_key_prefixes(in_model, prefixes),
            *saved_beside(model, adapter_name),
            *cls._get_learnable_bias_state_dict(model, in_model, config),
        ]
        checked = check_tensors(remapped, room_for(model, adapter_name, in_model, own), origin)
        warn_of_other_base(config.base_model_name_or_path, name)
        return checked


def _new_rows(
    model: Any, adapter_name: str, tensors: Mapping[str, torch.Tensor], in_model: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Embeddings that PEFT leaves out: where one of a resized model is adapted, it saves that one alone."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    adapted = any(".lora_embedding_" in key for key in tensors)
    if not adapted or not isinstance(base, PreTrainedModel) or not is_resized(base):
        return {}
    return dict(room_for(model, adapter_name, in_model, ()).frozen)


def _names_of_units(model: nn.Module, adapter_name: str) -> Iterator[str]:
    """The model's names of A and B of an adapter; without its state dict, which FSDP would gather."""
    for path, layer in model.named_modules():
        if isinstance(layer, MonoLoraLayer) and adapter_name in layer.activation:
            for part, by_adapter in layer.named_children():
                key = f"{path}.{part}.{adapter_name}.weight"
                if isinstance(by_adapter, (nn.ModuleDict, nn.ParameterDict)) and is_unit_tensor(key, adapter_name):
                    yield key
