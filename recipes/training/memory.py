"""What a run takes of each GPU's memory, from the model's config alone: the model is made on the meta device.

Weights, gradients and optimizer states are counted. Activations are too: a forward pass on the meta device tells which
tensors autograd keeps for the backward pass, as ``torch.autograd.graph.saved_tensors_hooks`` sees them. Attention is
taken to keep its inputs and its output, as FlashAttention does (Dao et al. 2022). With gradient checkpointing one
hidden state a block is kept, and one block's activations are computed again (Korthikanti et al. 2022, section 5).
Not counted are buffers of libraries and what is freed within a layer; :data:`FREE` is left for them.

All values are in bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from peft import get_peft_model
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from monolora.inference import MAX_POSITIONS
from monolora.keep.kl import ANCHORS_A_STEP
from monolora.recipes.training.arguments import Arguments
from monolora.recipes.training.models import peft_config, settle_targets
from monolora.shared_prefix import backbone
from monolora.units import adapted_layers

FREE = 0.1  # share of a GPU
FOUR_BIT = 0.5 + 4 / 64  # of a weight: NF4, and a float32 scale for each block of 64
ANCHOR_TOKENS = 192  # of a prompt
DDP, ZERO_2, FSDP2 = LAYOUTS = ("DDP", "ZeRO-2", "FSDP2 (ZeRO-3)")
_ATTENTION = "keeps_inputs_and_output"


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Of one GPU.

    Attributes:
        parameters: trained and frozen weights.
        gathered: whole weights of sharded layers while they are computed: two blocks, embeddings and output layer;
            otherwise the copies of trained float32 weights that autocast makes.
        gradients: of the trained weights, with the copies in which they are reduced.
        optimizer: its states, and DeepSpeed's float32 weights.
        activations: of a training batch.
        keepers: what silence stores, and the forward pass of kl.
        logits: of scoring, which takes more of them than training.
    """

    parameters: float
    gathered: float
    gradients: float
    optimizer: float
    activations: float
    keepers: float
    logits: float

    @property
    def total(self) -> float:
        """Of all."""
        return sum(getattr(self, field.name) for field in fields(self))


class Footprint(NamedTuple):
    """Of a model that is whole.

    Attributes:
        trained: number of trained weights.
        width: of a trained weight.
        frozen: of the frozen weights that can be sharded.
        quantized: of those in 4 bit, which every GPU has whole.
        gathered: as in :class:`Memory`.
        activations: of a batch.
        inputs: of all adapted modules, a token.
        vocabulary: number of logits a position.
    """

    trained: int
    width: int
    frozen: float
    quantized: float
    gathered: float
    activations: float
    inputs: int
    vocabulary: int


class _Attention(torch.autograd.Function):
    """Attention that computes nothing, and keeps what FlashAttention keeps."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out)
        return out


def _attention(module: nn.Module, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
    out: torch.Tensor = _Attention.apply(q, k, v)
    return out.transpose(1, 2), None


AttentionInterface.register(_ATTENTION, _attention)


def footprint(config: PreTrainedConfig, arguments: Arguments) -> Footprint:
    """What the model of a config takes when it is trained as the flags say.

    Raises:
        InputError: if the flags do not fit the model.
    """
    training = arguments.training
    dtype = getattr(torch, arguments.model.dtype or "float32")
    computed = torch.bfloat16 if training.bf16 else dtype
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config, dtype=computed, attn_implementation=_ATTENTION)
        model: nn.Module = base
        adapter = peft_config(arguments)
        if adapter is not None:
            settle_targets(base, adapter)
            model = get_peft_model(base, adapter, autocast_adapter_dtype=False)
        kept = saved_bytes(model, training.per_device_train_batch_size, training.max_length or 1024)
    blocks = [module for module in base.modules() if isinstance(module, GradientCheckpointingLayer)]
    compute = computed.itemsize
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    whole = {parameter: compute * parameter.numel() for end in ends if end for parameter in end.parameters()}
    largest = max((sum(p.numel() for p in block.parameters()) for block in blocks), default=0)
    if training.gradient_checkpointing and blocks:
        tokens = training.per_device_train_batch_size * (training.max_length or 1024)
        kept = kept / len(blocks) + len(blocks) * tokens * config.get_text_config().hidden_size * compute
    trained = [p for p in model.parameters() if p.requires_grad]
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    in_4_bit = sum(p.numel() for p in _quantized(base)) if arguments.model.load_in_4bit else 0
    return Footprint(
        trained=sum(p.numel() for p in trained),
        width=dtype.itemsize if adapter is None else 4,  # PEFT's adapters are float32
        frozen=(frozen - in_4_bit) * dtype.itemsize,
        quantized=in_4_bit * FOUR_BIT,
        gathered=2 * largest * compute + sum(whole.values()),
        activations=kept,
        inputs=sum(int(layer.in_features or 0) for layer in adapted_layers(model)) * dtype.itemsize,
        vocabulary=config.get_text_config().vocab_size,
    )


def _quantized(base: PreTrainedModel) -> Iterable[torch.Tensor]:
    """The weights that bitsandbytes quantizes: of linear layers, but for the output layer."""
    head = base.get_output_embeddings()
    return {
        module.weight
        for module in base.modules()
        if isinstance(module, nn.Linear) and module is not head and not module.weight.requires_grad
    }


def saved_bytes(model: nn.Module, rows: int, tokens: int) -> int:
    """What autograd keeps of a forward pass, weights and the output layer left out.

    Args:
        model: on any device; on the meta device nothing is computed.
        rows: of the batch.
        tokens: of a row.
    """
    own = {_storage(tensor) for tensor in [*model.parameters(), *model.buffers()]}
    saved: dict[int, torch.Tensor] = {}  # which keeps them all alive, so that no storage's number comes twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[_storage(tensor)] = tensor
        return tensor

    model.train()
    ids = torch.zeros(rows, tokens, dtype=torch.long, device=next(model.parameters()).device)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = backbone(model)(input_ids=ids, use_cache=False)
    del output
    return sum(tensor.untyped_storage().nbytes() for number, tensor in saved.items() if number not in own)


def _storage(tensor: torch.Tensor) -> int:
    return int(StorageWeakRef(tensor.untyped_storage()).cdata)


def per_gpu(of: Footprint, arguments: Arguments, gpus: int) -> Mapping[str, Memory]:
    """The memory of each GPU by layout; with one GPU there is one."""
    return {layout: _memory(layout, of, arguments, gpus) for layout in (LAYOUTS if gpus > 1 else (DDP,))}


def _memory(layout: str, of: Footprint, arguments: Arguments, gpus: int) -> Memory:
    training, keepers = arguments.training, {word.partition(":")[0] for word in arguments.adapter.keep or ()}
    width, parts = of.width, 1 if layout == DDP else gpus
    masters = 0
    if layout == FSDP2 and training.bf16:
        width = 4  # as accelerate trains them
    elif layout == ZERO_2 and training.bf16:
        width, masters = 2, 4
    moments = {"sgd": 0, "adamw_8bit": 2, "paged_adamw_8bit": 2}.get(training.optim.value, 2 * (masters or width))
    copied = 2.0 * of.trained if training.bf16 and width == 4 else 0.0
    copies = 2 if layout == DDP and gpus > 1 else 1  # DDP reduces in buckets of its own
    weights = of.frozen + of.trained * width
    kept = arguments.adapter.keep_tokens * of.inputs if "silence" in keepers else 0.0
    if "kl" in keepers:
        anchors = -(-ANCHORS_A_STEP // gpus) * (ANCHOR_TOKENS + arguments.adapter.keep_answer_tokens)
        kept += of.activations * anchors / (training.per_device_train_batch_size * (training.max_length or 1024))
    return Memory(
        parameters=of.quantized + (weights / gpus if layout == FSDP2 else weights),
        gathered=of.gathered if layout == FSDP2 else copied,
        gradients=of.trained * width * copies / parts,
        optimizer=of.trained * (moments + masters) / parts,
        activations=of.activations,
        keepers=kept,
        logits=2 * MAX_POSITIONS * of.vocabulary * 4,
    )
