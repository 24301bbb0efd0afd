"""MonoLoRA layers: a mixin over each of PEFT's LoRA layer classes, with a fused path for plain weights."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from peft.tuners import lora
from peft.tuners.lora import layer as lora_layers
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from monolora.activations import CONTROL, activate, activation_named
from monolora.config import MonoLoraConfig
from monolora.functional import add_expanded, monolora_linear


class Dense(NamedTuple):
    """Arguments of :func:`monolora.functional.monolora_linear`, the fused path."""

    adapter: str
    weight: torch.Tensor
    bias: torch.Tensor | None
    A: torch.Tensor
    B: torch.Tensor
    scaling: float
    activation: str


def bare_weight(module: nn.Module | None) -> nn.Parameter | None:
    """An ordinary dense weight of a plain nn.Linear without hooks or a replaced forward."""
    if (
        type(module) is not nn.Linear
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    ):
        return None
    weight = module._parameters.get("weight")
    return weight if type(weight) is nn.Parameter and weight.dim() == 2 else None


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype in which ``nn.Linear`` would compute on ``x`` here."""
    device = x.device.type
    if not x.is_meta and torch.is_autocast_enabled(device):  # which knows no meta device
        return torch.get_autocast_dtype(device)
    return x.dtype


MERGE_HINT = (
    "MonoLoRA is not linear in its input, so there is no weight to merge it into. Keep the adapter, or make a "
    "checkpoint with `monolora merge ADAPTER OUT`."
)

MIXING_HINT = (
    "One model cannot carry both LoRA and MonoLoRA adapters. A plain LoRA beside MonoLoRA adapters is a "
    f"MonoLoraConfig with activation={CONTROL!r}."
)


class Threshold(nn.Module):
    """The thresholds of an adapter's units in one layer, ``weight`` of shape ``(r, 1)``: a parameter where training
    learns them, else a buffer, a running mean in float32 whatever the weights' dtype.

    Args:
        activation: with a threshold.
        r: number of units.
        A: their weights, whose device, dtype and freezing are taken.
    """

    weight: torch.Tensor

    def __init__(self, activation: str, r: int, A: torch.Tensor) -> None:
        super().__init__()
        kind = activation_named(activation)
        assert kind.threshold is not None
        if kind.in_training is None:
            start = torch.full((r, 1), kind.threshold, device=A.device, dtype=A.dtype)
            self.weight = nn.Parameter(start, requires_grad=A.requires_grad)
        else:
            self.register_buffer("weight", torch.full((r, 1), kind.threshold, device=A.device))


# Called with (layer, adapter name, units); the units have r entries along `layer.unit_dim`, and are part of the graph.
UnitObserver = Callable[["MonoLoraLayer", str, torch.Tensor], None]


if TYPE_CHECKING:

    class _Base(nn.Module, LoraLayer):
        """The class below the mixin."""

        base_layer: nn.Module
else:
    # As LoRA layer classes begin with nn.Module, so must the mixin: ``layer.__class__`` can only be set to a class with
    # the same base.
    _Base = nn.Module


class MonoLoraLayer(_Base):
    """Mixin: ``base(x) + s B act(A dropout(x))``, for one or several active adapters and for mixed batches."""

    # As LoRA's, so that PEFT moves, freezes and deletes the thresholds too.
    adapter_layer_names = (*LoraLayer.adapter_layer_names, "lora_threshold")

    activation: dict[str, str]
    lora_threshold: nn.ModuleDict  # of the adapters whose activation has a threshold
    vacant: frozenset[str] = frozenset()  # adapters that have no units here since a hotswap
    unit_observer: UnitObserver | None = None
    unit_dim = -1

    @staticmethod
    def adopt(layer: LoraLayer, adapter_name: str, config: MonoLoraConfig) -> MonoLoraLayer:
        """Turn a new LoRA layer into its MonoLoRA version, in place."""
        layer.__class__ = monolora_class(type(layer))
        assert isinstance(layer, MonoLoraLayer)
        layer.activation, layer.lora_threshold = {}, nn.ModuleDict()
        layer._adapter_added(adapter_name, config)
        return layer

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: Any, **kwargs: Any) -> None:
        """Add an adapter to this layer.

        Raises:
            ValueError: for a plain LoRA adapter, whose config names no activation.
        """
        if not isinstance(config, MonoLoraConfig):
            raise ValueError(f"Adapter {adapter_name!r} is a {type(config).__name__}. {MIXING_HINT}")
        super().update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config, **kwargs)
        self._adapter_added(adapter_name, config)

    def _adapter_added(self, adapter_name: str, config: MonoLoraConfig) -> None:
        self.activation[adapter_name] = config.activation
        self.vacant -= {adapter_name}
        if activation_named(config.activation).threshold is not None:
            tables = self.lora_embedding_A
            A: Any = tables[adapter_name] if adapter_name in tables else self.lora_A[adapter_name].weight
            self.lora_threshold[adapter_name] = Threshold(config.activation, self.r[adapter_name], A)

    def pad_thresholds(self) -> None:
        """Zero thresholds for the units that A has beyond the thresholds."""
        for name, threshold in self.lora_threshold.items():
            if name in self.lora_A:  # PEFT pads no embedding
                weight = _weight(threshold)
                weight.data = F.pad(weight.data, (0, 0, 0, len(_weight(self.lora_A[name])) - len(weight)))

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        self.activation.pop(adapter_name, None)

    def merge(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises: NotImplementedError, always: see the module's merge hint."""
        raise NotImplementedError(MERGE_HINT)

    def unmerge(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises: NotImplementedError, always: nothing is ever merged."""
        raise NotImplementedError(MERGE_HINT)

    def get_delta_weight(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises: NotImplementedError, always: there is no delta weight."""
        raise NotImplementedError(MERGE_HINT)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return False

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The adapted layer.

        Args:
            x: the base layer's input, ``(batch, ..., in_features)`` for a linear layer.
            adapter_names: one adapter (or ``"__base__"``) a row of the batch, at inference (PEFT's mixed batches).
            args: the base layer's own.
            kwargs: the base layer's own.

        Returns:
            The base layer's output shape and dtype.
        """
        self._check_forward_args(x, *args, **kwargs)
        adapter_names = kwargs.pop("adapter_names", None)
        if self.disable_adapters:
            return self.base_layer(x, *args, **kwargs)
        if adapter_names is not None:
            return self._mixed_batch_forward(x, *args, adapter_names=adapter_names, **kwargs)
        result = self.base_layer(x, *args, **kwargs)
        adapted = result
        for name in self._active():
            adapted = self._add_delta(adapted, name, x)
        return adapted.to(result.dtype)

    def _active(self) -> list[str]:
        """The active adapters that this layer has."""
        return [name for name in self.active_adapters if name in self.activation]

    def _mixed_batch_forward(
        self, x: torch.Tensor, *args: Any, adapter_names: list[str], **kwargs: Any
    ) -> torch.Tensor:
        result = self.base_layer(x, *args, **kwargs)
        for name in dict.fromkeys(adapter_names):
            if name not in self.activation:  # "__base__", or an adapter that does not target this layer
                continue
            rows = [row for row, row_name in enumerate(adapter_names) if row_name == name]
            # Out of place: the base layer's output may be a view that the caller still reads.
            delta = self._delta(name, x[rows]).to(result.dtype)
            result = result.index_add(0, torch.tensor(rows, device=result.device), delta)
        return result

    def _add_delta(self, y: torch.Tensor, name: str, x: torch.Tensor) -> torch.Tensor:
        """``y + s B act(A dropout(x))``: for linear layers in one product, without temporaries as large as y."""
        B: Any = self.lora_B[name] if name in self.lora_B else None  # noqa: SIM401 - a ModuleDict has no get
        weight, scaling = bare_weight(B), self.scaling[name]
        if weight is None or B.bias is not None or not isinstance(scaling, (int, float)):
            return y + self._delta(name, x)
        return add_expanded(y, self._units(name, x), weight, scaling)  # out of place: y may be a view

    def _delta(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """``s B act(A dropout(x))`` of one adapter, in the adapter's dtype (or autocast's)."""
        return self.lora_B[name](self._units(name, x)) * self.scaling[name]

    def _units(self, name: str, x: torch.Tensor) -> torch.Tensor:
        A = self.lora_A[name]
        if not torch.is_autocast_enabled(x.device.type):
            x = self._cast_input_dtype(x, _weight(A).dtype)
        h = self._activate(A(self.lora_dropout[name](x)), name)
        self._observe(name, h)
        return h

    def _activate(self, z: torch.Tensor, name: str) -> torch.Tensor:
        return activate(z, self.activation[name], self.unit_dim, self.threshold(name), self.training)

    def threshold(self, name: str) -> torch.Tensor | None:
        """The thresholds of an adapter's units, ``(r, 1)``; None where its activation has none."""
        return _weight(self.lora_threshold[name]) if name in self.lora_threshold else None

    def _observe(self, name: str, h: torch.Tensor) -> None:
        if self.unit_observer is not None:
            self.unit_observer(self, name, h)

    def __repr__(self) -> str:
        return "mono" + super().__repr__()


class MonoLoraLinear(MonoLoraLayer, lora.Linear):
    """Over ``nn.Linear`` and transformers' ``Conv1D``; the plain dense case takes the fused path."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        dense = None if args or kwargs else self._dense(x)
        if dense is None:
            return super().forward(x, *args, **kwargs)
        x = x.to(dense.weight.dtype)  # what autocast would do before the product
        y, h = monolora_linear(x, dense.weight, dense.bias, dense.A, dense.B, dense.scaling, dense.activation)
        if self.unit_observer is not None:
            self._observe(dense.adapter, h.view(*x.shape[:-1], h.shape[-1]))
        return y

    def _dense(self, x: torch.Tensor) -> Dense | None:
        """What the fused path would compute with, or None where it must not be taken.

        Anything that must see the base layer called (hooks of FSDP, ZeRO, offloading, the user), any subclass of
        nn.Linear and any special tensor takes the general path.
        """
        active = self._active()
        if len(active) != 1 or self.disable_adapters:
            return None
        name = active[0]
        modules: dict[str, Any] = (
            self._modules
        )  # by attribute, nn.Module's search would take a third of the fused path's Python
        base, dropout = modules["base_layer"], modules["lora_dropout"]._modules[name]
        A, B = modules["lora_A"]._modules[name], modules["lora_B"]._modules[name]
        weight, weight_A, weight_B = bare_weight(base), bare_weight(A), bare_weight(B)
        activation, scaling = self.activation[name], self.scaling[name]
        if (
            weight is None
            or weight_A is None
            or weight_B is None
            or B._parameters["bias"] is not None
            or activation_named(activation).gradient is None
            or (dropout.training and isinstance(dropout, nn.Dropout))
            or not isinstance(scaling, (int, float))
            or not self.cast_input_dtype_enabled
            or weight.dtype != compute_dtype(x)
        ):
            return None
        return Dense(name, weight, base._parameters["bias"], weight_A, weight_B, scaling, activation)


def _weight(module: nn.Module) -> torch.Tensor:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight


class MonoLoraEmbedding(MonoLoraLayer, lora.Embedding):
    """Over ``nn.Embedding``: the units of a token are ``act(A[:, token])``."""

    def _adapter_added(self, adapter_name: str, config: MonoLoraConfig) -> None:
        super()._adapter_added(adapter_name, config)
        # LoRA starts an embedding from A = 0 and a random B. Under ReLU that pair never moves (relu(0) = 0, with
        # no gradient either way), so the zero goes to B. The adapter is still the identity at the start.
        if config.init_lora_weights:
            nn.init.normal_(self.lora_embedding_A[adapter_name])
            nn.init.zeros_(self.lora_embedding_B[adapter_name])

    def _delta(self, name: str, x: torch.Tensor) -> torch.Tensor:
        units = self._embed(
            x,
            self.lora_embedding_A[name].T,
            input_fn=self.input_fns.get(name),
            output_fn=self.output_fns.get(name),
        )
        h = self._activate(units, name)
        self._observe(name, h)
        delta = (h @ self.lora_embedding_B[name].T) * self.scaling[name]
        embed_scale = self._get_embed_scale()  # e.g. Gemma scales inside its embedding's forward
        return delta if embed_scale is None else delta * embed_scale.to(delta.dtype)


class MonoLoraConv1d(MonoLoraLayer, lora_layers.Conv1d):
    """Over ``nn.Conv1d``; the units are channels."""

    unit_dim = -2


class MonoLoraConv2d(MonoLoraLayer, lora_layers.Conv2d):
    """Over ``nn.Conv2d``; the units are channels."""

    unit_dim = -3


class MonoLoraConv3d(MonoLoraLayer, lora_layers.Conv3d):
    """Over ``nn.Conv3d``; the units are channels."""

    unit_dim = -4


_CLASSES: dict[type[LoraLayer], type[MonoLoraLayer]] = {
    lora.Linear: MonoLoraLinear,
    lora.Embedding: MonoLoraEmbedding,
    lora_layers.Conv1d: MonoLoraConv1d,
    lora_layers.Conv2d: MonoLoraConv2d,
    lora_layers.Conv3d: MonoLoraConv3d,
}

# LoRA layer classes of the quantization back ends, and the module of PEFT each lives in. Importing these modules
# imports the back end, so their MonoLoRA versions are made when they are asked for.
_BACK_ENDS: dict[str, str] = {
    "Linear8bitLt": "bnb",
    "Linear4bit": "bnb",
    "AqlmLoraLinear": "aqlm",
    "AwqLoraLinear": "awq",
    "EetqLoraLinear": "eetq",
    "GPTQLoraLinear": "gptq",
    "HqqLoraLinear": "hqq",
    "IncLoraLinear": "inc",
    "TeLinear": "te",
    "TorchaoLoraLinear": "torchao",
}


def __getattr__(name: str) -> type[MonoLoraLayer]:
    """``MonoLora<class>`` for every class of a quantization back end, so that such layers unpickle in a new process."""
    lora_name = name.removeprefix("MonoLora")
    if name == lora_name or lora_name not in _BACK_ENDS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"peft.tuners.lora.{_BACK_ENDS[lora_name]}")
    return monolora_class(vars(module)[lora_name])


@functools.cache
def monolora_class(lora_class: type[LoraLayer]) -> type[MonoLoraLayer]:
    """The MonoLoRA class over a LoRA layer class: a predefined one, or one made here (bitsandbytes, GPTQ, AWQ, …).

    Raises:
        ValueError: for layers whose forward is more than a base layer plus ``B A x``.
    """
    if issubclass(lora_class, MonoLoraLayer):
        return lora_class
    if lora_class in _CLASSES:
        return _CLASSES[lora_class]
    if issubclass(lora_class, (lora_layers.MultiheadAttention, lora_layers.ParamWrapper)):
        raise ValueError(
            f"MonoLoRA does not support {lora_class.__name__}: PEFT merges it into the base weight at every call, "
            "which an activation makes impossible. Target the linear layers around it instead."
        )
    name = f"MonoLora{lora_class.__name__}"
    monolora = type(
        name, (MonoLoraLayer, lora_class), {"__module__": __name__, "__doc__": f"Over {lora_class.__name__}."}
    )
    globals()[name] = monolora  # pickle finds classes by name
    return monolora
