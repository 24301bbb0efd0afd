"""Whether an adapter's file fits a base, told from the two files' headers: nothing is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open

from monolora.errors import InputError
from monolora.text_files import read_json

# The A of a linear layer: (rank, inputs); B: (outputs, rank).
_LINEAR = re.compile(r"base_model\.model\.(?P<module>.+)\.(?:lora|monolora)_(?P<part>[AB])\.weight")


def check_fits(adapter: str, base: str) -> None:
    """Compare the sizes of an adapter's linear layers with those of the base's weights.

    Args:
        adapter: folder with ``adapter_model.safetensors``, MonoLoRA or LoRA.
        base: folder with the model's ``.safetensors`` files.

    Raises:
        InputError: naming the first layer that the base has in another size.
    """
    shapes = {name.removesuffix(".weight"): shape for name, shape in _shapes(sorted(Path(base).glob("*.safetensors")))}
    if not shapes or "quantization_config" in read_json(Path(base) / "config.json", "Copy the model again."):
        return  # in an older format, or packed in another shape: who loads it will say
    for name, shape in _shapes([Path(adapter) / "adapter_model.safetensors"]):
        match = _LINEAR.fullmatch(name)
        if match is None:
            continue
        module, part = match["module"], match["part"]
        if module not in shapes:
            continue  # PEFT and transformers may name it otherwise than the file does
        there, side = (shape[1], "inputs") if part == "A" else (shape[0], "outputs")
        if there not in shapes[module]:  # (outputs, inputs), or the other way round, as GPT-2 has it
            raise InputError(
                f"{adapter} does not fit {base}: its {module} has {there} {side}, and the model's weight is of shape "
                f"{tuple(shapes[module])}. Give the base that it was trained on."
            )


def _shapes(files: list[Path]) -> Iterator[tuple[str, list[int]]]:
    for path in files:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                yield name, file.get_slice(name).get_shape()
