"""Losses of an adapter's units while it is trained: few of them on for a token, and none of them unused.

Shapes: T tokens, I inputs, R units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from monolora.errors import InputError
from monolora.layer import MonoLoraLayer
from monolora.sparsity import RealTokens
from monolora.units import adapted_layers, matrices_of, watch


class _Units(NamedTuple):
    """The units of one call of a module.

    Attributes:
        h_TR: with their graph.
        is_token_T: False for padding; None if all rows are tokens.
        times: for how many tokens each row stands.
    """

    h_TR: torch.Tensor
    is_token_T: torch.Tensor | None
    times: int


class UnitLosses:
    """Two losses of a step's units, and for how many steps each unit has been idle.

    The *sparsity loss* is the L1 norm of the units' effects: ``|h_u| ‖s B_u‖`` summed over the units of a module,
    averaged over tokens and modules. Shrinking A while B grows leaves it as it is.

    The *usage loss* is ``-z_u``, with the pre-activation ``z = A x``, summed over the units of a module that were
    idle in the last step, averaged over tokens and modules. For a ReLU that is what they are below zero. Its gradient
    goes to A alone.

    All tokens count that :class:`~monolora.sparsity.RealTokens` counts, prompts too: units act there, and the share of
    zeros is measured on them. Averages are over a whole step, so they do not depend on how it is divided.

    Example:
        >>> losses = UnitLosses(model, sparsity_weight=1e-3)
        >>> with losses.collecting():
        ...     loss = model(**batch).loss
        >>> loss = loss + sum(losses.take(batch["attention_mask"].sum()).values())

    Args:
        model: with MonoLoRA layers, wrapped in a ``PeftModel`` or not.
        sparsity_weight: of the sparsity loss; 0 for none.
        usage_weight: of the usage loss; 0 for none.
        adapter: whose units.

    Raises:
        InputError: with a usage weight, for a module whose inputs are neither vectors nor token ids.

    Attributes:
        idle_steps: for each module, by its name in the base model, since how many steps each unit has been idle:
            zero on every token.
    """

    def __init__(
        self, model: nn.Module, *, sparsity_weight: float = 0.0, usage_weight: float = 0.0, adapter: str = "default"
    ) -> None:
        self.sparsity_weight, self.usage_weight, self.adapter = sparsity_weight, usage_weight, adapter
        self.layers: dict[str, Any] = {
            name: layer
            for layer, name in adapted_layers(model).items()
            if isinstance(layer, MonoLoraLayer) and adapter in layer.r
        }
        self._names: dict[LoraLayer, str] = {layer: name for name, layer in self.layers.items()}
        self._tokens = RealTokens(model)
        self._units: dict[str, list[_Units]] = {name: [] for name in self.layers}
        self._inputs: dict[str, torch.Tensor] = {}  # sums over tokens
        self.idle_steps: dict[str, torch.Tensor] = {}
        self._fired: dict[str, torch.Tensor] = {}
        for name, layer in self.layers.items():
            A = matrices_of(layer, adapter).A
            if usage_weight and A.dim() != 2:
                raise InputError(
                    f"--usage-weight: {name} is a convolution, whose units have no inputs of their own. Leave it out "
                    "of --lora-target-modules."
                )
            self.idle_steps[name] = torch.zeros(layer.r[adapter], dtype=torch.int64, device=A.device)
            self._fired[name] = torch.zeros(layer.r[adapter], dtype=torch.bool, device=A.device)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Collect units, and what the losses need, from the model's forward passes with gradients in the block."""
        ends = [self._tokens.attach(), *watch(self._names, self._see, with_gradient=True)]
        if self.usage_weight:
            ends += [layer.register_forward_pre_hook(self._add_inputs).remove for layer in self.layers.values()]
        try:
            yield
        finally:
            for end in ends:
                end()

    def _see(self, layer: LoraLayer, adapter_name: str, h: torch.Tensor) -> None:
        if adapter_name != self.adapter or not torch.is_grad_enabled():
            return
        name, rows = self._names[layer], h.shape[:-1]
        units = _Units(h.reshape(-1, h.shape[-1]), self._tokens.mask(rows), self._tokens.times(rows))
        on_TR = units.h_TR.detach() != 0
        if units.is_token_T is not None:
            on_TR = on_TR & units.is_token_T[:, None]
        self._fired[name] |= on_TR.any(0)
        if self.sparsity_weight:
            self._units[name].append(units)

    def _add_inputs(self, layer: Any, args: tuple[Any, ...]) -> None:
        if not torch.is_grad_enabled():
            return
        x, name = args[0].detach(), self._names[layer]
        rows = x.shape[:-1] if x.is_floating_point() else x.shape
        mask, times = self._tokens.mask(rows), self._tokens.times(rows)
        weight_T = torch.ones(rows.numel(), device=x.device) if mask is None else mask.float()
        if x.is_floating_point():
            with torch.autocast(x.device.type, enabled=False):
                sum_I = (weight_T.to(x.dtype) @ x.reshape(-1, x.shape[-1])).float()
        else:  # token ids: how often each is among them
            sum_I = torch.bincount(x.flatten(), weights=weight_T, minlength=matrices_of(layer, self.adapter).A.shape[1])
        self._inputs[name] = self._inputs.get(name, 0) + times * sum_I

    def take(self, tokens: torch.Tensor | float) -> dict[str, torch.Tensor]:
        """The weighted losses of what was collected since the last call: this part's share of the step's.

        Args:
            tokens: of the whole step, without padding.

        Returns:
            Scalars in float32, by ``sparsity_loss`` and ``usage_loss``, of the weights that are not 0.
        """
        losses = {}
        if self.sparsity_weight:
            losses["sparsity_loss"] = self.sparsity_weight * self._effects() / tokens / len(self.layers)
        if self.usage_weight:
            losses["usage_loss"] = -self.usage_weight * self._idle_sums() / tokens / len(self.layers)
        return losses

    def _effects(self) -> Any:
        """Summed over units, tokens and modules."""
        total: Any = 0.0
        for name, calls in self._units.items():
            layer = self.layers[name]
            B = matrices_of(layer, self.adapter).B
            norms_R = B.float().movedim(1, 0).flatten(1).norm(dim=1) * abs(layer.scaling[self.adapter])
            for h_TR, is_token_T, times in calls:
                size_TR = h_TR.float().abs()
                if is_token_T is not None:
                    size_TR = torch.where(is_token_T[:, None], size_TR, 0.0)
                total = total + times * (size_TR.sum(0) * norms_R).sum()
            calls.clear()
        return total

    def _idle_sums(self) -> Any:
        """The pre-activations of idle units, summed over units, tokens and modules."""
        total: Any = 0.0
        for name, sum_I in self._inputs.items():
            A = matrices_of(self.layers[name], self.adapter).A
            z_R = (A.float() * sum_I).sum(-1)
            total = total + (z_R * (self.idle_steps[name] > 0)).sum()
        self._inputs = {}
        return total

    def end_step(self, reduce: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor) -> None:
        """Count the step for all units.

        Args:
            reduce: of a tensor of each process the sum.
        """
        ranks = [len(fired) for fired in self._fired.values()]
        fired = reduce(torch.cat([fired.int() for fired in self._fired.values()]))
        for name, fired_R in zip(self._fired, fired.split(ranks), strict=True):
            self.idle_steps[name] = torch.where(fired_R > 0, 0, self.idle_steps[name] + 1)
            self._fired[name].zero_()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """:attr:`idle_steps`, between steps."""
        return {name: steps.cpu() for name, steps in self.idle_steps.items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self.idle_steps = {name: state[name].to(steps.device) for name, steps in self.idle_steps.items()}
