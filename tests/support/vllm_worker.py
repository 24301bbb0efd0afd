"""A process with vLLM in it, and a worker's LoRA manager without an engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tests.support.forks import VLLM
from tests.support.limits import HANG_S
from tests.support.vllm_process import ENVIRONMENT

SLOTS, LARGEST_RANK, ROWS = 2, 8, 16


def ask_process(program: str, request: Mapping[str, Any], **environment: str) -> str:
    """Run a test module as a program.

    Returns:
        What it printed.
    """
    asked = VLLM.Popen(
        [sys.executable, "-P", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | ENVIRONMENT | environment,
    )
    with asked.stdin, asked.stdout:
        asked.stdin.write(json.dumps(request))
        asked.stdin.close()
        printed = asked.stdout.read()
    assert asked.wait(HANG_S) == 0, printed
    return printed


def make_worker(base: str) -> Any:
    """vLLM's manager of adapters, as each of its workers has one, around its own model of a checkpoint."""
    import torch.distributed
    from vllm.config import set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.engine.arg_utils import EngineArgs
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
    from vllm.model_executor.model_loader.utils import initialize_model, process_weights_after_loading

    torch.manual_seed(0)
    config = EngineArgs(
        model=base,
        enable_lora=True,
        max_loras=SLOTS,
        max_lora_rank=LARGEST_RANK,
        max_model_len=ROWS,
        max_num_seqs=ROWS,
        max_num_batched_tokens=ROWS,
        dtype="float32",
        enforce_eager=True,
        skip_tokenizer_init=True,
    ).create_engine_config()
    with set_current_vllm_config(config):
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        init_distributed_environment(world_size=1, rank=0, local_rank=0, backend="gloo")
        initialize_model_parallel()
        model = initialize_model(vllm_config=config)
        model.load_weights(load_file(Path(base) / "model.safetensors").items())
        process_weights_after_loading(model, config.model_config, torch.device("cpu"))
        worker = LRUCacheWorkerLoRAManager(config, torch.device("cpu"), model.embedding_modules)
        worker.create_lora_manager(model, config)
    return worker


def load(worker: Any, name: str, number: int, path: str, load_inplace: bool = False) -> str | None:
    """Load an adapter for a slot; what that raises, in words."""
    from vllm.lora.request import LoRARequest

    try:
        worker.add_adapter(LoRARequest(name, number, path, load_inplace=load_inplace))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None
