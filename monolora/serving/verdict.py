"""What the canary measures, and when it is wrong.

Writing v for vLLM's log-probabilities, and b, a, l for transformers' of the same tokens in the same dtype, through the
base, the adapter, and the adapter without its activation:

    applied     <v - b, w> / <a - b, w>          1 where vLLM answers through the adapter, 0 where it ignores it
    activation  1 - <v - a, u> / <l - a, u>      1 where the activation is in place, 0 where it was dropped

with w and u the same a - b and l - a in float32. These are instrumental-variable slopes: with a - b itself in place of
w, its rounding would be in it twice, and a small effect would be read too low. Their standard error is
sigma |w| / <a - b, w>, where sigma is vLLM's own distance from transformers on the base: the rounding of this dtype and
model, measured in the same run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch

from monolora.errors import RunError

# The most that the root mean square of the difference from transformers may be: some times what was measured on
# SmolLM2-135M (float32 1e-5, bfloat16 0.04). Rounding adds up with depth.
ROUNDING = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.25}
# How many standard errors a share may be off, and the error with which 1 and 0 are just that far apart each.
SIGMAS = 4.0
RESOLUTION = 1 / (2 * SIGMAS)
ALLOWANCE = 0.02


class CanaryError(RunError):
    """vLLM's answers are not what they should be, or nothing can be told from them; one line."""


class CanaryUnknownError(CanaryError):
    """Nothing can be told: what should be seen is smaller than the rounding."""


class Share(NamedTuple):
    """A share that should be 1.

    Attributes:
        value: as measured.
        error: its standard error.
    """

    value: float
    error: float

    def may_be(self, value: float) -> bool:
        """Whether it is this value, within its error."""
        return abs(self.value - value) <= SIGMAS * self.error + ALLOWANCE

    def __str__(self) -> str:
        return f"{self.value:.1%} ± {self.error:.1%}" if math.isfinite(self.error) else "unknown"


class Canary(NamedTuple):
    """What was measured.

    Attributes:
        dtype: vLLM computes in it, by torch's name.
        tokens: compared, for each of base and adapter.
        base_error: root mean square of vLLM's difference from transformers, in nats a token, on the base (without an
            adapter: on the checkpoint).
        adapter_error: the same through the adapter; None without one.
        applied: how much of the adapter's effect vLLM shows, or of that of an exact checkpoint's units; else None.
        activation: how much of the activation's effect; None for an adapter that has none.
    """

    dtype: str
    tokens: int
    base_error: float
    adapter_error: float | None = None
    applied: Share | None = None
    activation: Share | None = None

    def check(self) -> None:
        """Raises: CanaryError, for the first thing that is wrong, with what to do."""
        most = ROUNDING[self.dtype]
        if not self.base_error <= most:  # nor NaN
            raise CanaryError(
                f"vLLM's base model is not transformers': their log-probs differ by {self.base_error:.2g} (root mean "
                f"square), and {self.dtype} explains {most:.2g}. Check that both read the same checkpoint, and that "
                "the plugin is loaded (VLLM_PLUGINS unset, or naming monolora): without it, vLLM on a CPU answers the "
                "base through an adapter."
            )
        _check_shares({"the adapter": self.applied, "the activation": self.activation}, self.dtype)
        if self.adapter_error is not None and not self.adapter_error <= most:
            raise CanaryError(
                f"vLLM's answers through the adapter differ from transformers' by {self.adapter_error:.2g} (root mean "
                f"square of the log-probs), and {self.dtype} explains {most:.2g}."
            )


def _check_shares(shares: Mapping[str, Share | None], dtype: str) -> None:
    """What cannot be told comes before what is wrong, and a share of 0, which has a plain reason, before others."""
    measured = {what: share for what, share in shares.items() if share is not None}
    for what, share in measured.items():
        if share.error >= RESOLUTION:
            raise CanaryUnknownError(
                f"On these prompts {what} changes too little to be seen behind the rounding of {dtype} ({share}). Give "
                "prompts of the adapter's own task, with --prompts, or check with --dtype float32. An untrained one "
                "changes nothing."
            )
    for what, share in measured.items():
        if share.may_be(0):
            raise CanaryError(
                f"vLLM ignores {what}: it shows {share} of its effect. Its answers are not the adapter's. Check that "
                "the plugin is loaded: VLLM_PLUGINS must be unset, or name monolora."
            )
    for what, share in measured.items():
        if not share.may_be(1):
            raise CanaryError(
                f"vLLM shows {share} of the effect of {what}, and should show all of it. Check that both read the same "
                "adapter, and again with --dtype float32 before you report it."
            )


def share_of_way(found: torch.Tensor, zero: torch.Tensor, one: torch.Tensor, way: torch.Tensor, noise: float) -> Share:
    """Where ``found`` is between ``zero`` and ``one``, as seen along ``way``; unknown where that leads nowhere."""
    length = torch.dot(one - zero, way).item()
    if length == 0:
        return Share(0.0, float("inf"))
    return Share(torch.dot(found - zero, way).item() / length, abs(noise * way.norm().item() / length))


def rms(differences: torch.Tensor) -> float:
    return differences.square().mean().sqrt().item()
