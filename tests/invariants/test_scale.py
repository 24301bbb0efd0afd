"""Law 5: ``relu(c A x) = c relu(A x)`` for c > 0, so moving c between A and B changes nothing."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from torch import nn

from monolora import MonoLoraConfig, monolora_linear, monolora_reference

FACTORS = st.floats(1e-3, 1e3, allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(c=FACTORS, seed=st.integers(0, 99), scaling=st.floats(-4, 4))
def test_of_the_map_one_factor_a_unit(c: float, seed: int, scaling: float) -> None:
    torch.manual_seed(seed)
    x, weight, A, B = (torch.randn(shape, dtype=torch.float64) for shape in ((3, 5), (4, 5), (6, 5), (4, 6)))
    factors = c * torch.rand(6, dtype=torch.float64).exp()
    moved = (A * factors[:, None], B / factors)
    for function in (monolora_reference, lambda *args: monolora_linear(*args)[0]):
        torch.testing.assert_close(
            function(x, weight, None, *moved, scaling), function(x, weight, None, A, B, scaling), rtol=1e-9, atol=1e-9
        )


@settings(max_examples=20, deadline=None)
@given(exponent=st.integers(-20, 20), seed=st.integers(0, 99))
def test_of_layers_bit_for_bit_where_c_is_a_power_of_two(exponent: int, seed: int) -> None:
    torch.manual_seed(seed)
    base = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 6), nn.Linear(6, 3))
    model = get_peft_model(base, MonoLoraConfig(target_modules=["0", "1", "2"], r=3))
    parameters = {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}
    for parameter in parameters.values():
        parameter.data.normal_()
    tokens = torch.randint(0, 7, (2, 5))
    expected = model(tokens)
    for name, parameter in parameters.items():
        parameter.data.mul_(2.0**exponent if "_A." in name else 2.0**-exponent)
    assert torch.equal(model(tokens), expected)


def test_it_does_not_hold_for_a_negative_factor() -> None:
    x, weight, A, B = (torch.randn(shape) for shape in ((3, 5), (4, 5), (6, 5), (4, 6)))
    moved = monolora_reference(x, weight, None, -A, -B, 1.0)
    assert not torch.allclose(moved, monolora_reference(x, weight, None, A, B, 1.0), atol=0.1)
