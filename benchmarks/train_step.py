"""The cost that training an adapter adds to the frozen model's forward and backward: a layer, a block, the model.

    python benchmarks/train_step.py --parts layer model --out step.json

    frozen             the floor: gradients run through, nothing is trained
    peft-lora          PEFT's LoRA
    monolora-unfused   MonoLoRA's general path: base layer, then B act(A x)
    monolora           the fused path
    monolora-triton    the same by the Triton kernels, on a GPU

In bfloat16 the base is bfloat16 and A and B are float32 under autocast, as TRL trains. Sides take turns in one run. The
overhead is what a side adds to ``frozen``; its ratio is monolora's to peft-lora's. Printed are medians; smallest and
largest are of fifths of the run.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from rounds import Seconds, flag_parser, in_turns, machine, of_groups, save
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from monolora import MonoLoraConfig
from monolora.hub import load_causal_lm, resolve_model
from monolora.layer import MonoLoraLinear

SIDES = ("frozen", "peft-lora", "monolora-unfused", "monolora")
if torch.cuda.is_available():
    SIDES += ("monolora-triton",)
SMOLLM2_SHAPES = ((576, 576), (576, 1536), (1536, 576))  # inputs, outputs
WIDE_SHAPES = ((4096, 4096), (4096, 11008), (11008, 4096))  # Llama-2-7B's
TARGETS = {"q+v": ["q_proj", "v_proj"], "all-linear": "all-linear"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TARGET_RATIOS = {"overhead": lambda of: (of["monolora"] - of["frozen"]) / (of["peft-lora"] - of["frozen"]),
                 "step": lambda of: of["monolora"] / of["peft-lora"]}  # fmt: skip


class Unfused(MonoLoraLinear):
    """The general path, also where the fused one would be taken."""

    def _dense(self, x: torch.Tensor) -> None:
        return None


class ByTriton(MonoLoraLinear):
    """The fused path, by the Triton kernels."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        os.environ["MONOLORA_TRITON"] = "1"
        try:
            return super().forward(x, *args, **kwargs)
        finally:
            del os.environ["MONOLORA_TRITON"]


OWN_CLASSES = {"monolora-unfused": Unfused, "monolora-triton": ByTriton}


def main() -> None:
    flags = _flags()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = [row for part in flags.parts for row in PARTS[part](flags, device)]
    report = {"flags": vars(flags), "machine": machine("peft", "transformers"), "rows": rows}
    show(report)
    save(report, flags.out)


def _flags() -> argparse.Namespace:
    parser = flag_parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["layer", "model"])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bfloat16", "float32"])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=["all-linear"])
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=768, help="of a step (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=200, help="of a layer; blocks and models take a twentieth")
    return parser.parse_args()


def layer_rows(flags: argparse.Namespace, device: str, shapes: Any = SMOLLM2_SHAPES) -> list[dict[str, Any]]:
    """One linear layer, forward and backward."""
    rows = []
    for dtype in flags.dtypes:
        for inputs, outputs in shapes:
            x = torch.randn(1, flags.tokens, inputs, device=device, dtype=DTYPES[dtype], requires_grad=True)
            g = torch.randn(1, flags.tokens, outputs, device=device, dtype=DTYPES[dtype])
            layers = {side: _layer(side, inputs, outputs, flags.rank, DTYPES[dtype], device) for side in SIDES}
            sides = {side: partial(layer_step, layer, _leaves(layer, x), g, dtype) for side, layer in layers.items()}
            rows.append(_row(f"layer {inputs}→{outputs}", dtype, in_turns(sides, flags.rounds, warmup=5)))
    return rows


def layer_step(layer: nn.Module, leaves: list[torch.Tensor], g: torch.Tensor, dtype: str) -> None:
    """Forward and backward of x, the first of the leaves, which like all of them wants a gradient."""
    for leaf in leaves:
        leaf.grad = None
    with autocast(g.device.type, dtype):
        y = layer(leaves[0])
    y.backward(g)


def wide_layer_rows(flags: argparse.Namespace, device: str) -> list[dict[str, Any]]:
    """Layers of Llama-2-7B's shapes."""
    return layer_rows(flags, device, WIDE_SHAPES)


def block_rows(flags: argparse.Namespace, device: str) -> list[dict[str, Any]]:
    """One block of Llama-2-7B's shape with random weights, and no vocabulary to speak of."""
    config = LlamaConfig(num_hidden_layers=1, vocab_size=128, torch_dtype="bfloat16")
    return _of_models(flags, device, "7B block", lambda dtype: LlamaForCausalLM(config).to(dtype))


def model_rows(flags: argparse.Namespace, device: str) -> list[dict[str, Any]]:
    """A whole model, its loss included."""
    folder = resolve_model(flags.model)
    return _of_models(flags, device, flags.model, lambda dtype: load_causal_lm(folder, dtype=dtype))


PARTS: dict[str, Callable[[argparse.Namespace, str], list[dict[str, Any]]]] = {
    "layer": layer_rows,
    "wide-layer": wide_layer_rows,
    "block": block_rows,
    "model": model_rows,
}


def _of_models(
    flags: argparse.Namespace, device: str, name: str, load: Callable[[torch.dtype], PreTrainedModel]
) -> list[dict[str, Any]]:
    rows = []
    for dtype in flags.dtypes:
        for targets in flags.targets:
            models = {side: adapted(side, load(DTYPES[dtype]).to(device), targets, flags.rank) for side in SIDES}
            length = min(flags.tokens, 512) if name == "7B block" else flags.tokens
            ids = torch.randint(0, 128, (1, length), device=device)
            sides = {side: partial(model_step, model, ids, dtype) for side, model in models.items()}
            rows.append(_row(f"{name}, {targets}", dtype, in_turns(sides, max(5, flags.rounds // 20))))
    return rows


def model_step(model: nn.Module, ids: torch.Tensor, dtype: str) -> None:
    """Forward with the loss of all tokens, and backward."""
    with autocast(ids.device.type, dtype):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    for parameter in model.parameters():
        parameter.grad = None


def autocast(device: str, dtype: str) -> Any:
    """As TRL trains: bfloat16 under autocast, float32 without."""
    return nullcontext() if dtype == "float32" else torch.autocast(device, DTYPES[dtype])


def _leaves(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    return [x, *(parameter for parameter in layer.parameters() if parameter.requires_grad)]


def _layer(side: str, inputs: int, outputs: int, rank: int, dtype: torch.dtype, device: str) -> nn.Module:
    holder = nn.Sequential(nn.Linear(inputs, outputs, bias=False)).to(device, dtype)
    adapted(side, holder, "all-linear", rank, ["0"])
    return holder[0]  # the layer alone: what PEFT's model does around it is done once a forward, not once a layer


def adapted(side: str, model: Any, targets: str, rank: int, modules: Any = None) -> nn.Module:
    """The model with the side's adapter; B is random, as after some steps of training."""
    if side == "frozen":
        model.requires_grad_(False)
        if isinstance(model, PreTrainedModel):
            model.enable_input_require_grads()
        return model.train()
    config = (LoraConfig if side == "peft-lora" else MonoLoraConfig)(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=modules or TARGETS[targets]
    )
    with_adapter = get_peft_model(model, config)
    torch.manual_seed(0)
    for name, parameter in with_adapter.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    for module in with_adapter.modules():
        if type(module) is MonoLoraLinear:
            module.__class__ = OWN_CLASSES.get(side, MonoLoraLinear)
    if isinstance(model, PreTrainedModel):
        model.enable_input_require_grads()
    return with_adapter.train()


def _row(what: str, dtype: str, seconds: Seconds) -> dict[str, Any]:
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    return {
        "what": what,
        "dtype": dtype,
        "milliseconds": {side: 1e3 * value for side, value in medians.items()},
        "over": {side: medians[side] / medians["frozen"] - 1 for side in SIDES[1:]},
        **{name: of_groups(seconds, ratio) for name, ratio in TARGET_RATIOS.items()},
    }


def show(report: Mapping[str, Any]) -> None:
    """One table, and the mean ratio by kind of row."""
    table = Table(title=f"{report['machine']['device']}, {report['machine']['threads']} threads", title_justify="left")
    for head in ("what", "dtype", "frozen ms", *(f"{side} +%" for side in SIDES[1:]), "overhead ratio", "step ratio"):
        table.add_column(head, justify="left" if head in ("what", "dtype") else "right")
    for row in report["rows"]:
        table.add_row(
            row["what"],
            row["dtype"],
            f"{row['milliseconds']['frozen']:.2f}",
            *(f"{100 * row['over'][side]:.1f}" for side in SIDES[1:]),
            *("{median:.2f} ({smallest:.2f}–{largest:.2f})".format(**row[name]) for name in TARGET_RATIOS),
        )
    console = Console()
    console.print(table)
    for dtype in dict.fromkeys(row["dtype"] for row in report["rows"]):
        of = [row for row in report["rows"] if row["dtype"] == dtype and row["what"].startswith("layer")]
        if of:
            mean = sum(row["overhead"]["median"] for row in of) / len(of)
            console.print(f"Mean overhead ratio of the layers in {dtype}: {mean:.2f}")


if __name__ == "__main__":
    main()
