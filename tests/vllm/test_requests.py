"""One name, one number, one content: whatever else an engine is asked for is refused before it answers wrongly."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import GenerationConfig

from monolora.checkpoint import AdapterFileError
from monolora.errors import InputError
from monolora.model_files import save_generation_config
from monolora.vllm import plugin
from monolora.vllm.adapter_folders import Identity

FIRST = Identity("sst2", 1, "/adapters/sst2", "content", is_monolora=True)
SAME_OR_NOT = [True, False]
Saved = Callable[..., tuple[Path, torch.Tensor]]


@pytest.mark.parametrize("kinds", list(itertools.product([True, False], repeat=2)), ids=str)
@pytest.mark.parametrize("same_folder", SAME_OR_NOT, ids=["same folder", "other folder"])
@pytest.mark.parametrize(
    ("same_name", "same_number", "same_content", "is_right"),
    [
        (True, True, True, True),  # the same again, from wherever
        (True, True, False, False),  # vLLM would answer through the first
        (True, False, True, False),  # a batch's requests are told apart by name
        (True, False, False, False),
        (False, True, True, False),  # adapters are told apart by number
        (False, True, False, False),
        (False, False, True, True),  # another adapter
        (False, False, False, True),
    ],
)
def test_distinct(
    same_name: bool, same_number: bool, same_content: bool, is_right: bool, same_folder: bool, kinds: tuple[bool, bool]
) -> None:
    """In either order; adapters of plain LoRA alone are vLLM's matter."""
    first = FIRST._replace(is_monolora=kinds[0])
    other = Identity(
        first.name if same_name else "dolly",
        first.number if same_number else 2,
        first.folder if same_folder else "/adapters/dolly",
        first.content if same_content else "other",
        is_monolora=kinds[1],
    )
    for asked, known in [(first, other), (other, first)]:
        if is_right or not any(kinds):
            asked.check_distinct(known)
            continue
        with pytest.raises(InputError) as refused:
            asked.check_distinct(known)
        message = str(refused.value)
        assert message.startswith(f"LoRARequest({asked.name!r}, {asked.number}) for {asked.folder}: ")
        assert f"already answers LoRARequest({known.name!r}, {known.number}) through " in message
        assert message.endswith(f"{known.folder}. Give every adapter a name and a number of its own.")


def test_the_message_says_what_differs() -> None:
    """For one folder that has changed, its path alone would explain nothing."""
    with pytest.raises(InputError, match="through other weights of /adapters/sst2"):
        FIRST._replace(content="other").check_distinct(FIRST)


@pytest.mark.parametrize("same_name", SAME_OR_NOT)
@pytest.mark.parametrize("same_folder", SAME_OR_NOT)
@pytest.mark.parametrize("same_content", SAME_OR_NOT)
def test_unchanged(same_name: bool, same_folder: bool, same_content: bool) -> None:
    """Only other files in the same place, under the same name, are a change; a number is none."""
    now = Identity(
        FIRST.name if same_name else "dolly",
        2,
        FIRST.folder if same_folder else "/adapters/dolly",
        FIRST.content if same_content else "other",
        is_monolora=True,
    )
    if not (same_name and same_folder and not same_content):
        now.check_unchanged(FIRST)
        return
    with pytest.raises(InputError, match=r"^/adapters/sst2 does not hold the files that were loaded from there"):
        now.check_unchanged(FIRST)


def test_of_a_request(saved: Saved, tmp_path: Path) -> None:
    """Copies have one content, links one folder; each file counts, and damage is said at once."""

    def of(path: Path) -> Identity:
        return Identity.of(SimpleNamespace(lora_name="sst2", lora_int_id=5, lora_path=str(path)))

    adapter, copy, link = saved()[0], tmp_path / "copy", tmp_path / "link"
    shutil.copytree(adapter, copy)
    link.symlink_to(adapter)
    first = of(adapter)
    assert first[:3] == ("sst2", 5, str(adapter.resolve()))
    assert first.is_monolora
    assert of(link) == first
    assert of(copy) == first._replace(folder=str(copy.resolve()))
    assert of(saved("other", seed=2)[0]).content != first.content
    config = copy / "adapter_config.json"
    config.write_text(config.read_text().replace('"relu"', '"identity"'))
    changed = of(copy)
    assert changed.content != first.content
    weights = copy / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(AdapterFileError, match="truncated"):
        of(copy)


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_an_answer_ends_where_its_adapter_ends(
    saved: Callable[..., tuple[Path, torch.Tensor]], ignore_eos: bool
) -> None:
    """Beside what request and base ask for; where the folder says nothing, and for the base, nothing changes."""
    folder, _ = saved()

    def process(lora_request: object) -> tuple[list[int], set[int]]:
        sampling = SimpleNamespace(stop_token_ids=[7], _all_stop_token_ids={2, 7}, ignore_eos=ignore_eos)
        request = SimpleNamespace(sampling_params=sampling, lora_request=lora_request)
        assert plugin.process_inputs(lambda processor: request, None) is request
        return sampling.stop_token_ids, sampling._all_stop_token_ids

    lora_request = SimpleNamespace(lora_path=str(folder))
    assert process(lora_request) == process(None) == ([7], {2, 7})
    save_generation_config(GenerationConfig(eos_token_id=[9, 2]), folder)
    assert process(lora_request) == ([7] if ignore_eos else [2, 7, 9], {2, 7, 9})
