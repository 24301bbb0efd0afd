"""Which next tokens a unit makes likelier and less likely: by its direction in the residual stream, or by ablation.

Shapes: R units of a module, O its outputs, H hidden size, V vocabulary, C vocabulary at a time; N rows of a batch,
P pairs of unit and context, U units, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from monolora.explain.ablation import ablated
from monolora.units import UnitName, inner_model, input_device

Contexts = Sequence[Sequence[int]]

# What attention and MLP blocks call the linear layer whose output they return, in transformers.
_WRITERS = frozenset(
    {"o_proj", "out_proj", "c_proj", "dense", "down_proj", "dense_4h_to_h", "fc2", "fc_out", "wo", "w2"}
)
# Norms of a block's output, before it is added to the residual stream (Gemma 2 and 3, OLMo 2, GLM 4, EXAONE 4, …).
_NORMS_AFTER = ("post_feedforward", "post_ffn", "post_mlp", "post_self_attn", "post_norm")
# An attention of these parts is softmax(…) V, head by head, and o_proj; gates, norms of V and the like have more.
_ATTENTION = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm", "rotary_emb"})
_AT_A_TIME = 16_384  # of the vocabulary, in float32
_PROBE = 1024.0  # large, so that a norm's epsilon vanishes beside it


class TopTokens(NamedTuple):
    """Tokens that a unit raises and lowers most.

    Attributes:
        how: ``direct`` (:func:`direct_logits`) or ``ablation`` (:func:`ablation_logits`).
        raised: token ids and by how much, above 0, largest first.
        lowered: likewise, below 0, most negative first.
    """

    how: Literal["direct", "ablation"]
    raised: list[tuple[int, float]]
    lowered: list[tuple[int, float]]


class _Stream(NamedTuple):
    """How a module's output reaches the logits: into the residual stream, through the final norm and unembedding."""

    into_stream: Callable[[torch.Tensor], torch.Tensor]
    norm: nn.Module
    head: nn.Linear


@torch.inference_mode()
def direct_logits(model: nn.Module, module: str, n: int, adapter: str = "default") -> list[TopTokens] | None:
    """Direct logit attribution of a module's units: their columns of B through the unembedding.

    For modules that write into the residual stream of a pre-norm decoder, d = s B[:, j], and for ``v_proj`` d is
    s B[:, j] through ``o_proj`` of all heads that read it (the OV circuit of Elhage et al. 2021, "A Mathematical
    Framework for Transformer Circuits"; the adapter that ``o_proj`` itself may have is left out). The values are
    W_U (gamma ⊙ d), with d centred first where the final norm is a LayerNorm: logits for each unit of activation
    (for ``v_proj``, for each unit of attention to the token), before the final norm divides by the size of the whole
    stream, and before whatever scales or caps logits or residuals in some models. What later layers make of d is left
    out.

    Args:
        model: a causal language model with LoRA or MonoLoRA layers, wrapped in a ``PeftModel`` or not.
        module: name of an adapted module of the base model.
        n: tokens of each kind, at most.
        adapter: whose units.

    Returns:
        For each unit of the module its tokens; None where there is no such path: for other modules, for decoders that
        normalise a block's output before adding it, for routed experts, for encoder-decoders, and where final norm or
        unembedding are not plain.
    """
    base: Any = inner_model(model)
    stream = _stream(base, module)
    if stream is None:
        return None
    layer = base.get_submodule(module)
    direction_RO = layer.lora_B[adapter].weight.float().T * layer.scaling[adapter]
    x_RH = _normed(stream.norm, stream.into_stream(direction_RO), base.dtype)
    logits_RV = torch.cat(
        [F.linear(x_RH.to(W_CH.device), W_CH.float()) for W_CH in stream.head.weight.split(_AT_A_TIME)], -1
    )
    return [_top(logits_V, n, "direct") for logits_V in logits_RV]


def _stream(base: Any, module: str) -> _Stream | None:
    parts = module.split(".")
    lists = [i for i in range(len(parts)) if isinstance(base.get_submodule(".".join(parts[:i])), nn.ModuleList)]
    head = base.get_output_embeddings()
    if len(lists) != 1 or not _is_plain(head) or base.config.is_encoder_decoder:
        return None
    (i,) = lists
    owner, block = base.get_submodule(".".join(parts[: i - 1])), base.get_submodule(".".join(parts[: i + 1]))
    norm, within, layer = _final_norm(owner, parts[i - 1]), parts[i + 1 :], base.get_submodule(module)
    if norm is None or not 1 <= len(within) <= 2 or not _is_pre_norm(block):
        return None
    into_stream: Callable[[torch.Tensor], torch.Tensor] | None = None
    if within[-1] in _WRITERS and layer.out_features == head.in_features:
        into_stream = _unchanged
    elif within[-1] == "v_proj" and len(within) == 2:
        groups = base.config.get_text_config().to_dict().get("num_key_value_heads")
        into_stream = None if groups is None else _through_attention(block.get_submodule(within[0]), groups, base.dtype)
    return None if into_stream is None else _Stream(into_stream, norm, head)


def _is_plain(head: nn.Module | None) -> bool:
    return isinstance(head, nn.Linear) and head.weight.is_floating_point() and not head.weight.is_meta


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _final_norm(owner: nn.Module, blocks: str) -> nn.Module | None:
    """The only norm beside the blocks; of several (BLOOM has one of the embedding) the only one after them."""
    children = list(owner.named_children())
    index = [name for name, _ in children].index(blocks)
    for among in (children, children[index:]):
        norms = [child for _, child in among if _is_norm(child)]
        if len(norms) == 1:
            return norms[0]
    return None


def _is_pre_norm(block: nn.Module) -> bool:
    norms = [name for name, child in block.named_children() if _is_norm(child)]
    return 1 <= len(norms) <= 2 and not any(name.startswith(_NORMS_AFTER) for name in norms)


def _unchanged(x: torch.Tensor) -> torch.Tensor:
    return x


def _through_attention(
    attention: Any, groups: int, dtype: torch.dtype
) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """From values to the output of ``o_proj`` under an attention of 1 in every head; None if it is not as simple.

    Args:
        attention: the block with ``v_proj``.
        groups: of heads; those of a group read the same values.
        dtype: in which ``o_proj`` computes.
    """
    parts = {name for name, _ in attention.named_children()}
    if "o_proj" not in parts or not parts <= _ATTENTION:
        return None
    o_proj, outputs = attention.o_proj, attention.v_proj.out_features
    if attention.q_proj.out_features != o_proj.in_features:  # the rest gates the heads (Qwen3-Next)
        return None
    plain: nn.Module = o_proj.get_base_layer() if isinstance(o_proj, LoraLayer) else o_proj

    def through(values_RO: torch.Tensor) -> torch.Tensor:
        by_group = values_RO.reshape(len(values_RO), groups, 1, -1)
        by_head = by_group.expand(-1, -1, o_proj.in_features // outputs, -1).flatten(1).to(dtype)
        by_head = by_head.contiguous()  # bitsandbytes' 4-bit kernel for CPUs takes the memory as it lies
        return cast(torch.Tensor, plain(by_head) - plain(torch.zeros_like(by_head))).float()  # quantized or not

    return through


def _normed(norm: nn.Module, x_RH: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A norm without its division: gamma ⊙ x, centred first by a LayerNorm.

    Gamma and centring are read off the norm's outputs for probes, so that Gemma's ``1 + weight`` is right too.
    """

    def probed(direction_H: torch.Tensor) -> torch.Tensor:
        """Without a bias; of entries 1 and -1."""
        probe_H = (_PROBE * direction_H).to(dtype)
        return cast(torch.Tensor, norm(probe_H).float() - norm(-probe_H).float()).to(x_RH.device) / 2

    ones_H = torch.ones_like(x_RH[0])
    signs_H = ones_H.clone()
    signs_H[1::2] = -1  # of mean 0
    is_centring = not probed(ones_H).any()
    return probed(signs_H) * signs_H * (x_RH - x_RH.mean(-1, keepdim=True) if is_centring else x_RH)


def _top(values_V: torch.Tensor, n: int, how: Literal["direct", "ablation"]) -> TopTokens:
    highest, lowest = (values_V.topk(min(n, len(values_V)), largest=largest) for largest in (True, False))
    return TopTokens(
        how,
        [(token, value) for value, token in zip(*map(torch.Tensor.tolist, highest), strict=True) if value > 0],
        [(token, value) for value, token in zip(*map(torch.Tensor.tolist, lowest), strict=True) if value < 0],
    )


def ablation_logits(
    model: nn.Module,
    contexts: Mapping[UnitName, Contexts],
    n: int,
    *,
    batch_size: int,
    adapter: str = "default",
) -> Iterator[tuple[UnitName, TopTokens]]:
    """Mean change of the next token's logits by a unit: logits with all units minus logits without it.

    The rows of a batch are the contexts of some units, once without each unit and once with all of them; so both sides
    of a difference are computed side by side, with the same padding. All rows of a unit are in one batch, which is
    larger than ``batch_size`` if a unit alone needs that. At most as many rows of the vocabulary's size are held.

    Args:
        model: a causal language model with LoRA or MonoLoRA layers, in evaluation mode.
        contexts: by unit, token ids that end where the next token is looked at; units of none are passed over.
        n: tokens of each kind, at most.
        batch_size: rows at a time.
        adapter: whose units.

    Yields:
        Each unit with its tokens, units of long contexts first.

    Raises:
        InputError, ValueError: as :func:`monolora.explain.ablation.ablated`.
    """
    for units in _batches(contexts, batch_size):
        changes_UV = _mean_changes(model, [contexts[unit] for unit in units], units, adapter)
        for unit, change_V in zip(units, changes_UV, strict=True):
            yield unit, _top(change_V, n, "ablation")


def _batches(contexts: Mapping[UnitName, Contexts], batch_size: int) -> Iterator[list[UnitName]]:
    """Units of similar length; those of the same contexts side by side, so that the rows with all units are shared."""
    lists = {unit: [list(context) for context in its] for unit, its in contexts.items() if its}
    ordered = sorted(lists, key=lambda unit: (max(map(len, lists[unit])), lists[unit], unit), reverse=True)
    batch: list[UnitName] = []
    for unit in ordered:
        pairs = [tuple(context) for member in (*batch, unit) for context in lists[member]]
        if batch and len(pairs) + len(set(pairs)) > batch_size:
            yield batch
            batch = []
        batch.append(unit)
    if batch:
        yield batch


@torch.inference_mode()
def _mean_changes(
    model: nn.Module, contexts: Sequence[Contexts], units: Sequence[UnitName], adapter: str
) -> torch.Tensor:
    """Mean over its contexts of what each unit changes, ``(U, V)`` in float32."""
    pairs = [(index, tuple(context)) for index, own in enumerate(contexts) for context in own]
    distinct = {context: row for row, context in enumerate(dict.fromkeys(context for _, context in pairs))}
    rows: list[list[UnitName]] = [*([] for _ in distinct), *([units[index]] for index, _ in pairs)]
    with ablated(model, rows, adapter):
        logits_NV = _last_logits(model, [*distinct, *(context for _, context in pairs)])
    logits_PV = logits_NV[[distinct[context] for _, context in pairs]] - logits_NV[len(distinct) :]
    unit_P = torch.tensor([index for index, _ in pairs], device=logits_PV.device)
    sums_UV = torch.zeros(len(units), logits_PV.shape[1], device=logits_PV.device).index_add_(0, unit_P, logits_PV)
    return sums_UV / unit_P.bincount()[:, None]


def _last_logits(model: Any, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Logits after the last token of each row, ``(N, V)`` in float32.

    Rows are padded on the left, so that the last position is the same for all and only its logits are computed.
    """
    width, device = max(map(len, rows)), input_device(model)
    ids_NT = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
    lengths_N1 = torch.tensor([[len(row)] for row in rows], device=device)
    positions_NT = torch.arange(width, device=device) - (width - lengths_N1)
    output = model(
        input_ids=ids_NT,
        attention_mask=(positions_NT >= 0).long(),
        position_ids=positions_NT.clamp(min=0),
        logits_to_keep=1,
        use_cache=False,
    )
    return cast(torch.Tensor, output.logits[:, -1].float())
