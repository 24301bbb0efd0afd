"""What a worker of vLLM makes of an adapter: names, slots, and the layers' outputs; no engine, but all of the worker.

Run as a program, this file is a process with vLLM in it: a request in JSON on stdin, the answer in a file.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from monolora.vllm.loading import parse_fine_tuned_lora_name
from tests.support.vllm_worker import ROWS, SLOTS, ask_process, load, make_worker

if TYPE_CHECKING:
    from tests.support.served import Served

LAYERS = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}
PAIRS = (("mono", "lora"), ("patterns", "identity"), ("patterns", "mono"))
OF_ROWS = (2, 0, 1, 1, 0, 2, 1)  # 0 is the base, the others the adapters of a pair
IN_PROCESS = [pytest.mark.vllm, pytest.mark.slow]


# In this process: the names.

MODULES = st.lists(st.sampled_from(["model", "layers", "0", "self_attn", "q_proj", "monolora_head"]), min_size=1)


@settings(deadline=None)
@given(modules=MODULES, which=st.sampled_from("AB"), prefix=st.sampled_from(["base_model.model.", ""]))
def test_names_are_those_of_lora(modules: list[str], which: str, prefix: str) -> None:
    """Ours are read as LoRA's of the same module, which are read as ever; vLLM alone refuses ours."""
    parse = pytest.importorskip("vllm.lora.utils").parse_fine_tuned_lora_name
    module = ".".join(modules)
    name = f"{prefix}{module}.{{}}_{which}.weight"
    with pytest.raises(ValueError, match="unsupported LoRA weight"):
        parse(name.format("monolora"))
    for known in ("monolora", "lora"):
        assert parse_fine_tuned_lora_name(parse, name.format(known)) == (module, which == "A")


def test_names_of_embeddings_and_of_other_tensors() -> None:
    utils = pytest.importorskip("vllm.lora.utils")
    parse = utils.parse_fine_tuned_lora_name
    name = "base_model.model.model.embed_tokens.monolora_embedding_B"
    assert parse_fine_tuned_lora_name(parse, name) == ("model.embed_tokens", False)
    for unknown in ("base_model.model.model.norm.weight", "base_model.model.q_proj.monolora_C.weight"):
        with pytest.raises(ValueError, match="unsupported LoRA weight"):
            parse_fine_tuned_lora_name(parse, unknown)


def test_names_are_mapped_as_vllm_maps_them() -> None:
    """What else the caller gives reaches vLLM's parser."""
    parse = pytest.importorskip("vllm.lora.utils").parse_fine_tuned_lora_name
    mapper = pytest.importorskip("vllm.model_executor.models.utils").WeightsMapper(
        orig_to_new_prefix={"model.": "language_model.model."}
    )
    name = "base_model.model.model.layers.0.q_proj.monolora_A.weight"
    wanted = ("language_model.model.layers.0.q_proj", True)
    assert parse_fine_tuned_lora_name(parse, name, mapper) == wanted
    assert parse_fine_tuned_lora_name(parse, name, weights_mapper=mapper) == wanted


# In a process of its own: the worker.


@pytest.fixture(scope="module")
def answer(served: Served, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the worker answered: see :func:`main`."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm is not installed")
    folder = tmp_path_factory.mktemp("worker")
    adapters = {name: adapter.path for name, adapter in served.adapters.items()}
    ask_process(__file__, {"base": str(served.base), "adapters": adapters, "out": str(folder)}, VLLM_PLUGINS="")
    return {**json.loads((folder / "answer.json").read_text()), "tensors": load_file(folder / "tensors.safetensors")}


class TestWorker:
    """A worker's LoRA manager with vLLM's own Llama."""

    pytestmark = IN_PROCESS

    @pytest.mark.parametrize("pair", range(len(PAIRS)), ids=[" and ".join(pair) for pair in PAIRS])
    @pytest.mark.parametrize("layer", LAYERS)
    @pytest.mark.parametrize("is_prefill", [True, False])
    def test_outputs_of_layers(
        self, served: Served, answer: dict[str, Any], pair: int, layer: str, is_prefill: bool
    ) -> None:
        """PEFT's own, for a batch of the base and two adapters; fused layers give those of all their modules."""
        key = f"{pair}.{layer}.{is_prefill}"
        x_NI, y_NO = answer["tensors"][f"{key}.x"], answer["tensors"][f"{key}.y"]
        wanted = torch.empty_like(y_NO)
        for number, name in enumerate((None, *PAIRS[pair])):
            rows = [n for n, of_row in enumerate(OF_ROWS) if of_row == number]
            wanted[rows] = _by_peft(served.models[name], layer, x_NI[rows])
        assert torch.allclose(y_NO, wanted, rtol=1e-5, atol=1e-5)
        if "mono" in PAIRS[pair] and "lora" in PAIRS[pair]:  # both adapt every module
            without = _by_peft(served.models[None], layer, x_NI)
            changed_N = (wanted - without).abs().amax(1) > 0.01
            number_N = torch.tensor(OF_ROWS)
            # Not every row of an adapter: in 1 of 2^8, the ReLU leaves none of its 8 units on.
            assert [bool(changed_N[number_N == number].any()) for number in (0, 1, 2)] == [False, True, True]

    def test_slots_know_what_is_in_them(self, answer: dict[str, Any]) -> None:
        """Adapters take turns in fewer slots than there are adapters."""
        kinds = {"mono": [0.0, "inf"], "patterns": [0.0, "inf"], "identity": ["-inf", "inf"], "lora": ["-inf", "inf"]}
        assert [step["added"] for step in answer["turns"]] == [*kinds, *kinds]
        seen = set()
        for step in answer["turns"]:
            assert step["added"] in step["slots"]
            for slot, name in enumerate(step["slots"]):
                if name is not None:
                    assert step["bounds"][slot] == kinds[name]
                    seen.add((slot, name))
            assert step["bounds"][-1] == [0.0, 0.0]
        assert {slot for slot, _ in seen} == set(range(SLOTS))

    def test_an_adapter_replaced_under_its_number(self, answer: dict[str, Any]) -> None:
        """vLLM keeps what it knows of a batch while the batch's mapping and the slots' numbers stay the same."""
        assert answer["replaced"] == {"relu": [[0.0, "inf"], [0.0, 0.0]], "identity": [["-inf", "inf"], [0.0, 0.0]]}

    def test_a_device_without_a_gate(self, served: Served, answer: dict[str, Any]) -> None:
        """A MonoLoRA adapter would be answered without its activation; plain LoRA goes on."""
        refused = answer["without gate"]["mono"]
        assert refused.startswith("AdapterFileError: Adapter 'mono': ")
        assert f"{served.adapters['mono'].path} cannot be served on this device" in refused
        assert "monolora merge ADAPTER OUT --method exact" in refused
        assert answer["without gate"]["lora"] is None

    def test_a_compiled_model_computes_no_other_activation(self, served: Served, answer: dict[str, Any]) -> None:
        """Its graphs would go on as they were recorded; clamps need nothing new."""
        refused, eager, clamp = answer["compiled"]
        assert "activation='tanh', which this vLLM was compiled without" in refused
        assert "--enforce-eager" in refused
        assert eager is None
        assert clamp is None


@torch.no_grad()
def _by_peft(model: Any, layer: str, x_NI: torch.Tensor) -> torch.Tensor:
    block = next(module for name, module in model.named_modules() if name.endswith("layers.1"))
    return torch.cat([block.get_submodule(module)(x_NI) for module in LAYERS[layer]], dim=-1)


# The program.


def _tell(worker: Any, numbers: Sequence[int], is_prefill: bool = False) -> None:
    from vllm.lora.layers import LoRAMapping

    worker._adapter_manager.set_adapter_mapping(LoRAMapping(tuple(numbers), tuple(numbers), is_prefill=is_prefill))


def _readable(bounds: torch.Tensor) -> list[list[float | str]]:
    """A pair for each row; infinity by name, as JSON has none."""
    return [[x if abs(x) < float("inf") else str(x) for x in pair] for pair in bounds[..., 0].T.tolist()]


def _outputs(worker: Any, adapters: Mapping[str, str]) -> dict[str, torch.Tensor]:
    block = worker._adapter_manager.model.model.layers[1]
    tensors: dict[str, torch.Tensor] = {}
    for pair, names in enumerate(PAIRS):
        worker.remove_all_adapters()
        for number, name in enumerate(names, start=1):
            assert load(worker, name, number, adapters[name]) is None
        for is_prefill in (True, False):
            _tell(worker, OF_ROWS, is_prefill)
            for name in LAYERS:
                layer = block.get_submodule(name)
                x_NI = torch.randn(len(OF_ROWS), layer.base_layer.input_size)
                y_NO = layer(x_NI)
                key = f"{pair}.{name}.{is_prefill}"
                tensors |= {f"{key}.x": x_NI, f"{key}.y": y_NO[0] if isinstance(y_NO, tuple) else y_NO}
    return tensors


def _turns(worker: Any, adapters: Mapping[str, str]) -> list[dict[str, Any]]:
    manager, steps = worker._adapter_manager, []
    worker.remove_all_adapters()
    names = ["mono", "patterns", "identity", "lora"]
    for name in names * 2:
        assert load(worker, name, 1 + names.index(name), adapters[name]) is None
        slots = [None if number is None else names[number - 1] for number in manager.lora_index_to_id]
        (gate,) = manager.punica_wrapper_mapping.values()
        steps.append({"added": name, "slots": slots, "bounds": _readable(gate.slot_bounds)})
    return steps


def _replaced(worker: Any, adapters: Mapping[str, str]) -> dict[str, Any]:
    (gate,) = worker._adapter_manager.punica_wrapper_mapping.values()
    found = {}
    worker.remove_all_adapters()
    for activation, name in [("relu", "mono"), ("identity", "identity")]:
        assert load(worker, "one name", 1, adapters[name], load_inplace=True) is None
        _tell(worker, [1, 0])
        found[activation] = _readable(gate.bounds[:, :2])
    return found


def _compiled(worker: Any, adapters: Mapping[str, str]) -> list[str | None]:
    """An activation that is no clamp, in a vLLM as if on a GPU, and in an eager one; a clamp in the former."""
    (gate,) = worker._adapter_manager.punica_wrapper_mapping.values()
    worker.remove_all_adapters()
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(adapters["mono"], folder, dirs_exist_ok=True)
        config = Path(folder) / "adapter_config.json"
        config.write_text(config.read_text().replace('"relu"', '"tanh"'))
        gate.is_eager = False
        refused, clamp = load(worker, "tanh", 7, folder), load(worker, "mono", 8, adapters["mono"])
        gate.is_eager = True
        return [refused, load(worker, "tanh", 7, folder), clamp]


def _without_gate(worker: Any, adapters: Mapping[str, str]) -> dict[str, str | None]:
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    worker.remove_all_adapters()
    mapping = worker._adapter_manager.punica_wrapper_mapping
    mapping |= dict.fromkeys(mapping, PunicaWrapperCPU(ROWS, ROWS, torch.device("cpu")))
    return {name: load(worker, name, number, adapters[name]) for number, name in enumerate(("mono", "lora"), start=1)}


def main() -> None:
    """Ask one worker all there is to ask."""
    from monolora.vllm import plugin

    request = json.load(sys.stdin)
    plugin.register()
    worker, adapters, out = make_worker(request["base"]), request["adapters"], Path(request["out"])
    save_file(_outputs(worker, adapters), out / "tensors.safetensors")
    answer = {
        "turns": _turns(worker, adapters),
        "replaced": _replaced(worker, adapters),
        "compiled": _compiled(worker, adapters),
        "without gate": _without_gate(worker, adapters),
    }
    (out / "answer.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
