"""The canary's measurements, and the verdict on them.

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

import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from monolora.activations import CONTROL, activation_named
from monolora.errors import InputError, RunError
from monolora.layer import MonoLoraLayer
from monolora.merge.baked import baked_layers
from monolora.patching import check_version
from monolora.run_record import fingerprint_files
from monolora.vllm.adapter_folders import served_config
from monolora.vllm.plugin import is_registered

if TYPE_CHECKING:
    from vllm import LLM
    from vllm.lora.request import LoRARequest


# Largest root mean square difference from transformers: several times that of SmolLM2-135M (float32 1e-5, bfloat16
# 0.04), as rounding adds up with depth.
ROUNDING = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.25}
# Standard errors that a share may be off, and the largest error at which 1 and 0 can be told apart.
SIGMAS = 4.0
RESOLUTION = 1 / (2 * SIGMAS)
ALLOWANCE = 0.02


class CanaryError(RunError):
    """vLLM's answers are wrong or inconclusive; one line."""


class CanaryUnknownError(CanaryError):
    """Inconclusive: the expected effect is smaller than the rounding."""


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
    """The measurements.

    Attributes:
        dtype: vLLM computes in it, by torch's name.
        tokens: compared, for each of base and adapter.
        base_error: root mean square of vLLM's difference from transformers, in nats a token, on the base (without an
            adapter: on the checkpoint).
        adapter_error: the same through the adapter; None without one.
        applied: share of the effect of the adapter, or of an exact checkpoint's units, that vLLM shows; else None.
        activation: share of the activation's effect; None for an adapter without.
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
    """Check for inconclusive shares first, then for shares of 0, which have a plain reason, then for others."""
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


def share_of_way(value: torch.Tensor, zero: torch.Tensor, one: torch.Tensor, way: torch.Tensor, noise: float) -> Share:
    """Where ``value`` is between ``zero`` and ``one``, along ``way``; unknown where ``way`` is zero."""
    length = torch.dot(one - zero, way).item()
    if length == 0:
        return Share(0.0, float("inf"))
    return Share(torch.dot(value - zero, way).item() / length, abs(noise * way.norm().item() / length))


def rms(differences: torch.Tensor) -> float:
    return differences.square().mean().sqrt().item()


PROMPTS = (
    "The capital of France is",
    "To bake a loaf of bread, you first",
    "Question: Why is the sky blue?\nAnswer:",
    "Dear Sir or Madam,\n\nI am writing to",
    "def fibonacci(n):\n",
    "The film was far too long, but the ending",
    "Three things to see in Rome: 1.",
    "In 1969, the first people to walk on the Moon",
)
TOKENS = 16


def verify(llm: LLM, adapter: str | LoRARequest | None = None, **settings: Any) -> Canary:
    """:func:`measure`, and raise if anything is not as it should be.

    Raises:
        CanaryError: if the answers differ by more than rounding, the adapter or its activation is not in them, or that
            cannot be told.
    """
    measured = measure(llm, adapter, **settings)
    measured.check()
    return measured


def measure(
    llm: LLM,
    adapter: str | LoRARequest | None = None,
    *,
    prompts: Sequence[str] | Sequence[Sequence[int]] = PROMPTS,
    device: str = "cpu",
) -> Canary:
    """Compare vLLM with transformers on a few prompts.

    Args:
        llm: with ``enable_lora`` where there is an adapter. Its own base checkpoint is what transformers loads.
        adapter: a folder, or the request that will be made; MonoLoRA or plain LoRA. None checks the model alone, as
            for a merged checkpoint.
        prompts: texts, or token ids.
        device: for transformers' copies of the model, in vLLM's dtype and in float32, one after the other. The default
            leaves the GPU to vLLM.

    Returns:
        What was measured, right or wrong. See :meth:`Canary.check`.

    Raises:
        InputError: if vLLM is missing, not one that is served through, or without the plugin; or if the adapter's
            folder is damaged, or does not fit the engine.
    """
    # Imported here: these bring libraries that vLLM's own processes, which import this package, can do without.
    from monolora.hub import load_causal_lm

    check_version("vllm")
    request = _request(adapter)
    if request is not None and served_config(request.lora_path) is not None and not is_registered():
        raise InputError("vLLM has not loaded the plugin: VLLM_PLUGINS must be unset, or name monolora.")
    model_config = llm.llm_engine.model_config
    dtype = str(model_config.dtype).removeprefix("torch.")
    by_base, by_adapter = _ask_vllm(llm, [_token_ids(llm, prompt) for prompt in prompts], request)

    def by_transformers(dtype: torch.dtype) -> _Wanted:
        model: Any = load_causal_lm(model_config.model, dtype=dtype).eval()
        wanted = _wanted(model.to(device), by_base, by_adapter, request)
        del model
        gc.collect()
        return wanted

    same = by_transformers(model_config.dtype)
    exact = same if model_config.dtype == torch.float32 else by_transformers(torch.float32)
    base_error = rms(by_base.log_probs - same.base)
    measured = Canary(dtype, len(same.base), base_error)
    if same.without is None or exact.without is None:
        return measured
    served = by_adapter.log_probs
    applied = share_of_way(served, same.without, same.right, exact.right - exact.without, base_error)
    activation = None
    if same.linear is not None and exact.linear is not None:
        dropped = share_of_way(served, same.right, same.linear, exact.linear - exact.right, base_error)
        activation = Share(1 - dropped.value, dropped.error)
    adapter_error = None if request is None else rms(served - same.right)
    return Canary(dtype, len(same.base), base_error, adapter_error, applied, activation)


class _Answers(NamedTuple):
    """vLLM's answers.

    Attributes:
        token_ids: prompt and continuation of each answer.
        starts: where the continuation begins.
        log_probs: of all continuations' tokens, one after the other, float64.
    """

    token_ids: list[list[int]]
    starts: list[int]
    log_probs: torch.Tensor


def _request(adapter: str | LoRARequest | None) -> LoRARequest | None:
    from vllm.lora.request import LoRARequest

    from monolora.adapters import adapter_config

    if adapter is None or isinstance(adapter, LoRARequest):
        return adapter
    adapter_config(adapter)  # a folder that holds none is refused here
    # A name and a number that the caller will not give to anything else; the same for the same weights.
    content = fingerprint_files(adapter)
    return LoRARequest(f"canary-{content}", 1 + int(content[:7], 16), adapter)


def _token_ids(llm: LLM, prompt: str | Sequence[int]) -> list[int]:
    return llm.get_tokenizer().encode(prompt) if isinstance(prompt, str) else list(prompt)


def _ask_vllm(llm: LLM, prompts: list[list[int]], request: LoRARequest | None) -> tuple[_Answers, _Answers]:
    """The base's answers and the adapter's, from one batch where they stand side by side."""
    from vllm import SamplingParams

    requests = [None] if request is None else [None, request]
    outputs = llm.generate(
        [{"prompt_token_ids": token_ids} for token_ids in prompts for _ in requests],
        SamplingParams(max_tokens=TOKENS, temperature=0, ignore_eos=True, logprobs=0, detokenize=False),
        lora_request=requests * len(prompts),
        use_tqdm=False,
    )
    return _answers(outputs[:: len(requests)]), _answers(outputs[len(requests) - 1 :: len(requests)])


def _answers(outputs: Sequence[Any]) -> _Answers:
    continuations = [list(output.outputs[0].token_ids) for output in outputs]
    starts = [len(output.prompt_token_ids) for output in outputs]
    token_ids = [[*output.prompt_token_ids, *new] for output, new in zip(outputs, continuations, strict=True)]
    log_probs = [
        entry[token].logprob
        for output, new in zip(outputs, continuations, strict=True)
        for entry, token in zip(output.outputs[0].logprobs, new, strict=True)
    ]
    return _Answers(token_ids, starts, torch.tensor(log_probs, dtype=torch.float64))


@torch.no_grad()
def _log_probs(model: Any, answers: _Answers) -> torch.Tensor:
    """Of the same tokens, by transformers: each given those before it."""
    log_probs = []
    for token_ids, start in zip(answers.token_ids, answers.starts, strict=True):
        ids = torch.tensor([token_ids], device=model.device)
        logits = model(ids).logits[0, start - 1 : -1].double()
        log_probs.append(logits.log_softmax(-1).gather(1, ids[0, start:, None])[:, 0].cpu())
    return torch.cat(log_probs)


class _Wanted(NamedTuple):
    """The log-probs that transformers gives to vLLM's tokens.

    Attributes:
        base: to the base's answers, through the base.
        right: to the adapter's, through the adapter.
        without: to the adapter's, through the base; None where there is no adapter.
        linear: to the adapter's, through the adapter without its activation; None where it has none.
    """

    base: torch.Tensor
    right: torch.Tensor
    without: torch.Tensor | None = None
    linear: torch.Tensor | None = None


def _wanted(model: Any, by_base: _Answers, by_adapter: _Answers, request: LoRARequest | None) -> _Wanted:
    from monolora.adapters import attach

    of_base = _log_probs(model, by_base)
    if request is None:
        return _wanted_of_checkpoint(model, of_base, by_base)
    without = _log_probs(model, by_adapter)
    adapted = attach(model, request.lora_path).eval()
    activations: list[_Attribute] = [
        (layer.activation, name)
        for layer in adapted.modules()
        if isinstance(layer, MonoLoraLayer)
        for name, activation in layer.activation.items()
        if not activation_named(activation).is_linear
    ]
    right = _log_probs(adapted, by_adapter)
    return _Wanted(of_base, right, without, _linear(adapted, activations, by_adapter))


def _wanted_of_checkpoint(model: Any, right: torch.Tensor, answers: _Answers) -> _Wanted:
    """An exact checkpoint has units of its own; any other model has none."""
    baked = [vars(layer) for layer in baked_layers(model).values()]
    if not baked:
        return _Wanted(right, right)
    with _set([(layer, "monolora_scaling") for layer in baked], 0.0):
        without = _log_probs(model, answers)
    activations = [
        (layer, "monolora_activation")
        for layer in baked
        if not activation_named(layer["monolora_activation"]).is_linear
    ]
    return _Wanted(right, right, without, _linear(model, activations, answers))


def _linear(model: Any, activations: list[_Attribute], answers: _Answers) -> torch.Tensor | None:
    if not activations:
        return None
    with _set(activations, CONTROL):
        return _log_probs(model, answers)


_Attribute = tuple[dict[str, Any], str]


@contextmanager
def _set(attributes: list[_Attribute], value: object) -> Iterator[None]:
    """Set attributes of the model to ``value``, and restore them afterwards."""
    values = [where[key] for where, key in attributes]
    for where, key in attributes:
        where[key] = value
    try:
        yield
    finally:
        for (where, key), own in zip(attributes, values, strict=True):
            where[key] = own
