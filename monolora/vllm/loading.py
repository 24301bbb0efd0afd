"""How vLLM's workers load a MonoLoRA adapter: under LoRA's names, and only if every tensor fits.

vLLM copies tensors into larger buffers, where one that is too small goes unnoticed, and ignores tensors of modules that
the model lacks. Both would give wrong answers; here they are errors.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open

from monolora.activations import activation_named
from monolora.checkpoint import AdapterFileError, Room, check_finite, check_tensors, origin_of, to_memory_name
from monolora.config import MonoLoraConfig
from monolora.targets import resolve_patterns
from monolora.vllm.adapter_folders import EXACT_FIX, check_rank, served_config
from monolora.vllm.gate import gates
from monolora.vllm.products import is_clamp
from monolora.vllm.requests import named


def parse_fine_tuned_lora_name(original: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
    """Around vLLM's parser of tensor names: MonoLoRA's are read as LoRA's."""
    return original(to_memory_name(name), *args, **kwargs)


_THRESHOLD = ".monolora_threshold.weight"


def is_base_embedding_weights(original: Callable[[str], bool], name: str) -> bool:
    """Around vLLM's test for tensors that its loader leaves alone: thresholds too, which it has no place for."""
    return original(name) or name.endswith(_THRESHOLD)


def load_adapter(original: Callable[..., Any], worker_manager: Any, lora_request: Any) -> Any:
    """Around ``WorkerLoRAManager._load_adapter``: the adapter, with its ``activation``.

    Raises:
        AdapterFileError: if the folder's files are damaged or do not fit this model and engine.
    """
    from vllm.lora.utils import get_adapter_absolute_path

    with named(lora_request):
        folder = get_adapter_absolute_path(lora_request.lora_path)
        config = served_config(folder)
        if config is None:
            return original(worker_manager, lora_request)
        manager = worker_manager._adapter_manager
        if not gates(manager):
            raise AdapterFileError(f"{folder} cannot be served on this device, only on CPUs and GPUs. {EXACT_FIX}")
        check_rank(config, folder, worker_manager.lora_config)
        _check_computable(config, folder, manager)
        try:
            adapter = original(worker_manager, lora_request)
            check_fits(adapter, config, manager)
            adapter.thresholds = _thresholds(folder, adapter, config, manager)
        except ValueError as error:
            raise AdapterFileError(f"{folder} cannot be served. {' '.join(str(error).split())}") from error
        adapter.activation = config.activation
        return adapter


def _check_computable(config: MonoLoraConfig, folder: str, manager: Any) -> None:
    """A graph or a compiled model computes what its first batches did, which had no such adapter."""
    if is_clamp(config.activation) or all(gate.is_eager for gate in gates(manager)):
        return
    raise AdapterFileError(
        f"{folder} has activation={config.activation!r}, which this vLLM was compiled without. Start it with "
        f"--enforce-eager (enforce_eager=True of LLM). {EXACT_FIX}"
    )


def _thresholds(
    folder: str, adapter: Any, config: MonoLoraConfig, manager: Any
) -> dict[str, list[torch.Tensor | None]]:
    """The thresholds of each vLLM layer's modules, float32, where the activation has any.

    Raises:
        AdapterFileError: naming the first that is missing, misshapen, not finite or foreign.
    """
    mapper = getattr(manager.model, "hf_to_vllm_mapper", None)  # as vLLM reads it
    mapper = None if mapper is None else mapper.get_rename_mapper()
    origin = origin_of(config.base_model_name_or_path, manager.model.config.name_or_path)
    in_file: dict[str, torch.Tensor] = {}
    with safe_open(os.path.join(folder, SAFETENSORS_WEIGHTS_NAME), framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 (no mapping)
            if key.endswith(_THRESHOLD):
                in_file[_module_of(key, mapper)] = file.get_tensor(key).float()
    needed = adapter.loras if activation_named(config.activation).threshold is not None else {}
    expected = {name: torch.empty(weights.rank, 1) for name, weights in needed.items()}
    check_tensors(
        {name + _THRESHOLD: value for name, value in in_file.items()},
        Room({name + _THRESHOLD: value for name, value in expected.items()}, {}, {}, {}, None),
        origin,
    )
    of_layers = {}
    for fused in manager.modules:
        parts = [manager._get_lora_layer_weights(adapter, part) for part in manager.packed_modules.get(fused, [fused])]
        of_layers[fused] = [None if part is None else in_file.get(part.module_name) for part in parts]
    return {fused: parts for fused, parts in of_layers.items() if any(part is not None for part in parts)}


def _module_of(key: str, mapper: Any) -> str:
    from vllm.lora.utils import parse_fine_tuned_lora_name as parse

    return str(parse(key.replace(_THRESHOLD, ".lora_A.weight"), mapper)[0])


class _Target(NamedTuple):
    """The vLLM layer for the units of one module of the adapter.

    Attributes:
        layer: vLLM's layer, which may be several modules in one.
        outputs: the module's own, over all ranks; None where vLLM counts them otherwise.
    """

    layer: Any
    outputs: int | None


def check_fits(adapter: Any, config: MonoLoraConfig, manager: Any) -> None:
    """Check what vLLM has read, before it is packed and copied.

    Args:
        adapter: a ``LoRAModel``.
        config: of the adapter.
        manager: a ``LoRAModelManager``.

    Raises:
        AdapterFileError: naming the first tensor or module that does not fit, and the fix.
    """
    targets = dict(_targets(manager, adapter))
    origin = origin_of(config.base_model_name_or_path, manager.model.config.name_or_path)
    for name, weights in sorted(adapter.loras.items()):
        if weights.lora_a is None or weights.lora_b is None:
            missing = "A" if weights.lora_a is None else "B"
            raise AdapterFileError(f"The adapter file lacks tensor {name}.monolora_{missing}. {origin}")
        check_finite({f"{name}.monolora_A": weights.lora_a, f"{name}.monolora_B": weights.lora_b})
        if name not in targets:
            if _elsewhere(manager):
                continue
            raise AdapterFileError(f"The adapter has units for {name}, which vLLM does not adapt. {origin}")
        _check_shapes(name, weights, targets[name], origin)
    _check_complete(adapter, config, manager, origin)
    if not activation_named(config.activation).is_linear:
        _check_sums(targets, manager)


def _check_complete(adapter: Any, config: MonoLoraConfig, manager: Any, origin: str) -> None:
    """Check for targeted modules without weights, which would be served as the base's."""
    skipped = getattr(manager.model, "lora_skip_prefixes", None) or []
    names = [name for fused in manager.modules for name in manager.packed_modules.get(fused, [fused])]
    config = copy.copy(config)
    resolve_patterns(config, names, config.adapted_modules or ())
    for name in names:
        targeted = check_target_module_exists(config, name) and not adapter._should_skip_module(name, skipped)
        if targeted and manager._get_lora_layer_weights(adapter, name) is None:
            raise AdapterFileError(f"The adapter file lacks tensor {name}.monolora_A. {origin}")


def _elsewhere(manager: Any) -> bool:
    """Whether other ranks have layers that this one does not."""
    from vllm.model_executor.models.utils import PPMissingLayer

    return any(isinstance(module, PPMissingLayer) for module in manager.model.modules())


def _targets(manager: Any, adapter: Any) -> Iterator[tuple[str, _Target]]:
    """The modules of the adapter that vLLM will look up, by the names that it looks for."""
    from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA

    for fused, layer in manager.modules.items():
        parts = manager.packed_modules.get(fused, [fused])
        for part, name in enumerate(parts):
            weights = manager._get_lora_layer_weights(adapter, name)
            if weights is None:
                continue
            if not isinstance(layer, BaseLinearLayerWithLoRA):
                raise AdapterFileError(
                    f"The adapter has units for {weights.module_name}, and only linear layers are served with units "
                    f"beside them. {EXACT_FIX}"
                )
            yield weights.module_name, _Target(layer, _outputs(layer.base_layer, part, len(parts)))


def _outputs(base_layer: Any, part: int, parts: int) -> int | None:
    """Outputs of one module in a layer that is ``parts`` of them."""
    from vllm.model_executor.layers.linear import QKVParallelLinear

    if parts == 1:
        return int(base_layer.output_size)
    if isinstance(base_layer, QKVParallelLinear):
        keys, values = base_layer.total_num_kv_heads * base_layer.head_size, base_layer.v_head_size
        return (base_layer.total_num_heads * base_layer.head_size, keys, base_layer.total_num_kv_heads * values)[part]
    return int(base_layer.output_sizes[part]) if len(base_layer.output_sizes) == parts else None


def _check_shapes(name: str, weights: Any, target: _Target, origin: str) -> None:
    outputs = len(weights.lora_b) if target.outputs is None else target.outputs
    expected = {"A": (weights.rank, target.layer.base_layer.input_size), "B": (outputs, weights.rank)}
    for which, tensor in (("A", weights.lora_a), ("B", weights.lora_b)):
        if tuple(tensor.shape) != expected[which]:
            raise AdapterFileError(
                f"Tensor {name}.monolora_{which} has shape {tuple(tensor.shape)} in the file, this model needs "
                f"{expected[which]}. {origin}"
            )


def _check_sums(targets: dict[str, _Target], manager: Any) -> None:
    """The ranks of a row-parallel layer have parts of ``A x``; an activation has to come after their sum.

    Under fully sharded LoRA vLLM sums before "expand". Otherwise it sums only the layer's output.
    """
    from vllm.model_executor.layers.linear import RowParallelLinear

    if manager.lora_config.fully_sharded_loras:
        return
    split = sorted(
        name
        for name, target in targets.items()
        if isinstance(target.layer.base_layer, RowParallelLinear) and target.layer.base_layer.tp_size > 1
    )
    if split:
        raise AdapterFileError(
            f"Tensor parallelism splits the inputs of {split[0]} ({len(split)} such modules of the adapter), and the "
            "activation needs their sum. Start vLLM with --fully-sharded-loras (fully_sharded_loras=True of LLM), or "
            "with --tensor-parallel-size 1."
        )


_LOG = logging.getLogger("vllm.monolora")


def add_lora(original: Callable[..., bool], executor: Any, lora_request: Any) -> bool:
    """Around ``Executor.add_lora``: every rank is heard before the refusal of one is raised.

    vLLM raises at the first refusal and leaves what the other ranks say in their queues, where it is taken for the
    answer to the next call: the adapter that is loaded next, a good one, would be refused.

    Raises:
        AdapterFileError: with the message of the first rank that could not load the adapter.
    """
    if executor.parallel_config.world_size == 1:
        return original(executor, lora_request)
    answers = executor.collective_rpc(_add_lora_here, args=(lora_request,))
    for answer in answers:
        if isinstance(answer, str):
            raise AdapterFileError(answer)
    return all(answers)


def _add_lora_here(worker: Any, lora_request: Any) -> bool | str:
    """On one rank: vLLM's own; what it raises becomes the answer."""
    try:
        return bool(worker.add_lora(lora_request))
    except AdapterFileError as error:
        return str(error)
    except Exception as error:
        _LOG.exception("This rank cannot load %s", lora_request.lora_path)
        return " ".join(str(error).split()) or type(error).__name__
