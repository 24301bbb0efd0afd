"""The files beside the weights: written complete, and under the names that transformers 4 and 5 both read.

transformers 4 silently misreads the rotary embedding (``rope_parameters`` instead of ``rope_theta`` and
``rope_scaling``) and dtype that transformers 5 writes, and refuses the tokenizer's class. Both read files with both
names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME

from monolora.errors import InputError, RunError, in_one_line
from monolora.files import trusts_code

TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
# What transformers 4 calls parts of the rotary embeddings: in GPT-NeoX, and where they differ by the kind of layer.
_NEOX_NAMES = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
_GEMMA3_BASES = {"full_attention": "rope_theta", "sliding_attention": "rope_local_base_freq"}
_MODERNBERT_BASES = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}


def save_model(
    model: PreTrainedModel,
    folder: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    **options: Any,
) -> None:
    """Write a model as ``save_pretrained`` does, and its tokenizer, for both generations of transformers.

    Args:
        model: its generation config is written unchanged, even if transformers itself refuses to.
        folder: where to.
        tokenizer: written beside it.
        options: for the model's ``save_pretrained``.
    """
    with any_generation_config(model, folder):
        model.save_pretrained(folder, **options)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    write_older_names(folder)


@contextmanager
def any_generation_config(model: PreTrainedModel, folder: str | os.PathLike[str]) -> Iterator[None]:
    """Around ``save_pretrained``: a generation config that transformers reads but refuses to write is written too.

    Early Llama-2 has a temperature without sampling, for example; the checkpoint keeps what its base has.
    """
    if not model.can_generate():
        yield
        return
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
    if (Path(folder) / GENERATION_CONFIG_NAME).is_file():  # the main process alone writes
        save_generation_config(own, folder)


def save_generation_config(config: GenerationConfig, folder: str | os.PathLike[str]) -> None:
    """Write a generation config as it is, without the check of ``GenerationConfig.save_pretrained``."""
    config.to_json_file(str(Path(folder) / GENERATION_CONFIG_NAME), use_diff=True, keys_to_pop=["compile_config"])


def adopt_generation_config(model: PreTrainedModel, folder: str | os.PathLike[str]) -> None:
    """Take over the generation config in an adapter's folder, if there is one.

    Raises:
        InputError: if the file is damaged.
    """
    if (Path(folder) / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = _generation_config(folder)


def end_tokens(folder: str | os.PathLike[str]) -> list[int]:
    """The ids that end an answer of the adapter (or model) in a folder; empty without a generation config.

    Raises:
        InputError: if the file is damaged.
    """
    if not (Path(folder) / GENERATION_CONFIG_NAME).is_file():
        return []
    ids = _generation_config(folder).eos_token_id
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def _generation_config(folder: str | os.PathLike[str]) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{folder}/{GENERATION_CONFIG_NAME} cannot be used: {in_one_line(error)}") from error


def check_adapter_files(folder: str | os.PathLike[str], shapes: Mapping[str, torch.Size]) -> None:
    """Check that an adapter's file holds every tensor.

    Args:
        folder: what was written.
        shapes: by the names on the disk.

    Raises:
        RunError: naming the first tensor that is missing or of another shape, or the file.
    """
    path = Path(folder) / SAFETENSORS_WEIGHTS_NAME
    try:
        with safe_open(path, framework="pt") as file:
            saved = {key: torch.Size(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RunError(f"The adapter was not saved: {path} cannot be read ({in_one_line(error)})") from error
    wrong = sorted(name for name, shape in shapes.items() if saved.get(name) != shape)
    if wrong:
        raise RunError(f"The adapter was not saved whole: {path} lacks {wrong[0]!r} ({len(wrong)} such).")


def check_model_files(folder: str | os.PathLike[str]) -> None:
    """Check that a folder holds every tensor of the model in its config.json, by the headers of its files.

    Raises:
        RunError: naming the first tensor that is missing or of another shape.
    """
    load = cast(Callable[..., Any], AutoModelForCausalLM.from_pretrained)
    try:
        _, report = load(
            folder,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=trusts_code(),
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise RunError(f"The model was not saved: {folder} cannot be loaded ({in_one_line(error)})") from error
    wrong = sorted([*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])])
    if wrong:
        raise RunError(f"The model was not saved whole: {folder} lacks {wrong[0]} ({len(wrong)} such).")


def write_older_names(folder: str | os.PathLike[str]) -> None:
    """Add transformers 4's names to ``config.json`` and ``tokenizer_config.json``, where they are."""
    for name, add in ((CONFIG_NAME, _add_to_config), (TOKENIZER_CONFIG_NAME, _add_to_tokenizer)):
        path = Path(folder) / name
        if path.is_file():
            settings = json.loads(path.read_text(encoding="utf-8"))
            add(settings)
            path.write_text(json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _add_to_config(config: dict[str, Any]) -> None:
    for part in config.values():
        if isinstance(part, dict) and "model_type" in part:
            _add_to_config(part)
    if "dtype" in config:
        config["torch_dtype"] = config["dtype"]
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        names = _NEOX_NAMES if config["model_type"].startswith("gpt_neox") else {}
        for name in ("rope_theta", "partial_rotary_factor"):
            if name in rope:
                config[names.get(name, name)] = rope[name]
        config["rope_scaling"] = _scaling(rope)
    elif rope.keys() == _GEMMA3_BASES.keys():
        names = _MODERNBERT_BASES if config["model_type"].startswith("modernbert") else _GEMMA3_BASES
        config |= {name: rope[kind]["rope_theta"] for kind, name in names.items()}
        config["rope_scaling"] = _scaling(rope["full_attention"])


def _scaling(rope: dict[str, Any]) -> dict[str, Any] | None:
    """``rope_scaling`` of transformers 4; None for plain rotary embeddings."""
    if rope.get("rope_type", "default") == "default":
        return None
    if rope["rope_type"] == "longrope":  # Phi-3 accepts these fields, and no other one
        return {"type": "longrope", "short_factor": rope["short_factor"], "long_factor": rope["long_factor"]}
    return {name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")}


def _add_to_tokenizer(config: dict[str, Any]) -> None:
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"  # an alias in transformers 5
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
