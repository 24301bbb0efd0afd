"""vLLM's OpenAI server answers base, LoRA and MonoLoRA at once as transformers does, and survives every bad adapter."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaForCausalLM

from monolora import MonoLoraConfig
from tests.support.damaged_adapters import CONFIG, WEIGHTS, change, configure, remove, truncate
from tests.support.requirements import NEEDS_VLLM
from tests.support.vllm_process import Answer, largest_difference
from tests.support.vllm_server import BASE, RefusedError, Server, ServerEndedError

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    NEEDS_VLLM,
]

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
}
TOLERANCE = 5e-5
DISTINCT = 0.01
# Fewer slots than adapters: they take turns, and a worker reads the files of one again whenever it is its turn.
FLAGS = ("--max-loras", "2", "--max-cpu-loras", "2", "--max-lora-rank", "8", "--block-size", "32")
PROMPTS = [[5, 9, 30, 22, 7, 50, 61, 3], [40, 4, 17], [8, 8, 33, 12, 60, 21, 11, 44, 19, 28, 56, 6]]
LONG = [3 + 7 * place % 60 for place in range(40)]  # more than a block: the next request finds it in the prefix cache
STARTED = ("mono", "lora")  # served from the start
CONFIGS: dict[str, LoraConfig] = {
    "mono": MonoLoraConfig(r=8, target_modules=["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]),
    "lora": LoraConfig(r=8, target_modules=["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]),
    "late": MonoLoraConfig(r=4, target_modules=["q_proj", "down_proj"]),
}


class Tiny(NamedTuple):
    """What is served.

    Attributes:
        folders: the base's checkpoint and the adapters, by the name they are served under.
        models: transformers' versions.
    """

    folders: dict[str, Path]
    models: dict[str, nn.Module]


@pytest.fixture(scope="module")
def tiny(
    make_llama: Callable[..., LlamaForCausalLM],
    fill: Callable[..., nn.Module],
    tmp_path_factory: pytest.TempPathFactory,
) -> Tiny:
    """A tiny Llama and its adapters, with noise in A and B."""
    root = tmp_path_factory.mktemp("server")
    tiny = Tiny({BASE: root / "tiny-llama"}, {BASE: make_llama(**SIZES)})
    tiny.models[BASE].save_pretrained(tiny.folders[BASE])
    for seed, (name, config) in enumerate(CONFIGS.items(), start=1):
        tiny.folders[name] = root / name
        tiny.models[name] = _save(LlamaForCausalLM.from_pretrained(tiny.folders[BASE]), config, fill, root / name, seed)
    return tiny


def _save(
    model: nn.Module, config: LoraConfig, fill: Callable[..., nn.Module], folder: Path, seed: int = 1
) -> nn.Module:
    adapted = get_peft_model(model, config)
    fill(adapted, seed)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return adapted.eval()


@pytest.fixture(scope="module")
def unlucky(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a bad adapter among those that it is to start with; it is starting."""
    folder = _copy(tiny.folders["late"], tmp_path_factory.mktemp("unlucky") / "late")
    truncate()(folder)
    with Server(tiny.folders[BASE], {"mono": tiny.folders["mono"], "unlucky": folder}, *FLAGS) as starting:
        yield starting


@pytest.fixture(scope="module")
def found_by_name(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server looks for adapters that nobody has loaded."""
    return tmp_path_factory.mktemp("found_by_name")


@pytest.fixture(scope="module")
def server(tiny: Tiny, unlucky: Server, found_by_name: Path) -> Iterator[Server]:
    """The server of all tests but one. The unlucky one starts beside it, which takes less time than after it."""
    adapters = {name: tiny.folders[name] for name in STARTED}
    environment = {"VLLM_LORA_RESOLVER_CACHE_DIR": str(found_by_name)}
    with Server(tiny.folders[BASE], adapters, *FLAGS, environment=environment) as started:
        started.await_start()
        assert len(started.processes()) > 1  # its workers, which have to go with it
        yield started
    assert not started.processes()


@pytest.fixture(scope="module")
def answered(server: Server) -> dict[str, list[Answer]]:
    """What the models that are served from the start answer, one request at a time."""
    return _ask_witnesses(server)


def _ask_witnesses(server: Server) -> dict[str, list[Answer]]:
    return {name: [server.complete(name, prompt) for prompt in PROMPTS[:2]] for name in (BASE, *STARTED)}


@pytest.fixture
def _unharmed(server: Server, answered: dict[str, list[Answer]]) -> Iterator[None]:
    """After the test the server is up, has the adapters it had, and they answer to the bit as before."""
    served = server.models()
    yield
    assert server.is_healthy()
    assert _ask_witnesses(server) == answered
    assert server.models() == served


def _ask_at_once(server: Server, names: Sequence[str], tokens: int = 8) -> list[Answer]:
    """A request for each name, all together; the prompts take turns."""
    prompts = itertools.cycle(PROMPTS)
    with ThreadPoolExecutor(len(names)) as users:
        with server.held(len(names)):
            answers = users.map(lambda name, prompt: server.complete(name, prompt, tokens), names, prompts)
        return list(answers)


def _check(tiny: Tiny, names: Sequence[str], answers: Sequence[Answer]) -> None:
    """Every answer is that of the model it was asked from, and of no other."""
    for name in dict.fromkeys(names):
        of_name = [answer for asked, answer in zip(names, answers, strict=True) if asked == name]
        for other, model in tiny.models.items():
            difference = largest_difference(of_name, model)
            assert difference < TOLERANCE if other == name else difference > DISTINCT, (name, other)


def _copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


@pytest.mark.usefixtures("_unharmed")
def test_base_lora_and_monolora_at_once(server: Server, tiny: Tiny) -> None:
    """In the same batches: one kind after the other would take a batch for every token of each kind."""
    names, tokens = [BASE, *STARTED] * 4, 120
    before = server.steps()
    answers = _ask_at_once(server, names, tokens)
    steps = server.steps() - before
    _check(tiny, names, answers)
    assert tokens <= steps < 1.5 * tokens


@pytest.mark.usefixtures("_unharmed")
def test_adapter_of_runtime(server: Server, tiny: Tiny) -> None:
    """More adapters than slots by now; an adapter comes, answers beside the others, goes, and can come again."""
    for _ in range(2):
        with pytest.raises(RefusedError, match=r"404: .*`late` does not exist"):
            server.complete("late", PROMPTS[0])
        server.load("late", tiny.folders["late"])
        assert server.models() == {name: str(tiny.folders[name]) for name in (BASE, *STARTED, "late")}
        names = [BASE, *STARTED, "late"] * 3
        _check(tiny, names, _ask_at_once(server, names))
        server.unload("late")


@pytest.mark.usefixtures("_unharmed")
def test_several_prompts_with_their_log_probs(server: Server, tiny: Tiny) -> None:
    """Of one request, and of several at once: rows of a prompt's log-probs are tokens, not requests."""
    for name in (BASE, *STARTED):
        assert largest_difference(server.echo(name, PROMPTS[:2]), tiny.models[name]) < TOLERANCE
    names = [BASE, *STARTED] * 2
    with ThreadPoolExecutor(len(names)) as users:
        with server.held(len(names)):
            answers = users.map(lambda name: server.echo(name, PROMPTS), names)
        _check(tiny, [name for name in names for _ in PROMPTS], [answer for row in answers for answer in row])


@pytest.mark.usefixtures("_unharmed")
@pytest.mark.parametrize("kind", ["late", "lora"])
def test_found_by_name(server: Server, tiny: Tiny, found_by_name: Path, kind: str) -> None:
    """A request for a folder of VLLM_LORA_RESOLVER_CACHE_DIR loads it, if it is an adapter of this base."""
    name, other, damaged = f"found-{kind}", f"other-{kind}", f"damaged-{kind}"
    for folder in (name, other, damaged):
        _copy(tiny.folders[kind], found_by_name / folder)
    configure(base_model_name_or_path="some/other")(found_by_name / other)
    truncate()(found_by_name / damaged)
    assert largest_difference([server.complete(name, LONG)], tiny.models[kind]) < TOLERANCE
    try:
        assert server.models()[name] == str(found_by_name / name)
        with pytest.raises(RefusedError, match=rf"404: .*`{other}` does not exist"):
            server.complete(other, LONG)
        with pytest.raises(RefusedError, match=rf"400: .*'{damaged}' was found but could not be loaded"):
            server.complete(damaged, LONG)
    finally:
        server.unload(name)


@pytest.mark.usefixtures("_unharmed")
def test_name_that_is_taken(server: Server, tiny: Tiny) -> None:
    with pytest.raises(RefusedError, match=r"400: .*'mono' has already been loaded.*'load_inplace' to True"):
        server.load("mono", tiny.folders["late"])
    with pytest.raises(RefusedError, match=r"400: .*'base' conflicts with a served base model"):
        server.load(BASE, tiny.folders["late"])


@pytest.mark.usefixtures("_unharmed")
def test_name_that_changes_hands(server: Server, tiny: Tiny) -> None:
    """With ``load_inplace`` the new adapter answers, of either kind, and no prefix that the former had computed."""
    server.load("heir", tiny.folders["late"])
    try:
        for holder in ("late", "lora", "mono", "late"):
            server.load("heir", tiny.folders[holder], load_inplace=True)
            for _ in range(2):
                assert largest_difference([server.complete("heir", LONG)], tiny.models[holder]) < TOLERANCE
    finally:
        server.unload("heir")


@pytest.mark.usefixtures("_unharmed")
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize(("before", "after"), [("late", "mono"), ("lora", "mono"), ("mono", "lora")])
def test_other_content_under_the_same_path(
    server: Server, tiny: Tiny, tmp_path: Path, in_place: bool, before: str, after: str
) -> None:
    """vLLM has prefixes in its cache that the former content computed, and knows them by name and path."""
    name, folder = f"changed-{in_place}-{before}-{after}", _copy(tiny.folders[before], tmp_path / "changed")
    server.load(name, folder)
    try:
        assert largest_difference([server.complete(name, LONG)], tiny.models[before]) < TOLERANCE
        shutil.copytree(tiny.folders[after], folder, dirs_exist_ok=True)
        with pytest.raises(RefusedError, match=rf"400: .*'{name}'.* not hold the files .* from another folder"):
            server.complete(name, LONG)
        if not in_place:
            server.unload(name)
        with pytest.raises(RefusedError, match=rf"'{name}'.* not hold the files .* from another folder"):
            server.load(name, folder, load_inplace=in_place)
        if not in_place:
            server.load(name, _copy(folder, tmp_path / "another"))
            assert largest_difference([server.complete(name, LONG)], tiny.models[after]) < TOLERANCE
    finally:
        server.unload(name)


class Bad(NamedTuple):
    """An adapter that cannot be served.

    Attributes:
        write: makes it, given what is served, a place for it, and the fixtures that make and fill models.
        message: a pattern that the refusal has: what is wrong, and the fix.
        status: HTTP's; vLLM gives 500 to all that a worker refuses.
    """

    write: Callable[[Tiny, Path, Callable[..., Any], Callable[..., Any]], Any]
    message: str
    status: int = 500


def _spoilt(spoil: Callable[[Path], Any], start: str = "late") -> Callable[..., Any]:
    """A copy of a good adapter, changed."""

    def write(tiny: Tiny, folder: Path, *_: Any) -> None:
        spoil(_copy(tiny.folders[start], folder))

    return write


def _of(sizes: dict[str, Any] | None = None, **config: Any) -> Callable[..., Any]:
    """A whole adapter of another config, or of another base."""

    def write(tiny: Tiny, folder: Path, make_llama: Callable[..., Any], fill: Callable[..., Any]) -> None:
        settings = {"r": 4, "target_modules": ["q_proj", "down_proj"]} | config
        _save(make_llama(**SIZES | (sizes or {})), MonoLoraConfig(**settings), fill, folder)

    return write


Q = "base_model.model.model.layers.1.self_attn.q_proj.monolora_"
EXACT = ".*merge ADAPTER OUT --method exact"
BAD = {
    "truncated": Bad(_spoilt(truncate()), "truncated or not a safetensors.*again"),
    "half a config": Bad(_spoilt(truncate(CONFIG)), "is damaged: .*Copy it again"),
    "no folder": Bad(lambda *_: None, "No adapter found for", 404),
    "no config": Bad(_spoilt(remove(CONFIG)), "No adapter found for", 404),
    "no weights": Bad(_spoilt(remove(WEIGHTS)), f"{WEIGHTS} is missing. Copy the whole"),
    "wider base": Bad(_of({"hidden_size": 128}), r"_proj.monolora_B has shape \(128, 4\).* needs \(64, 4\)"),
    # Stock vLLM copies what is too small into a larger buffer, and says nothing.
    "narrower base": Bad(_of({"hidden_size": 32}), r"_proj.monolora_B has shape \(32, 4\).* needs \(64, 4\)"),
    "deeper base": Bad(_of({"num_hidden_layers": 4}), "units for model.layers.2.*which vLLM does not adapt"),
    "shallower base": Bad(_of({"num_hidden_layers": 1}), "lacks tensor model.layers.1."),
    "rank": Bad(_of(r=9), "has rank 9, .* started for 8.*--max-lora-rank 16 "),
    "rank of one module": Bad(_of(rank_pattern={"q_proj": 17}), "has rank 17, .* started for 8.*--max-lora-rank 32 "),
    "LoRA called MonoLoRA": Bad(
        _spoilt(configure(peft_type="MONOLORA"), "lora"),
        r"lora_A.* belongs to a plain LoRA adapter, but .* says MONOLORA.*Set peft_type to LORA",
    ),
    "MonoLoRA called LoRA": Bad(
        _spoilt(configure(peft_type="LORA")),
        "monolora_A.* belongs to a MonoLoRA adapter, but .* says LORA.*Set peft_type to MONOLORA",
    ),
    "saved modules": Bad(_of(modules_to_save=["lm_head"]), rf"modules_to_save=\['lm_head'\]{EXACT}"),
    "NaN": Bad(
        _spoilt(change(lambda tensors: tensors[f"{Q}B.weight"][0].fill_(torch.nan))),
        "layers.1.self_attn.q_proj.monolora_B' has NaN or infinite values",
    ),
    "no A": Bad(
        _spoilt(change(lambda tensors: tensors.pop(f"{Q}A.weight"))), "lacks tensor .*layers.1.*q_proj.monolora_A"
    ),
    "no B": Bad(
        _spoilt(change(lambda tensors: tensors.pop(f"{Q}B.weight"))), "lacks tensor .*layers.1.*q_proj.monolora_B"
    ),
    "neither": Bad(
        _spoilt(change(lambda tensors: [tensors.pop(f"{Q}{which}.weight") for which in "AB"])),
        "lacks tensor .*layers.1.*q_proj.monolora_A",
    ),
}


@pytest.mark.usefixtures("_unharmed")
@pytest.mark.parametrize("case", BAD)
def test_bad_adapter(
    server: Server,
    tiny: Tiny,
    make_llama: Callable[..., LlamaForCausalLM],
    fill: Callable[..., nn.Module],
    tmp_path: Path,
    case: str,
) -> None:
    bad = BAD[case]
    bad.write(tiny, tmp_path / "bad", make_llama, fill)
    try:
        with pytest.raises(RefusedError, match=rf"\A{bad.status}: .*{bad.message}") as refused:
            server.load("bad", tmp_path / "bad")
        print(refused.value)
        assert "\n" not in refused.value.message
        with pytest.raises(RefusedError, match=r"404: .*`bad` does not exist"):
            server.complete("bad", PROMPTS[0])
    finally:
        if "bad" in server.models():
            server.unload("bad")


LATER: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (truncate(), "truncated or not a safetensors.*again"),
    "deleted": (shutil.rmtree, "does not hold the files that were loaded"),
    "misshapen": (
        change(lambda tensors: tensors.update({f"{Q}A.weight": torch.zeros(4, 32)})),
        "does not hold the files that were loaded",
    ),
}


@pytest.mark.usefixtures("_unharmed")
@pytest.mark.parametrize("case", LATER)
def test_spoilt_after_it_was_loaded(server: Server, tiny: Tiny, tmp_path: Path, case: str) -> None:
    """Its requests are refused, though a worker may have it in memory still; with its files it is served again."""
    spoil, message = LATER[case]
    folder, name = _copy(tiny.folders["late"], tmp_path / "later"), f"later-{case}"
    server.load(name, folder)
    try:
        assert largest_difference([server.complete(name, LONG)], tiny.models["late"]) < TOLERANCE
        spoil(folder)
        for _ in range(2):
            with pytest.raises(RefusedError, match=rf"400: .*'{name}'.*{message}") as refused:
                server.complete(name, LONG)
            print(refused.value)
            _check(tiny, [BASE, *STARTED], _ask_at_once(server, [BASE, *STARTED]))  # they need both slots
        shutil.copytree(tiny.folders["late"], folder, dirs_exist_ok=True)
        assert largest_difference([server.complete(name, LONG)], tiny.models["late"]) < TOLERANCE
    finally:
        server.unload(name)


def test_bad_adapter_at_the_start(unlucky: Server) -> None:
    """The server ends, and says which adapter it was; one that started would leave its user without it."""
    with pytest.raises(ServerEndedError, match=r"\Aended with status 1:") as ended:
        unlucky.await_start()
    last_words = [line for line in str(ended.value).splitlines() if "ValueError" in line][-1]
    print(last_words)
    assert "'unlucky'" in last_words
    assert "truncated or not a safetensors file" in last_words
