"""The plugin registers once, as a whole or not at all; where it steps aside, MonoLoRA adapters are refused.

Run as a program, this file is a process with vLLM in it. Registering changes vLLM for good, so every scenario runs in
a fork of that process, which has imported vLLM and registered nothing.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import monolora
from monolora.patching import LIBRARIES, installed_version
from monolora.vllm import plugin
from monolora.vllm.plugin import WRAPPERS
from tests.support.vllm_worker import ask_process, load, make_worker

if TYPE_CHECKING:
    from tests.support.served import Served

LOAD = "vllm.lora.worker_manager:WorkerLoRAManager._load_adapter"
MISSING = "vllm.v1.engine.llm_engine:LLMEngine.add_request"
OTHER_VERSION = "0.31.2"
_, SUPPORTED_VLLM, INSTALL_LINE, _ = LIBRARIES["vllm"]


def _lacking(path: str) -> str:
    """What is said of a vLLM without this function."""
    return (
        f"{path.replace(':', ' has no ')}. This is vLLM {installed_version('vllm')}; supported is {SUPPORTED_VLLM}. "
        f"Run: {INSTALL_LINE}"
    )


def test_the_entry_point_is_declared() -> None:
    """vLLM finds the plugin by it."""
    (found,) = importlib.metadata.entry_points(group="vllm.general_plugins", name="monolora")
    assert found.load() is plugin.register


@pytest.fixture(scope="module")
def outcomes(served: Served, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each scenario found, by its name."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm is not installed")
    out = tmp_path_factory.mktemp("plugin") / "outcomes.json"
    adapters = {name: served.adapters[name].path for name in ("mono", "lora")}
    ask_process(__file__, {"base": str(served.base), "adapters": adapters, "out": str(out)}, VLLM_PLUGINS="monolora")
    return json.loads(out.read_text())


@pytest.mark.vllm
@pytest.mark.slow
class TestInAProcess:
    """What becomes of vLLM."""

    def test_registered_by_vllm(self, outcomes: dict[str, Any]) -> None:
        """By vLLM's own loading of plugins; every seam is wrapped once, however often it is called."""
        found = outcomes["registered"]
        assert found["registered"] == {"before": False, "after": True, "again": True}
        assert found["changed"] == sorted(WRAPPERS)
        assert found["layers"] == dict.fromkeys(WRAPPERS, 1)
        assert found["layers_again"] == found["layers"]
        assert found["exact"] is True
        assert found["loaded"] == {"mono": None, "lora": None}
        assert found["activations"] == {"mono": "relu", "lora": "identity"}
        assert "ERROR" not in found["printed"]

    def test_every_seam_is_a_function_of_its_own_place(self, outcomes: dict[str, Any]) -> None:
        """A method that a class inherits, a static or a class method would be wrapped wrongly."""
        assert outcomes["stock"]["kinds"] == dict.fromkeys(WRAPPERS, "function")

    def test_stock_vllm_refuses_by_itself(self, outcomes: dict[str, Any]) -> None:
        """Without the plugin: because of the tensors' names."""
        found = outcomes["stock"]
        assert found["registered"] is False
        assert found["loaded"]["lora"] is None
        assert "unsupported LoRA weight" in found["loaded"]["mono"]

    @pytest.mark.parametrize("scenario", ["another version", "a missing seam"])
    def test_it_steps_aside(self, served: Served, outcomes: dict[str, Any], scenario: str) -> None:
        """Nothing is changed but the refusal, which says what the log says."""
        found = outcomes[scenario]
        trouble = {
            "another version": f"monolora {monolora.__version__} works with vLLM {SUPPORTED_VLLM}, "
            f"and this is vLLM {OTHER_VERSION}. Run: {INSTALL_LINE}",
            "a missing seam": _lacking(MISSING),
        }[scenario]
        assert found["registered"] == {"before": False, "after": False, "again": False}
        assert found["changed"] == [LOAD]
        assert found["layers"][LOAD] == found["layers_again"][LOAD] == 1
        assert found["exact"] is False
        (line,) = [line for line in found["printed"].splitlines() if "MonoLoRA" in line]
        assert line == f"ERROR vllm.monolora: MonoLoRA adapters will be refused. {trouble}"
        assert found["loaded"] == {
            "mono": f"AdapterFileError: {served.adapters['mono'].path} is a MonoLoRA adapter. {trouble}",
            "lora": None,
        }

    def test_nothing_is_left_to_refuse_with(self, outcomes: dict[str, Any]) -> None:
        """Where a vLLM has no such loader either, the process still starts, and says so."""
        found = outcomes["no loader"]
        assert found["registered"] == {"before": False, "after": False, "again": False}
        assert found["changed"] == []
        assert f"MonoLoRA adapters will be refused. {_lacking(LOAD)}" in found["printed"]


# The program.


def _place(path: str) -> tuple[Any, str]:
    module, _, names = path.partition(":")
    *owners, name = names.split(".")
    return functools.reduce(getattr, owners, importlib.import_module(module)), name


def _seams() -> dict[str, Any]:
    """The function behind each name, None where it is missing."""
    return {path: vars(owner).get(name) for path, (owner, name) in ((path, _place(path)) for path in WRAPPERS)}


def _layers() -> dict[str, int]:
    """How often each function is wrapped."""
    counts = {}
    for path, function in _seams().items():
        counts[path] = 0
        while hasattr(function, "__wrapped__"):
            counts[path], function = counts[path] + 1, function.__wrapped__
    return counts


def _loaded(request: dict[str, Any]) -> tuple[dict[str, str | None], dict[str, str]]:
    worker = make_worker(request["base"])
    outcome = {
        name: load(worker, name, number, path) for number, (name, path) in enumerate(request["adapters"].items(), 1)
    }
    loaded = worker._adapter_manager.list_adapters()
    names = list(request["adapters"])
    return outcome, {names[id_ - 1]: getattr(lora, "activation", "none") for id_, lora in loaded.items()}


def _register(request: dict[str, Any]) -> dict[str, Any]:
    """As vLLM does, and once more."""
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.plugins import load_general_plugins

    before, registered = _seams(), {"before": plugin.is_registered()}
    load_general_plugins()
    registered["after"], layers = plugin.is_registered(), _layers()
    plugin.register()
    registered["again"] = plugin.is_registered()
    after = _seams()
    found = {
        "registered": registered,
        "changed": sorted(path for path in before if after[path] is not before[path]),
        "layers": layers,
        "layers_again": _layers(),
        "exact": "monolora" in QUANTIZATION_METHODS,
    }
    if after[LOAD] is not None:
        found["loaded"], found["activations"] = _loaded(request)
    return found


def _stock(request: dict[str, Any]) -> dict[str, Any]:
    os.environ["VLLM_PLUGINS"] = ""
    kinds = {path: type(function).__name__ for path, function in _seams().items()}
    loaded, _ = _loaded(request)
    return {"kinds": kinds, "registered": plugin.is_registered(), "loaded": loaded}


def _another_version(request: dict[str, Any]) -> dict[str, Any]:
    import vllm

    vllm.__version__ = OTHER_VERSION
    return _register(request)


def _without(path: str, request: dict[str, Any]) -> dict[str, Any]:
    owner, name = _place(path)
    delattr(owner, name)
    return _register(request)


SCENARIOS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "registered": _register,
    "stock": _stock,
    "another version": _another_version,
    "a missing seam": functools.partial(_without, MISSING),
    "no loader": functools.partial(_without, LOAD),
}


def _in_a_fork(scenario: Callable[[dict[str, Any]], dict[str, Any]], request: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        printed, found = Path(folder) / "printed", Path(folder) / "found"
        child = os.fork()
        if child == 0:
            status = 1
            try:
                with printed.open("w") as file:
                    os.dup2(file.fileno(), 1)
                    os.dup2(file.fileno(), 2)
                found.write_text(json.dumps(scenario(request)))
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        _, status = os.waitpid(child, 0)
        if status:
            raise RuntimeError(printed.read_text())
        return {**json.loads(found.read_text()), "printed": printed.read_text()}


def main() -> None:
    """Every scenario on the request on stdin."""
    request = json.load(sys.stdin)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    _seams()  # imports vLLM
    outcomes = {name: _in_a_fork(scenario, request) for name, scenario in SCENARIOS.items()}
    Path(request["out"]).write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main()
