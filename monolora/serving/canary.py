"""The canary: does vLLM answer through the adapter as transformers does? Asked before an evaluation, not after.

A few prompts go through vLLM, for the base and for the adapter, in one batch. transformers then says what the
log-probabilities of vLLM's own tokens should have been: through the base, through the adapter, and through the adapter
without its activation. What follows from them is in :mod:`monolora.serving.verdict`.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from peft import PeftModel

from monolora.errors import InputError
from monolora.fingerprints import fingerprint_files
from monolora.layer import MonoLoraLayer
from monolora.merge.baked import baked_layers
from monolora.serving.folders import served_config
from monolora.serving.plugin import is_registered
from monolora.serving.verdict import Canary, Share, rms, share_of_way
from monolora.serving.versions import check_vllm

if TYPE_CHECKING:
    from vllm import LLM
    from vllm.lora.request import LoRARequest

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
        device: for transformers' copy of the model, in float32. The default leaves the GPU to vLLM.

    Returns:
        What was measured, right or wrong: see :meth:`Canary.check`.

    Raises:
        InputError: if vLLM is missing, not one that is served through, or without the plugin; or if the adapter's
            folder is damaged, or does not fit the engine.
    """
    # Imported here: these bring libraries that vLLM's own processes, which import this package, can do without.
    from monolora.hub import load_causal_lm

    check_vllm()
    request = _request(adapter)
    if request is not None and served_config(request.lora_path) is not None and not is_registered():
        raise InputError("vLLM has not loaded the plugin: VLLM_PLUGINS must be unset, or name monolora.")
    model_config = llm.llm_engine.model_config
    dtype = str(model_config.dtype).removeprefix("torch.")
    by_base, by_adapter = _ask_vllm(llm, [_token_ids(llm, prompt) for prompt in prompts], request)
    # In float32 whatever vLLM computes in: rounding of its own would make the adapter's effect look larger than it is.
    base: Any = load_causal_lm(model_config.model, dtype=torch.float32).eval()
    base.to(device)
    through_base = _log_probs(base, by_base)
    measured = Canary(dtype, len(through_base), rms(by_base.log_probs - through_base))
    if request is None:
        measured = _with_shares_of_checkpoint(measured, by_base, through_base, base)
    else:
        measured = _with_shares_of_adapter(measured, by_adapter, base, request.lora_path)
    del base
    gc.collect()
    return measured


class _Answers(NamedTuple):
    """What vLLM has generated.

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
    found = []
    for token_ids, start in zip(answers.token_ids, answers.starts, strict=True):
        ids = torch.tensor([token_ids], device=model.device)
        logits = model(ids).logits[0, start - 1 : -1].double()
        found.append(logits.log_softmax(-1).gather(1, ids[0, start:, None])[:, 0].cpu())
    return torch.cat(found)


def _with_shares_of_adapter(measured: Canary, answers: _Answers, base: Any, folder: str) -> Canary:
    without = _log_probs(base, answers)
    adapted = PeftModel.from_pretrained(base, folder).eval()
    right = _log_probs(adapted, answers)
    activations: list[_Place] = [
        (layer.activation, name)
        for layer in adapted.modules()
        if isinstance(layer, MonoLoraLayer)
        for name, activation in layer.activation.items()
        if activation != "identity"
    ]
    return measured._replace(
        adapter_error=rms(answers.log_probs - right),
        applied=share_of_way(answers.log_probs, without, right, measured.base_error),
        activation=_share_of_activation(measured, answers, right, adapted, activations),
    )


def _with_shares_of_checkpoint(measured: Canary, answers: _Answers, right: torch.Tensor, model: Any) -> Canary:
    """An exact checkpoint has units of its own; any other model has none."""
    baked = [vars(layer) for layer in baked_layers(model).values()]
    if not baked:
        return measured
    with _set([(layer, "monolora_scaling") for layer in baked], 0.0):
        without = _log_probs(model, answers)
    activations = [(layer, "monolora_activation") for layer in baked if layer["monolora_activation"] != "identity"]
    return measured._replace(
        applied=share_of_way(answers.log_probs, without, right, measured.base_error),
        activation=_share_of_activation(measured, answers, right, model, activations),
    )


def _share_of_activation(
    measured: Canary, answers: _Answers, right: torch.Tensor, model: Any, activations: list[_Place]
) -> Share | None:
    if not activations:
        return None
    with _set(activations, "identity"):
        linear = _log_probs(model, answers)
    dropped = share_of_way(answers.log_probs, right, linear, measured.base_error)
    return Share(1 - dropped.value, dropped.error)


_Place = tuple[dict[str, Any], str]


@contextmanager
def _set(places: list[_Place], value: object) -> Iterator[None]:
    """Put another value into places of the model, and afterwards their own."""
    kept = [where[key] for where, key in places]
    for where, key in places:
        where[key] = value
    try:
        yield
    finally:
        for (where, key), own in zip(places, kept, strict=True):
            where[key] = own
