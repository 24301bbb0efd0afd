"""Adapters without some of their units, exactly; from the adapter's files, without its base model.

A unit adds ``s B[:, j] act(A[j] x)`` to its module's output, by itself: its row of A, its column of B and its threshold
are taken out, and every other tensor keeps its bits. The scaling ``s`` stays the same double, though it is computed
from alpha and the rank, and the rank changes.

Shapes: R units of a module, K of them kept; in and out are a module's features (or channels, with a kernel behind).
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import get_pattern_key
from safetensors import safe_open
from safetensors.torch import save_file

from monolora.activations import activation_named
from monolora.adapters import adapter_config
from monolora.checkpoint import AdapterFileError, adapted_modules, check_no_lora_tensors, to_memory_name
from monolora.config import MonoLoraConfig
from monolora.errors import InputError
from monolora.targets import resolve_values
from monolora.units import UnitName

_PREFIX = "base_model.model."
_UNIT_TENSOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_((?:embedding_)?[AB]|threshold)(?:\.weight)?")
_UNIT_BIAS = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_B\.bias")

# Options of LoraConfig with which a unit is more than its row of A and column of B.
_REFUSED: dict[str, str] = {
    "use_dora": "DoRA divides by the norm of W + BA, in which all units are",
    "alora_invocation_tokens": "aLoRA has a forward of its own, which pruning is not tested on",
    "arrow_config": "Arrow routes by the singular vectors of BA, in which all units are",
    "use_bdlora": "BD-LoRA stores A or B as blocks",
    "velora_config": "VeLoRA keeps a projection of its own beside A and B",
    "monteclora_config": "MonteCLoRA keeps parameters of its own for the units",
    "kasa_config": "KaSA cuts as many directions from the base weight as there are units",
    "use_qalora": "QALoRA has a forward of its own, which pruning is not tested on",
    "target_parameters": "PEFT adapts a bare parameter by A and B that may be those of many experts in one",
    "ensure_weight_tying": "tied modules share their A and B",
}
_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq")


class Adapter(NamedTuple):
    """An adapter folder, read.

    Attributes:
        config: parsed.
        settings: ``adapter_config.json`` as it stands.
        tensors: by their names in the file.
        metadata: of the safetensors file.
        units: of each module, by its name in the base model.
    """

    config: LoraConfig
    settings: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]
    units: dict[str, int]


class Pruned(NamedTuple):
    """An adapter without some units.

    Attributes:
        settings: for ``adapter_config.json``.
        tensors: for the safetensors file.
        metadata: likewise.
        left: the former number of each unit, by remaining module; None for a null unit (A and B zero), which
            pads the rank where no alpha gives the scaling.
    """

    settings: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]
    left: dict[str, list[int | None]]

    def save(self, folder: Path) -> None:
        """Write config and weights into a folder that exists.

        Raises:
            OSError, SafetensorError: if the disk is full or not writable.
        """
        (folder / CONFIG_NAME).write_text(json.dumps(self.settings, indent=2) + "\n")
        save_file(self.tensors, folder / SAFETENSORS_WEIGHTS_NAME, metadata=self.metadata)


def read_adapter(folder: str) -> Adapter:
    """The adapter in a folder, MonoLoRA or LoRA.

    Raises:
        InputError: if there is none, its files are damaged, or its units are inseparable.
    """
    config = adapter_config(folder)
    if not isinstance(config, LoraConfig) or config.peft_type not in ("LORA", "MONOLORA"):
        raise InputError(f"{folder} is neither a MonoLoRA nor a LoRA adapter: it has no units to prune.")
    _check_separate(config, folder)
    resolve_values(config, adapted_modules(folder))
    settings = json.loads((Path(folder) / CONFIG_NAME).read_text())
    with safe_open(Path(folder) / SAFETENSORS_WEIGHTS_NAME, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        metadata = file.metadata() or {"format": "pt"}
    return Adapter(config, settings, tensors, metadata, _units(config, tensors, folder))


def _check_separate(config: LoraConfig, folder: str) -> None:
    """Raises: InputError, naming the option that makes units inseparable."""
    for name, reason in _REFUSED.items():
        if getattr(config, name):
            raise InputError(f"{folder} has {name}, and {reason}. Its units cannot be pruned exactly.")
    init = str(config.init_lora_weights).lower()
    if init.startswith(_BASE_CHANGING_INITS):
        raise InputError(
            f"{folder} has init_lora_weights={init!r}: PEFT changes the base weights by the rank as it loads it. Save "
            "it with path_initial_model_for_weight_conversion first."
        )
    if isinstance(config, MonoLoraConfig) and activation_named(config.activation).over_units:
        raise InputError(
            f"{folder} has activation={config.activation!r}: without a unit, the others would be other ones. Its units "
            "cannot be pruned exactly."
        )


def _units(config: LoraConfig, tensors: Mapping[str, torch.Tensor], folder: str) -> dict[str, int]:
    """Module name to number of units, as the file has them; checked against the config."""
    needed, is_monolora = {"A", "B"}, isinstance(config, MonoLoraConfig)
    if isinstance(config, MonoLoraConfig):
        check_no_lora_tensors(tensors)
        needed |= {"threshold"} if activation_named(config.activation).threshold is not None else set()
    shapes: dict[str, dict[str, torch.Size]] = {}
    for name, tensor in tensors.items():
        key = to_memory_name(name) if is_monolora else name
        if match := _UNIT_TENSOR.fullmatch(key):
            shapes.setdefault(match[1], {})[match[2].removeprefix("embedding_")] = tensor.shape
        elif re.search(r"\.(mono)?lora_", key) and not _UNIT_BIAS.fullmatch(key):
            raise AdapterFileError(
                f"Tensor {name!r} in {folder} is neither A nor B nor a threshold: what it does to units is unknown."
            )
    for module, shape in shapes.items():
        rank = _rank_and_alpha_of(config, module)[0]
        if shape.keys() != needed:
            raise AdapterFileError(
                f"{folder} has {', '.join(sorted(shape))} of {module}, and {', '.join(sorted(needed))} make its units. "
                "Copy it again from where it was saved."
            )
        if shape["A"][0] != rank:
            raise AdapterFileError(
                f"{folder} has {shape['A'][0]} units for {module} and a config that says {rank}. Fix r or rank_pattern "
                "in adapter_config.json: of several patterns that match, the first one counts."
            )
    if not shapes:
        raise AdapterFileError(f"{folder} has no units in its file. Copy it again from where it was saved.")
    return {module: int(shape["A"][0]) for module, shape in shapes.items()}


def without_units(adapter: Adapter, units: Iterable[UnitName]) -> Pruned:
    """The adapter without these units; a module that loses all of them is no longer adapted.

    Args:
        adapter: as :func:`read_adapter` gives it.
        units: of the adapter's modules, by their whole names.

    Raises:
        InputError: if nothing is left, a module with ``lora_bias`` loses all units, or a convolution has groups.
    """
    removed: dict[str, set[int]] = {}
    for module, unit in units:
        removed.setdefault(module, set()).add(unit)
    remaining: dict[str, list[int | None]] = {
        module: [unit for unit in range(count) if unit not in removed.get(module, ())]
        for module, count in adapter.units.items()
    }
    if not any(remaining.values()):
        raise InputError("Nothing of the adapter would be left: without it, the model is the base. Keep a unit.")
    ranks: dict[str, tuple[int, float]] = {}
    for module, units_K in remaining.items():
        if units_K:
            rank, alpha = _rank_and_alpha_of(adapter.config, module)
            ranks[module] = rank_and_alpha(len(units_K), rank, alpha, adapter.config.use_rslora)
        elif adapter.config.lora_bias:
            raise InputError(f"{module} would lose all units, but not the bias that its B has. Keep a unit of it.")
    left = {module: remaining[module] + [None] * (rank - len(remaining[module])) for module, (rank, _) in ranks.items()}
    return Pruned(_settings(adapter, ranks), _tensors(adapter, left), adapter.metadata, left)


def unit_tensors(adapter: Adapter) -> dict[str, dict[str, str]]:
    """The names of A, B and a threshold in the file, as ``{"A": …, "B": …}`` by module."""
    names: dict[str, dict[str, str]] = {}
    for name in adapter.tensors:
        if match := _UNIT_TENSOR.fullmatch(to_memory_name(name)):
            names.setdefault(match[1], {})[match[2].removeprefix("embedding_")] = name
    return names


def in_balanced_basis(adapter: Adapter) -> Adapter:
    """A linear adapter whose units are the singular directions of each ``B A``, largest first; the product is the same.

    ``B A = U S V^T`` becomes ``(U √S)(√S V^T)``. Any invertible matrix between A and B gives other ranks with the same
    product, so that single ranks mean something in a fixed basis only.

    Args:
        adapter: LoRA, or MonoLoRA with ``activation="identity"``.

    Raises:
        InputError: for a convolution with groups, whose units share columns of B.
    """
    tensors = dict(adapter.tensors)
    for module, names in unit_tensors(adapter).items():
        A, B = (adapter.tensors[names[which]] for which in "AB")
        if B.numel() != B.shape[0] * A.shape[0]:
            raise InputError(f"{module} is a convolution with groups: its units share columns of B.")
        tensors[names["A"]], tensors[names["B"]] = _balanced(A, B)
    return adapter._replace(tensors=tensors)


def _balanced(A: torch.Tensor, B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A ``(R, in, …)`` and B ``(out, R, …)``, in their shapes and dtypes."""
    Qa, Ra = torch.linalg.qr(A.double().flatten(1).T)
    Qb, Rb = torch.linalg.qr(B.double().flatten(1))
    U, S, Vt = torch.linalg.svd(Rb @ Ra.T, full_matrices=False)
    root = S.sqrt()
    balanced_A, balanced_B = torch.zeros_like(A).flatten(1), torch.zeros_like(B).flatten(1)
    balanced_A[: len(S)] = (root[:, None] * (Vt @ Qa.T)).to(A.dtype)  # fewer directions than ranks leave null ranks
    balanced_B[:, : len(S)] = (Qb @ U * root).to(B.dtype)
    return balanced_A.view_as(A).contiguous(), balanced_B.view_as(B).contiguous()


def rank_and_alpha(units: int, rank: int, alpha: float, rslora: bool) -> tuple[int, float]:
    """A rank and an alpha for ``units`` of ``rank`` units, with bit for bit the same scaling.

    The scaling is ``alpha / rank``, or ``alpha / sqrt(rank)`` with ``rslora``, in doubles. For some ranks no alpha
    rounds to it (never where the scaling is a whole number); then the next rank with one is used.

    Returns:
        A rank from ``units`` to ``rank``, and its alpha.
    """
    scaling = alpha / _divisor(rank, rslora)
    for fewer in range(units, rank):
        divisor = _divisor(fewer, rslora)
        nearest = scaling * divisor  # where this double does not give the scaling, no other does: they are further off
        if nearest / divisor == scaling:
            return fewer, int(nearest) if nearest.is_integer() else nearest
    return rank, alpha


def _divisor(rank: int, rslora: bool) -> float:
    return math.sqrt(rank) if rslora else rank


def _rank_and_alpha_of(config: LoraConfig, module: str) -> tuple[int, float]:
    """As PEFT's ``LoraModel._create_and_replace`` finds them."""
    ranks, alphas = config.rank_pattern or {}, config.alpha_pattern or {}
    rank = ranks.get(get_pattern_key(list(ranks), module), config.r)
    return rank, alphas.get(get_pattern_key(list(alphas), module), config.lora_alpha)


def _settings(adapter: Adapter, ranks: Mapping[str, tuple[int, float]]) -> dict[str, Any]:
    """The config with these ranks and alphas, which no longer targets any other module."""
    ((rank, alpha), _), *_ = Counter(ranks.values()).most_common(1)
    # By whole names that nothing else matches: of several patterns PEFT takes the first, and saves them sorted.
    changed: dict[str, Any] = {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{re.escape(name)}": r for name, (r, _) in ranks.items() if r != rank},
        "alpha_pattern": {f"^{re.escape(name)}": a for name, (_, a) in ranks.items() if a != alpha},
    }
    unadapted = [re.escape(name) for name in adapter.units if name not in ranks]
    if unadapted:
        # As one expression: a list's entries would also match as ends of longer names.
        earlier = adapter.config.exclude_modules or []
        if not isinstance(earlier, str):
            earlier = "|".join(rf"(?:.*\.)?{re.escape(name)}" for name in sorted(earlier))
        changed["exclude_modules"] = "|".join(filter(None, [earlier, *unadapted]))
    if adapter.config.init_lora_weights == "orthogonal":  # which takes an even rank, even for a file to load over it
        changed["init_lora_weights"] = True
    return adapter.settings | changed


def _tensors(adapter: Adapter, left: Mapping[str, list[int | None]]) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    unadapted = [f"{_PREFIX}{module}.base_layer." for module in adapter.units if module not in left]
    for name, tensor in adapter.tensors.items():
        unit_tensor = _UNIT_TENSOR.fullmatch(to_memory_name(name))
        if unit_tensor is None:
            # Biases and embeddings of the base that were saved with a module are under its own name again.
            wrapped = next((start for start in unadapted if name.startswith(start)), None)
            name = name if wrapped is None else wrapped.removesuffix("base_layer.") + name.removeprefix(wrapped)
            tensors[name] = tensor
        elif (module := unit_tensor[1]) in left:
            dim, count = int(unit_tensor[2].endswith("B")), adapter.units[module]
            if left[module] == list(range(count)):
                tensors[name] = tensor
            elif tensor.shape[dim] == count:
                tensors[name] = _chosen(tensor, dim, left[module])
            else:
                raise InputError(f"{module} is a convolution with groups: its units share columns of B. Keep them all.")
    return tensors


def _chosen(tensor: torch.Tensor, dim: int, units: list[int | None]) -> torch.Tensor:
    """A ``(R, in, …)`` or thresholds ``(R, 1)`` with ``dim`` 0, or B ``(out, R, …)`` with ``dim`` 1, for some of the R
    units; zeros for None."""
    chosen_K = [unit for unit in units if unit is not None]
    shape = list(tensor.shape)
    shape[dim] = len(units)
    result = tensor.new_zeros(shape)
    result.narrow(dim, 0, len(chosen_K)).copy_(tensor.index_select(dim, torch.tensor(chosen_K)))
    return result
