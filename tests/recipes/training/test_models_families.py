"""Finetuning models of other families: experts, towers, and the flags that say what is adapted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from monolora import MonoLoraConfig
from monolora.data.chat_template import render_all
from monolora.data.tasks import demo
from monolora.errors import InputError
from monolora.layer import MonoLoraLayer
from monolora.recipes.training.arguments import parse
from monolora.recipes.training.models import load_model, load_tokenizer, make_trainer, peft_config, settle_targets
from tests.support.program_runs import QUICK, Outcome
from tests.support.tiny_families import save_tiny_family, tiny_gemma3

SHORT = ("--max-steps", "1", "--max-eval-samples", "2")
Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``families(name)``: the folder of a tiny model of this family, made once."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = save_tiny_family(tmp_path_factory.mktemp("families") / family, family)
        return made[family]

    return folder


@pytest.mark.parametrize("family", ["mixtral", "qwen3_next", "granitemoehybrid", "gpt_oss", "llama4_text"])
def test_models_with_experts_are_trained_and_scored(run_sft: Run, families: Callable[[str], Path], family: str) -> None:
    """TRL asks for router logits in training; before and after it answers are generated, one position at a time."""
    outcome = run_sft(*SHORT, model=families(family))
    assert outcome.status == 0, outcome.err
    assert outcome.record["results"]["after"]["n"] == 2
    assert json.loads((outcome.folder / "adapter_config.json").read_text())["target_modules"]


@pytest.mark.parametrize("family", ["mixtral", "granitemoehybrid"])
@pytest.mark.parametrize("full_logits", [False, True])
def test_the_routers_loss_is_trained(
    families: Callable[[str], Path], tmp_path: Path, family: str, full_logits: bool
) -> None:
    """The trainer's loss is the model's own, load-balancing loss included."""
    folder = str(families(family))
    flags = ["--router-aux-loss-coef", "0.5", *(["--full-logits"] if full_logits else [])]
    arguments = parse(["--model", folder, "--output-dir", str(tmp_path / "run"), *QUICK, *flags])
    tokenizer = load_tokenizer(folder, arguments.training)
    rows = render_all(demo.load().train[:8], tokenizer)
    trainer = make_trainer(load_model(folder, arguments), tokenizer, peft_config(arguments), rows, arguments)
    batch = next(iter(trainer.get_train_dataloader()))
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", router_aux_loss_coef=0.5)
    expected = reference(**{name: tensor.clone() for name, tensor in batch.items()}, output_router_logits=True)
    assert expected.aux_loss > 1
    torch.testing.assert_close(trainer.compute_loss(trainer.model, dict(batch)), expected.loss, rtol=1e-5, atol=1e-6)


def test_router_logits_asked_for_by_a_config_do_not_stop_answers(run_sft: Run, families: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(families("mixtral"), tmp_path / "asking")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"output_router_logits": True}))
    assert run_sft(*SHORT, model=folder).status == 0


@pytest.mark.parametrize("family", ["mixtral", "qwen3_next"])
@pytest.mark.filterwarnings("ignore:all-linear leaves the experts out", "ignore:LoRA leaves down_proj")
def test_the_control_adapts_the_same_modules(
    families: Callable[[str], Path], tmp_path: Path, family: str, recwarn: pytest.WarningsRecorder
) -> None:
    """Or it is said: shared experts have names that PEFT's LoRA takes for the fused ones."""
    adapted = {}
    for adapter in ("monolora", "lora"):
        flags = ["--adapter", adapter, "--lora-target-modules", "all-linear"]
        arguments = parse(["--model", str(families(family)), "--output-dir", str(tmp_path), *QUICK, *flags])
        config = peft_config(arguments)
        assert config is not None
        model = load_model(str(families(family)), arguments)
        settle_targets(model, config)
        names = [name for name, _ in get_peft_model(model, config).named_parameters() if "lora_A" in name]
        adapted[adapter] = {name.partition(".lora_A")[0].removeprefix("base_model.model.") for name in names}
    only_monolora = adapted["monolora"] - adapted["lora"]
    assert not adapted["lora"] - adapted["monolora"]
    assert all(".shared_expert." in name for name in only_monolora)
    said = [str(warning.message) for warning in recwarn if "LoRA leaves" in str(warning.message)]
    assert len(said) == bool(only_monolora) == (family == "qwen3_next")
    assert all("--adapter monolora --activation identity" in line for line in said)


def test_the_control_says_when_it_adapts_experts(families: Callable[[str], Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(families("qwen3_next"))
    config = LoraConfig(target_modules=["q_proj", "up_proj", "gate_proj"], task_type="CAUSAL_LM")
    with pytest.warns(
        UserWarning, match="LoRA adapts the fused experts for gate_proj, up_proj, which MonoLoRA does not"
    ):
        settle_targets(model, config)


@pytest.mark.parametrize("targets", [None, ["q_proj", "out_proj"], "all-linear"])
@pytest.mark.parametrize("kind", [LoraConfig, MonoLoraConfig])
def test_vision_towers_are_left_out(kind: type[LoraConfig], targets: Any) -> None:
    model = tiny_gemma3()
    config = kind(target_modules=targets, task_type="CAUSAL_LM")
    settle_targets(model, config)
    names = [name for name, _ in get_peft_model(model, config).named_parameters() if "lora_A" in name]
    assert names
    assert all(".language_model." in name for name in names)


def test_towers_can_be_adapted_on_request() -> None:
    model = tiny_gemma3()
    config = MonoLoraConfig(target_modules=["q_proj"], exclude_modules=["layers.1"], task_type="CAUSAL_LM")
    config.exclude_modules = r".*language_model\.layers\.1\..*"
    settle_targets(model, config)
    names = {
        name for name, module in get_peft_model(model, config).named_modules() if isinstance(module, MonoLoraLayer)
    }
    assert any("vision_tower" in name for name in names)
    assert not any("language_model.layers.1" in name for name in names)


SHAPED = [
    "--lora-target-modules", "q_proj", "v_proj", "down_proj", "--lora-exclude-modules", "layers.0.mlp.down_proj",
    "--rank-pattern", '{"down_proj": 3}', "--alpha-pattern", '{"down_proj": 6, "v_proj": 0.5}',
    "--init-lora-weights", "gaussian", "--trainable-token-indices", "5", "7", "--lora-bias", "none",
]  # fmt: skip


@pytest.mark.parametrize("adapter", ["monolora", "lora"])
def test_flags_that_shape_the_adapter(run_sft: Run, adapter: str) -> None:
    outcome = run_sft("--adapter", adapter, *SHORT, *SHAPED)
    assert outcome.status == 0, outcome.err
    tensors = load_file(outcome.folder / "adapter_model.safetensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if "_A." in name}
    assert {name.split(".lora_A")[0].split(".monolora_A")[0].split("model.model.model.")[1] for name in shapes} == {
        "layers.0.self_attn.q_proj", "layers.0.self_attn.v_proj", "layers.1.self_attn.q_proj",
        "layers.1.self_attn.v_proj", "layers.1.mlp.down_proj",
    }  # fmt: skip
    assert all(shape[0] == (3 if "down_proj" in name else 8) for name, shape in shapes.items())
    assert any("token_adapter.trainable_tokens_delta" in name for name in tensors)
    config = json.loads((outcome.folder / "adapter_config.json").read_text())
    assert (config["alpha_pattern"], config["init_lora_weights"]) == ({"down_proj": 6, "v_proj": 0.5}, "gaussian")


def test_the_same_flags_in_a_file(tmp_path: Path, chat_model: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "lora_target_modules: [q_proj, v_proj, down_proj]\nlora_exclude_modules: [layers.0.mlp.down_proj]\n"
        "rank_pattern: {down_proj: 3}\nalpha_pattern: {down_proj: 6, v_proj: 0.5}\ninit_lora_weights: gaussian\n"
        "trainable_token_indices: [5, 7]\nlora_bias: none\n"
    )
    words = ["--model", str(chat_model), "--output-dir", str(tmp_path / "run")]
    from_file = peft_config(parse([*words, "--config", str(tmp_path / "config.yaml")]))
    assert from_file == peft_config(parse([*words, *SHAPED]))


def test_biases_are_trained() -> None:
    """The tiny Llama has none: those of a family that has."""
    model = AutoModelForCausalLM.from_config(_with_biases())
    config = peft_config(parse(["--lora-bias", "lora_only"]))
    assert config is not None
    settle_targets(model, config)
    trained = [name for name, p in get_peft_model(model, config).named_parameters() if p.requires_grad]
    assert sum(name.endswith(".bias") for name in trained) == 4


def _with_biases() -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=100, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--lora-exclude-modules", "qproj"], "--lora-exclude-modules qproj matches no module. Nearest .* q_proj"),
        (["--rank-pattern", '{"q_prj": 4}'], "--rank-pattern q_prj matches no module"),
        (["--rank-pattern", '{"q_proj": 0}'], "--rank-pattern: q_proj must be a whole number from 1 on, got 0"),
        (["--rank-pattern", '{"q_proj": 2.5}'], "--rank-pattern: q_proj must be a whole number"),
        (["--rank-pattern", "4"], "--rank-pattern must be a mapping in JSON, got 4"),
        (["--rank-pattern", "{q_proj: 4}"], "Cannot read '{q_proj: 4}' as JSON"),
        (["--alpha-pattern", '{"q_proj": NaN}'], "--alpha-pattern: q_proj must be a number above 0"),
        (["--alpha-pattern", '{"q_proj": "8"}'], "--alpha-pattern: q_proj must be a number above 0"),
        (["--init-lora-weights", "orthogonal"], "MonoLoRA does not support init_lora_weights='orthogonal'"),
        (["--init-lora-weights", "pissa"], "invalid choice"),
        (["--trainable-token-indices", "100000"], "--trainable-token-indices 100000 is no token of the model"),
        (
            ["--lora-modules-to-save", "embed_tokens", "--trainable-token-indices", "5"],
            "--lora-modules-to-save embed_tokens trains all embeddings",
        ),
        (["--trainable-token-indices", "-1"], "--trainable-token-indices"),
        (["--adapter", "none", "--rank-pattern", "{}"], "--rank-pattern shapes an adapter"),
        (["--adapter", "none", "--trainable-token-indices", "3"], "--trainable-token-indices shapes an adapter"),
    ],
)
def test_flags_that_cannot_be(refused: Callable[..., str], flags: list[str], says: str) -> None:
    message = refused(*flags)
    with pytest.raises(InputError, match=says):
        raise InputError(message)


@pytest.mark.filterwarnings("ignore:all-linear leaves the experts out")
def test_a_lora_that_peft_would_misread_is_not_written(
    run_sft: Run, families: Callable[[str], Path], run_cli: Callable[..., Any], tmp_path: Path
) -> None:
    """Weights of shared experts, which stock PEFT would put on the fused ones."""
    run = run_sft(*SHORT, "--lora-target-modules", "all-linear", model=families("qwen3_next"))
    assert run.status == 0, run.err
    ended = run_cli("merge", run.folder, tmp_path / "out", "--as", "lora")
    assert ended.status == 2
    assert "PEFT takes down_proj, gate_proj, up_proj for the fused experts" in ended.err[-1]
    assert not (tmp_path / "out").exists()
