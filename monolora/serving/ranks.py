"""Ranks: vLLM makes room for one of a few sizes when it starts, by ``--max-lora-rank``."""

from __future__ import annotations

from typing import Any, get_args

from monolora.checkpoint import AdapterFileError

EXACT_MEND = "Put adapter and base into one checkpoint with `monolora merge ADAPTER OUT --method exact`; serve that."


def largest_rank(config: Any) -> int:
    """Of all layers of an adapter, from its ``LoraConfig``."""
    return int(max([config.r, *(config.rank_pattern or {}).values()]))


def vllm_rank(rank: int, folder: str) -> int:
    """The smallest size of vLLM's that holds a rank.

    Raises:
        AdapterFileError: if none does.
    """
    from vllm.config.lora import MaxLoRARanks

    sizes = get_args(MaxLoRARanks)
    fitting = [size for size in sizes if size >= rank]
    if not fitting:
        raise AdapterFileError(f"{folder} has rank {rank}, and vLLM's LoRA goes up to {max(sizes)}. {EXACT_MEND}")
    return int(min(fitting))


def check_rank(config: Any, folder: str, lora_config: Any) -> None:
    """Check an adapter's ranks against the engine's ``LoRAConfig``.

    Raises:
        AdapterFileError: naming the flag and the value that it needs.
    """
    rank = largest_rank(config)
    if rank > lora_config.max_lora_rank:
        needed = vllm_rank(rank, folder)
        raise AdapterFileError(
            f"{folder} has rank {rank}, and this vLLM was started for {lora_config.max_lora_rank} at most. Start it "
            f"with --max-lora-rank {needed} (max_lora_rank={needed} of LLM)."
        )
