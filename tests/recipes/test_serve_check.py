"""``monolora serve-check``: passes on a real model, and says what is wrong with what cannot be served."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import get_peft_model
from torch import nn
from transformers import LlamaForCausalLM

from monolora import MonoLoraConfig
from monolora.hub import SMOLLM2, load_causal_lm, resolve_model
from tests.support.forks import VLLM
from tests.support.limits import HANG_S
from tests.support.requirements import NEEDS_SMOLLM2, NEEDS_VLLM

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def _environment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program sets variables for vLLM in its own process, which is this one here."""
    for name in ("VLLM_LOGGING_LEVEL", "TORCHDYNAMO_DISABLE"):
        monkeypatch.setenv(name, "")  # so that it is taken away again
        monkeypatch.delenv(name)


@pytest.fixture
def base(make_llama: Callable[..., LlamaForCausalLM], tmp_path: Path) -> Path:
    make_llama().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapter(make_llama: Callable[..., LlamaForCausalLM], adapt: Callable[..., nn.Module], tmp_path: Path) -> Path:
    adapt(make_llama()).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.vllm
@pytest.mark.slow
@NEEDS_VLLM
@NEEDS_SMOLLM2
def test_real_model(tmp_path: Path, fill: Callable[..., nn.Module]) -> None:
    """The command as a user types it."""
    model = get_peft_model(load_causal_lm(resolve_model(SMOLLM2)), MonoLoraConfig(target_modules=["q_proj", "o_proj"]))
    fill(model).save_pretrained(tmp_path)
    variables = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    variables.pop("VLLM_CPU_KVCACHE_SPACE", None)
    command = [sys.executable, "-P", "-m", "monolora.cli", "serve-check", SMOLLM2, str(tmp_path), "--dtype", "float32"]
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        status = VLLM.Popen(command, stdout=out, stderr=err, env=variables).wait(HANG_S)
    printed = (tmp_path / "out").read_text()
    assert status == 0, (tmp_path / "err").read_text()
    assert "applied" in printed
    assert "100.0% ± 0.0% │ of the adapter's effect" in printed
    assert "100.0% ± 0.0% │ of the activation's effect" in printed


def test_without_vllm(run_cli: Run, base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    ended = run_cli("serve-check", base, adapter)
    assert ended.status == 2
    assert "Serving needs vLLM, which is not installed. Run: pip install 'vllm" in ended.err[-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_bias": True}, "lora_bias=True, which is not served beside its base"),
        ({"rank_pattern": {"q_proj": 600}}, "has rank 600, and vLLM's LoRA goes up to 512"),
        ({"peft_type": "LORA"}, "belongs to a MonoLoRA adapter, but the config says LORA"),
    ],
)
@NEEDS_VLLM
def test_adapter_that_is_not_served(
    run_cli: Run, base: Path, adapter: Path, changes: dict[str, Any], message: str
) -> None:
    """Said before an engine is started."""
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    ended = run_cli("serve-check", base, adapter)
    assert ended.status == 2
    assert message in ended.err[-1]


@NEEDS_VLLM
def test_without_the_plugin(run_cli: Run, base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before an engine is started too."""
    monkeypatch.setenv("VLLM_PLUGINS", "another")
    ended = run_cli("serve-check", base, adapter)
    assert ended.status == 2
    assert ended.err[-1] == "error: vLLM leaves the plugin out: VLLM_PLUGINS must be unset, or name monolora."


@NEEDS_VLLM
def test_bad_words(run_cli: Run, base: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    swapped = run_cli("serve-check", adapter, base)
    assert (swapped.status, "Its base comes first" in swapped.err[-1]) == (2, True)
    shutil.rmtree(adapter)
    for words, message in {
        (str(tmp_path / "nowhere"),): "There is no model at",
        (str(base), str(adapter)): "holds no adapter: adapter_config.json is missing",
        (str(base), "--prompts", str(tmp_path / "empty.txt")): "holds no prompts. Write one a line.",
        (str(base), "--prompts", str(tmp_path / "none.txt")): "Cannot read prompts",
        (str(base), "--dtype", "int8"): "--dtype",
        (str(base), "--d-type", "float32"): "Did you mean --dtype",
        (str(base), "--device", "gpu"): "--device gpu: Expected one of cpu, cuda",
        (): "base",
    }.items():
        ended = run_cli("serve-check", *words)
        assert ended.status == 2, words
        assert message in ended.err[-1], words
