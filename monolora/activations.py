"""The activations between A and B: one registry, which every other module asks.

``relu`` is MonoLoRA as published (paper, eq. 5). ``identity`` turns the adapter into plain LoRA: the
control in every comparison. An entry states what training, merges, serving and silence need to know of an
activation, so that a new one is registered here, or by :func:`register_activation` from anywhere, and nowhere else.
"""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

DEFAULT, CONTROL = "relu", "identity"
ENTRY_POINTS = "monolora.activations"  # modules that register activations as they are imported

LINEAR_BOUNDS = (-torch.inf, torch.inf)


@dataclass(frozen=True, kw_only=True)
class Activation:
    """How units are computed, ``h = act(z)`` with pre-activations ``z = A x``, and what is true of them.

    Args:
        function: ``(z) -> h`` of the same shape. It also takes the threshold, shaped to broadcast, where there is one,
            and then the dimension of the units where they depend on each other (``over_units``).
        summary: in a few words, for tables and reports.
        signed: whether units may be negative.
        zero_at_zero: whether ``act(0) = 0``.
        one_sided: whether units are never negative, and zero for all ``z <= 0``: what silence needs.
        scale_free: whether ``act(c z) = c act(z)`` for ``c > 0``.
        over_units: whether a unit depends on the other units of its token.
        bounds: ``act(z)`` is ``z`` clamped to them, where it is; kernels and vLLM then need no function.
        gradient: ``(g, h) -> g act'(z)``, differentiable, for the fused path, which keeps h alone; None: not fused.
        threshold: where each unit's threshold starts; None without one. It is a parameter that is learned, or with
            ``in_training`` a buffer. On disk it is ``monolora_threshold``, ``(r, 1)``.
        in_training: ``(z, threshold) -> h`` in place of ``function`` in training; it updates the threshold in place.

    Raises:
        ValueError: for statements that contradict each other.
    """

    function: Callable[..., torch.Tensor]
    summary: str
    signed: bool
    zero_at_zero: bool = True
    one_sided: bool = False
    scale_free: bool = False
    over_units: bool = False
    bounds: tuple[float, float] | None = None
    gradient: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    threshold: float | None = None
    in_training: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None

    def __post_init__(self) -> None:
        if self.one_sided and (self.signed or not self.zero_at_zero):
            raise ValueError("An activation that is one_sided is zero_at_zero, and not signed.")
        if self.in_training is not None and self.threshold is None:
            raise ValueError("An activation with in_training needs a threshold for inference.")
        if self.gradient is not None and (self.over_units or self.threshold is not None):
            raise ValueError("The fused path has no threshold, and no units that depend on each other: no gradient.")

    def __call__(
        self, z: torch.Tensor, dim: int = -1, threshold: torch.Tensor | None = None, training: bool = False
    ) -> torch.Tensor:
        """See :func:`activate`."""
        if self.threshold is not None and threshold is None:
            raise ValueError("This activation needs the units' thresholds.")
        if training and self.in_training is not None:
            assert threshold is not None
            return self.in_training(z, threshold)
        arguments: list[torch.Tensor | int] = []
        if self.threshold is not None:
            assert threshold is not None
            shape = [1] * z.dim()
            shape[dim] = -1
            arguments.append(threshold.reshape(shape))
        if self.over_units:
            arguments.append(dim)
        return self.function(z, *arguments)

    @property
    def is_linear(self) -> bool:
        """Whether there is nothing between A and B."""
        return self.bounds == LINEAR_BOUNDS


TOP_K = ("topk", "batchtopk")  # in whose names a number says how many units may be on

# An activation, or what makes one of the whole number in ``name:<k>``.
Entry = Activation | Callable[[int], Activation]
_REGISTRY: dict[str, Entry] = {}
_WITH_NUMBER: dict[str, Activation] = {}  # by whole names that were asked for


def register_activation(name: str, entry: Entry) -> None:
    """Make an activation known, under a name that configs and flags then take.

    Adapters need it wherever they are loaded. A package that lists the module of this call as an entry point of the
    group ``monolora.activations`` is found by every program, in vLLM's processes too.

    Args:
        name: of lower-case letters, digits and underscores.
        entry: the activation; or a function of ``k``, at least 1, for names ``<name>:<k>``.

    Raises:
        ValueError: for a name that is taken, or is none.

    Example:
        >>> register_activation("celu", Activation(function=torch.celu, summary="CELU", signed=True))
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"{name!r} cannot name an activation; use lower-case letters, digits and underscores.")
    if name in _REGISTRY:
        raise ValueError(f"There is an activation {name!r} already; register this one under another name.")
    _REGISTRY[name] = entry


def activation_names() -> tuple[str, ...]:
    """All names, ``<k>`` in place of a number."""
    return tuple(name if isinstance(entry, Activation) else f"{name}:<k>" for name, entry in _REGISTRY.items())


def activation_named(name: str) -> Activation:
    """The activation of a name.

    Raises:
        ValueError: if there is none; the message lists the choices and the nearest one.
    """
    activation = _find(name)
    if activation is None:
        _load_entry_points()
        activation = _find(name)
    if activation is None:
        names = activation_names()
        examples = [known.replace("<k>", "4") for known in names]
        near = difflib.get_close_matches(str(name), examples, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Unknown activation {name!r}; choose one of {', '.join(names)} (k at least 1).{hint}")
    return activation


def _find(name: object) -> Activation | None:
    if not isinstance(name, str):
        return None
    entry = _REGISTRY.get(name) or _WITH_NUMBER.get(name)
    if isinstance(entry, Activation):
        return entry
    kind, colon, number = name.partition(":")
    make = _REGISTRY.get(kind)
    if not colon or not re.fullmatch(r"[1-9]\d*", number) or make is None or isinstance(make, Activation):
        return None
    return _WITH_NUMBER.setdefault(name, make(int(number)))


@functools.cache
def _load_entry_points() -> None:
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        point.load()


def check_activation(name: str) -> str:
    """Return ``name`` if it names an activation.

    Raises:
        ValueError: if it does not (see :func:`activation_named`).
    """
    activation_named(name)
    return name


def activate(
    z: torch.Tensor, name: str, dim: int = -1, threshold: torch.Tensor | None = None, training: bool = False
) -> torch.Tensor:
    """Hidden units from pre-activations.

    Args:
        z: pre-activations ``A x``, units along ``dim``, any other shape.
        name: of the activation.
        dim: the dimension of the units.
        threshold: of the units, ``(r, 1)``, where the activation has one.
        training: whether units may depend on other tokens of the batch; a running threshold is updated then.

    Returns:
        A tensor of the shape of ``z``.

    Raises:
        ValueError: for an unknown name, or a threshold that is not given.
    """
    return activation_named(name)(z, dim, threshold, training)


BANDWIDTH = 0.05  # of the kernel through which a learned threshold gets its gradient, and where thresholds start
LEAKY_SLOPE = 0.01
MOMENTUM = 0.01  # of the running mean of batchtopk's smallest kept unit


def _largest(z: torch.Tensor, dim: int, k: int) -> torch.Tensor:
    """The k largest positive units of each token, the others zero."""
    h = F.relu(z)
    if k >= z.shape[dim]:
        return h
    largest = h.topk(k, dim=dim).indices
    return torch.zeros_like(h).scatter(dim, largest, h.gather(dim, largest))


def _above(z: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """``z`` where it is above ``max(threshold, 0)``, else 0; NaN stays.

    The threshold's gradient is that of the rectangle of width :data:`BANDWIDTH` around it (arXiv 2407.14435, eq. 11).
    """
    floor = threshold.detach().clamp(min=0)
    h = torch.where(z <= floor, 0.0, z)
    if not (threshold.requires_grad and torch.is_grad_enabled()):
        return h
    near = (z.detach() - floor).abs() < BANDWIDTH / 2
    slope = torch.where(near, -floor / BANDWIDTH, 0.0)
    return h + (slope * (threshold - threshold.detach())).to(h.dtype)  # adds zero


def _largest_of_batch(z: torch.Tensor, threshold: torch.Tensor, k: int) -> torch.Tensor:
    """The ``k · tokens`` largest positive units of the whole batch, the others zero (arXiv 2412.06410).

    The threshold becomes the running mean of the smallest unit that was kept; it starts with the first one.
    """
    h = F.relu(z)
    flat = h.flatten()
    kept = min(len(flat), k * (len(flat) // len(threshold)))
    if not kept:
        return h
    values, largest = flat.detach().topk(kept)
    smallest = torch.where(values > 0, values, torch.inf).amin().to(threshold.dtype)
    running = torch.where(threshold > 0, threshold.lerp(smallest, MOMENTUM), smallest)
    threshold.copy_(torch.where(smallest.isfinite(), running, threshold))
    return torch.zeros_like(flat).scatter(0, largest, flat.gather(0, largest)).view_as(h)


def _relu_gradient(g: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    return torch.ops.aten.threshold_backward.default(g, h, 0)


def _topk(k: int) -> Activation:
    return Activation(
        function=functools.partial(_largest, k=k),
        summary=f"the {k} largest positive unit{'' if k == 1 else 's'} of each token",
        signed=False,
        one_sided=True,
        scale_free=True,
        over_units=True,
    )


def _batchtopk(k: int) -> Activation:
    return Activation(
        function=_above,
        summary=f"the {k} largest positive units a token, over a batch in training, by a threshold afterwards",
        signed=False,
        one_sided=True,
        threshold=0.0,
        in_training=functools.partial(_largest_of_batch, k=k),
    )


register_activation(
    DEFAULT,
    Activation(
        function=F.relu,
        summary="a ReLU between A and B",
        signed=False,
        one_sided=True,
        scale_free=True,
        bounds=(0.0, torch.inf),
        gradient=_relu_gradient,
    ),
)
register_activation(
    CONTROL,
    Activation(
        function=lambda z: z,
        summary="nothing between A and B",
        signed=True,
        scale_free=True,
        bounds=LINEAR_BOUNDS,
        gradient=lambda g, h: g,
    ),
)
register_activation(
    "softplus", Activation(function=F.softplus, summary="a softplus between A and B", signed=False, zero_at_zero=False)
)
register_activation("topk", _topk)
register_activation("batchtopk", _batchtopk)
register_activation(
    "jumprelu",
    Activation(
        function=_above,
        summary="those units that are above a learned threshold of their own",
        signed=False,
        one_sided=True,
        threshold=BANDWIDTH,
    ),
)
register_activation(
    "leaky_relu",
    Activation(
        function=functools.partial(F.leaky_relu, negative_slope=LEAKY_SLOPE),
        summary=f"a ReLU of slope {LEAKY_SLOPE} below zero between A and B",
        signed=True,
        scale_free=True,
        gradient=lambda g, h: torch.where(h > 0, g, g * LEAKY_SLOPE),
    ),
)
register_activation("gelu", Activation(function=F.gelu, summary="a GELU between A and B", signed=True))
register_activation("silu", Activation(function=F.silu, summary="a SiLU between A and B", signed=True))
register_activation(
    "tanh",
    Activation(
        function=torch.tanh, summary="a tanh between A and B", signed=True, gradient=lambda g, h: g * (1 - h * h)
    ),
)
register_activation(
    "relu2",
    Activation(
        function=lambda z: F.relu(z).square(), summary="a squared ReLU between A and B", signed=False, one_sided=True
    ),
)
