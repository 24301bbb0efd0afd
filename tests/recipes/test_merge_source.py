"""What is merged or verified: as the flags and the adapter's run say."""

from __future__ import annotations

import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from monolora.cli.flags import FlagParser
from monolora.errors import InputError
from monolora.recipes import merge_source
from monolora.recipes.checkpoint_settings import Loading
from monolora.recipes.merge_source import MergeSource
from tests.support.merge_runs import logits

Trained = Callable[..., Path]
OTHER = ("--seed", "7", "--lora-r", "4", "--lora-target-modules", "q_proj", "down_proj")


def _loading(*words: str) -> Loading:
    return FlagParser("test", None).parse_into(words, Loading)


def _source(*adapters: Path, flags: tuple[str, ...] = ()) -> MergeSource:
    return merge_source.from_settings([str(adapter) for adapter in adapters], _loading(*flags))


def _change(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads((folder / name).read_text())
    change(value)
    (folder / name).write_text(json.dumps(value))


@pytest.fixture
def adapter(trained: Trained, tmp_path: Path) -> Path:
    """A copy of a trained adapter, to be changed."""
    return shutil.copytree(trained(), tmp_path / "adapter")


def test_defaults_are_those_of_the_run(trained: Trained, chat_model: Path) -> None:
    found = _source(trained())
    assert found.model == str(chat_model)
    assert found.dtype == "float32"
    assert found.weights == (1.0,)
    assert found.quantization == {}
    assert found.is_monolora
    assert found.trained is not None
    assert found.trained["after"]["n"] == 6
    assert not _source(trained("--adapter", "lora")).is_monolora


def test_quantized_as_in_the_run(trained: Trained) -> None:
    found = _source(trained("--load-in-4bit"))
    assert found.quantization["load_in_4bit"] is True
    assert found.quantization["bnb_4bit_quant_type"] == "nf4"
    assert _source(trained(), flags=("--load-in-4bit",)).quantization["load_in_4bit"] is True


def test_a_model_moved_since(adapter: Path, chat_model: Path) -> None:
    """Of an adapter's path that is another machine's, the run knows the name that was given to it."""
    _change(adapter, "adapter_config.json", lambda config: config.update(base_model_name_or_path="/elsewhere/base"))
    assert _source(adapter).model == str(chat_model)
    _change(adapter, "run.json", lambda run: run["config"].update(model="/elsewhere/base"))
    with pytest.raises(InputError, match="There is no model at /elsewhere/base"):
        _source(adapter)
    assert _source(adapter, flags=("--model", str(chat_model))).model == str(chat_model)


def test_dtypes_that_the_run_left_open(adapter: Path) -> None:
    for recorded in ("auto", None):
        _change(adapter, "run.json", lambda run, value=recorded: run["config"].update(dtype=value))
        assert _source(adapter).dtype == "float32"  # the base's own
    assert _source(adapter, flags=("--dtype", "float16")).dtype == "float16"


def test_results_are_only_those_of_this_very_model(adapter: Path, trained: Trained) -> None:
    assert _source(adapter, flags=("--weights", "0.5")).trained is None
    assert _source(adapter, trained(*OTHER)).trained is None
    _change(adapter, "run.json", lambda run: run.update(status="running"))
    assert _source(adapter).trained is None


def test_max_memory() -> None:
    words = ("0=20GiB", "1=500MB", "cpu=30GiB")
    assert _loading("--max-memory", *words).max_memory == words


def test_offloading_cleans_up(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files for weights on disk are in one temporary folder, whatever the working directory, and go with it."""
    (tmp_path / "temporary").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "here")
    source = _source(trained(), flags=("--max-memory", "cpu=200KB"))
    with source.loaded() as (model, _):
        assert any(parameter.device.type == "meta" for parameter in model.parameters())
        assert os.listdir(tmp_path / "temporary")
        assert Path.cwd() == tmp_path / "here"
        on_disk = logits(model)
    assert os.listdir(tmp_path / "temporary") == os.listdir(tmp_path / "here") == []
    with _source(trained()).loaded() as (model, _):
        assert torch.equal(logits(model), on_disk)


def test_offloading_silences_only_what_is_known(trained: Trained) -> None:
    source = _source(trained(), flags=("--max-memory", "cpu=1GiB"))
    with source.loaded(), pytest.warns(UserWarning, match="something else"):
        warnings.warn("something else", stacklevel=1)
    assert logging.getLogger("accelerate").level == logging.NOTSET


def test_described(trained: Trained, chat_model: Path) -> None:
    found = _source(trained(), trained(*OTHER), flags=("--weights", "1", "-2")).described()
    assert found["adapters"] == [str(trained()), str(trained(*OTHER))]
    assert found["weights"] == [1, -2]
    assert len(set(found["adapter_fingerprints"])) == 2
    recorded = json.loads((trained() / "run.json").read_text())["fingerprints"]["model"]
    assert (found["model"], found["model_fingerprint"]) == (str(chat_model), recorded)
    assert json.loads(json.dumps(found)) == found
