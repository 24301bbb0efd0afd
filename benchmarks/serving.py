"""The cost of MonoLoRA in vLLM, as ratios of tokens per second measured in one run.

    python benchmarks/serving.py --out serving.json

    MonoLoRA / LoRA      one adapter, all requests through it; same rank and modules
    mixed / all LoRA     eight adapters in each batch, half of them MonoLoRA; the same with eight LoRA adapters
    adapter / base       the same MonoLoRA adapter, against an engine without LoRA
    8 adapters / base    the mixed batch, against the same
    exact / base         the adapter's exact checkpoint, against the same
    LoRA / stock         one LoRA adapter, against vLLM's own operations for LoRA on a CPU (MONOLORA_STOCK_LORA=1)

All engines are started first, each a process of its own, and asked in turn; the order is reversed from round to round.
Adapters are random: speed does not depend on their values. A ratio is of one round; printed are the median over the
rounds, the smallest and the largest.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from monolora import MonoLoraConfig
from monolora.hub import SMOLLM2, load_causal_lm, load_tokenizer, resolve_model
from monolora.merge import export_exact

ADAPTERS = 8
WORDS = ("rain", "bread", "trains", "bees", "chess", "salt", "Mars", "maps")
# Workload: engine, and the kinds of adapters that the prompts go through in turn.
WORKLOADS = {
    "LoRA": ("adapters", ("lora0",)),
    "MonoLoRA": ("adapters", ("mono0",)),
    "8 LoRA": ("adapters", tuple(f"lora{i}" for i in range(ADAPTERS))),
    "4 LoRA + 4 MonoLoRA": ("adapters", tuple(f"{'lora' if i % 2 else 'mono'}{i}" for i in range(ADAPTERS))),
    "base": ("base", (None,)),
    "exact": ("exact", (None,)),
    "LoRA, stock operations": ("stock", ("lora0",)),
}
RATIOS = {
    "MonoLoRA / LoRA": ("MonoLoRA", "LoRA"),
    "mixed / all LoRA": ("4 LoRA + 4 MonoLoRA", "8 LoRA"),
    "exact / base": ("exact", "base"),
    "adapter / base": ("MonoLoRA", "base"),
    "8 adapters / base": ("4 LoRA + 4 MonoLoRA", "base"),
    "LoRA / stock": ("LoRA", "LoRA, stock operations"),
}


def main() -> None:
    flags = _flags()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folders = make_folders(flags, Path(scratch))
        prompts = make_prompts(flags, folders["base"])
        engines = {
            name: stack.enter_context(engine(settings)) for name, settings in settings_of(flags, folders).items()
        }
        speeds = measure(flags, engines, prompts, folders)
    report = {"flags": vars(flags), "machine": machine(), "tokens_per_second": speeds, "ratios": ratios(speeds)}
    print(json.dumps(report["ratios"], indent=2))
    if flags.out:
        Path(flags.out).write_text(json.dumps(report, indent=2) + "\n")


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--dtype", default="auto", help="of vLLM (default: the checkpoint's)")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=64, help="at once (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="generated for each (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.2, help="of each of the four engines")
    parser.add_argument("--out", help="write all numbers here, in JSON")
    return parser.parse_args()


def make_folders(flags: argparse.Namespace, scratch: Path) -> dict[str, str]:
    """Base, adapters and exact checkpoint."""
    base = resolve_model(flags.model)
    folders = {"base": base}
    for kind, config_class in (("lora", LoraConfig), ("mono", MonoLoraConfig)):
        model = load_causal_lm(base, dtype=torch.bfloat16)
        config = config_class(r=flags.rank, target_modules="all-linear", task_type="CAUSAL_LM")
        adapted = get_peft_model(model, config)
        for number in range(ADAPTERS):
            torch.manual_seed(number)
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.02)
            folder = folders[f"{kind}{number}"] = str(scratch / f"{kind}{number}")
            adapted.save_pretrained(folder)
    folders["exact"] = str(scratch / "exact")
    export_exact(adapted, folders["exact"], load_tokenizer(base))
    return folders


def make_prompts(flags: argparse.Namespace, base: str) -> list[list[int]]:
    """As token ids; no two are the same, so that no prefix is found in a cache."""
    tokenizer = load_tokenizer(base)
    return [
        tokenizer.encode(f"{number}. Write a short story about {WORDS[number % len(WORDS)]} and the number {number}.")
        for number in range(flags.prompts)
    ]


def settings_of(flags: argparse.Namespace, folders: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The engines, alike but for LoRA, its operations and the checkpoint; ``environment`` is of the process."""
    on_gpu = torch.cuda.is_available()
    common = {
        "dtype": flags.dtype,
        "max_model_len": 512,
        "max_num_seqs": flags.prompts,
        "enable_prefix_caching": False,
        "enforce_eager": not on_gpu,
        **({"gpu_memory_utilization": flags.gpu_memory_utilization} if on_gpu else {"kv_cache_memory_bytes": 1 << 30}),
    }
    lora = {"enable_lora": True, "max_loras": ADAPTERS, "max_lora_rank": max(8, flags.rank)}
    return {
        "adapters": {"model": folders["base"], **common, **lora},
        "stock": {"model": folders["base"], **common, **lora, "environment": {"MONOLORA_STOCK_LORA": "1"}},
        "base": {"model": folders["base"], **common},
        "exact": {"model": folders["exact"], **common},
    }


@contextmanager
def engine(settings: dict[str, Any]) -> Iterator[Connection]:
    """A process with an ``LLM``; it takes (prompts, requests, tokens) and gives seconds."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, settings))
    process.start()
    theirs.close()
    ours.recv()  # started; EOFError if it has died
    yield ours
    ours.close()
    process.join()


def _serve(connection: Connection, settings: dict[str, Any]) -> None:
    os.environ |= settings.pop("environment", {})
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    if not torch.cuda.is_available():
        # Threads tied to a core would be the same cores in all processes.
        os.environ |= {"TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    llm = LLM(**settings)
    connection.send("started")
    while True:
        try:
            prompts, adapters, tokens = connection.recv()
        except EOFError:
            return
        started = time.perf_counter()
        outputs = llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, detokenize=False),
            lora_request=[adapter and LoRARequest(*adapter) for adapter in adapters],
            use_tqdm=False,
        )
        seconds = time.perf_counter() - started
        assert all(len(output.outputs[0].token_ids) == tokens for output in outputs)
        connection.send(seconds)


def measure(
    flags: argparse.Namespace, engines: Mapping[str, Connection], prompts: list[list[int]], folders: Mapping[str, str]
) -> dict[str, list[float]]:
    """Generated tokens per second of every workload, in every round."""
    numbers = {name: number for number, name in enumerate(folders, start=1)}
    speeds: dict[str, list[float]] = {name: [] for name in WORKLOADS}

    def run(workload: str, tokens: int) -> float:
        where, names = WORKLOADS[workload]
        adapters = [names[i % len(names)] for i in range(len(prompts))]
        requests = [None if name is None else (name, numbers[name], folders[name]) for name in adapters]
        engines[where].send((prompts, requests, tokens))
        return len(prompts) * tokens / engines[where].recv()

    for workload in WORKLOADS:  # warm up; every adapter is loaded
        run(workload, 4)
    for number in range(flags.rounds):
        for workload in list(WORKLOADS)[:: -1 if number % 2 else 1]:
            speeds[workload].append(run(workload, flags.tokens))
            print(f"round {number + 1}: {workload:22} {speeds[workload][-1]:9.1f} tokens/s", flush=True)
    return speeds


def ratios(speeds: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """Each round's own ratio; of these the median, smallest and largest."""
    found = {}
    for name, (ours, theirs) in RATIOS.items():
        values = [a / b for a, b in zip(speeds[ours], speeds[theirs], strict=True)]
        found[name] = {"median": statistics.median(values), "smallest": min(values), "largest": max(values)}
    return found


def machine() -> dict[str, str]:
    """Where it ran, and with what."""
    import vllm

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return {"device": device, "python": platform.python_version(), "torch": torch.__version__, "vllm": vllm.__version__}


if __name__ == "__main__":
    main()
