"""Silence: the closed forms, the penalty and the calibration, against brute force and scipy."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from monolora import MonoLoraConfig
from monolora.data.chat_template import IGNORED
from monolora.keep.anchors import Anchor, Anchors
from monolora.keep.keeper import Preparation
from monolora.keep.silence import MARGIN, Silence, contrastive_rows, quiet_rows, ridge, token_weights
from monolora.units import adapted_layers
from tests.support.keeping import TOKENIZER, tiny_llama


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.5, 3.0, 30.0]))
def test_contrastive_rows_minimise_the_written_objective(seed: int, weight: float) -> None:
    """Against scipy's general minimiser, row by row."""
    torch.manual_seed(seed)
    anchor, task = torch.randn(90, 6) + 0.3, torch.randn(70, 6) @ torch.randn(6, 6)
    shares = token_weights(torch.rand(2, 70))
    rows = contrastive_rows(anchor, task, shares, 3, torch.Generator().manual_seed(3), weight).double().numpy()
    x, y, widths, p = (tensor.double().numpy() for tensor in (anchor, task, ridge(anchor, task), shares / 70))
    z = y @ torch.randn(3, 6, generator=torch.Generator().manual_seed(3)).double().numpy().T
    targets = np.maximum(0, 1 + (z - p @ z) / np.sqrt(p @ (z - p @ z) ** 2))

    def objective(a: np.ndarray, t: np.ndarray) -> float:
        violated = np.maximum(0, x @ a + 1)
        return p @ (y @ a - t) ** 2 + weight * (violated**2).mean() + (widths * a * a).sum()

    for row, t in zip(rows, targets.T, strict=True):
        best = scipy.optimize.minimize(objective, row, args=(t,), method="BFGS", options={"gtol": 1e-9}).fun
        assert objective(row, t) <= best * 1.02 + 1e-6


def test_contrastive_rows_are_off_on_anchors_and_on_for_the_task() -> None:
    """Two clouds that a hyperplane divides."""
    anchor, task = torch.randn(400, 16) + 2, torch.randn(300, 16) - 2
    rows = contrastive_rows(anchor, task, torch.ones(300), 8, torch.Generator().manual_seed(0), 100.0)
    assert float((anchor @ rows.T > 0).float().mean()) < 0.01
    assert float((task @ rows.T > 0).float().mean()) > 0.7


def test_quiet_rows_are_of_the_largest_generalised_eigenvectors() -> None:
    """scipy's generalised problem spans the same space; each row has far more energy on the task."""
    anchor = torch.randn(500, 12) * torch.linspace(0.1, 2, 12)
    task = torch.randn(500, 12) @ torch.randn(12, 12)
    weights = token_weights(torch.rand(1, 500))
    rows = quiet_rows(anchor, task, weights, 2, torch.Generator().manual_seed(0)).double().numpy()
    S_anchor, S_task = ((x.T @ x / len(x)).double().numpy() for x in (anchor, task * weights[:, None].sqrt()))
    _, vectors = scipy.linalg.eigh(S_task, S_anchor)
    best = vectors[:, -6:]
    left_over = rows.T - best @ np.linalg.lstsq(best, rows.T, rcond=None)[0]
    assert np.abs(left_over).max() < 1e-3 * np.abs(rows).max()
    ratio = ((task.numpy() @ rows.T) ** 2).mean() / ((anchor.numpy() @ rows.T) ** 2).mean()
    random = np.random.default_rng(0).standard_normal((2, 12))
    assert ratio > 3 * ((task.numpy() @ random.T) ** 2).mean() / ((anchor.numpy() @ random.T) ** 2).mean()


def test_token_weights_are_the_modules_mean_of_relative_gradients() -> None:
    """Each module counts alike; outliers are cut; a module without a gradient, as one that no loss reaches, is even."""
    gradients = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(token_weights(gradients[:2]), torch.tensor([0.5, 1.0, 1.5]))
    torch.testing.assert_close(token_weights(gradients), torch.tensor([2.0, 3.0, 4.0]) / 3)
    outlier = torch.full((1, 1000), 1e-6)
    outlier[0, 0] = 1.0
    weights = token_weights(outlier)
    assert weights.mean().item() == pytest.approx(1)
    assert weights[1] > 1e-6 / outlier.mean()


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONOLORA_CACHE", str(tmp_path_factory.mktemp("cache")))


def prepared(model: Any, seed: int = 0) -> Silence:
    """The keeper, prepared on random anchors and a random task of other tokens."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 30, (24, 9), generator=generator).tolist()
    task = torch.randint(30, 64, (24, 11), generator=generator).tolist()
    keeper = Silence(0.5)
    keeper.prepare(
        Preparation(
            model=model,
            tokenizer=TOKENIZER,
            anchors=Anchors(train=tuple(Anchor(row[:5], row[5:]) for row in ids), held_out=()),
            task_rows=Dataset.from_dict({"input_ids": task, "labels": [[IGNORED] * 8 + row[8:] for row in task]}),
            seed=seed,
            batch_size=5,
            tokens=10_000,
            first_tokens=None,
            base="",
        )
    )
    return keeper


TWO_SIDED = ("tanh", "identity", "lora")


@pytest.mark.parametrize("kind", ["relu", "topk:2", "jumprelu", "tanh", "identity", "lora"])
def test_penalty_is_the_sum_over_units_of_the_mean_over_tokens(kind: str) -> None:
    """Brute force: hooks on the base give every module's inputs, and loops sum over modules, units and tokens."""
    base = tiny_llama()
    config = {"r": 3, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    model = get_peft_model(base, LoraConfig(**config) if kind == "lora" else MonoLoraConfig(**config, activation=kind))
    keeper = prepared(model)
    layers = adapted_layers(model)
    inputs: dict[str, list[torch.Tensor]] = {name: [] for name in layers.values()}
    hooks = [
        layer.register_forward_pre_hook(lambda module, args: inputs[layers[module]].append(args[0].detach()))
        for layer in layers
    ]
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 30, (24, 9), generator=generator)
    with torch.no_grad(), model.disable_adapter():
        for row in ids:
            base(input_ids=row[None])
    for hook in hooks:
        hook.remove()
    expected, silent = 0.0, [True] * 216
    scales = {module.name: module.scale for module in keeper._modules}
    for layer, name in layers.items():
        x = torch.cat([part[0] for part in inputs[name]])
        for unit in layer.lora_A["default"].weight.detach():
            for index, token in enumerate(x):
                z = float(unit @ token) / scales[name]
                silent[index] &= z <= 0
                expected += (z * z / 30 if kind in TWO_SIDED else max(0.0, z + MARGIN)) / len(x)
    loss = keeper.loss(model, 0)
    assert loss is not None
    assert loss.item() == pytest.approx(0.5 * expected, rel=2e-4)  # 216 tokens are one window
    if kind in TWO_SIDED:
        assert not keeper.metrics
    else:
        assert keeper.metrics["silent"].item() == pytest.approx(sum(silent) / len(silent), abs=0.01)


def test_only_a_is_initialised_and_the_model_stays_the_base() -> None:
    """B is zero still, A is of the usual size on the task, and logits are the base's bit for bit."""
    base = tiny_llama()
    ids = torch.randint(64, (2, 12))
    with torch.no_grad():
        before = base(input_ids=ids).logits
        model = get_peft_model(base, MonoLoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
        default = {name: layer.lora_A["default"].weight.clone() for layer, name in adapted_layers(model).items()}
        keeper = prepared(model)
        assert torch.equal(model(input_ids=ids).logits, before)
    for layer, name in adapted_layers(model).items():
        assert not torch.equal(layer.lora_A["default"].weight, default[name])
        assert not layer.lora_B["default"].weight.any()
    assert keeper.report()["on_task"] > 2 * keeper.report()["on_anchors"]


def test_the_preparation_is_of_the_seed_alone() -> None:
    """The same seed gives the same A whatever the generators held before; another seed another A."""
    base, rows = tiny_llama(), []
    for seed in (0, 0, 1):
        torch.manual_seed(len(rows))
        model = get_peft_model(
            copy.deepcopy(base), MonoLoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        )
        with torch.no_grad():  # the size of the default A is of torch's own generator
            for layer in adapted_layers(model):
                layer.lora_A["default"].weight.fill_(0.1)
        prepared(model, seed)
        rows.append(next(iter(adapted_layers(model))).lora_A["default"].weight.detach().clone())
    assert torch.equal(rows[0], rows[1])
    assert not torch.allclose(rows[0], rows[2])
