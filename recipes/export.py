"""``monolora export CHECKPOINT OUT``: a checkpoint as GGUF files with an Ollama Modelfile, compared with its source.

CHECKPOINT is a dense checkpoint, such as a linear merge (``monolora merge ADAPTER CHECKPOINT``); with ``--as lora`` it
is a LoRA adapter, which llama.cpp puts on the base model's file. Every file is read again and answers prompts beside
the adapter that the checkpoint was merged from, or beside the checkpoint: how many answers stay the same token for
token, how far the distributions move, and which refusals are kept.
"""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from gguf import MODEL_ARCH_NAMES
from rich.table import Table
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

from monolora import run_record
from monolora.adapters import load_adapted
from monolora.cli.flags import FlagParser
from monolora.data.chat_template import prompt_ids
from monolora.errors import InputError, exit_status
from monolora.export import adopt_gguf_lora, modelfile, read_tensors, write_gguf, write_gguf_lora
from monolora.files import code_trusted, saving, write_json
from monolora.hub import load_causal_lm, load_config, load_tokenizer, local_path, resolve_model
from monolora.keep.anchors import Anchor, read_prompts
from monolora.keep.report import Pair, measure
from monolora.model_files import end_tokens
from monolora.recipes import merge_report
from monolora.recipes.checkpoint_settings import Export
from monolora.run_record import fingerprint_files, provenance
from monolora.runs import Kind, OutputFolder, claim
from monolora.terminal import Terminal, say, suggest

Prompts = Mapping[str, Sequence[Anchor]]  # by the name of their set
KIND = Kind(
    name="export", record="export.json", keys=("files", "reference"), files=(r"(model|adapter)-\w+\.gguf|Modelfile",)
)
_CHECKPOINT = "the checkpoint"


def main(argv: list[str]) -> int:
    """Run from the command line; returns the exit status."""
    return run(FlagParser("monolora export", __doc__).parse_into(argv, Export))


def run(settings: Export) -> int:
    """Write, compare, print; returns the exit status."""
    with code_trusted(settings.trust_remote_code), claim(settings.out, KIND) as folder:
        _export(settings, folder)
    return 0


def _export(settings: Export, folder: OutputFolder) -> None:
    checkpoint = settings.checkpoint
    folder.check_apart([*filter(None, map(local_path, (checkpoint, *settings.prompts)))])
    folder.check(settings.overwrite)
    exported: _Exported = _Adapter(checkpoint) if settings.form == "lora" else _Checkpoint(checkpoint)
    tokenizer, types = exported.tokenizer, settings.types or exported.types
    prompts = {name: list(_prompts(name, tokenizer, settings.max_samples)) for name in settings.prompts}
    names = [f"{exported.stem}-{kind}.gguf" for kind in types]
    no_space = "Nothing was left there. Free space, then export again."
    with folder.whole() as aside:
        with saving(folder.path, no_space):
            for kind, name in zip(types, names, strict=True):
                exported.write(aside / name, kind)
                say(f"Wrote {name}: {(aside / name).stat().st_size / 1e6:,.1f} MB.")
            if exported.stem == "model":
                text = modelfile(names[-1], tokenizer, end_tokens(Path(exported.source)))
                (aside / "Modelfile").write_text(text, encoding="utf-8")
        record = {
            "checkpoint": checkpoint,
            "fingerprint": fingerprint_files(exported.source),
            **_compared(exported, aside, names, prompts, settings),
            **_silence(exported.source),
            **provenance(),
        }
        with saving(folder.path, no_space):
            write_json(aside / KIND.record, record)
    Terminal().print(_table(record))
    say(f"Saved to {folder.path}: {', '.join(sorted(path.name for path in folder.path.iterdir()))}")
    if exported.stem == "model":
        suggest("ollama", "create", folder.path.name, "-f", str(folder.path / "Modelfile"))


class _Exported(Protocol):
    """What is written as GGUF files.

    Attributes:
        source: its folder.
        tokenizer: of its model.
        stem: of the files' names.
        types: of the weights, unless others are asked for.
    """

    source: str
    tokenizer: PreTrainedTokenizerBase
    stem: str
    types: tuple[str, ...]

    def write(self, file: Path, kind: str) -> None:
        """Write a file."""

    def reference(self) -> tuple[Any, str]:
        """The model that files are compared with, and its name."""

    def read(self, file: Path) -> Any:
        """The model that a file holds."""

    def checked(self, file: Path) -> dict[str, Any]:
        """What else of a file is compared, for the record."""


class _Checkpoint:
    """A dense checkpoint.

    Raises:
        InputError: for an adapter, and for a checkpoint that keeps the activation or is quantized.
    """

    stem: str = "model"
    types: tuple[str, ...] = ("f16", "q8_0")

    def __init__(self, checkpoint: str) -> None:
        if _is_adapter(checkpoint):
            raise InputError(
                f"{checkpoint} is an adapter. Merge it first: monolora merge {checkpoint} {checkpoint}-merged; then "
                f"export {checkpoint}-merged. Or give --as lora, if it is a LoRA adapter."
            )
        self.source = resolve_model(checkpoint)
        if (quantization := getattr(load_config(self.source), "quantization_config", None)) is not None:
            method = dict(quantization).get("quant_method") if isinstance(quantization, Mapping) else quantization
            keeps = "keeps the activation (an exact merge), which GGUF has no place for"
            raise InputError(
                f"{checkpoint} {keeps if method == 'monolora' else 'is quantized'}. Export a dense checkpoint: "
                "monolora merge with --method linear."
            )
        self.tokenizer = load_tokenizer(self.source)

    def write(self, file: Path, kind: str) -> None:
        write_gguf(self.source, file, kind)

    def reference(self) -> tuple[Any, str]:
        """The adapter that the checkpoint was merged from, if it is one and still there; else the checkpoint."""
        merged = merge_report.read(Path(self.source)) or {"merge": {"adapters": []}}
        adapters = merged["merge"]["adapters"]
        if len(adapters) == 1 and merged["merge"].get("weights") == [1.0] and (Path(adapters[0])).is_dir():
            return load_adapted(adapters[0], dtype=torch.float32)[0].eval(), adapters[0]
        return self.loaded(), _CHECKPOINT

    def loaded(self) -> Any:
        return load_causal_lm(self.source, dtype=torch.float32).eval()

    def read(self, file: Path) -> Any:
        config = load_config(self.source)
        if self._is_read(config.model_type):
            return AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, config=config, dtype=torch.float32, trust_remote_code=False
            )
        model = self.loaded()
        model.load_state_dict(read_tensors(file, self.source), strict=False)
        return model

    def checked(self, file: Path) -> dict[str, Any]:
        architecture, vocabulary, config = get_gguf_tokenizer(str(file))
        backend, _ = convert_gguf_tokenizer(architecture, vocabulary)
        own = PreTrainedTokenizerFast(tokenizer_object=backend, **config)
        reader = "transformers" if self._is_read(load_config(self.source).model_type) else "gguf"
        return {"same_tokens": _same_tokens(own, self.tokenizer), "reader": reader}

    @staticmethod
    def _is_read(model_type: str) -> bool:
        """Whether transformers reads GGUF files of a model type; the others' tensors are read one by one."""
        name = re.sub(r"_text$", "", model_type)
        return name in GGUF_SUPPORTED_ARCHITECTURES and name in MODEL_ARCH_NAMES.values()


class _Adapter:
    """A LoRA adapter.

    Raises:
        InputError: for a folder that holds none.
    """

    stem: str = "adapter"
    types: tuple[str, ...] = ("f16",)

    def __init__(self, folder: str) -> None:
        if not _is_adapter(folder):
            raise InputError(f"{folder} is no adapter. To export a checkpoint leave --as lora out.")
        self.source = folder
        self._model, self.tokenizer = load_adapted(folder, dtype=torch.float32)

    def write(self, file: Path, kind: str) -> None:
        write_gguf_lora(self._model, self.source, file, kind)

    def reference(self) -> tuple[Any, str]:
        return self._model, self.source

    def read(self, file: Path) -> Any:
        model = load_adapted(self.source, dtype=torch.float32)[0]
        adopt_gguf_lora(model, self.source, file)
        return model

    def checked(self, file: Path) -> dict[str, Any]:
        return {"reader": "gguf"}


def _is_adapter(folder: str) -> bool:
    return (Path(folder) / "adapter_config.json").is_file()


def _silence(source: str) -> dict[str, Any]:
    """What a linear merge of an adapter that was trained to be silent lost of that, for the record."""
    report = merge_report.read(Path(source))
    if report is None:
        return {}
    if "anchors" in report:
        return {"anchors": report["anchors"], "silence": merge_report.anchors_sentence(report)}
    adapters = report["merge"].get("adapters", [])
    runs = [run_record.of_adapter(adapter) for adapter in adapters if Path(adapter).is_dir()]
    if not any(set(run["config"].get("keep") or ()) - {"none"} for run in runs if run is not None):
        return {}
    return {
        "silence": f"{adapters[0]} was trained with --keep, and its merge was not measured on the kept prompts: no "
        f"linear map is silent. Measure it: monolora verify {source} --against {adapters[0]}"
    }


def _prompts(name: str, tokenizer: PreTrainedTokenizerBase, samples: int) -> Iterator[Anchor]:
    for example in read_prompts([name], samples, from_evaluation=True).examples:
        yield Anchor(prompt_ids(example, tokenizer), [])


def _compared(
    exported: _Exported, folder: Path, names: Sequence[str], prompts: Prompts, settings: Export
) -> dict[str, Any]:
    """Each file beside its reference, for the record."""
    reference, label = exported.reference()
    compared: dict[str, Any] = {}
    if isinstance(exported, _Checkpoint) and label != _CHECKPOINT:
        compared[_CHECKPOINT] = _reports(reference, exported.loaded(), prompts, exported.tokenizer, settings)
    for name in names:
        read = exported.read(folder / name)
        read.generation_config = reference.generation_config
        compared[name] = _reports(reference, read, prompts, exported.tokenizer, settings)
        compared[name]["megabytes"] = round((folder / name).stat().st_size / 1e6, 1)
        compared[name] |= exported.checked(folder / name)
        del read
        gc.collect()  # the next file needs the memory
    return {"reference": label, "files": compared}


def _reports(
    reference: Any, model: Any, prompts: Prompts, tokenizer: PreTrainedTokenizerBase, settings: Export
) -> dict[str, Any]:
    pair = Pair(tuned=model, base=reference, as_base=nullcontext)
    sets = {
        name: measure(pair, tokenizer, part, settings.batch_size, settings.max_new_tokens).as_json()
        for name, part in prompts.items()
    }
    return {"sets": sets}


def _same_tokens(own: Any, tokenizer: Any) -> bool:
    """Whether a file's tokenizer and chat template give the checkpoint's tokens for a conversation."""
    messages = [
        {"role": "user", "content": "Is 12,345 < 6.7e8? It's 'so',\tI'd say — naïve:\n\n  «да» 你好 🙂"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "And   2^10?"},
    ]
    if own.backend_tokenizer.model.byte_fallback:  # where spaces go, a field says, which transformers does not read
        for part in ("normalizer", "pre_tokenizer"):
            setattr(own.backend_tokenizer, part, getattr(tokenizer.backend_tokenizer, part))
    if tokenizer.chat_template is None:
        text = "\n".join(message["content"] for message in messages)
        one, other = (model(text, add_special_tokens=False)["input_ids"] for model in (own, tokenizer))
        return bool(one == other)
    template: Any = {"add_generation_prompt": True, "return_dict": True}
    theirs: Any = own.apply_chat_template(messages, **template)
    ours: Any = tokenizer.apply_chat_template(messages, **template)
    return bool(theirs["input_ids"] == ours["input_ids"])


def _table(record: Mapping[str, Any]) -> Table:
    table = Table(title=f"Compared with {record['reference']}", caption=record.get("silence"), caption_style="bold red")
    sets = list(next(iter(record["files"].values()))["sets"])
    for head in ("", "MB", *(f"{name}: {what}" for name in sets for what in ("same answers", "KL", "refused"))):
        table.add_column(head, justify="left" if not head else "right")
    for name, compared in record["files"].items():
        cells = [name, f"{compared['megabytes']:,.1f}" if "megabytes" in compared else ""]
        for of_set in compared["sets"].values():
            before, after, identical = (
                of_set[what]["mean"] for what in ("refused_before", "refused_after", "identical")
            )
            cells += [f"{identical:.0%}", f"{of_set['kl']['mean']:.2g}", f"{before:.0%} → {after:.0%}"]
        table.add_row(*cells)
    return table


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
