"""On two ranks (processes, here on one CPU) vLLM answers as transformers does, or refuses to load the adapter."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import LlamaForCausalLM

from monolora import MonoLoraConfig
from monolora.merge import export_exact
from tests.support.requirements import NEEDS_VLLM
from tests.support.vllm_process import Adapter, Answer, Engine, RefusedError, largest_difference

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    NEEDS_VLLM,
]

TOLERANCE = 2e-5
PROMPTS = [[5, 9, 30, 22, 7, 50, 61, 3], [40, 4, 17], [8, 8, 33, 12, 60, 21, 11, 44, 19, 28, 56, 6]]
SHARED_KEYS = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1}
SPLIT_KEYS = {"hidden_size": 128, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
OUTPUTS_SPLIT = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"]
INPUTS_SPLIT = ["o_proj", "down_proj"]
LINEAR = OUTPUTS_SPLIT + INPUTS_SPLIT
LARGEST_RANK = 8
# Under fully sharded LoRA each rank has four rows of A, so that here the second one has two, or none at all.
UNEVEN = {"r": 6, "rank_pattern": {"k_proj": 3}}
CONFIGS = {
    "everywhere": MonoLoraConfig(target_modules=LINEAR, **UNEVEN),
    "outputs": MonoLoraConfig(target_modules=OUTPUTS_SPLIT, **UNEVEN),
    "lora": LoraConfig(target_modules=LINEAR, **UNEVEN),
}
ON_TWO_RANKS: dict[str, Any] = {
    "tensor_parallel_size": 2,
    "environment": {"VLLM_HOST_IP": "127.0.0.1"},  # they talk over loopback
}
WITH_ADAPTERS: dict[str, Any] = {"enable_lora": True, "max_loras": len(CONFIGS), "max_lora_rank": LARGEST_RANK}

Serve = Callable[..., "Served"]
AdaptOn = Callable[[Path, LoraConfig, int], PeftModel]


class Served(NamedTuple):
    """A base and its adapters.

    Attributes:
        base: the checkpoint.
        adapters: by name.
        models: transformers' versions of what they make; the base under ``None``.
    """

    base: Path
    adapters: dict[str, Adapter]
    models: dict[str | None, PeftModel | LlamaForCausalLM]

    def check(self, engine: Engine, names: Sequence[str | None]) -> None:
        """All prompts through all adapters (and the base) in one batch: each answer is the right model's."""
        asked = [(prompt, name) for prompt in PROMPTS for name in names]
        adapters = [None if name is None else self.adapters[name] for _, name in asked]
        answers = engine.generate([prompt for prompt, _ in asked], adapters)
        for name in names:
            self.check_answers([answer for (_, of), answer in zip(asked, answers, strict=True) if of == name], name)

    def check_answers(self, answers: Sequence[Answer], name: str | None) -> None:
        """They are this model's, and no other's."""
        for other, model in self.models.items():
            difference = largest_difference(answers, model)
            assert difference < TOLERANCE if other == name else difference > 1000 * TOLERANCE, (name, other)


@pytest.fixture(scope="module")
def adapt_on(fill: Callable[..., nn.Module]) -> AdaptOn:
    """``adapt_on(base, config, seed)``: a model with an adapter that has noise in A and B."""

    def adapt(base: Path, config: LoraConfig, seed: int) -> PeftModel:
        model = get_peft_model(LlamaForCausalLM.from_pretrained(base), copy.copy(config))
        fill(model, seed)
        return model.eval()

    return adapt


@pytest.fixture(scope="module")
def serve(
    make_llama: Callable[..., LlamaForCausalLM], adapt_on: AdaptOn, tmp_path_factory: pytest.TempPathFactory
) -> Serve:
    """``serve(sizes, **configs)``: a tiny Llama and adapters of it."""

    def make(sizes: Mapping[str, int], **configs: LoraConfig) -> Served:
        root = tmp_path_factory.mktemp("ranks")
        make_llama(**sizes).save_pretrained(root / "base")
        served = Served(root / "base", {}, {None: LlamaForCausalLM.from_pretrained(root / "base")})
        for number, (name, config) in enumerate(configs.items(), start=1):
            served.models[name] = adapt_on(root / "base", config, number)
            served.models[name].save_pretrained(root / name)
            served.adapters[name] = Adapter(name, number, str(root / name))
        return served

    return make


def test_fully_sharded(serve: Serve) -> None:
    """vLLM sums ``A x`` over the ranks, or collects its parts; the activation comes after that."""
    served = serve(SPLIT_KEYS, **CONFIGS)
    with Engine(served.base, fully_sharded_loras=True, **WITH_ADAPTERS, **ON_TWO_RANKS) as engine:
        served.check(engine, ["everywhere"])
        served.check(engine, [None, *CONFIGS])


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")  # the layers have no bias of their own
def test_exact_checkpoint(serve: Serve, adapt_on: AdaptOn, tmp_path: Path) -> None:
    """Both ranks have the one head of keys and values; a bias of B that every rank adds would count twice."""
    served = serve(SHARED_KEYS)
    config = MonoLoraConfig(target_modules=LINEAR, lora_bias=True, **UNEVEN)
    export_exact(adapt_on(served.base, config, 1), tmp_path)
    served.models["exact"] = adapt_on(served.base, config, 1)
    with Engine(tmp_path, **ON_TWO_RANKS) as engine:
        served.check_answers(engine.generate(PROMPTS), "exact")
        engine.run("llm.collective_rpc('reload_weights')")
        served.check_answers(engine.generate(PROMPTS), "exact")


@pytest.fixture(scope="module")
def halves(serve: Serve) -> Served:
    """What the engine has that sums only a layer's output over the ranks, not ``A x``."""
    return serve(
        SHARED_KEYS,
        **CONFIGS,
        late=MonoLoraConfig(r=8, target_modules=["q_proj", "up_proj"]),
        identity=MonoLoraConfig(r=8, target_modules=INPUTS_SPLIT, activation="identity"),
    )


@pytest.fixture(scope="module")
def engine(halves: Served) -> Iterator[Engine]:
    """Two ranks, without fully sharded LoRA."""
    with Engine(halves.base, **WITH_ADAPTERS, **ON_TWO_RANKS) as started:
        yield started


def test_outputs_split(engine: Engine, halves: Served) -> None:
    """Every rank has all of ``A x`` where a layer's outputs are split."""
    halves.check(engine, ["outputs"])
    halves.check(engine, [None, "outputs", "lora"])


def test_without_an_activation(engine: Engine, halves: Served) -> None:
    """There is nothing that a sum would have to come before."""
    halves.check(engine, [None, "outputs", "identity"])


REFUSAL = (
    r"splits the inputs of model\.layers\.0\.mlp\.down_proj \(4 such modules of the adapter\).*"
    r"--fully-sharded-loras \(fully_sharded_loras=True of LLM\)"
)


def test_inputs_split(engine: Engine, halves: Served) -> None:
    """Refused, whatever else is in the batch; the engine goes on with what it has."""
    for _ in range(2):
        with pytest.raises(RefusedError, match=REFUSAL):
            halves.check(engine, [None, "lora", "everywhere"])
        halves.check(engine, [None, "outputs", "lora"])


def test_adapter_after_a_refusal(engine: Engine, halves: Served) -> None:
    """Each rank has refused, and each answers for the next adapter that is loaded, not for the one before."""
    with pytest.raises(RefusedError, match=REFUSAL):
        halves.check(engine, ["everywhere"])
    halves.check(engine, [None, "late"])
    with pytest.raises(RefusedError, match=REFUSAL):
        halves.check(engine, ["everywhere"])
