"""``LLM.generate`` through MonoLoRA, LoRA and no adapter at once gives the log-probs that transformers gives."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.served import CONFIGS, Served
from tests.support.vllm_process import Adapter, Answer, Engine, RefusedError, largest_difference

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

TOLERANCE = 5e-5
PROMPTS = [[5, 9, 30, 22, 7, 50, 61, 3], [40, 4, 17], [8, 8, 33, 12, 60, 21, 11, 44, 19, 28, 56, 6]]

LONG = [3 + 7 * place % 60 for place in range(40)]  # more than a block: the next request finds it in the prefix cache


def _check(served: Served, names: Sequence[str | None], answers: Sequence[Answer]) -> None:
    """Every answer is that of the model it was asked from."""
    for name in dict.fromkeys(names):
        of_name = [answer for asked, answer in zip(names, answers, strict=True) if asked == name]
        assert largest_difference(of_name, served.models[name]) < TOLERANCE, name


def _ask(engine: Engine, served: Served, names: Sequence[str | None]) -> list[Answer]:
    prompts = [PROMPTS[number % len(PROMPTS)] for number in range(len(names))]
    return engine.generate(prompts, [served.adapter(name) for name in names])


@pytest.mark.parametrize("name", [None, *CONFIGS])
def test_alone(engine: Engine, served: Served, name: str | None) -> None:
    """A batch of one kind only, the base's too, in an engine that has adapters."""
    names = [name] * 4
    _check(served, names, _ask(engine, served, names))


@pytest.mark.parametrize(
    "kinds",
    [
        (None, "mono"),
        (None, "lora"),
        (None, "vocabulary"),
        ("mono", "lora"),
        (None, "mono", "lora"),
        (None, "patterns", "identity"),
    ],
)
def test_mixed_batch(engine: Engine, served: Served, kinds: tuple[str | None, ...]) -> None:
    """No more kinds than slots: all prompts are in every batch together, as prefill and while they are decoded."""
    names = list(kinds) * 3
    random.Random(len(kinds)).shuffle(names)
    _check(served, names, _ask(engine, served, names))


def test_more_adapters_than_slots(engine: Engine, served: Served) -> None:
    """They take turns: a slot that was LoRA's is MonoLoRA's next, and back."""
    names = [None, *CONFIGS] * 3
    random.Random(7).shuffle(names)
    _check(served, names, _ask(engine, served, names))


def test_kinds_differ(engine: Engine, served: Served) -> None:
    """The adapters would be told apart: through each, the tokens of another have other log-probs."""
    answers = engine.generate(PROMPTS, [served.adapters["mono"]] * 3)
    for name in (None, "patterns", "identity", "lora"):
        assert largest_difference(answers, served.models[name]) > 100 * TOLERANCE, name


def test_replaced_in_place(engine: Engine, served: Served) -> None:
    """The same number and slot, first of a LoRA and then of a MonoLoRA adapter: the activation changes too."""
    for kind in ("lora", "mono", "lora"):
        adapter = Adapter("replaced", 90, served.adapters[kind].path, load_inplace=True)
        answers = engine.generate(PROMPTS, [adapter] * len(PROMPTS))
        assert largest_difference(answers, served.models[kind]) < TOLERANCE, kind


@pytest.mark.parametrize("length", [3, None])
@pytest.mark.parametrize("names", [("vocabulary",) * 3, (None, "vocabulary", "mono"), (None, "mono", "lora")])
def test_log_probs_of_prompts(
    engine: Engine, served: Served, names: tuple[str | None, ...], length: int | None
) -> None:
    """Their rows are tokens, as many as there are requests or not; vLLM's for one that samples are requests."""
    prompts = [[*prompt, 9][:length] for prompt in PROMPTS] * 2
    _check(served, names * 2, engine.score(prompts, [served.adapter(name) for name in names * 2]))
    _check(served, names, _ask(engine, served, names))


def test_weights_are_reloaded(engine: Engine, served: Served) -> None:
    """The base's; adapters are then read again."""
    names = (None, "mono", "lora")
    before = _ask(engine, served, names)
    engine.run("llm.collective_rpc('reload_weights')\nllm.reset_prefix_cache()\n")
    assert _ask(engine, served, names) == before


def _check_refused(engine: Engine, adapter: Adapter, says: str) -> None:
    with pytest.raises(RefusedError, match=says):
        engine.generate(PROMPTS[:1], [adapter])
    with pytest.raises(RefusedError, match=says):
        engine.add(adapter)


CHANGES = [("lora", "mono"), ("mono", "lora"), ("mono", "patterns"), ("identity", "mono")]


@pytest.mark.parametrize("is_link", [False, True])
@pytest.mark.parametrize(("before", "after"), CHANGES, ids=["-".join(kinds) for kinds in CHANGES])
def test_other_content_under_the_same_path(
    engine: Engine, served: Served, tmp_path: Path, before: str, after: str, is_link: bool
) -> None:
    """vLLM keeps prefixes by name and path: those of the adapter before would answer."""
    folder = tmp_path / "adapter"

    def put(kind: str) -> None:
        if is_link:
            folder.unlink(missing_ok=True)
            folder.symlink_to(served.adapters[kind].path)
        else:
            shutil.copytree(served.adapters[kind].path, folder, dirs_exist_ok=True)

    put(before)
    adapter = Adapter(str(tmp_path), 70 + CHANGES.index((before, after)) + 10 * is_link, str(folder), load_inplace=True)
    assert largest_difference(engine.generate([LONG], [adapter]), served.models[before]) < TOLERANCE
    put(after)
    _check_refused(engine, adapter, "does not hold the files that were loaded from there.*from another folder")
    other = Adapter(adapter.name, adapter.number, served.adapters[after].path, load_inplace=True)
    engine.add(other)
    assert largest_difference(engine.generate([LONG], [other]), served.models[after]) < TOLERANCE


def test_adapters_that_are_added_and_removed(engine: Engine, served: Served) -> None:
    """``LLMEngine.add_lora`` and ``remove_lora``: who answers under a name and a number is as they say."""

    def of(kind: str, load_inplace: bool = False) -> Adapter:
        return Adapter("added", 60, served.adapters[kind].path, load_inplace)

    def check(adapter: Adapter, kind: str) -> None:
        assert largest_difference(engine.generate(PROMPTS, [adapter] * 3), served.models[kind]) < TOLERANCE

    engine.add(of("mono"))
    check(of("mono"), "mono")
    _check_refused(engine, of("patterns"), "a name and a number of its own")
    for kind in ("lora", "patterns"):
        engine.add(of(kind, load_inplace=True))
        check(of(kind), kind)
    engine.remove(60)
    engine.add(of("identity"))
    check(of("identity"), "identity")
    with pytest.raises(RefusedError, match="There is no adapter at /nowhere"):
        engine.add(Adapter("nowhere", 61, "/nowhere"))


@pytest.mark.parametrize(
    ("name", "number", "content"),
    [("mono", 2, "mono"), ("other", 1, "lora"), ("mono", 1, "patterns"), ("lora", 77, "mono")],
)
def test_one_name_one_number_one_content(engine: Engine, served: Served, name: str, number: int, content: str) -> None:
    """vLLM would answer through the adapter that it has under the number or the name."""
    engine.generate(PROMPTS[:1], [served.adapters["mono"]])
    engine.generate(PROMPTS[:1], [served.adapters["lora"]])
    with pytest.raises(RefusedError, match="a name and a number of its own"):
        engine.generate(PROMPTS[:1], [Adapter(name, number, served.adapters[content].path)])
    _check(served, ["mono"], engine.generate(PROMPTS[:1], [served.adapters["mono"]]))
