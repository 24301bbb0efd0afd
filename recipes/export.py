"""``monolora export CHECKPOINT OUT``: a checkpoint as GGUF files with an Ollama Modelfile, compared with its source.

CHECKPOINT is a dense checkpoint, such as a linear merge (``monolora merge ADAPTER CHECKPOINT``). Every file is read
again and answers prompts beside the adapter that the checkpoint was merged from, or beside the checkpoint: how many
answers stay the same token for token, how far the distributions move, and which refusals are kept.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from monolora.adapters import load_adapted
from monolora.cli.flags import FlagParser
from monolora.data.chat_template import prompt_ids
from monolora.errors import InputError, exit_status
from monolora.export import modelfile, write_gguf
from monolora.files import code_trusted, saving, write_json
from monolora.hub import load_causal_lm, load_config, load_tokenizer, local_path, resolve_model
from monolora.keep.anchors import Anchor, read_prompts
from monolora.keep.report import Pair, measure
from monolora.model_files import end_tokens
from monolora.recipes import merge_report
from monolora.recipes.settings import Export
from monolora.run_record import fingerprint_files, provenance
from monolora.runs import Kind, OutputFolder, claim
from monolora.terminal import Terminal, say, suggest

Prompts = Mapping[str, Sequence[Anchor]]  # by the name of their set
KIND = Kind(name="export", record="export.json", keys=("files", "reference"), files=(r"model-\w+\.gguf|Modelfile",))
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
    source = _source(settings.checkpoint)
    folder.check_apart([*filter(None, map(local_path, (settings.checkpoint, *settings.prompts)))])
    folder.check(settings.overwrite)
    tokenizer = load_tokenizer(source)
    prompts = {name: list(_prompts(name, tokenizer, settings.max_samples)) for name in settings.prompts}
    names = [f"model-{kind}.gguf" for kind in settings.types]
    with folder.whole() as aside, saving(folder.path, "Nothing was left there. Free space, then export again."):
        for kind, name in zip(settings.types, names, strict=True):
            write_gguf(source, aside / name, kind)
            say(f"Wrote {name}: {(aside / name).stat().st_size / 1e6:,.0f} MB.")
        (aside / "Modelfile").write_text(modelfile(names[-1], tokenizer, end_tokens(Path(source))), encoding="utf-8")
        record = {
            "checkpoint": settings.checkpoint,
            "fingerprint": fingerprint_files(source),
            **_compared(source, aside, names, prompts, tokenizer, settings),
            **provenance(),
        }
        write_json(aside / KIND.record, record)
    Terminal().print(_table(record))
    say(f"Saved to {folder.path}: {', '.join(names)}, Modelfile, {KIND.record}")
    suggest("ollama", "create", folder.path.name, "-f", str(folder.path / "Modelfile"))


def _source(checkpoint: str) -> str:
    """The folder of a dense checkpoint.

    Raises:
        InputError: for an adapter, and for a checkpoint that keeps the activation or is quantized.
    """
    if (Path(checkpoint) / "adapter_config.json").is_file():
        raise InputError(
            f"{checkpoint} is an adapter. Merge it first: monolora merge {checkpoint} {checkpoint}-merged; then export "
            f"{checkpoint}-merged."
        )
    source = resolve_model(checkpoint)
    if (quantization := getattr(load_config(source), "quantization_config", None)) is not None:
        method = dict(quantization).get("quant_method") if isinstance(quantization, Mapping) else quantization
        keeps = "keeps the activation (an exact merge), which GGUF has no place for" if method == "monolora" else None
        raise InputError(
            f"{checkpoint} {keeps or 'is quantized'}. Export a dense checkpoint: monolora merge with --method linear."
        )
    return source


def _prompts(name: str, tokenizer: PreTrainedTokenizerBase, samples: int) -> Iterator[Anchor]:
    for example in read_prompts([name], samples, from_evaluation=True).examples:
        yield Anchor(prompt_ids(example, tokenizer), [])


def _compared(
    source: str,
    folder: Path,
    names: Sequence[str],
    prompts: Prompts,
    tokenizer: PreTrainedTokenizerBase,
    settings: Export,
) -> dict[str, Any]:
    """Each file beside its reference, for the record."""
    reference, label = _reference(source, settings.checkpoint)
    compared: dict[str, Any] = {}
    if label != _CHECKPOINT:
        compared[_CHECKPOINT] = _reports(reference, _checkpoint(source), prompts, tokenizer, settings)
    for name in names:
        read = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=name, config=load_config(source), dtype=torch.float32, trust_remote_code=False
        )
        read.generation_config = reference.generation_config
        compared[name] = _reports(reference, read, prompts, tokenizer, settings)
        compared[name]["megabytes"] = round((folder / name).stat().st_size / 1e6, 1)
        own: Any = AutoTokenizer.from_pretrained(folder, gguf_file=name, trust_remote_code=False)
        compared[name]["same_tokens"] = _same_tokens(own, tokenizer)
        del read
        gc.collect()  # the next file needs the memory
    return {"reference": label, "files": compared}


def _reference(source: str, checkpoint: str) -> tuple[Any, str]:
    """The adapter that the checkpoint was merged from, if it is one and still there; else the checkpoint."""
    merged = merge_report.read(Path(source)) or {"merge": {"adapters": []}}
    adapters = merged["merge"]["adapters"]
    if len(adapters) == 1 and merged["merge"].get("weights") == [1.0] and (Path(adapters[0])).is_dir():
        return load_adapted(adapters[0], dtype=torch.float32)[0].eval(), adapters[0]
    return _checkpoint(source), _CHECKPOINT


def _checkpoint(source: str) -> Any:
    return load_causal_lm(source, dtype=torch.float32).eval()


def _reports(
    reference: Any, model: Any, prompts: Prompts, tokenizer: PreTrainedTokenizerBase, settings: Export
) -> dict[str, Any]:
    pair = Pair(reference, model, nullcontext)
    sets = {
        name: measure(pair, tokenizer, part, settings.batch_size, settings.max_new_tokens).as_json()
        for name, part in prompts.items()
    }
    return {"sets": sets}


def _same_tokens(own: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a file's tokenizer and chat template give the checkpoint's tokens for a conversation."""
    messages = [
        {"role": "user", "content": "Is 12,345 < 6.7e8? It's 'so',\tI'd say — naïve:\n\n  «да» 你好 🙂"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "And   2^10?"},
    ]
    if tokenizer.chat_template is None:
        text = "\n".join(message["content"] for message in messages)
        return bool(own(text)["input_ids"] == tokenizer(text)["input_ids"])
    template: Any = {"add_generation_prompt": True, "return_dict": True}
    theirs: Any = own.apply_chat_template(messages, **template)
    ours: Any = tokenizer.apply_chat_template(messages, **template)
    return bool(theirs["input_ids"] == ours["input_ids"])


def _table(record: Mapping[str, Any]) -> Table:
    table = Table(title=f"Compared with {record['reference']}")
    sets = list(next(iter(record["files"].values()))["sets"])
    for head in ("", "MB", *(f"{name}: {what}" for name in sets for what in ("same answers", "KL", "refused"))):
        table.add_column(head, justify="left" if not head else "right")
    for name, compared in record["files"].items():
        cells = [name, f"{compared['megabytes']:,.0f}" if "megabytes" in compared else ""]
        for of_set in compared["sets"].values():
            before, after, identical = (
                of_set[what]["mean"] for what in ("refused_before", "refused_after", "identical")
            )
            cells += [f"{identical:.0%}", f"{of_set['kl']['mean']:.2g}", f"{before:.0%} → {after:.0%}"]
        table.add_row(*cells)
    return table


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
