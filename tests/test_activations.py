"""monolora.activations against brute force."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model

from monolora import Activation, activations, register_activation
from monolora.activations import activate, activation_named, activation_names, check_activation


@pytest.mark.parametrize("name", ["relu", "identity", "softplus", "topk:1", "topk:12"])
def test_names_are_accepted(name: str) -> None:
    assert check_activation(name) == name


@pytest.mark.parametrize(
    ("name", "hint"),
    [("rleu", "relu"), ("identiy", "identity"), ("soft_plus", "softplus"), ("top:4", "topk:4"), ("ReLU", None)],
)
def test_an_unknown_name_is_answered_with_the_choices_and_the_nearest(name: str, hint: str | None) -> None:
    with pytest.raises(ValueError, match="choose one of relu, identity, softplus, topk:<k>") as error:
        check_activation(name)
    assert hint is None or f"Did you mean {hint!r}?" in str(error.value)


@pytest.mark.parametrize("name", ["topk:0", "topk:-1", "topk:", "topk:2.5", "topk:01", "topk", "", " relu", None, 4])
def test_malformed_names_are_refused_everywhere(name: object) -> None:
    with pytest.raises(ValueError, match="Unknown activation"):
        check_activation(name)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Unknown activation"):
        activate(torch.zeros(2), name)  # type: ignore[arg-type]


def test_relu_identity_and_softplus_by_their_formulas() -> None:
    z = torch.randn(5, 7, dtype=torch.float64) * 3
    assert torch.equal(activate(z, "relu"), torch.where(z > 0, z, torch.zeros_like(z)))
    assert activate(z, "identity") is z
    torch.testing.assert_close(activate(z, "softplus"), torch.log1p(torch.exp(z)))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 4), units=st.integers(1, 9), k=st.integers(1, 10), seed=st.integers(0, 999), last=st.booleans()
)
def test_topk_keeps_the_k_largest_positive_units(rows: int, units: int, k: int, seed: int, last: bool) -> None:
    z = torch.randn(rows, units, generator=torch.Generator().manual_seed(seed))
    expected = torch.zeros(rows, units)
    for row in range(rows):
        for value in sorted(z[row].tolist(), reverse=True)[:k]:
            if value > 0:
                expected[row, z[row].tolist().index(value)] = value
    h = activate(z if last else z.T, f"topk:{k}", dim=-1 if last else 0)
    assert torch.equal(h if last else h.T, expected)


def test_topk_never_keeps_more_than_k_even_among_ties() -> None:
    z = torch.ones(3, 8)
    assert (activate(z, "topk:2") != 0).sum(-1).tolist() == [2, 2, 2]


def test_topk_passes_gradient_to_the_kept_units_only() -> None:
    z = torch.tensor([[3.0, -1.0, 2.0, 1.0]], requires_grad=True)
    activate(z, "topk:2").sum().backward()
    assert z.grad is not None
    assert z.grad.tolist() == [[1.0, 0.0, 1.0, 0.0]]


def test_batchtopk_keeps_k_a_token_over_the_batch_and_remembers_where_that_ends() -> None:
    torch.manual_seed(0)
    activation, threshold = activation_named("batchtopk:2"), torch.zeros(4, 1)
    smallest = []
    for _ in range(50):
        z = torch.randn(5, 6, 4)
        h = activation(z, -1, threshold, training=True)
        expected = sorted(z.clamp(min=0).flatten().tolist(), reverse=True)[: 2 * 30]
        kept = [value for value in expected if value > 0]
        assert sorted(h[h > 0].tolist(), reverse=True) == pytest.approx(kept)
        smallest.append(kept[-1])
    running = smallest[0]
    for value in smallest[1:]:
        running += 0.01 * (value - running)
    assert threshold.flatten().tolist() == pytest.approx([running] * 4, rel=1e-5)
    row = torch.randn(1, 4)
    alone, among = activation(row, -1, threshold), activation(torch.cat([row, torch.randn(9, 4) * 9]), -1, threshold)
    assert torch.equal(alone[0], among[0])
    assert torch.equal(alone, torch.where(row > threshold.T, row, 0))


def test_batchtopk_passes_gradient_to_the_kept_units_only() -> None:
    z = torch.tensor([[3.0, -1.0], [2.0, 0.5]], requires_grad=True)
    activation_named("batchtopk:1")(z, -1, torch.zeros(2, 1), training=True).sum().backward()
    assert z.grad is not None
    assert z.grad.tolist() == [[1.0, 0.0], [1.0, 0.0]]


def test_jumprelus_gradients_are_the_papers() -> None:
    """arXiv 2407.14435, eq. 11 and 12, with a rectangle of width 0.05, unit by unit."""
    torch.manual_seed(0)
    z = (torch.randn(40, 3, dtype=torch.float64) * 0.1).requires_grad_()
    threshold = torch.tensor([[0.05], [0.1], [-0.2]], dtype=torch.float64, requires_grad=True)
    g = torch.randn(40, 3, dtype=torch.float64)
    of_z, of_threshold = torch.autograd.grad(activation_named("jumprelu")(z, -1, threshold), [z, threshold], g)
    for unit in range(3):
        theta, expected = max(0.0, threshold[unit].item()), 0.0
        for token in range(40):
            value = z[token, unit].item()
            assert of_z[token, unit].item() == (g[token, unit].item() if value > theta else 0)
            if abs(value - theta) < 0.025:
                expected -= theta / 0.05 * g[token, unit].item()
        assert of_threshold[unit].item() == pytest.approx(expected)


def test_contradictions_are_refused() -> None:
    settings: dict[str, Any] = {"function": F.relu, "summary": "", "signed": False}
    with pytest.raises(ValueError, match="one_sided"):
        Activation(**settings | {"signed": True}, one_sided=True)
    with pytest.raises(ValueError, match="in_training"):
        Activation(**settings, in_training=lambda z, threshold: z)
    with pytest.raises(ValueError, match="fused"):
        Activation(**settings, over_units=True, gradient=lambda g, h: g)
    with pytest.raises(ValueError, match="already"):
        register_activation("relu", Activation(**settings))
    with pytest.raises(ValueError, match="cannot name"):
        register_activation("my relu", Activation(**settings))
    assert activation_named("relu").one_sided
    with pytest.raises(ValueError, match="thresholds"):
        activation_named("jumprelu")(torch.zeros(2, 4))


ROOT = Path(__file__).parents[1]
# Where a name may stand outside of the registry, and why.
ALLOWED = {
    ("eval/measurements.py", "identity"): "the identity of a measured model, which is no activation",
    ("monolora/export/gguf.py", "silu"): "the base model's own, between its MLP's matrices",
}


def test_nothing_but_the_registry_goes_by_names() -> None:
    """So that adding an activation changes one file. Docstrings may give examples."""
    kinds = {name.partition(":")[0] for name in activation_names()}
    found = set()
    for path in [path for part in ("monolora", "recipes", "eval") for path in (ROOT / part).rglob("*.py")]:
        tree = ast.parse(path.read_text())
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node)
            if isinstance(node.body[0], ast.Expr)
        }
        found |= {
            (str(path.relative_to(ROOT)), node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
            if node.value.partition(":")[0] in kinds
        }
    elsewhere = {place for place in found if place[0] != "monolora/activations.py"}
    assert elsewhere == set(ALLOWED)


@pytest.fixture
def registry() -> Iterator[None]:
    """Ends without what the test has registered."""
    before = dict(activations._REGISTRY)
    yield
    for name in activations._REGISTRY.keys() - before.keys():
        del activations._REGISTRY[name]


@pytest.mark.usefixtures("registry")
def test_an_activation_of_somebody_elses_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by its entry point, as it is in vLLM's processes; without one it is unknown."""
    with pytest.raises(ValueError, match="Unknown activation 'celu'"):
        check_activation("celu")
    (tmp_path / "others.py").write_text(
        "import torch\nfrom monolora import Activation, register_activation\n"
        "register_activation('celu', Activation(function=torch.celu, summary='CELU', signed=True))\n"
    )
    distribution = tmp_path / "others-1.0.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    (distribution / "entry_points.txt").write_text("[monolora.activations]\nothers = others\n")
    monkeypatch.syspath_prepend(tmp_path)
    activations._load_entry_points.cache_clear()
    z = torch.randn(3, 4)
    assert torch.equal(activate(z, "celu"), torch.celu(z))


@pytest.mark.usefixtures("registry")
def test_the_guides_example() -> None:
    """docs/tuner.md registers one, in ten lines, which then trains."""
    guide = (ROOT / "docs" / "tuner.md").read_text()
    (code,) = [
        block for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "register_activation" in block
    ]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 3)), namespace["config"])
    layer: Any = model.base_model.model[0]
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    x = torch.randn(2, 4)
    h = torch.nn.functional.elu(layer.lora_A["default"](x))
    expected = layer.base_layer(x) + layer.lora_B["default"](h) * layer.scaling["default"]
    torch.testing.assert_close(model(x), expected)
