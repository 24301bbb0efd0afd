"""The list of names that other libraries do not document is complete, and each is there with its signature.

``python -m tests.support.private_names`` writes the list anew, once the users of what has changed are made to fit.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from monolora.patching import LIBRARIES, PrivateName
from monolora.patching import private_names as listed_names
from tests.support import forks, private_names
from tests.support.private_names import library_of, table


@pytest.fixture(scope="module")
def without_vllm() -> dict[str, PrivateName]:
    """What sources and installed libraries call for, but for vLLM's: that is not imported here."""
    return table(LIBRARIES.keys() - {"vllm"})


SOURCE = """
import datasets
from peft import LoraModel, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer, _find_nothing as find
from peft.utils import hotswap

FUNCTION = "transformers.integrations.peft:PeftAdapterMixin.add_adapter"

class Ours(LoraModel):
    def _prepare_adapter_config(self, peft_config, model_config):
        return super()._prepare_adapter_config(peft_config, model_config)

    def use(self):
        return self._own, self._foreign, find(hotswap.hotswap_adapter), PeftModel._update_offload

    def set(self):
        self._own = datasets.config.HF_HOME, datasets.load_dataset, "_in_a_string" in vars(self)
"""


def test_how_sources_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ours.py").write_text(SOURCE)
    monkeypatch.setattr(private_names, "_sources", lambda: [("monolora.ours", tmp_path / "ours.py")])
    assert private_names.uses(LIBRARIES).keys() == {
        "*:_foreign",
        "*:_in_a_string",
        "datasets.config:HF_HOME",
        "peft.peft_model:PeftModel._update_offload",
        "peft.tuners.lora.model:LoraModel._prepare_adapter_config",
        "peft.tuners.tuners_utils:BaseTunerLayer",
        "peft.tuners.tuners_utils:_find_nothing",
        "peft.utils.hotswap:hotswap_adapter",
        "transformers.integrations.peft:PeftAdapterMixin.add_adapter",
    }


def _listed(library: str) -> dict[str, PrivateName]:
    return {path: entry for path, entry in listed_names().items() if library_of(path) == library}


@pytest.mark.parametrize("library", sorted(LIBRARIES.keys() - {"vllm"}))
def test_every_name_is_listed_and_there(without_vllm: dict[str, PrivateName], library: str) -> None:
    assert _listed(library) == {path: entry for path, entry in without_vllm.items() if library_of(path) == library}


def test_nothing_is_of_an_unknown_library(without_vllm: dict[str, PrivateName]) -> None:
    """An attribute with an underscore is defined beside its use, in this list, or in that of other libraries."""
    assert {path: entry.users for path, entry in without_vllm.items() if library_of(path) not in LIBRARIES} == {}


@pytest.mark.vllm
@pytest.mark.slow
def test_every_name_of_vllm_is_listed_and_there() -> None:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm is not installed")
    run = forks.run("from tests.support import private_names; private_names.main()", "vllm", server=forks.VLLM)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert _listed("vllm") == {path: PrivateName(*entry) for path, entry in found.items() if library_of(path) == "vllm"}
