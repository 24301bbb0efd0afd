"""Pruned adapters against the unpruned ones with columns of B set to zero in memory."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaForCausalLM

from monolora import MonoLoraConfig
from monolora.errors import InputError
from monolora.prune import in_balanced_basis, rank_and_alpha, read_adapter, unit_tensors, without_units
from monolora.units import UnitName

Q0, Q1 = (f"model.layers.{k}.self_attn.q_proj" for k in (0, 1))
D0, D1 = (f"model.layers.{k}.mlp.down_proj" for k in (0, 1))
KINDS = pytest.mark.parametrize("kind", [MonoLoraConfig, LoraConfig])
SOME = [UnitName(Q0, 1), UnitName(Q0, 2), UnitName(Q1, 0), UnitName(D0, 3)]
TARGETS = ["q_proj", "down_proj"]

Save = Callable[..., Path]


@pytest.fixture
def save(base_folder: Path, fill: Callable[..., nn.Module], tmp_path: Path) -> Save:
    """``save(kind, **config)``: an adapter folder on ``base_folder``, of rank 4."""

    def save_(kind: type[LoraConfig] = MonoLoraConfig, **config: Any) -> Path:
        wanted: dict[str, Any] = {"r": 4, "target_modules": TARGETS, "task_type": "CAUSAL_LM"}
        model = get_peft_model(LlamaForCausalLM.from_pretrained(base_folder), kind(**wanted | config))
        fill(model)
        model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
        return tmp_path / "adapter"

    return save_


def _prune(folder: Path, units: Iterable[UnitName], name: str = "pruned") -> Path:
    out = folder.with_name(name)
    out.mkdir()
    without_units(read_adapter(str(folder)), units).save(out)
    return out


def _loaded(folder: Path) -> PeftModel:
    return PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(folder.parent / "tiny-llama"), str(folder)).eval()


def _zeroed(model: PeftModel, units: Iterable[UnitName]) -> PeftModel:
    for module, unit in units:
        layer: Any = model.get_base_model().get_submodule(module)
        B = layer.lora_embedding_B["default"] if layer.lora_embedding_B else layer.lora_B["default"].weight
        B.data[:, unit] = 0
    return model


def _layers(model: PeftModel) -> dict[str, LoraLayer]:
    return {name: layer for name, layer in model.get_base_model().named_modules() if isinstance(layer, LoraLayer)}


@torch.no_grad()
def _check_same(folder: Path, pruned: Path, units: Iterable[UnitName], ids: torch.Tensor) -> dict[str, int]:
    """Same logits to rounding and same scaling to the bit; returns the pruned ranks."""
    before, after = _loaded(folder), _loaded(pruned)
    there, left = _layers(before), _layers(after)
    assert not torch.allclose(before(ids).logits, after(ids).logits, rtol=1e-3)
    for name, layer in left.items():
        assert layer.scaling["default"] == there[name].scaling["default"]
    # The sums over units are shorter, so that they may be rounded otherwise: not bitwise.
    torch.testing.assert_close(after(ids).logits, _zeroed(before, units)(ids).logits, rtol=1e-5, atol=1e-6)
    return {name: layer.r["default"] for name, layer in left.items()}


CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"lora_alpha": 8},
    "odd scaling": {"r": 5, "lora_alpha": 16},
    "rslora": {"use_rslora": True, "lora_alpha": 7},
    "patterns": {
        "rank_pattern": {"layers.1.self_attn.q_proj": 3, r"layers\.[0-9]\.mlp\.down_proj": 5, "q_proj": 6},
        "alpha_pattern": {"down_proj": 7.5, "layers.1.mlp.down_proj": 5},
    },
    "bias of B": {"lora_bias": True},
    "trained tokens": {"trainable_token_indices": [3, 5]},
    "regex": {"target_modules": r".*\.(q_proj|down_proj)", "exclude_modules": r".*\.gate_proj"},
    "exclusions": {"target_modules": [*TARGETS, "up_proj"], "exclude_modules": ["up_proj", "x+y"]},
    "some layers": {"target_modules": [*TARGETS, "up_proj"], "layers_to_transform": [0, 1], "layers_pattern": "layers"},
}


@KINDS
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
@pytest.mark.filterwarnings("ignore:Adapter 'default'")  # whose biases PEFT takes for matrices cut off
@pytest.mark.filterwarnings("ignore:You have passed exclude_modules")
def test_as_columns_of_zeros(save: Save, kind: type[LoraConfig], config: dict[str, Any], ids: torch.Tensor) -> None:
    folder = save(kind, **config)
    count = read_adapter(str(folder)).units
    ranks = _check_same(folder, _prune(folder, SOME), SOME, ids)
    pruned = {module: count[module] - sum(name == module for name, _ in SOME) for module in count}
    needs_null_unit = config in (CONFIGS["odd scaling"], CONFIGS["rslora"])
    assert ranks == pruned | ({Q0: pruned[Q0] + 1} if needs_null_unit else {})


@pytest.mark.parametrize("activation", ["softplus", "identity"])
def test_other_activations(save: Save, activation: str, ids: torch.Tensor) -> None:
    folder = save(activation=activation)
    _check_same(folder, _prune(folder, SOME), SOME, ids)


@KINDS
@pytest.mark.parametrize(
    "config", [CONFIGS[name] for name in ("plain", "patterns", "regex", "exclusions", "some layers")]
)
@pytest.mark.filterwarnings("ignore:You have passed exclude_modules")
def test_whole_modules(save: Save, kind: type[LoraConfig], config: dict[str, Any], ids: torch.Tensor) -> None:
    folder = save(kind, **config)
    count = read_adapter(str(folder)).units
    gone = [*(UnitName(module, unit) for module in (Q1, D0) for unit in range(count[module])), UnitName(D1, 0)]
    pruned = _prune(folder, gone)
    ranks = _check_same(folder, pruned, gone, ids)
    assert ranks == {name: n - (name == D1) for name, n in count.items() if name not in (Q1, D0)}
    assert not any(Q1 in name or D0 in name for name in load_file(pruned / "adapter_model.safetensors"))


def test_replicated_layers(save: Save, ids: torch.Tensor) -> None:
    gone = [*SOME, UnitName("model.layers.3.self_attn.q_proj", 1)]
    gone += [UnitName("model.layers.2.mlp.down_proj", unit) for unit in range(4)]
    folder = save(LoraConfig, layer_replication=[(0, 2), (0, 2)])
    assert len(_check_same(folder, _prune(folder, gone), gone, ids)) == 7


@KINDS
def test_embeddings(save: Save, kind: type[LoraConfig], ids: torch.Tensor) -> None:
    folder = save(kind, target_modules=["embed_tokens", "q_proj"])
    gone = [UnitName("model.embed_tokens", 0), UnitName("model.embed_tokens", 3)]
    assert _check_same(folder, _prune(folder, gone), gone, ids) == {"model.embed_tokens": 2, Q0: 4, Q1: 4}
    tensors = load_file(folder.with_name("pruned") / "adapter_model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items() if "embedding" in name} == {
        f"base_model.model.model.embed_tokens.{'mono' * (kind is MonoLoraConfig)}lora_embedding_{which}": shape
        for which, shape in (("A", (2, 64)), ("B", (16, 2)))
    }


@KINDS
def test_what_was_saved_with_a_module_that_leaves(
    saved: Callable[..., tuple[Path, torch.Tensor]], kind: type[LoraConfig], ids: torch.Tensor
) -> None:
    folder, _ = saved(target_modules=["embed_tokens", "q_proj"], modules_to_save=["lm_head"])
    tensors = load_file(folder / "adapter_model.safetensors")
    embedding = "base_model.model.model.embed_tokens"
    if kind is LoraConfig:
        tensors = {name.replace("monolora_", "lora_"): tensor for name, tensor in tensors.items()}
        config = json.loads((folder / "adapter_config.json").read_text()) | {"peft_type": "LORA"}
        del config["activation"]
        (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    gone = [UnitName("model.embed_tokens", unit) for unit in range(4)]
    pruned = _prune(folder, gone)
    _check_same(folder, pruned, gone, ids)
    left = load_file(pruned / "adapter_model.safetensors")
    assert torch.equal(left[f"{embedding}.weight"], tensors[f"{embedding}.base_layer.weight"])
    assert "base_model.model.lm_head.weight" in left


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_trained_biases(
    make_llama: Callable[..., LlamaForCausalLM], fill: Callable[..., nn.Module], tmp_path: Path, bias: str, ids: Any
) -> None:
    make_llama(attention_bias=True).save_pretrained(tmp_path / "tiny-llama")
    base = LlamaForCausalLM.from_pretrained(tmp_path / "tiny-llama")
    model = get_peft_model(base, MonoLoraConfig(r=2, target_modules=["q_proj"], bias=bias, task_type="CAUSAL_LM"))
    fill(model)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "adapter")
    gone = [UnitName(Q0, 0), UnitName(Q0, 1)]
    assert _check_same(tmp_path / "adapter", _prune(tmp_path / "adapter", gone), gone, ids) == {Q1: 2}


@KINDS
def test_everything_else_keeps_its_bits(save: Save, kind: type[LoraConfig]) -> None:
    folder = save(kind, modules_to_save=["lm_head"], revision="main")
    before = load_file(folder / "adapter_model.safetensors")
    before = {name: tensor.to(torch.bfloat16) for name, tensor in before.items()}
    save_file(before, folder / "adapter_model.safetensors", metadata={"format": "pt", "note": "x"})
    pruned = _prune(folder, [UnitName(Q0, 1), UnitName(Q0, 2)])
    after = load_file(pruned / "adapter_model.safetensors")
    with safe_open(pruned / "adapter_model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "note": "x"}
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        wanted = before[name]
        if Q0 in name:
            wanted = wanted[[0, 3]] if "_A" in name else wanted[:, [0, 3]]
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor.view(torch.int16), wanted.contiguous().view(torch.int16))
    settings_before, settings_after = (
        json.loads((path / "adapter_config.json").read_text()) for path in (folder, pruned)
    )
    changed = {key for key in settings_after if settings_after[key] != settings_before[key]}
    assert changed == {"rank_pattern", "alpha_pattern"}
    assert settings_after["rank_pattern"] == {"^" + Q0.replace(".", r"\."): 2}


def test_twice_is_once(save: Save, ids: torch.Tensor) -> None:
    folder = save(r=8, use_rslora=True)
    gone = [UnitName(Q0, 0), UnitName(Q0, 5), *(UnitName(D1, unit) for unit in range(8)), UnitName(D0, 7)]
    first = _prune(folder, [UnitName(Q0, 0), *gone[2:-1]], "first")
    second = _prune(first, [UnitName(Q0, 4), UnitName(D0, 7)], "second")
    once = _prune(folder, gone, "once")
    _check_same(folder, second, gone, ids)
    after, wanted = (load_file(path / "adapter_model.safetensors") for path in (second, once))
    assert after.keys() == wanted.keys()
    assert all(torch.equal(after[name], wanted[name]) for name in wanted)


def test_saved_again_by_peft(save: Save, ids: torch.Tensor) -> None:
    """PEFT sorts patterns as it saves them, and takes the first that matches."""
    folder = save(**CONFIGS["patterns"])
    again = folder.with_name("again")
    _loaded(_prune(folder, SOME)).save_pretrained(again)
    _check_same(folder, again, SOME, ids)


def test_null_units(save: Save) -> None:
    """No double over 3 is 16/5 as a double."""
    folder = save(r=5, lora_alpha=16)
    gone = [UnitName(Q0, 0), UnitName(Q0, 3)]
    found = without_units(read_adapter(str(folder)), gone)
    assert found.left == {Q0: [1, 2, 4, None]} | {module: [0, 1, 2, 3, 4] for module in (Q1, D0, D1)}
    A, B = (found.tensors[f"base_model.model.{Q0}.monolora_{which}.weight"] for which in "AB")
    assert A.shape[0] == B.shape[1] == 4
    assert not A[3].any()
    assert not B[:, 3].any()


class _Odd(nn.Module):
    """Names that end alike or read as expressions, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.proj = nn.Linear(4, 4)
        self.inner = nn.ModuleDict({"proj": nn.Linear(4, 4), "a+(b": nn.Linear(4, 4), "aab": nn.Linear(4, 4)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.proj(self.conv(x).movedim(1, -1))
        for layer in self.inner.values():
            x = layer(x)
        return x


@pytest.mark.parametrize("kind", [MonoLoraConfig, LoraConfig])
@pytest.mark.parametrize("whole", ["proj", "inner.a+(b", "conv", "inner.proj"])
def test_odd_names_and_convolutions(
    fill: Callable[..., nn.Module], tmp_path: Path, kind: type[LoraConfig], whole: str
) -> None:
    torch.manual_seed(0)
    base = _Odd()
    weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    modules = ["conv", "proj", "inner.a+(b", "inner.aab"]
    model = get_peft_model(base, kind(r=4, target_modules=modules))
    fill(model)
    model.save_pretrained(tmp_path / "adapter")
    gone = [UnitName(whole, unit) for unit in range(4)]
    gone += [UnitName(name, 1) for name in ("conv", "proj", "inner.a+(b") if name != whole]
    gone += [UnitName("proj", 2)] if whole != "proj" else []
    pruned = _prune(tmp_path / "adapter", gone)
    fresh = _Odd()
    fresh.load_state_dict(weights)
    after = PeftModel.from_pretrained(fresh, str(pruned))
    wanted = {"conv": 3, "proj": 2, "inner.a+(b": 3, "inner.aab": 4, "inner.proj": 4}
    del wanted[whole]
    assert {name: layer.r["default"] for name, layer in _layers(after).items()} == wanted
    x = torch.randn(2, 3, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(after(x), _zeroed(model, gone)(x), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups")
def test_convolutions_with_groups(fill: Callable[..., nn.Module], tmp_path: Path) -> None:
    base = nn.ModuleDict({"conv": nn.Conv2d(4, 4, 3, groups=2), "proj": nn.Linear(4, 4)})
    get_peft_model(base, LoraConfig(r=4, target_modules=["conv", "proj"])).save_pretrained(tmp_path / "adapter")
    adapter = read_adapter(str(tmp_path / "adapter"))
    assert without_units(adapter, [UnitName("proj", 0)]).left == {"conv": [0, 1, 2, 3], "proj": [1, 2, 3]}
    with pytest.raises(InputError, match="conv is a convolution with groups"):
        without_units(adapter, [UnitName("conv", 0)])


def _bits(number: float) -> bytes:
    return struct.pack("d", number)


@settings(deadline=None, max_examples=500)
@given(
    alpha=st.integers(1, 1024) | st.floats(1e-3, 1e3),
    rank=st.integers(1, 300),
    data=st.data(),
    rslora=st.booleans(),
)
def test_scaling_to_the_bit(alpha: float, rank: int, data: st.DataObject, rslora: bool) -> None:
    kept = data.draw(st.integers(1, rank))
    new_rank, new_alpha = rank_and_alpha(kept, rank, alpha, rslora)
    assert kept <= new_rank <= rank
    divide: Callable[[float, int], float] = (lambda a, r: a / math.sqrt(r)) if rslora else (lambda a, r: a / r)
    scaling = divide(alpha, rank)
    assert _bits(divide(json.loads(json.dumps(new_alpha)), new_rank)) == _bits(scaling)
    if not rslora and scaling.is_integer():
        assert new_rank == kept
    for fewer in range(kept, new_rank):  # no number nearby would have done
        near = scaling * (math.sqrt(fewer) if rslora else fewer)
        for _ in range(5):
            near = math.nextafter(near, 0)
        for _ in range(11):
            assert divide(near, fewer) != scaling
            near = math.nextafter(near, math.inf)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"arrow_config": {}}, "arrow_config"),
        ({"use_bdlora": {}}, "use_bdlora"),
        ({"velora_config": {}}, "velora_config"),
        ({"monteclora_config": {}}, "monteclora_config"),
        ({"kasa_config": {}}, "kasa_config"),
        ({"use_qalora": True}, "use_qalora"),
        ({"target_parameters": ["weight"]}, "target_parameters"),
        ({"ensure_weight_tying": True}, "ensure_weight_tying"),
        ({"init_lora_weights": "pissa_niter_16"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "olora"}, "path_initial_model_for_weight_conversion"),
        ({"r": 5}, "has 4 units for model.layers.0.mlp.down_proj and a config that says 5"),
        ({"peft_type": "MONOLORA"}, "belongs to a plain LoRA adapter"),
        ({"peft_type": "VERA"}, "neither a MonoLoRA nor a LoRA adapter"),
        ({"peft_type": "MONOLORA", "activation": "topk:2"}, "activation='topk:2'"),
    ],
)
@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments")
@pytest.mark.filterwarnings("ignore:MonteCLoRA")
def test_refused(save: Save, changed: dict[str, Any], says: str) -> None:
    folder = save(LoraConfig)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        read_adapter(str(folder))
    assert "\n" not in str(caught.value)


def test_a_monolora_file_called_lora(save: Save) -> None:
    folder = save()
    path = folder / "adapter_config.json"
    path.write_text(path.read_text().replace('"MONOLORA"', '"LORA"').replace('"activation": "relu",', ""))
    with pytest.raises(InputError, match=r"monolora_A.* is neither A nor B"):
        read_adapter(str(folder))


def test_an_odd_rank_of_an_orthogonal_start(save: Save, ids: torch.Tensor) -> None:
    folder = save(LoraConfig, init_lora_weights="orthogonal")
    _check_same(folder, _prune(folder, SOME), SOME, ids)


def test_nothing_left(save: Save) -> None:
    adapter = read_adapter(str(save()))
    everything = {UnitName(module, unit) for module, count in adapter.units.items() for unit in range(count)}
    with pytest.raises(InputError, match="Nothing of the adapter would be left"):
        without_units(adapter, everything)


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
@pytest.mark.filterwarnings("ignore:Adapter 'default'")  # whose biases PEFT takes for matrices cut off
def test_a_bias_of_b_stays(save: Save) -> None:
    adapter = read_adapter(str(save(lora_bias=True)))
    with pytest.raises(InputError, match=f"{Q1} would lose all units, but not the bias"):
        without_units(adapter, {UnitName(Q1, unit) for unit in range(4)})


@pytest.mark.parametrize("config", [CONFIGS[name] for name in ("plain", "rslora", "patterns")])
def test_vllm_reads_the_same_ranks_and_scalings(save: Save, config: dict[str, Any]) -> None:
    helper_class = pytest.importorskip("vllm.lora.peft_helper").PEFTHelper
    folder = save(LoraConfig, **config)
    pruned = _prune(folder, [*SOME, *(UnitName(D1, unit) for unit in range(read_adapter(str(folder)).units[D1]))])
    helper = helper_class.from_local_dir(str(pruned), None)
    for name, layer in _layers(_loaded(pruned)).items():
        assert helper.get_rank_and_scaling(name) == (layer.r["default"], layer.scaling["default"])


@pytest.mark.parametrize("targets", [TARGETS, ["embed_tokens", "q_proj"]])
@pytest.mark.parametrize("rank", [3, 20])  # more than there are inputs
def test_the_balanced_basis(save: Save, targets: list[str], rank: int) -> None:
    """The same product, of orthogonal directions whose two halves are of one length, the largest first."""
    adapter = read_adapter(str(save(LoraConfig, r=rank, target_modules=targets)))
    balanced = in_balanced_basis(adapter)
    assert balanced.tensors.keys() == adapter.tensors.keys()
    for names in unit_tensors(adapter).values():
        (A, B), (A_, B_) = ([of.tensors[names[which]] for which in "AB"] for of in (adapter, balanced))
        assert (A_.shape, B_.shape) == (A.shape, B.shape)
        torch.testing.assert_close(B_ @ A_, B @ A, atol=1e-5, rtol=1e-4)
        values = torch.linalg.svdvals(B.double() @ A.double())[:rank].float()
        values = torch.cat([values, torch.zeros(rank - len(values))])
        torch.testing.assert_close(B_.T @ B_, torch.diag(values), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(A_ @ A_.T, torch.diag(values), atol=1e-4, rtol=1e-4)
