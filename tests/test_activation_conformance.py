"""Every registered activation through the laws of the design, by what its entry states.

An activation that is registered here, as anyone would, goes through the same.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaForCausalLM

from monolora import Activation, MonoLoraConfig, monolora_linear, monolora_reference, register_activation
from monolora.activations import _REGISTRY, activation_named
from monolora.checkpoint import AdapterFileError
from monolora.layer import MonoLoraLayer
from monolora.merge import export_exact, export_lora, linearize
from monolora.merge.unload import active_units
from monolora.prune import read_adapter, without_units
from monolora.units import Layout, UnitName
from tests.support.activations import FUSED, NAMES
from tests.support.keeping import silent_on, tiny_llama

IDS = torch.randint(64, (2, 7), generator=torch.Generator().manual_seed(0))
OUTSIDE = "huber"  # registered below, by a fixture
EVERY = pytest.mark.parametrize("name", [*NAMES, OUTSIDE])
WITH_THRESHOLD = [name for name in NAMES if activation_named(name).threshold is not None]


@pytest.fixture(scope="module", autouse=True)
def outside() -> Iterator[None]:
    """An activation of somebody else's: all that it takes to add one."""
    register_activation(
        OUTSIDE,
        Activation(
            function=lambda z: torch.where(z.abs() < 1, z * z.abs() / 2, z.sign() * (z.abs() - 0.5)),
            summary="a smooth shrinkage",
            signed=True,
        ),
    )
    yield
    del _REGISTRY[OUTSIDE]


def _base() -> LlamaForCausalLM:
    """The same one every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return tiny_llama()


def _adapted(name: str, targets: Any = ("q_proj", "v_proj", "down_proj"), seed: int = 0, **settings: Any) -> PeftModel:
    """A tiny model and an adapter in evaluation mode, with noise in A and B, and in thresholds where there are any."""
    config = MonoLoraConfig(
        **{"r": 4, "target_modules": list(targets), "task_type": "CAUSAL_LM", "activation": name} | settings
    )
    model = get_peft_model(_base(), config)
    generator = torch.Generator().manual_seed(seed)
    for key, tensor in model.state_dict().items():
        if "lora_threshold" in key:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.3)
        elif "lora_" in key:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
    return model.eval()


@torch.no_grad()
def _logits(model: nn.Module) -> torch.Tensor:
    return model(input_ids=IDS).logits


@EVERY
@torch.no_grad()
def test_what_the_entry_states(name: str) -> None:
    activation = activation_named(name)
    z = torch.cat([torch.linspace(-6, 6, 1201, dtype=torch.float64), torch.randn(803, dtype=torch.float64) * 3])
    z = z.view(-1, 4)
    threshold = (
        torch.tensor([[0.0], [0.1], [0.5], [1.0]], dtype=torch.float64) if activation.threshold is not None else None
    )

    def act(z: torch.Tensor, threshold: torch.Tensor | None = threshold) -> torch.Tensor:
        return activation(z, -1, threshold)

    h = act(z)
    assert h.shape == z.shape
    assert h.dtype == z.dtype
    assert bool((h < 0).any()) == activation.signed
    assert (not act(torch.zeros(3, 4, dtype=z.dtype)).any()) == activation.zero_at_zero
    assert (not h[z <= 0].any() and not activation.signed) == activation.one_sided
    scaled = torch.allclose(act(3 * z), 3 * h, rtol=1e-12, atol=1e-12)
    assert scaled == activation.scale_free or activation.threshold is not None  # scaled, if its threshold is too
    if threshold is not None:
        torch.testing.assert_close(act(3 * z, 3 * threshold), 3 * h)
    first = activation(z[:, :1], -1, None if threshold is None else threshold[:1])
    assert torch.allclose(first, h[:, :1], rtol=1e-12) != activation.over_units
    assert torch.equal(activation(z.T, 0, threshold).T, h)  # along any dimension
    if activation.bounds is not None:
        assert torch.equal(h, z.clamp(*activation.bounds))
    assert act(torch.full((1, 4), torch.nan, dtype=z.dtype)).isnan().all() or activation.over_units  # never hidden


@EVERY
def test_law_1_the_base_at_the_start_and_in_training(name: str) -> None:
    base = _base()
    expected = _logits(base)
    config = MonoLoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", activation=name)
    model = get_peft_model(base, config)
    assert torch.equal(_logits(model.train()), expected)
    assert torch.equal(_logits(model.eval()), expected)


@EVERY
def test_law_3_the_layer_is_the_reference(name: str) -> None:
    """The layer, whichever path it takes, against the equation with the layer's own tensors."""
    model = get_peft_model(nn.Sequential(nn.Linear(6, 5)), MonoLoraConfig(r=4, target_modules=["0"], activation=name))
    layer: Any = model.base_model.model[0]
    nn.init.normal_(layer.lora_B["default"].weight)
    x = torch.randn(3, 6, requires_grad=True)
    A, B, base = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.base_layer
    model.eval()
    args = (x, base.weight, base.bias, A, B, layer.scaling["default"], name, layer.threshold("default"))
    found, expected = layer(x), monolora_reference(*args)
    torch.testing.assert_close(found, expected)
    g = torch.randn_like(found)
    for mine, theirs in zip(
        torch.autograd.grad(found, [x, A, B], g), torch.autograd.grad(expected, [x, A, B], g), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", FUSED)
def test_law_3_the_fused_gradient_is_the_functions_own(name: str) -> None:
    z = torch.randn(64, dtype=torch.float64, requires_grad=True)
    h, g = activation_named(name)(z), torch.randn(64, dtype=torch.float64)
    gradient = activation_named(name).gradient
    assert gradient is not None
    torch.testing.assert_close(gradient(g, h.detach()), torch.autograd.grad(h, z, g)[0], rtol=1e-12, atol=1e-14)
    tensors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 5), (4, 5), (4,), (3, 5), (4, 3))]
    assert torch.autograd.gradcheck(lambda *args: monolora_linear(*args, 0.7, name)[0], tensors)
    assert torch.autograd.gradgradcheck(lambda *args: monolora_linear(*args, 0.7, name)[0], tensors)


@EVERY
def test_law_4_saved_and_loaded_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = _adapted(name, ["q_proj", "down_proj", "embed_tokens"])
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    loaded = PeftModel.from_pretrained(_base(), tmp_path).eval()
    assert torch.equal(_logits(loaded), _logits(model))
    mine, theirs = ({k: v for k, v in m.state_dict().items() if "lora_" in k} for m in (model, loaded))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    names = load_file(tmp_path / "adapter_model.safetensors")
    has_threshold = activation_named(name).threshold is not None
    assert sum(key.endswith(".monolora_threshold.weight") for key in names) == (has_threshold and len(names) // 3)


@pytest.mark.parametrize("name", WITH_THRESHOLD)
@pytest.mark.parametrize("damage", ["missing", "shape", "nan", "foreign"])
def test_law_4_a_damaged_threshold_is_refused_by_its_name(name: str, damage: str, tmp_path: Path) -> None:
    _adapted(name).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    key = min(key for key in tensors if "threshold" in key)
    if damage == "missing":
        del tensors[key]
    elif damage == "shape":
        tensors[key] = tensors[key][:2].clone()
    elif damage == "nan":
        tensors[key] = tensors[key] * torch.nan
    else:
        key = key.replace("q_proj", "k_proj").replace("down_proj", "up_proj")
        tensors[key] = torch.ones(4, 1)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(AdapterFileError, match=key.removesuffix(".weight").replace(".", r"\.").split("monolora_")[0]):
        PeftModel.from_pretrained(_base(), tmp_path)


def test_law_4_a_threshold_of_another_activation_is_foreign(tmp_path: Path) -> None:
    _adapted("jumprelu").save_pretrained(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace('"jumprelu"', '"relu"'))
    with pytest.raises(AdapterFileError, match=r"foreign tensor.*threshold"):
        PeftModel.from_pretrained(_base(), tmp_path)


@EVERY
def test_law_5_a_factor_moves_between_the_matrices_where_it_is_stated(name: str) -> None:
    model, activation = _adapted(name), activation_named(name)
    before = _logits(model)
    for key, tensor in model.state_dict().items():
        if "lora_A" in key or "lora_B" in key:
            tensor.mul_(4.0 if "lora_A" in key else 0.25)
    assert torch.equal(_logits(model), before) == activation.scale_free


@EVERY
def test_law_6_stock_names_are_not_in_the_file(name: str, tmp_path: Path) -> None:
    """Stock PEFT goes by ``lora_`` names (its refusal is tested where PEFT is taught the method)."""
    _adapted(name).save_pretrained(tmp_path)
    assert not [key for key in load_file(tmp_path / "adapter_model.safetensors") if ".lora_" in key]


@EVERY
def test_law_7_resumed_is_uninterrupted(name: str, tmp_path: Path) -> None:
    """Four steps, or two, a file, and two more: bit for bit, thresholds too."""

    def steps(model: PeftModel, first: int, last: int) -> PeftModel:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trained, 0.5)
        for step in range(first, last):
            ids = torch.randint(64, (2, 6), generator=torch.Generator().manual_seed(step))
            model.train()(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return model

    whole = steps(_adapted(name), 0, 4)
    half = steps(_adapted(name), 0, 2)
    half.save_pretrained(tmp_path)
    resumed = steps(PeftModel.from_pretrained(_base(), tmp_path, is_trainable=True), 2, 4)
    mine, theirs = ({k: v for k, v in m.state_dict().items() if "lora_" in k} for m in (whole, resumed))
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    start = _adapted(name).state_dict()
    changed = {key.split(".lora_")[1] for key in mine if not torch.equal(mine[key], start[key])}
    assert changed == {key.split(".lora_")[1] for key in mine}  # A, B and thresholds are trained


@EVERY
@torch.no_grad()
def test_law_9_silent_units_are_the_base(name: str) -> None:
    if not activation_named(name).one_sided:
        pytest.skip("never silent on more than a hyperplane")
    base = _base().eval()
    expected = base(input_ids=IDS[:1]).logits
    config = MonoLoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", activation=name)
    model = get_peft_model(base, config).eval()
    silent_on(model, IDS[:1])
    assert torch.equal(model(input_ids=IDS[:1]).logits, expected)


@EVERY
def test_an_exact_checkpoint_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    model = _adapted(name, ["q_proj", "v_proj", "down_proj", "embed_tokens"])
    expected = _logits(model)
    export_exact(model, tmp_path)
    assert torch.equal(_logits(LlamaForCausalLM.from_pretrained(tmp_path).eval()), expected)


@EVERY
@torch.no_grad()
def test_the_linear_merge_is_the_best_map_for_gaussian_inputs(name: str, tmp_path: Path) -> None:
    """Without text: the least-squares slope of each unit, here by sampling. With text: whatever the activation."""
    model = _adapted(name)
    generator = torch.Generator().manual_seed(1)
    texts = [{"input_ids": torch.randint(64, (16, 24), generator=generator)} for _ in range(4)]
    assert linearize(model, texts).keys() == active_units(model).keys()
    if activation_named(name).over_units:
        with pytest.raises(ValueError, match="no closed form"):
            linearize(model, None)
        return
    maps = linearize(model, None)
    export_lora(model, maps, tmp_path)
    stock = PeftModel.from_pretrained(_base(), tmp_path)
    assert {key.split(".lora_")[1][0] for key in stock.state_dict() if ".lora_" in key} == {"A", "B"}
    for path, units in active_units(model).items():
        z = torch.randn(200_000, 1, generator=generator, dtype=torch.float64) * units.A.double().norm(dim=1)
        slope = (units.activate(z) * z).sum(0) / z.square().sum(0)
        torch.testing.assert_close(maps[path].A.double(), units.A.double() * slope[:, None], rtol=0.02, atol=0.01)


@EVERY
def test_hotswap(name: str, tmp_path: Path) -> None:
    """An adapter of another rank, smaller and larger, in place of a loaded one."""
    model = _adapted(name)
    for rank in (2, 6):
        other = _adapted(name, seed=rank, r=rank)
        other.save_pretrained(tmp_path / str(rank))
        hotswap_adapter(model, str(tmp_path / str(rank)), "default", torch_device="cpu")
        torch.testing.assert_close(_logits(model), _logits(other))


@pytest.mark.parametrize("name", WITH_THRESHOLD)
def test_hotswap_after_preparing_for_compilation(name: str, tmp_path: Path) -> None:
    """PEFT pads A and B to one rank; what is saved has no padding."""
    model, other = _adapted(name), _adapted(name, seed=1, r=6)
    expected = _logits(model)
    prepare_model_for_compiled_hotswap(model, target_rank=8)
    torch.testing.assert_close(_logits(model), expected)
    model.save_pretrained(tmp_path / "unpadded")
    assert torch.equal(_logits(PeftModel.from_pretrained(_base(), tmp_path / "unpadded").eval()), expected)
    other.save_pretrained(tmp_path / "other")
    hotswap_adapter(model, str(tmp_path / "other"), "default", torch_device="cpu")
    torch.testing.assert_close(_logits(model), _logits(other))


@EVERY
def test_a_pruned_unit_is_one_that_is_zero(name: str, tmp_path: Path) -> None:
    model = _adapted(name)
    model.save_pretrained(tmp_path)
    if activation_named(name).over_units:
        with pytest.raises(ValueError, match="cannot be pruned exactly"):
            read_adapter(str(tmp_path))
        return
    (tmp_path / "pruned").mkdir()
    module = "model.layers.0.mlp.down_proj"
    without_units(read_adapter(str(tmp_path)), [UnitName(module, 1)]).save(tmp_path / "pruned")
    layer: Any = model.get_base_model().get_submodule(module)
    layer.lora_B["default"].weight.data[:, 1] = 0
    pruned = PeftModel.from_pretrained(_base(), tmp_path / "pruned").eval()
    torch.testing.assert_close(_logits(pruned), _logits(model))


@EVERY
def test_a_sum_of_adapters(name: str) -> None:
    model = _adapted(name)
    other = _adapted(name, seed=1)
    model.add_adapter("other", copy.deepcopy(other.peft_config["default"]))
    for key, tensor in other.state_dict().items():
        if "lora_" in key:
            model.state_dict()[key.replace("default", "other")].copy_(tensor)
    if activation_named(name).over_units:
        with pytest.raises(ValueError, match="Cannot combine"):
            model.add_weighted_adapter(["default", "other"], [1.0, -0.5], "sum", "cat")
        return
    model.add_weighted_adapter(["default", "other"], [1.0, -0.5], "sum", "cat")
    x = torch.randn(3, 16)
    layer: Any = next(m for m in model.eval().modules() if isinstance(m, MonoLoraLayer))
    x = torch.randn(3, layer.in_features)
    parts = [layer._delta(adapter, x) * weight for adapter, weight in (("default", 1.0), ("other", -0.5))]
    torch.testing.assert_close(layer._delta("sum", x), parts[0] + parts[1])


@EVERY
def test_readers_of_units_know_the_sign(name: str) -> None:
    assert Layout.of(_adapted(name)).signed == activation_named(name).signed


@EVERY
def test_convolutions_have_their_units_in_another_dimension(name: str) -> None:
    model = get_peft_model(
        nn.Sequential(nn.Conv2d(3, 5, 3)), MonoLoraConfig(r=4, target_modules=["0"], activation=name)
    )
    layer: Any = model.base_model.model[0]
    nn.init.normal_(layer.lora_B["default"].weight)
    model.eval()
    x = torch.randn(2, 3, 6, 6)
    z = layer.lora_A["default"](x)
    threshold = layer.threshold("default")
    h = activation_named(name)(z.movedim(1, -1), -1, threshold).movedim(-1, 1)
    expected = layer.base_layer(x) + layer.lora_B["default"](h) * layer.scaling["default"]
    torch.testing.assert_close(model(x), expected)
