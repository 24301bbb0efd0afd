"""Adapter folders for vLLM: their rank against ``--max-lora-rank``, their files, and their identity in an engine."""

from __future__ import annotations

import functools
import json
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple, get_args

from safetensors import safe_open

from monolora.checkpoint import AdapterFileError, check_no_lora_tensors, check_weights_file, is_monolora_name
from monolora.config import MonoLoraConfig
from monolora.errors import InputError, in_one_line
from monolora.peft_type import NAME
from monolora.run_record import fingerprint_files
from monolora.targets import check_bounded

EXACT_FIX = "Put adapter and base into one checkpoint with `monolora merge ADAPTER OUT --method exact`; serve that."


def largest_rank(config: Any) -> int:
    """The largest rank of an adapter's layers, from its ``LoraConfig``."""
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
        raise AdapterFileError(f"{folder} has rank {rank}, and vLLM's LoRA goes up to {max(sizes)}. {EXACT_FIX}")
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


_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"


def served_config(folder: str) -> MonoLoraConfig | None:
    """The config of a MonoLoRA adapter that can be served; None for any other adapter, and where there is none.

    Read once for each state of the folder's files.

    Raises:
        AdapterFileError: if config or weights are damaged, contradict each other, or need what is not served.
    """
    return _served_config(folder, files_state(folder))


def files_state(folder: str) -> tuple[tuple[int, int] | None, ...]:
    """A value that changes when one of the adapter's two files does."""
    states: list[tuple[int, int] | None] = []
    for name in (_CONFIG, _WEIGHTS):
        try:
            status = os.stat(os.path.join(folder, name))
            states.append((status.st_mtime_ns, status.st_size))
        except OSError:
            states.append(None)
    return tuple(states)


@functools.lru_cache(maxsize=1024)
def _served_config(folder: str, state: object) -> MonoLoraConfig | None:
    weights = Path(folder) / _WEIGHTS
    method = peft_type(folder)
    if method is None:
        return None  # vLLM reports it
    if method != NAME:
        _check_no_monolora_tensors(weights, method)
        return None
    check_weights_file(folder)
    if not weights.is_file():
        raise AdapterFileError(f"{folder} holds no weights: {_WEIGHTS} is missing. Copy the whole folder.")
    try:
        check_no_lora_tensors(_tensor_names(weights))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of keys that a later PEFT has added
            parsed = MonoLoraConfig.from_pretrained(folder)
        check_bounded(parsed)
    except (ValueError, TypeError) as error:
        raise AdapterFileError(f"{folder} cannot be used: {in_one_line(error)}") from error
    _check_options(parsed, folder)
    return parsed


def peft_type(folder: str) -> str | None:
    """The method in a folder's config, by default LoRA's as in vLLM; None without a config.

    Raises:
        AdapterFileError: if the config is damaged.
    """
    config = Path(folder) / _CONFIG
    if not config.is_file():
        return None
    try:
        return str(json.loads(config.read_text()).get("peft_type", "LORA"))
    except (ValueError, AttributeError, OSError) as error:
        raise AdapterFileError(f"{config} is damaged: {in_one_line(error)} Copy it again.") from error


def _tensor_names(weights: Path) -> list[str]:
    with safe_open(weights, framework="pt") as file:
        return list(file.keys())


def _check_no_monolora_tensors(weights: Path, named: str) -> None:
    """Refuse MonoLoRA tensors under another method: vLLM's own loader would drop the activation."""
    try:
        ours = sorted(filter(is_monolora_name, _tensor_names(weights)))
    except Exception:  # missing or damaged: vLLM reports it
        return
    if ours:
        raise AdapterFileError(
            f"Tensor {ours[0]!r} in {weights} belongs to a MonoLoRA adapter, but the config says {named}. Set "
            f"peft_type to {NAME} in {_CONFIG} (and activation, if it is not relu)."
        )


def _check_options(config: MonoLoraConfig, folder: str) -> None:
    """Refuse what vLLM's LoRA layers cannot hold."""
    unserved: dict[str, Any] = {
        "modules_to_save": config.modules_to_save,
        "trainable_token_indices": config.trainable_token_indices,
        "lora_bias": config.lora_bias,
        "bias": config.bias if config.bias != "none" else None,
    }
    for name, value in unserved.items():
        if value:
            raise AdapterFileError(f"{folder} has {name}={value!r}, which is not served beside its base. {EXACT_FIX}")


class Identity(NamedTuple):
    """An adapter in a local folder, as a request names it.

    Attributes:
        name: of the request.
        number: the request's ``lora_int_id``.
        folder: an absolute path without links.
        content: a hash of its files.
        is_monolora: whether it is a MonoLoRA adapter.
    """

    name: str
    number: int
    folder: str
    content: str
    is_monolora: bool

    @classmethod
    def of(cls, lora_request: Any) -> Identity:
        """The adapter with the present content of its files.

        Raises:
            AdapterFileError: if they are damaged.
        """
        folder = os.path.realpath(lora_request.lora_path)
        content = _content(folder, files_state(folder))
        is_monolora = served_config(folder) is not None
        return cls(lora_request.lora_name, lora_request.lora_int_id, folder, content, is_monolora)

    def check_unchanged(self, before: Identity) -> None:
        """Raises: InputError, if the same name and folder had other files before; not among plain LoRA adapters."""
        if not (self.is_monolora or before.is_monolora):
            return
        if self.folder == before.folder and self.name == before.name and self.content != before.content:
            raise InputError(
                f"{self.folder} does not hold the files that were loaded from there. Put those back, or load the new "
                "ones from another folder: vLLM keeps what it has computed by name and path."
            )

    def check_distinct(self, other: Identity) -> None:
        """Raises: InputError, if this is not ``other`` and shares its name or number."""
        if not (self.is_monolora or other.is_monolora):
            return
        same_name, same_number = self.name == other.name, self.number == other.number
        if (same_name or same_number) and not (same_name and same_number and self.content == other.content):
            changed = "other weights of " if self.folder == other.folder and self.content != other.content else ""
            raise InputError(
                f"LoRARequest({self.name!r}, {self.number}) for {self.folder}: this engine already answers "
                f"LoRARequest({other.name!r}, {other.number}) through {changed}{other.folder}. Give every adapter a "
                "name and a number of its own."
            )


@functools.lru_cache(maxsize=1024)
def _content(folder: str, state: object) -> str:
    """Read once for each state of the files."""
    return fingerprint_files(folder) + fingerprint_files(folder, ".json")
